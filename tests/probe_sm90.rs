//! The primitives of `kernels/gpu_sm90.cuh` on the emulator, against expectations written down from the PTX ISA alone.

mod common;
use common::*;
use half::bf16;
use schnell::Error;
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order};
use schnell::kernels::probe_sm90::Primitive;

/// Every way to run the emulator must give the same words.
fn machines() -> impl Iterator<Item = Device> {
    let in_order = ASYNC_COPIES.into_iter().map(|mode| hopper_emulator(Order::InOrder, mode, 0));
    let random = (1..=4).flat_map(|seed| ASYNC_COPIES.map(|mode| hopper_emulator(Order::Random, mode, seed)));
    in_order.chain(random)
}

#[track_caller]
fn check(primitive: Primitive, input: &[u32], want: &[u32]) {
    for device in machines() {
        assert_same(&format!("{primitive:?}"), &run(device, primitive, input), want);
    }
}

fn run(device: Device, primitive: Primitive, input: &[u32]) -> Vec<u32> {
    let bench = Bench::with_bytes(device, 2 << 20);
    let view = bench.upload(input);
    let output = bench.alloc::<u32>(primitive.num_outputs());
    primitive.launch(&bench.device, COMPUTE, &view, &output).unwrap();
    bench.download(&output)
}

fn words_of<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u32> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn barriers_hold_phase_after_phase() {
    let primitive = Primitive::Barriers;
    let mut rng = Rng(1);
    let input: Vec<u32> = (0..primitive.num_inputs()).map(|_| rng.bits() as u32).collect();
    let mut want = Vec::new();
    for round in 0..5 {
        for t in 0..384 {
            want.push(input[(t + 129) % 384].wrapping_add(round));
            want.push(input[31 - t % 32].wrapping_mul(round + 3));
        }
    }
    check(primitive, &input, &want);
}

/// PTX ISA, "Tensors": what is outside is zero; "Swizzling Modes": with 128 bytes, the 16-byte chunk of a row of 128 bytes
/// is XORed with the row modulo 8.
#[test]
fn copies_fill_with_zeros_and_swizzle() {
    let (rows, pitch, box_rows) = (40i32, 224usize, 16);
    let mut rng = Rng(2);
    let matrix: Vec<u8> = (0..rows as usize * pitch).map(|_| rng.bits() as u8).collect();
    // Inside, across every edge, in a corner, above.
    let places = [(0, 0), (32, 16), (-16, -3), (96, 33), (16, -16), (-48, 5)];
    let mut input: Vec<u32> = words_of(&matrix);
    for (x, y) in places {
        input.extend([x as u32, y as u32]);
    }
    let mut want = Vec::new();
    for (element_bytes, width, swizzled) in [(2, 104, true), (2, 104, false), (1, 203, true), (1, 203, false)]
    {
        for (x, y) in places {
            let mut target = [0u8; 2048];
            for row in 0..box_rows {
                for byte in 0..128 {
                    let (y, at) = (y + row as i32, x * element_bytes + byte as i32);
                    let inside = (0..rows).contains(&y) && (0..width * element_bytes).contains(&at);
                    let chunk = if swizzled { (byte / 16) ^ (row % 8) } else { byte / 16 };
                    target[row * 128 + chunk * 16 + byte % 16] =
                        if inside { matrix[y as usize * pitch + at as usize] } else { 0 };
                }
            }
            want.extend(words_of(&target));
        }
    }
    for range in 0..3 {
        let mut target = [0xa5u8; 2048];
        let bytes = 16 << (3 * range);
        target[16 * range..16 * range + bytes].copy_from_slice(&matrix[32 * range..32 * range + bytes]);
        want.extend(words_of(&target));
    }
    check(Primitive::Copies, &input, &want);
}

/// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", accumulators: row and column of register `i` of thread `t`.
fn c_place(t: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (t / 32, t % 32);
    (16 * warp + (lane >> 2) + 8 * (i >> 1 & 1), 8 * (i / 4) + 2 * (lane % 4) + (i & 1))
}

