//! Emulator speed of the NF4 GEMM: `cargo bench --bench nf4_gemm`. GFLOP/s = elements per second of the report.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use schnell::device::{Device, EmulatorOptions, StreamId};
use schnell::kernels::gemm::{Activation, Epilogue, Problem};
use schnell::kernels::nf4_gemm::{Nf4Gemm, Nf4Weight};

fn emulator(c: &mut Criterion) {
    let mut group = c.benchmark_group("nf4_gemm emulator");
    let [m, n, k] = [1024, 512, 512];
    for threads in [1, 2] {
        let device = Device::emulator(EmulatorOptions { threads, ..Default::default() });
        let bytes = 2 * m * k + n * k / 2 + 4 * n * k / 64 + 2 * m * n + 4096;
        let memory = device.allocate(bytes).unwrap();
        device.fill(StreamId::Compute, &memory.view::<u8>(0, bytes).unwrap(), 0x3b).unwrap();
        let mut at = 0;
        let mut take = |bytes: usize| {
            let start = at;
            at += bytes.next_multiple_of(256);
            start
        };
        let x = memory.view::<bf16>(take(2 * m * k), m * k).unwrap();
        let codes = memory.view::<u8>(take(n * k / 2), n * k / 2).unwrap();
        let absmax = memory.view::<f32>(take(n * k / 16), n * k / 64).unwrap();
        let out = memory.view::<bf16>(take(2 * m * n), m * n).unwrap();
        let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::Store(&out));
        let problems = [(problem, Nf4Weight { codes: &codes, absmax: &absmax })];
        group.throughput(Throughput::Elements(problems[0].0.flops()));
        group.bench_function(BenchmarkId::new("threads", threads), |b| {
            b.iter(|| {
                Nf4Gemm { problems: black_box(&problems) }.launch(&device, StreamId::Compute).unwrap();
                device.synchronize(StreamId::Compute).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, emulator);
criterion_main!(benches);
