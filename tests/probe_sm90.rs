//! The primitives of `kernels/gpu_sm90.cuh` on the emulator, against expectations written down from the PTX ISA alone; and
//! that the emulator says what is wrong with a kernel that misuses them.

mod common;
use common::*;
use half::bf16;
use schnell::Error;
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order};
use schnell::kernels::probe_sm90::{Fault, Part};

fn device(order: Order, async_copies: AsyncCopies, seed: u64) -> Device {
    Device::emulator(EmulatorOptions { threads: 1, order, async_copies, seed, arch: 90 })
}

const MODES: [AsyncCopies; 3] = [AsyncCopies::Eager, AsyncCopies::Lazy, AsyncCopies::Random];

/// Every way to run the emulator must give the same words.
fn machines() -> impl Iterator<Item = Device> {
    let in_order = MODES.into_iter().map(|mode| device(Order::InOrder, mode, 0));
    let random = (1..=4).flat_map(|seed| MODES.map(|mode| device(Order::Random, mode, seed)));
    in_order.chain(random)
}

#[track_caller]
fn check(part: Part, input: &[u32], want: &[u32]) {
    for device in machines() {
        let got = run(device, part, input);
        assert_eq!(got.len(), want.len(), "{part:?}");
        if let Some(i) = (0..want.len()).find(|&i| got[i] != want[i]) {
            panic!("{part:?}: word {i} is {:#010x}, expected {:#010x}", got[i], want[i]);
        }
    }
}

fn run(device: Device, part: Part, input: &[u32]) -> Vec<u32> {
    let bench = Bench::with_bytes(device, 2 << 20);
    let view = bench.upload(input);
    let output = bench.alloc::<u32>(part.num_outputs());
    part.launch(&bench.device, COMPUTE, &view, &output).unwrap();
    bench.download(&output)
}

fn words_of<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u32> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn barriers_hold_phase_after_phase() {
    let part = Part::Barriers;
    let mut rng = Rng(1);
    let input: Vec<u32> = (0..part.num_inputs()).map(|_| rng.bits() as u32).collect();
    let mut want = Vec::new();
    for round in 0..5 {
        for t in 0..384 {
            want.push(input[(t + 129) % 384].wrapping_add(round));
            want.push(input[31 - t % 32].wrapping_mul(round + 3));
        }
    }
    check(part, &input, &want);
}

/// PTX ISA, "Tensors": what is outside is zero; "Swizzling Modes": with 128 bytes, the 16-byte chunk of a row of 128 bytes
/// is XORed with the row modulo 8.
#[test]
fn copies_fill_with_zeros_and_swizzle() {
    let (rows, pitch, box_rows) = (40i32, 224usize, 16);
    let mut rng = Rng(2);
    let matrix: Vec<u8> = (0..rows as usize * pitch).map(|_| rng.bits() as u8).collect();
    // Inside, across every edge, in a corner, far outside.
    let places = [(0, 0), (24, 16), (-8, -3), (88, 33), (7, -16), (-9, 5)];
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
    check(Part::Copies, &input, &want);
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

/// The words of a part: the second consumer's accumulators begin as register plus thread.
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
        let matrices = Matrices::new(n as u64, n, 320);
        let want = products(n, |row, column| matrices.product(row, column));
        check(Part::Shared(n), &matrices.words, &want);
    }
}

#[test]
fn products_of_operands_in_registers() {
    for n in [64, 128, 256] {
        let matrices = Matrices::new(n as u64 + 1, n, 320);
        let want = products(n, |row, column| matrices.product(row, column));
        check(Part::Registers(n), &matrices.words, &want);
    }
}

#[test]
fn products_of_operands_that_threads_have_stored() {
    let rounds = [3, 4].map(|seed| Matrices::new(seed, 64, 64));
    let words: Vec<u32> = rounds.iter().flat_map(|round| round.words.clone()).collect();
    let want = products(64, |row, column| rounds.iter().map(|round| round.product(row, column)).sum());
    check(Part::Stored, &words, &want);
}

