//! Emulator speed of the NF4 GEMM, its result checked first: `cargo bench --bench nf4_gemm`. GFLOP/s = elements per second of
//! the report.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use schnell::device::{Device, DeviceMemory, EmulatorOptions, StreamId, View};
use schnell::kernels::gemm::{Activation, Epilogue, Problem};
use schnell::kernels::nf4_gemm::{Nf4Gemm, Nf4Weight};
use schnell::kernels::nf4_quantize::{Nf4Layout, Nf4Quantize, Nf4Source};
use schnell::weights::nf4;

const SHAPE: [usize; 3] = [1024, 512, 512];
const COMPUTE: StreamId = StreamId::Compute;

/// Uniform in [-1, 1).
fn random(len: usize, mut state: u32) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

struct Arena<'a> {
    device: &'a Device,
    memory: std::sync::Arc<DeviceMemory>,
    next: usize,
}

impl Arena<'_> {
    fn alloc<T>(&mut self, len: usize) -> View<T> {
        let at = self.next;
        self.next += (len * size_of::<T>()).next_multiple_of(256);
        self.memory.view(at, len).unwrap()
    }

    fn upload<T: bytemuck::NoUninit>(&mut self, data: &[T]) -> View<T> {
        let (view, bytes) = (self.alloc(data.len()), bytemuck::cast_slice::<T, u8>(data));
        let mut host = self.device.allocate_host(bytes.len()).unwrap();
        host.as_mut_slice().copy_from_slice(bytes);
        self.device.copy_to_device(COMPUTE, &view, &host, 0).unwrap();
        self.device.synchronize(COMPUTE).unwrap();
        view
    }
}

/// The first and the last row of `out` against a plain loop.
fn verify(device: &Device, out: &View<bf16>, x: &[bf16], weights: &[f32]) {
    let [m, n, k] = SHAPE;
    let mut host = device.allocate_host(2 * m * n).unwrap();
    device.copy_to_host(COMPUTE, &mut host, 0, out).unwrap();
    device.synchronize(COMPUTE).unwrap();
    let got: &[bf16] = bytemuck::cast_slice(host.as_slice());
    let w = nf4::quantize(weights).dequantize_bf16().unwrap();
    for row in [0, m - 1] {
        for column in 0..n {
            let pairs = x[row * k..][..k].iter().zip(&w[column * k..][..k]);
            let want: f64 = pairs.map(|(x, w)| x.to_f64() * w.to_f64()).sum();
            let got = got[row * n + column].to_f64();
            // One rounding to bf16, and what is left of sums that cancel.
            assert!((got - want).abs() <= want.abs() / 256.0 + 1e-4, "[{row}, {column}]: {got}, not {want}");
        }
    }
}

fn emulator(c: &mut Criterion) {
    let mut group = c.benchmark_group("nf4_gemm emulator");
    let [m, n, k] = SHAPE;
    let x_host: Vec<bf16> = random(m * k, 1).into_iter().map(bf16::from_f32).collect();
    let weights = random(n * k, 2);
    let layout = Nf4Layout::Fragments;
    for threads in [1, 2] {
        let device = Device::emulator(EmulatorOptions { threads, ..Default::default() });
        let memory = device.allocate(16 << 20).unwrap();
        let mut arena = Arena { device: &device, memory, next: 0 };
        let (x, src) = (arena.upload(&x_host), arena.upload(&weights));
        let codes = arena.alloc(layout.codes_len(n, k));
        let absmax = arena.alloc(layout.absmax_len(n, k));
        let (nonfinite, out) = (arena.upload(&[0u32]), arena.alloc(m * n));
        Nf4Quantize {
            src: Nf4Source::F32(&src),
            pitch: k,
            rows: n,
            k,
            first_row: 0,
            n,
            layout,
            codes: &codes,
            absmax: &absmax,
            nonfinite: &nonfinite,
        }
        .launch(&device, COMPUTE)
        .unwrap();
        let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::Store(&out));
        let problems = [(problem, Nf4Weight { codes: &codes, absmax: &absmax })];
        Nf4Gemm { problems: &problems, workspace: None }.launch(&device, COMPUTE).unwrap();
        verify(&device, &out, &x_host, &weights);
        group.throughput(Throughput::Elements(problems[0].0.flops()));
        group.bench_function(BenchmarkId::new("threads", threads), |b| {
            b.iter(|| {
                Nf4Gemm { problems: black_box(&problems), workspace: None }.launch(&device, COMPUTE).unwrap();
                device.synchronize(COMPUTE).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, emulator);
criterion_main!(benches);
