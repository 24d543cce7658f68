//! The primitives of `kernels/gpu.cuh` on the emulator, against expectations written down from the PTX ISA alone.

mod common;
use common::*;
use half::{bf16, f16};
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order};
use schnell::kernels::probe::Primitive;

/// Every way to run the emulator must give the same words.
fn machines() -> Vec<Device> {
    let one = |order, async_copies, seed| {
        Device::emulator(EmulatorOptions {
            threads: 2,
            order,
            async_copies,
            seed,
            ..EmulatorOptions::default()
        })
    };
    vec![
        one(Order::InOrder, AsyncCopies::Eager, 0),
        one(Order::InOrder, AsyncCopies::Lazy, 0),
        one(Order::Random, AsyncCopies::Random, 1),
        one(Order::Random, AsyncCopies::Random, 2),
    ]
}

#[track_caller]
fn check(primitive: Primitive, input: &[u32], want: &[u32]) {
    for device in machines() {
        assert_same(&format!("{primitive:?}"), &run(device, primitive, input), want);
    }
}

fn run(device: Device, primitive: Primitive, input: &[u32]) -> Vec<u32> {
    let bench = Bench::with_bytes(device, 4 << 20);
    let view = bench.upload(input);
    let output = bench.alloc::<u32>(primitive.num_outputs(input.len()));
    primitive.launch(&bench.device, COMPUTE, &view, &output).unwrap();
    bench.download(&output)
}

fn random_words(primitive: Primitive, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..primitive.num_inputs().unwrap()).map(|_| rng.bits() as u32).collect()
}

#[test]
fn params_arrive_field_by_field() {
    let want = [
        0xfaf9_f8f8, // -0x0102030405060708, low word, then high
        0xfefd_fcfb,
        0xf5f6_f7f8,
        0xf1f2_f3f4,
        0xeede_cebf,
        0xe1d1_c1b1,
        (-1234.5f32).to_bits(),
        71,
        0xffff_ffb8,
        73,
        0xfebf_3f81, // i16 -321 above bf16 0x3f81
        0xabcd_9d9c, // u16, i8 -99, u8
    ];
    check(Primitive::Echo, &[], &want);
}

#[test]
fn indices_barriers_and_atomics() {
    let (nx, ny, nz) = (3u32, 2, 2);
    // The output starts as 0xffffffff, to which every thread adds its number.
    let mut want = vec![(nx * ny * nz * (64 * 65 / 2)).wrapping_sub(1)];
    for z in 0..nz {
        for y in 0..ny {
            for x in 0..nx {
                for t in 0..64 {
                    want.extend([t, t % 32, t / 32, x, y, z, nx, (t + 33) % 64 * 7 + x]);
                }
            }
        }
    }
    check(Primitive::Index, &[], &want);
}

#[test]
fn who_counts_last_sees_what_all_have_written() {
    let num = 12u32;
    // The output starts as 0xffffffff, which the first count makes 0.
    let mut want = vec![num - 1];
    want.extend((0..num).flat_map(|cta| (0..64).map(move |t| cta * 1000 + t)));
    want.extend((0..64).map(|t| num * (num - 1) / 2 * 1000 + num * t));
    check(Primitive::Count, &[], &want);
}

#[test]
fn shuffles_and_warp_reductions() {
    let mut rng = Rng(3);
    let words: Vec<u32> = (0..64).map(|_| rng.bits() as u32).collect();
    let floats = rng.f32s(64, 100.0);
    let input: Vec<u32> = words.iter().copied().chain(floats.iter().map(|f| f.to_bits())).collect();
    let group = |t: usize, lanes: usize| t / lanes * lanes..t / lanes * lanes + lanes;
    // The sum's tree: pairs at distance LANES / 2 first. Both partners add the same two numbers.
    fn sum(floats: &[f32], t: usize, lanes: usize) -> f32 {
        let mut values = floats.to_vec();
        let mut mask = lanes / 2;
        while mask > 0 {
            values = (0..64).map(|l| values[l] + values[l ^ mask]).collect();
            mask /= 2;
        }
        values[t]
    }
    let mut want = Vec::new();
    for t in 0..64 {
        for mask in [0, 1, 2, 3, 4, 8, 16, 31] {
            want.extend([words[t ^ mask], floats[t ^ mask].to_bits()]);
        }
        want.extend([sum(&floats, t, 32).to_bits(), sum(&floats, t, 4).to_bits()]);
        for lanes in [32, 8] {
            let max = floats[group(t, lanes)].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            want.push(max.to_bits());
        }
        want.push(words[t / 32 * 32 + 31 - t % 32]);
    }
    check(Primitive::Warp, &input, &want);
}

