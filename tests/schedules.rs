//! Kernels do not depend on who runs first: every small case of `schnell::check`, under random orders of threads, warps
//! and CTAs and all completions of asynchronous copies, gives the bits of the orderly run.
//!
//! `SCHNELL_EMU_SEEDS=N`, or `M..N`, asks for so many seeds per case (24 otherwise; cases of kept weights share them, and those of
//! Hopper's GEMM),
//! `SCHNELL_EMU_SEED=N` for that one alone, as a failure says. `scripts/sanitize` runs the same cases on instrumented kernels.

mod common;

use std::collections::BTreeSet;
use std::ops::Range;

use common::{env_number, is_sanitized};
use schnell::check::{Case, Fill, Output, Values, cases};
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order};
use schnell::kernels;

const MODES: [AsyncCopies; 3] = [AsyncCopies::Random, AsyncCopies::Lazy, AsyncCopies::Eager];

/// A test per kernel: `name` takes the cases whose names begin so, and with no longer one of these names.
macro_rules! tests {
    ($($name:ident)*) => {
        const TESTS: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { under_every_schedule(stringify!($name)) })*
    };
}

tests! {
    attention bf16_gemm conv2d count_nonfinite euler_step gemv group_norm_silu head_norm_rope kept_gemm kept_gemv
    next_step nf4_gemm nf4_gemm_sm90 nf4_half_gemm nf4_quantize norms probe probe_sm90 scale_rows select_row to_rgb unpack_latents
}

fn small_cases(test: &str) -> impl Iterator<Item = Case> {
    cases().into_iter().filter(move |case| case.small && test_of(case) == Some(test))
}

fn test_of(case: &Case) -> Option<&'static str> {
    TESTS.iter().copied().filter(|test| case.name.starts_with(test)).max_by_key(|test| test.len())
}

fn under_every_schedule(test: &str) {
    let one = env_number("SCHNELL_EMU_SEED");
    let seeds = one.map_or_else(asked_for, |seed| seed..seed + 1);
    let cases: Vec<Case> = small_cases(test).collect();
    // Kernels of kept weights are one template with other constants: their cases share the seeds. So do those of Hopper's GEMM, whose
    // CTAs have three times the threads.
    let shared = test.starts_with("kept_") || test == "nf4_gemm_sm90";
    let share = if shared { cases.len() as u64 } else { 1 };
    for (i, case) in (0..).zip(cases) {
        let orderly = run(&case, EmulatorOptions { threads: 1, ..EmulatorOptions::default() });
        for async_copies in MODES.into_iter().filter(|_| one.is_none()) {
            let options = EmulatorOptions { threads: 2, async_copies, ..EmulatorOptions::default() };
            assert_same(&case, &orderly, &run(&case, options), options);
        }
        for seed in seeds.clone().filter(|seed| one.is_some() || seed % share == i % share) {
            let async_copies = MODES[(seed / share % 3) as usize];
            let options = EmulatorOptions {
                threads: 2,
                order: Order::Random,
                async_copies,
                seed,
                ..EmulatorOptions::default()
            };
            assert_same(&case, &orderly, &run(&case, options), options);
        }
    }
}

fn asked_for() -> Range<u64> {
    let Ok(text) = std::env::var("SCHNELL_EMU_SEEDS") else { return 0..24 };
    let (first, end) = text.split_once("..").unwrap_or(("0", &text));
    match (first.parse(), end.parse()) {
        (Ok(first), Ok(end)) => first..end,
        _ => panic!("SCHNELL_EMU_SEEDS={text}: expected N or M..N"),
    }
}

/// On an emulator that poses as a machine with what the case needs.
fn run(case: &Case, options: EmulatorOptions) -> Vec<Output> {
    let mut device = Device::emulator(options);
    if !case.runs_on(&device) {
        device = Device::emulator(EmulatorOptions { arch: 90, ..options });
    }
    let outputs = case.run(&device, Fill::Nan);
    outputs.unwrap_or_else(|e| panic!("{case:?} under {options:?}: {e}"))
}

fn assert_same(case: &Case, orderly: &[Output], got: &[Output], options: EmulatorOptions) {
    let names = |outputs: &[Output]| outputs.iter().map(|output| output.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(orderly), names(got), "{case:?}: outputs");
    for (want, got) in orderly.iter().zip(got) {
        let (want_bits, got_bits) = (bits(want), bits(got));
        assert_eq!(want_bits.len(), got_bits.len(), "{case:?}, {}", want.name);
        if let Some(at) = (0..want_bits.len()).find(|&i| want_bits[i] != got_bits[i]) {
            panic!(
                "{case:?}, {}: element {at} is {:#x} under {options:?}, {:#x} in order; \
                 SCHNELL_EMU_SEED={} replays it",
                want.name, got_bits[at], want_bits[at], options.seed
            );
        }
    }
}

fn bits(output: &Output) -> Vec<u32> {
    match &output.values {
        Values::Bytes(bytes) => bytes.iter().map(|b| u32::from(*b)).collect(),
        Values::Close { values, .. } | Values::Ulps { values, .. } => {
            values.iter().map(|v| v.to_bits()).collect()
        }
    }
}

#[test]
fn every_entry_point_has_a_small_case_and_every_case_a_test() {
    // Each case has run by itself then, and all of them in one process take minutes.
    if is_sanitized() {
        return;
    }
    let [ampere, hopper] =
        [80, 90].map(|arch| Device::emulator(EmulatorOptions { arch, ..EmulatorOptions::default() }));
    for case in cases().iter().filter(|case| case.small) {
        assert!(test_of(case).is_some(), "{case:?}");
        case.run(if case.runs_on(&ampere) { &ampere } else { &hopper }, Fill::Nan).unwrap();
    }
    let launched = BTreeSet::from_iter([ampere.launched(), hopper.launched()].concat());
    let all = kernels::all().iter().map(|kernel| kernel.name()).collect();
    assert_eq!(launched, all);
    // A pipeline readies all of its kernels on any GPU, but for those that Hopper has in place of others.
    for kernel in kernels::of_pipelines().filter(|kernel| !kernel.stem().ends_with("_sm90")) {
        assert!(
            ampere.launched().contains(&kernel.name()),
            "{kernel:?} needs more than compute capability 8.0"
        );
    }
}
