//! What loading takes of the host: the pinned buffers, and little else. A binary of its own, since it looks at the process.

use schnell::config::{FluxConfig, PipelineConfig, T5Config};
use schnell::device::{Device, EmulatorOptions};
use schnell::pipeline::{Model, Pipeline, Plan, Quantize, Shape};

const MIB: u64 = 1 << 20;

fn of_status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A gigabyte of bf16 weights on a machine that counts launches instead of carrying them out. The emulator's device memory is
/// host memory, which it fills when it allocates it: none of the loader's.
#[test]
fn a_gigabyte_is_loaded_through_the_pinned_buffers_alone() {
    let schnell = PipelineConfig::schnell();
    let config = PipelineConfig {
        flux: FluxConfig { layers: 1, single_layers: 1, ..schnell.flux.clone() },
        t5: T5Config { layers: 1, ..schnell.t5.clone() },
        ..schnell
    };
    let demo = tempfile::tempdir().unwrap();
    schnell::demo::write(demo.path()).unwrap();
    let model = Model::generated(config, demo.path()).unwrap();
    let plan = Plan::new(model.config(), Shape::square(64), Quantize::Nf4).unwrap();
    let (transformer, t5) = plan.nf4_bytes();
    let weights = (transformer + t5) / 36 * 64 * 2;
    assert!(weights > 1 << 30, "{weights}");
    let ((pinned, _), on_device) = (plan.host_bytes(), plan.arena_bytes());
    let device = Device::emulator(EmulatorOptions { launches_nothing: true, ..EmulatorOptions::default() });
    // Forgets the peak so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = of_status("VmRSS:");
    let pipeline = Pipeline::builder(&model).with_plan(plan).device(&device).load().unwrap();
    let peak = of_status("VmHWM:") - before;
    println!("{} MiB, of which pinned {} and device {}", peak / MIB, pinned / MIB, on_device / MIB);
    assert!(
        peak <= pinned + on_device + 100 * MIB,
        "{peak} bytes at most; pinned {pinned}, device {on_device}"
    );
    drop(pipeline);
}
