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

/// Two gigabytes of bf16 weights on a machine that counts launches instead of carrying them out, loaded from where they come from,
/// then from the packed cache, then from there with most of them streamed. The emulator's device memory is host memory, which it
/// fills when it allocates it: none of the loader's. What is streamed stays pinned.
#[test]
fn two_gigabytes_are_loaded_through_the_pinned_buffers_alone() {
    let schnell = PipelineConfig::schnell();
    let config = PipelineConfig {
        flux: FluxConfig { layers: 2, single_layers: 3, ..schnell.flux.clone() },
        t5: T5Config { layers: 1, ..schnell.t5.clone() },
        ..schnell
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    schnell::demo::write(dir.path()).unwrap();
    let model = Model::generated(config, dir.path()).unwrap();
    let plan = Plan::new(model.config(), Shape::square(64), Quantize::Nf4).unwrap();
    let (transformer, t5) = plan.nf4_bytes();
    let weights = (transformer + t5) / 36 * 64 * 2;
    assert!(weights > 2_000_000_000, "{weights}");
    let streamed = plan.clone().within(plan.least_bytes().unwrap()).unwrap();
    let cache = dir.path().join("cache");
    for (what, plan, from_files) in
        [("from files", &plan, true), ("packed", &plan, false), ("streamed", &streamed, false)]
    {
        let ((staging, _), on_device) = (plan.host_bytes(), plan.arena_bytes());
        let stays = plan.traffic().pinned + on_device;
        let device =
            Device::emulator(EmulatorOptions { launches_nothing: true, ..EmulatorOptions::default() });
        let before_it = model.bytes_read();
        // Forgets the peak so far.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = of_status("VmRSS:");
        let builder = Pipeline::builder(&model).with_plan(plan.clone()).cache(&cache);
        let pipeline = builder.device(&device).load().unwrap();
        let peak = of_status("VmHWM:") - before;
        println!(
            "{what}: {} MiB, of which staging {} and what stays {}",
            peak / MIB,
            staging / MIB,
            stays / MIB
        );
        assert!(peak <= staging + stays + 100 * MIB, "{peak} bytes at most; {staging} staging, {stays} stay");
        assert_eq!(model.bytes_read() - before_it > weights, from_files, "{what}");
        drop(pipeline);
    }
}
