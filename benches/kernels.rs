//! The kernels that pictures spend their time in, each verified and then timed alone: `cargo bench --bench kernels`. On a GPU at the
//! shapes of FLUX.1-schnell, by events on the device and with operands in no cache; elsewhere on the emulator, at small shapes.
//! FLOP/s = elements per second of the report.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use schnell::check::bench::shapes;
use schnell::device::Device;

fn kernels(c: &mut Criterion) {
    let (device, machine) = match Device::cuda(0) {
        Ok(device) => (device, "cuda"),
        Err(_) => (Device::emulator(Default::default()), "emulator"),
    };
    let mut group = c.benchmark_group(machine);
    for subject in shapes(&device) {
        let ready = subject.prepare(&device).unwrap_or_else(|error| panic!("{subject}: {error}"));
        ready.warm_up().unwrap();
        group.throughput(match subject.flops() {
            0.0 => Throughput::Bytes(subject.bytes() as u64),
            flops => Throughput::Elements(flops as u64),
        });
        group.bench_function(subject.to_string(), |b| {
            b.iter_custom(|launches| {
                let ms: f64 = (0..launches).map(|_| ready.time_ms().unwrap()).sum();
                Duration::from_secs_f64(ms / 1e3)
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = kernels
}
criterion_main!(benches);