#[test]
fn async_copies_fill_the_rest_of_their_bytes_with_zeros_and_touch_no_more() {
    let input = random_words(Primitive::CpAsync, 4);
    let source: &[u8] = bytemuck::cast_slice(&input);
    let cases = [4usize, 8, 16].into_iter().flat_map(|bytes| (0..=bytes).map(move |valid| (bytes, valid)));
    let cases = cases.chain([(16, 0), (16, 16)]);
    let mut want = vec![];
    for (case, (bytes, valid)) in cases.enumerate() {
        for t in 0..64 {
            let mut slot = [0xa5u8; 16];
            slot[..bytes].fill(0);
            let from = (case * 64 + (t + 1) % 64) * 16;
            slot[..valid].copy_from_slice(&source[from..from + valid]);
            want.extend(bytemuck::cast::<[u8; 16], [u32; 4]>(slot));
        }
    }
    check(Primitive::CpAsync, &input, &want);
}

#[test]
fn rings_of_async_copies_deliver_each_group_in_time() {
    let input = random_words(Primitive::Pipeline, 5);
    let mut want = Vec::new();
    for _ring in 0..4 {
        for group in 0..10 {
            for t in 0..64 {
                let from = (group * 64 + (t + 1) % 64) * 4;
                want.extend_from_slice(&input[from..from + 4]);
            }
        }
    }
    check(Primitive::Pipeline, &input, &want);
}

/// PTX ISA, ldmatrix: thread 8 i + r gives row r of matrix i; thread T receives of each matrix the elements at row
/// T / 4, columns 2 (T % 4) and the next; with .trans, of the transposed matrix.
#[test]
fn ldmatrix_distributes_rows() {
    let input = random_words(Primitive::LdMatrix, 6);
    let halves: &[u16] = bytemuck::cast_slice(&input);
    let element = |tile: usize, matrix: usize, row: usize, column: usize| {
        let stored = tile * 32 + (5 * (8 * matrix + row) + tile) % 32;
        halves[stored * 8 + column] as u32
    };
    let mut want = Vec::new();
    for t in 0..64 {
        let (lane, trans) = (t % 32, t >= 32);
        for tile in 0..3 {
            for matrix in 0..4 {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let at = |r, c| if trans { element(tile, matrix, c, r) } else { element(tile, matrix, r, c) };
                want.push(at(row, column) | at(row, column + 1) << 16);
            }
        }
    }
    check(Primitive::LdMatrix, &input, &want);
}

/// PTX ISA, fragments of mma.m16n8k16 with bf16: (row, k) of element `i` of A, (k, column) of B, (row, column) of C.
fn a_place(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    let k = in_group * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
    (row, k)
}
fn b_place(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (in_group * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)
}
fn c_place(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, in_group * 2 + (i & 1))
}

#[test]
fn mma_multiplies_what_the_fragments_say() {
    for (mt, nt) in [(1, 1), (1, 3), (2, 4), (4, 8)] {
        let primitive = Primitive::Mma(mt, nt);
        let mut rng = Rng(7);
        // Whole numbers that bf16 holds: products and sums are exact, whatever order a machine adds them in.
        let mut integer = |limit: i64| (rng.bits() % (2 * limit as u64 + 1)) as i64 - limit;
        let steps = 2;
        let (mut input, mut want) = (Vec::new(), Vec::new());
        for _warp in 0..2 {
            let a: Vec<Vec<i64>> =
                (0..16 * mt).map(|_| (0..16 * steps).map(|_| integer(255)).collect()).collect();
            let b: Vec<Vec<i64>> =
                (0..16 * steps).map(|_| (0..8 * nt).map(|_| integer(255)).collect()).collect();
            let c: Vec<Vec<i64>> =
                (0..16 * mt).map(|_| (0..8 * nt).map(|_| integer(9999)).collect()).collect();
            let pair = |lo: i64, hi: i64| {
                let bits = |v: i64| bf16::from_f32(v as f32).to_bits() as u32;
                bits(lo) | bits(hi) << 16
            };
            for step in 0..steps {
                for (m, register, lane) in each(mt, 4) {
                    let at = |i: usize| {
                        let (row, k) = a_place(lane, i);
                        a[16 * m + row][16 * step + k]
                    };
                    input.push(pair(at(2 * register), at(2 * register + 1)));
                }
            }
            for step in 0..steps {
                for (n, register, lane) in each(nt, 2) {
                    let at = |i: usize| {
                        let (k, column) = b_place(lane, i);
                        b[16 * step + k][8 * n + column]
                    };
                    input.push(pair(at(2 * register), at(2 * register + 1)));
                }
            }
            for (tile, i, lane) in each(mt * nt, 4) {
                let (row, column) = c_place(lane, i);
                let (row, column) = (16 * (tile / nt) + row, 8 * (tile % nt) + column);
                input.push((c[row][column] as f32).to_bits());
                let sum: i64 = (0..16 * steps).map(|k| a[row][k] * b[k][column]).sum();
                let sum = sum + c[row][column];
                assert!(sum.abs() < 1 << 24, "exact in f32");
                want.push((sum as f32).to_bits());
            }
        }
        assert_eq!(Some(input.len()), primitive.num_inputs());
        check(primitive, &input, &want);
    }
}