/// More seeds for the shape that has the most schedules: a ring, two consumers, registers in flight.
#[test]
fn a_pipeline_gives_the_same_under_many_schedules() {
    let matrices = Matrices::new(5, 64, 320);
    for part in [Part::Shared(64), Part::Registers(64)] {
        let want = products(64, |row, column| matrices.product(row, column));
        for seed in 10..60 {
            let got = run(device(Order::Random, AsyncCopies::Random, seed), part, &matrices.words);
            assert!(got == want, "{part:?}, seed {seed}");
        }
    }
}

#[test]
fn machines_without_these_instructions_are_refused() {
    let bench = Bench::with_bytes(Device::emulator(EmulatorOptions::default()), 2 << 20);
    let view = bench.alloc::<u32>(1 << 17);
    for part in Part::ALL {
        let error = part.launch(&bench.device, COMPUTE, &view, &view).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("9.0")), "{error:?}");
    }
    assert!(Part::Shared(96).kernel().is_err());
}

// ------------------------------------------------------------------------------------------------ misuse

fn run_fault(fault: Fault, device: Device) -> Result<Vec<u32>, String> {
    let bench = Bench::with_bytes(device, 2 << 20);
    let (input, output) = (bench.upload(&[0x3f80_4000u32; 1 << 15]), bench.alloc::<u32>(Fault::NUM_OUTPUTS));
    fault.launch(&bench.device, &input, &output).unwrap();
    match bench.device.synchronize(COMPUTE) {
        Ok(()) => Ok(bench.download(&output)),
        Err(Error::Device { operation, reason, .. }) => {
            assert!(operation.contains("kernel probe_sm90_fault"), "{operation}");
            Err(reason)
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// The emulator says so whatever the mode, in both orders.
#[track_caller]
fn complaint(fault: Fault, must_contain: &[&str]) {
    for mode in MODES {
        for (order, seed) in [(Order::InOrder, 0), (Order::Random, 1), (Order::Random, 2)] {
            let reason = run_fault(fault, device(order, mode, seed))
                .expect_err(&format!("{fault:?} must show under {order:?}, {mode:?}"));
            for part in must_contain {
                assert!(reason.contains(part), "{fault:?}: no {part:?} in {reason:?}");
            }
        }
    }
}

/// `probe_sm90.cu:<line>` of the `nth` line that contains `call` after the one that contains `after`.
fn place(after: &str, call: &str) -> String {
    let lines: Vec<&str> = include_str!("../kernels/probe_sm90.cu").lines().collect();
    let start = lines.iter().position(|line| line.contains(after)).unwrap();
    let line = start + lines[start..].iter().position(|line| line.contains(call)).unwrap();
    format!("probe_sm90.cu:{}", line + 1)
}

#[test]
fn an_uninitialised_barrier_is_named() {
    let at = place("FAULT_UNINITIALISED)", "mbarrier_arrive");
    // In a random order another thread may have initialised it before the first arrives.
    for mode in MODES {
        let reason = run_fault(Fault::Uninitialised, device(Order::InOrder, mode, 0)).unwrap_err();
        for part in ["thread 0 at", &at, "no initialised mbarrier", "CTA [0, 0, 0]", "seed 0"] {
            assert!(reason.contains(part), "{reason}");
        }
    }
}

#[test]
fn a_barrier_must_be_fenced_before_a_copy_uses_it() {
    let init = place("GPU_FN void fault_of_barriers", "mbarrier_init");
    complaint(Fault::NoInitFence, &["initialised by thread 0", &init, "fence_mbarrier_init"]);
}

#[test]
fn too_many_arrivals_are_found() {
    let at = place("case PROBE_SM90_FAULT_OVER_ARRIVAL", "arrive_expect_tx");
    complaint(
        Fault::OverArrival,
        &["thread ", &at, "one arrival too many", "lacks 0 of 1 arrivals and 16 bytes"],
    );
    complaint(Fault::LateForAPhase, &["two phases", "count of 1"]);
}

#[test]
fn bytes_that_never_come_are_a_deadlock_that_names_who_waits_where() {
    let at = place("case PROBE_SM90_FAULT_TOO_MANY_BYTES", "mbarrier_wait");
    let state = "phase 0 lacks 0 of 1 arrivals and 16 bytes";
    complaint(Fault::TooManyBytesExpected, &["deadlock", "384 threads (0..=383)", &at, "parity 0", state]);
}

#[test]
fn bytes_that_nobody_announced_are_found() {
    complaint(Fault::TooFewBytesExpected, &["16 bytes more than announced"]);
}

#[test]
fn copies_are_checked_before_they_touch_memory() {
    complaint(Fault::FarCopy, &["outside the memory of this launch", "thread 0"]);
    complaint(Fault::MisalignedCopy, &["shared memory + 128", "no multiple of 1024"]);
}

#[test]
fn a_missing_wait_for_a_copy_shows_when_copies_are_late() {
    let read = |mode| run_fault(Fault::NoCopyWait, device(Order::InOrder, mode, 0)).unwrap()[0];
    assert_eq!(read(AsyncCopies::Eager), 0x3f80_4000, "correct on a lucky day");
    assert_eq!(read(AsyncCopies::Lazy), u32::MAX);
}

#[test]
fn a_copy_that_outlives_its_cta_is_found() {
    let at = place("case PROBE_SM90_FAULT_COPY_LEFT", "bulk_load");
    let reason = run_fault(Fault::CopyLeft, device(Order::InOrder, AsyncCopies::Lazy, 0)).unwrap_err();
    assert!(reason.contains("in flight") && reason.contains(&at), "{reason}");
}

#[test]
fn a_stage_released_before_its_products_are_over_is_found() {
    let copy = place("GPU_FN void fault_of_products", "FAULT_EARLY_RELEASE &&");
    let product = place("GPU_FN void fault_of_products", "FAULT_BAD_DESCRIPTOR");
    complaint(Fault::EarlyRelease, &["thread 0 at", &copy, "wgmma in flight at", &product]);
}

#[test]
fn stores_without_a_proxy_fence_are_not_for_the_engine() {
    complaint(Fault::NoProxyFence, &["fence_proxy_async", "B: wgmma reads shared memory + "]);
}

/// A fence speaks for what happened before it. In order, thread 0's comes before all other threads' stores; at random, it
/// does unless thread 0 happens to be last.
#[test]
fn one_threads_proxy_fence_does_not_cover_the_others() {
    complaint(Fault::OneProxyFence, &["fence_proxy_async"]);
}

#[test]
fn registers_must_be_named_in_a_fence_after_they_were_written() {
    complaint(Fault::NoWgmmaFence, &["no wgmma_fence has named"]);
    let fence = place("GPU_FN void fault_of_products", "wgmma_fence(acc, a_registers)");
    complaint(Fault::LateWrite, &["register 3 was written after the wgmma_fence", &fence]);
}

#[test]
fn accumulators_read_before_the_wait_are_nan() {
    for mode in MODES {
        let words = run_fault(Fault::NoWgmmaWait, device(Order::InOrder, mode, 0)).unwrap();
        assert!(words.iter().all(|&word| f32::from_bits(word).is_nan()), "{mode:?}");
    }
}

#[test]
fn registers_touched_before_the_wait_are_found() {
    complaint(Fault::AccTouched, &["touched register 5 of 32"]);
    complaint(Fault::ATouched, &["touched register 2 of 4"]);
}

/// What is not committed is not waited for: its registers stay the engine's.
#[test]
fn products_left_in_flight_are_found() {
    let product = place("GPU_FN void fault_of_products", "FAULT_BAD_DESCRIPTOR");
    complaint(Fault::NoCommit, &["returned while its warpgroup", &product, "in flight"]);
    complaint(Fault::ReturnInFlight, &["returned while its warpgroup", &product, "in flight"]);
}

#[test]
fn a_warpgroup_multiplies_together() {
    let one = place("FAULT_DIVERGENT && t % 128", "wgmma_m64k16<N>(acc, a, b, false)");
    let other = place("GPU_FN void fault_of_products", "FAULT_BAD_DESCRIPTOR");
    complaint(Fault::Divergent, &["wgmma m64n64k16 while others of the warpgroup", &one, &other]);
}

#[test]
fn descriptors_that_the_emulator_does_not_know_are_refused() {
    complaint(Fault::BadDescriptor, &["B: descriptor 0x", "multiples of 1024"]);
}
