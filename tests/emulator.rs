//! The emulator itself: that it says what is wrong with a kernel, and that it does not forgive what a GPU would not.

mod common;
use common::*;
use schnell::Error;
use schnell::device::emulator::is_sanitized;
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order, StreamId};
use schnell::kernels::probe::Fault;

fn device(order: Order, async_copies: AsyncCopies, seed: u64) -> Device {
    let options = EmulatorOptions { threads: 1, order, async_copies, seed, ..EmulatorOptions::default() };
    Device::emulator(EmulatorOptions { hang_seconds: 1, ..options })
}

/// What the emulator says of a fault, once per schedule; then that it still works.
#[track_caller]
fn complaint(fault: Fault, must_contain: &[&str]) {
    for (order, copies) in [(Order::InOrder, AsyncCopies::Eager), (Order::Random, AsyncCopies::Lazy)] {
        let bench = Bench::with_bytes(device(order, copies, 3), 1 << 20);
        let (input, output) = (bench.upload(&[1u32; 256]), bench.alloc::<u32>(256));
        fault.launch(&bench.device, 2, &input, &output).unwrap();
        let error = bench.device.synchronize(COMPUTE).expect_err("the fault must show");
        let Error::Device { device, operation, reason } = &error else { panic!("{error:?}") };
        assert_eq!(device, "emulator");
        assert!(operation.contains("kernel probe_fault_"), "{operation}");
        for part in must_contain {
            assert!(reason.contains(part), "{fault:?}: no {part:?} in {reason:?}");
        }
        // As on a GPU, the machine is lost; others are not.
        let lost = bench.device.synchronize(COMPUTE).unwrap_err();
        assert!(
            matches!(&lost, Error::Device { operation, .. } if operation.contains("kernel probe_fault_")),
            "{lost}"
        );
        let other = Bench::with_bytes(emulator(), 1 << 20);
        let view = other.upload(&[5u32; 8]);
        assert_eq!(other.download(&view), [5; 8]);
    }
}

/// `probe.cu:<line>` of the first line of `entry` that contains `call`: errors must point there.
fn place(entry: &str, call: &str) -> String {
    let source = include_str!("../kernels/probe.cu");
    let lines: Vec<&str> = source.lines().collect();
    let start = lines.iter().position(|line| line.contains(&format!("GPU_KERNEL({entry},"))).unwrap();
    let line = start + lines[start..].iter().position(|line| line.contains(call)).unwrap();
    format!("probe.cu:{}", line + 1)
}

#[test]
fn a_deadlock_names_who_waits_where() {
    let (cta, warp) = (place("probe_fault_deadlock", "sync_cta"), place("probe_fault_deadlock", "sync_warp"));
    complaint(Fault::Deadlock, &["CTA [", "deadlock", &cta, &warp, "(0..=63)", "(16..=31)"]);
}

#[test]
fn a_divergent_collective_names_thread_and_both_places() {
    let (one, two) = (place("probe_fault_divergent", "(1u, 1)"), place("probe_fault_divergent", "(2u, 1)"));
    complaint(Fault::Divergent, &["CTA [", "thread ", &one, &two]);
}

#[test]
fn an_early_exit_names_the_barrier() {
    let barrier = place("probe_fault_early_exit", "sync_cta");
    complaint(Fault::EarlyExit, &["CTA [", "thread 40 returned", &barrier]);
}

#[test]
fn wild_async_copies_name_thread_and_place() {
    let place_of = |entry| place(entry, "cp_async<16>");
    let far = place_of("probe_fault_far_source");
    complaint(Fault::FarSource, &["CTA [", "thread 5 ", &far, "outside the memory of this launch"]);
    let target = place_of("probe_fault_far_target");
    complaint(Fault::FarTarget, &["CTA [", "thread 6", &target, "outside shared memory"]);
    let misaligned = place_of("probe_fault_misaligned");
    complaint(Fault::Misaligned, &["CTA [", "thread ", &misaligned, "misaligned"]);
}