/// The same in fp16, whose sums are whole numbers up to 2,048 here and so exact; and one that is not.
#[test]
fn mma_half_multiplies_and_rounds_each_step_to_fp16() {
    for (mt, nt) in [(1, 8), (2, 3)] {
        let primitive = Primitive::MmaHalf(mt, nt);
        let mut rng = Rng(9);
        let mut integer = |limit: i64| (rng.bits() % (2 * limit as u64 + 1)) as i64 - limit;
        let pair = |lo: f32, hi: f32| {
            f16::from_f32(lo).to_bits() as u32 | (f16::from_f32(hi).to_bits() as u32) << 16
        };
        let steps = 2;
        let (mut input, mut want) = (Vec::new(), Vec::new());
        for _warp in 0..2 {
            let mut matrix = |rows: usize, columns: usize, limit| -> Vec<Vec<i64>> {
                (0..rows).map(|_| (0..columns).map(|_| integer(limit)).collect()).collect()
            };
            let (mut a, b) = (matrix(16 * mt, 16 * steps, 7), matrix(16 * steps, 8 * nt, 7));
            let c = matrix(16 * mt, 8 * nt, 400);
            // A sum of 2,049 after the first step is 2,048 in fp16, and with 1 more after the second still: not 2,050.
            let is_rounded = |row: usize| row == 1;
            a[1].fill(0);
            let mut operands = |num: usize, registers, at: &dyn Fn(usize, usize, usize, usize) -> i64| {
                for step in 0..steps {
                    for (tile, register, lane) in each(num, registers) {
                        let value = |i: usize| at(tile, step, lane, 2 * register + i) as f32;
                        input.push(pair(value(0), value(1)));
                    }
                }
            };
            operands(mt, 4, &|tile, step, lane, i| {
                let (row, k) = a_place(lane, i);
                match is_rounded(16 * tile + row) {
                    true => (k == 0) as i64,
                    false => a[16 * tile + row][16 * step + k],
                }
            });
            operands(nt, 2, &|tile, step, lane, i| {
                let (k, column) = b_place(lane, i);
                if k == 0 { 1 } else { b[16 * step + k][8 * tile + column] }
            });
            let sums = |from_zero: bool| -> Vec<u32> {
                let value = |tile: usize, lane: usize, i: usize| {
                    let (row, column) = c_place(lane, i);
                    let (row, column) = (16 * (tile / nt) + row, 8 * (tile % nt) + column);
                    if is_rounded(row) {
                        return if from_zero { 1.0 } else { 2048.0 };
                    }
                    let last = if from_zero { 16 } else { 16 * steps };
                    let products = (0..last).map(|k| a[row][k] * if k % 16 == 0 { 1 } else { b[k][column] });
                    let sum = products.sum::<i64>() + if from_zero { 0 } else { c[row][column] };
                    assert!(sum.abs() <= 2048, "exact in fp16");
                    sum as f32
                };
                each(mt * nt, 2)
                    .map(|(tile, register, lane)| {
                        pair(value(tile, lane, 2 * register), value(tile, lane, 2 * register + 1))
                    })
                    .collect()
            };
            for (tile, register, lane) in each(mt * nt, 2) {
                let at = |i: usize| {
                    let (row, column) = c_place(lane, 2 * register + i);
                    let row = 16 * (tile / nt) + row;
                    if is_rounded(row) { 2048.0 } else { c[row][8 * (tile % nt) + column] as f32 }
                };
                input.push(pair(at(0), at(1)));
            }
            want.extend(sums(false));
            want.extend(sums(true));
        }
        assert_eq!(Some(input.len()), primitive.num_inputs());
        check(primitive, &input, &want);
    }
}

/// (tile, register, lane), lanes fastest: the order of the probe's words.
fn each(num_tiles: usize, num_registers: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..num_tiles * num_registers * 32).map(move |i| (i / 32 / num_registers, i / 32 % num_registers, i % 32))
}

fn gelu_erf(x: f64) -> f64 {
    let x = candle_core::Tensor::new(&[x], &candle_core::Device::Cpu).unwrap();
    x.gelu_erf().unwrap().to_vec1::<f64>().unwrap()[0]
}

