//! A number of bytes as `--budget` takes it, a device, and a plan held against the budget.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use schnell::{ModelFolder, Plan, Quantize, Shape};

#[allow(dead_code)]
#[path = "../../src/bin/schnell/options.rs"]
mod options;

static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let config = ModelFolder::demo().unwrap().config().unwrap();
    Plan::new(&config, Shape::square(32).steps(1).t5_length(1), Quantize::Nf4).unwrap()
});

fuzz_target!(|text: &str| {
    let _ = text.parse::<options::DeviceOption>();
    let Ok(bytes) = options::parse_bytes(text) else { return };
    assert!((1..=1_000_000_000_000_000).contains(&bytes));
    match PLAN.clone().within(bytes) {
        Ok(plan) => assert!(bytes >= plan.arena_bytes() && plan.arena_bytes() <= PLAN.arena_bytes()),
        Err(error) => assert_eq!(error.exit_code(), 4),
    }
});
