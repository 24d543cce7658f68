//! That the emulator says what is wrong with a kernel that misuses the primitives of `kernels/gpu_sm90.cuh`.

mod common;
use common::*;
use schnell::Error;
use schnell::device::{AsyncCopies, Device, Order};
use schnell::kernels::probe_sm90::Fault;

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
    for mode in ASYNC_COPIES {
        for (order, seed) in [(Order::InOrder, 0), (Order::Random, 1), (Order::Random, 2)] {
            let reason = run_fault(fault, hopper_emulator(order, mode, seed))
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
fn an_uninitialized_barrier_is_named() {
    let at = place("FAULT_UNINITIALIZED)", "mbarrier_arrive");
    // In a random order another thread may have initialized it before the first arrives.
    for mode in ASYNC_COPIES {
        let reason = run_fault(Fault::Uninitialized, hopper_emulator(Order::InOrder, mode, 0)).unwrap_err();
        for part in ["thread 0 at", &at, "no initialized mbarrier", "CTA [0, 0, 0]", "seed 0"] {
            assert!(reason.contains(part), "{reason}");
        }
    }
}

#[test]
fn a_barrier_must_be_fenced_before_a_copy_uses_it() {
    let init = place("GPU_FN void fault_of_barriers", "mbarrier_init");
    complaint(Fault::NoInitFence, &["initialized by thread 0", &init, "fence_mbarrier_init"]);
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
    complaint(Fault::MisalignedCopy, &["shared memory + 128", "not a multiple of 1024"]);
    complaint(Fault::MisalignedColumn, &["column 7", "byte 14", "not a multiple of 16"]);
}

#[test]
fn a_missing_wait_for_a_copy_shows_when_copies_are_late() {
    let read = |mode| run_fault(Fault::NoCopyWait, hopper_emulator(Order::InOrder, mode, 0)).unwrap()[0];
    assert_eq!(read(AsyncCopies::Eager), 0x3f80_4000, "correct on a lucky day");
    assert_eq!(read(AsyncCopies::Lazy), u32::MAX);
}

#[test]
fn a_copy_that_outlives_its_cta_is_found() {
    let at = place("case PROBE_SM90_FAULT_COPY_LEFT", "bulk_load");
    let reason =
        run_fault(Fault::CopyLeft, hopper_emulator(Order::InOrder, AsyncCopies::Lazy, 0)).unwrap_err();
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
    for mode in ASYNC_COPIES {
        let words = run_fault(Fault::NoWgmmaWait, hopper_emulator(Order::InOrder, mode, 0)).unwrap();
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