/// Words of `pack_half2`, `half_lo`, `half_hi`, `permute_bytes`.
fn halves_and_bytes_are_right(words: &[u32], [x, y, z]: [f32; 3]) {
    let half_bits = |f: f32| if f.is_nan() { 0x7fff } else { f16::from_f32(f).to_bits() as u32 };
    assert_eq!(words[0], half_bits(x) | half_bits(y) << 16, "pack_half2({x:e}, {y:e})");
    for (word, half) in [(words[1], x.to_bits() as u16), (words[2], (x.to_bits() >> 16) as u16)] {
        let (got, want) = (f32::from_bits(word), f16::from_bits(half).to_f32());
        assert!(
            got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
            "fp16 {half:#x}: {word:#x}"
        );
    }
    let bytes = [x.to_bits().to_le_bytes(), y.to_bits().to_le_bytes()].concat();
    let selected = |nibble: u32| match (bytes[(nibble & 7) as usize], nibble & 8) {
        (byte, 0) => byte,
        (byte, _) => ((byte as i8) >> 7) as u8,
    };
    let want = u32::from_le_bytes(std::array::from_fn(|i| selected(z.to_bits() >> (4 * i) & 15)));
    assert_eq!(words[3], want, "bytes of {:#x} and {:#x} by {:#x}", x.to_bits(), y.to_bits(), z.to_bits());
}

#[test]
fn arithmetic_is_ieee_where_it_says_exact() {
    let mut rng = Rng(8);
    let mut x =
        vec![0.0f32, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e-40, -1e-40, 3e38, f32::MAX, f32::MIN_POSITIVE];
    x.extend([
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0xffc0_1234),
        f32::from_bits(0x7f80_0001),
    ]);
    // Ties of the rounding to bf16, to even and to odd neighbors, and what rounds to infinity.
    x.extend(
        [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x7f7f_8000, 0xff7f_ffff].map(f32::from_bits),
    );
    x.extend(rng.f32s(200, 20.0));
    x.extend((0..200).map(|_| f32::from_bits(rng.bits() as u32)));
    let n = x.len();
    let y: Vec<f32> = x.iter().cycle().skip(7).take(n).copied().collect();
    let z: Vec<f32> = x.iter().cycle().skip(19).take(n).copied().collect();
    let input: Vec<u32> = [&x, &y, &z].into_iter().flatten().map(|f| f.to_bits()).collect();
    let got = run(emulator(), Primitive::Math, &input);
    // A NaN is a NaN: its payload is the machine's own.
    let same = |got: u32, want: f32| {
        f32::from_bits(got).to_bits() == want.to_bits() || (f32::from_bits(got).is_nan() && want.is_nan())
    };
    let bf16_bits = |f: f32| if f.is_nan() { 0x7fff } else { bf16::from_f32(f).to_bits() as u32 };
    for i in 0..n {
        let (x, y, z, words) = (x[i], y[i], z[i], &got[i * 24..i * 24 + 24]);
        let u = x.to_bits();
        for (k, want) in [
            (0, x * y),
            (1, x + y),
            (2, x.mul_add(y, z)),
            (3, 1.0 / x),
            (4, 1.0 / x.sqrt()),
            (5, x.round_ties_even()),
            (8, f32::from_bits(u << 16)),
            (9, f32::from_bits(u << 16)),
            (10, f32::from_bits(u & 0xffff_0000)),
        ] {
            assert!(
                same(words[k], want),
                "word {k} of x = {x:e}, y = {y:e}, z = {z:e}: {:#010x}, expected {want:e}",
                words[k]
            );
        }
        assert_eq!(words[6], bf16_bits(x) | bf16_bits(y) << 16, "pack({x:e}, {y:e})");
        assert_eq!(words[7], bf16_bits(x), "bf16 of {x:e}");
        assert!(same(words[11], x));
        halves_and_bytes_are_right(&words[12..16], [x, y, z]);
        let d = x as f64;
        for (k, want) in [
            (16, d.exp2()),
            (17, d.exp()),
            (18, d.tanh()),
            (19, d / (1.0 + (-d).exp())),
            (20, d / (1.0 + (-1.702 * d).exp())),
            (21, 0.5 * d * (1.0 + (0.797_884_560_802_865_4 * (d + 0.044715 * d * d * d)).tanh())),
            (22, gelu_erf(d)),
            (23, d / (1.0 + (-(y as f64)).exp())),
        ] {
            if d.abs() > 20.0 || want.is_nan() {
                continue; // the formulas overflow on their way, each in its own place
            }
            let error = (f32::from_bits(words[k]) as f64 - want).abs();
            assert!(
                error <= 1e-6 * want.abs().max(1.0),
                "word {k} of {x:e}: {} for {want}",
                f32::from_bits(words[k])
            );
        }
    }
}