/// CuTe writes the same as a layout: thread (4, 8, 4) with strides (128, 1, 16), value (2, 2, N / 8) with (64, 8, 512), in
/// a tile whose columns have 64 rows.
#[test]
fn the_accumulators_places_are_those_of_cute() {
    for t in 0..128 {
        for i in 0..128 {
            let thread = t % 4 * 128 + t / 4 % 8 + t / 32 * 16;
            let value = i % 2 * 64 + i / 2 % 2 * 8 + i / 4 * 512;
            let (row, column) = c_place(t, i);
            assert_eq!(row + 64 * column, thread + value);
        }
    }
}

/// bf16 integers whose products' sums are exact, so that the order of summation does not matter.
struct Matrices {
    a: Vec<i32>,
    b: Vec<i32>,
    words: Vec<u32>,
    k: usize,
}

impl Matrices {
    fn new(seed: u64, n: usize, k: usize) -> Matrices {
        let mut rng = Rng(seed);
        let mut numbers =
            |count: usize| -> Vec<i32> { (0..count).map(|_| (rng.bits() % 255) as i32 - 127).collect() };
        let (a, b) = (numbers(128 * k), numbers(n * k));
        let bf16s: Vec<bf16> = a.iter().chain(&b).map(|&v| bf16::from_f32(v as f32)).collect();
        Matrices { a, b, words: words_of(&bf16s), k }
    }

    fn product(&self, row: usize, column: usize) -> i32 {
        let k = self.k;
        (0..k).map(|i| self.a[row * k + i] * self.b[column * k + i]).sum()
    }
}

/// The words of a primitive: the second consumer's accumulators begin as register plus thread.
fn products(n: usize, value: impl Fn(usize, usize) -> i32) -> Vec<u32> {
    let mut want = Vec::new();
    for consumer in 0..2 {
        for i in 0..n / 2 {
            for t in 0..128 {
                let (row, column) = c_place(t, i);
                let before = if consumer == 1 { (i + t) as i32 } else { 0 };
                let sum = before + value(64 * consumer + row, column);
                assert!(sum.abs() < 1 << 24, "exact in f32");
                want.push((sum as f32).to_bits());
            }
        }
    }
    want
}

#[test]
fn products_of_copied_operands() {
    for n in [64, 128, 256] {
        let matrices = Matrices::new(n as u64, n, 384);
        let want = products(n, |row, column| matrices.product(row, column));
        check(Primitive::Shared(n), &matrices.words, &want);
    }
}

#[test]
fn products_of_operands_in_registers() {
    for n in [64, 128, 256] {
        let matrices = Matrices::new(n as u64 + 1, n, 384);
        let want = products(n, |row, column| matrices.product(row, column));
        check(Primitive::Registers(n), &matrices.words, &want);
    }
}

#[test]
fn products_of_operands_that_threads_have_stored() {
    let rounds = [3, 4].map(|seed| Matrices::new(seed, 64, 64));
    let words: Vec<u32> = rounds.iter().flat_map(|round| round.words.clone()).collect();
    let want = products(64, |row, column| rounds.iter().map(|round| round.product(row, column)).sum());
    check(Primitive::Stored, &words, &want);
}

/// More seeds for the shape that has the most schedules: a ring, two consumers, registers in flight.
#[test]
fn a_pipeline_gives_the_same_under_many_schedules() {
    let matrices = Matrices::new(5, 64, 384);
    for primitive in [Primitive::Shared(64), Primitive::Registers(64)] {
        let want = products(64, |row, column| matrices.product(row, column));
        for seed in 10..60 {
            let got =
                run(hopper_emulator(Order::Random, AsyncCopies::Random, seed), primitive, &matrices.words);
            assert!(got == want, "{primitive:?}, seed {seed}");
        }
    }
}

#[test]
fn machines_without_these_instructions_are_refused() {
    let bench = Bench::with_bytes(Device::emulator(EmulatorOptions::default()), 2 << 20);
    let view = bench.alloc::<u32>(1 << 17);
    for primitive in Primitive::ALL {
        let error = primitive.launch(&bench.device, COMPUTE, &view, &view).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("9.0")), "{error:?}");
    }
    assert!(Primitive::Shared(96).kernel().unwrap_err().to_string().contains("no entry for a width of 96"));
}
