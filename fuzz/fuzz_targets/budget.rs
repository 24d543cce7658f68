//! A number of bytes as `--budget` takes it, a device, and a plan held against the budget.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use schnell::{PipelineConfig, Plan, Quantize, Shape};

#[allow(dead_code)]
#[path = "../../src/bin/schnell/options.rs"]
mod options;

static PLAN: LazyLock<Plan> =
    LazyLock::new(|| Plan::new(&PipelineConfig::schnell(), Shape::square(512), Quantize::Nf4).unwrap());

fuzz_target!(|text: &str| {
    let _ = text.parse::<options::DeviceOption>();
    let Ok(bytes) = options::parse_bytes(text) else { return };
    assert!((1..=1_000_000_000_000_000).contains(&bytes));
    match PLAN.check_budget(bytes).map_err(options::in_flags) {
        Ok(()) => assert!(bytes >= PLAN.arena_bytes()),
        Err(error) => assert_eq!(error.exit_code(), 4),
    }
});