#[test]
fn crashes_name_thread_and_line() {
    // Reports these itself and ends the process.
    if is_sanitized() {
        return;
    }
    let store = place("probe_fault_wild_store", "p.output[");
    complaint(
        Fault::WildStore,
        &["CTA [", "thread 9 at ", &store, "far from the memory of this launch", "seed 3"],
    );
    let null = place("probe_fault_null", "*(const");
    complaint(Fault::Null, &["CTA [", "thread 33 at ", &null, "next to null"]);
    complaint(Fault::Divide, &["CTA [", "thread 3 at ", &place("probe_fault_divide", " / "), "by zero"]);
    complaint(Fault::LargeLocals, &["CTA [", "thread ", "probe.cu:", "bytes of locals"]);
}

#[test]
fn an_endless_loop_is_found_and_named() {
    // Beside a sanitizer it ends the process.
    if is_sanitized() {
        return;
    }
    let line = place("probe_fault_endless", "while");
    complaint(Fault::Endless, &["CTA [", "thread 2 at ", &line, "no progress"]);
}

#[test]
fn lazy_async_copies_leave_nan_until_waited_for() {
    let words = |copies| {
        let bench = Bench::with_bytes(device(Order::InOrder, copies, 0), 1 << 20);
        let input: Vec<u32> = (0..256).collect();
        let (input, output) = (bench.upload(&input), bench.alloc::<u32>(256));
        Fault::NoWait.launch(&bench.device, 1, &input, &output).unwrap();
        bench.download(&output)[..64].to_vec()
    };
    assert_eq!(words(AsyncCopies::Eager), (0..64).collect::<Vec<u32>>(), "the lucky day");
    assert!(words(AsyncCopies::Lazy).iter().all(|&word| f32::from_bits(word).is_nan()));
}

/// Copies on one stream, reads on the other; returns what was read.
fn across_streams(device: Device, with_event: bool) -> u8 {
    let memory = device.allocate(16).unwrap();
    let view = memory.view::<u8>(0, 16).unwrap();
    let mut host = device.allocate_host(16).unwrap();
    device.fill(StreamId::Copy, &view, 1).unwrap();
    device.synchronize(StreamId::Copy).unwrap();
    device.fill(StreamId::Copy, &view, 2).unwrap();
    if with_event {
        let event = device.create_event().unwrap();
        device.record(StreamId::Copy, &event).unwrap();
        device.wait(COMPUTE, &event).unwrap();
    }
    device.copy_to_host(COMPUTE, &mut host, 0, &view).unwrap();
    device.synchronize(COMPUTE).unwrap();
    host.as_slice()[0]
}

#[test]
fn a_missing_event_shows_and_an_event_orders() {
    assert_eq!(across_streams(emulator_in_order(), false), 1, "the copy stream runs as late as it may");
    assert_eq!(across_streams(emulator_in_order(), true), 2);
    let random =
        |seed, with_event| across_streams(device(Order::Random, AsyncCopies::Random, seed), with_event);
    assert!((0..32).any(|seed| random(seed, false) == 1), "some schedule must read too early");
    assert!((0..32).all(|seed| random(seed, true) == 2));
}

fn emulator_in_order() -> Device {
    device(Order::InOrder, AsyncCopies::Eager, 0)
}

#[test]
fn waiting_for_an_event_that_nobody_recorded_is_no_deadlock() {
    let device = emulator_in_order();
    let event = device.create_event().unwrap();
    device.wait(COMPUTE, &event).unwrap();
    device.synchronize(COMPUTE).unwrap();
    assert!(matches!(event.elapsed_ms_since(&event), Err(Error::Device { .. })));
    device.record(StreamId::Copy, &event).unwrap();
    device.synchronize_event(&event).unwrap();
    assert_eq!(event.elapsed_ms_since(&event).unwrap(), 0.0);
}

#[test]
fn a_random_schedule_replays_with_its_seed() {
    let last_writers = |seed| {
        let bench = Bench::with_bytes(device(Order::Random, AsyncCopies::Random, seed), 1 << 20);
        let (input, output) = (bench.upload(&[0u32; 256]), bench.alloc::<u32>(256));
        Fault::Race.launch(&bench.device, 20, &input, &output).unwrap();
        bench.download(&output)[..21].to_vec()
    };
    let runs: Vec<Vec<u32>> = (0..4).map(last_writers).collect();
    for (seed, run) in runs.iter().enumerate() {
        assert_eq!(*run, last_writers(seed as u64));
    }
    assert!(runs[1..].iter().any(|run| run[0] != runs[0][0]), "seeds order the CTAs differently");
    assert!(runs[1..].iter().any(|run| run[1..] != runs[0][1..]), "seeds order the threads differently");
}
