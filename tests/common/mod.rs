//! What the kernel and network tests share: an emulator, an arena that starts as NaN, seeded inputs, and the tolerance
//! that sets itself.
#![allow(dead_code)] // every test file uses a part of it

use half::bf16;
use schnell::device::{AsyncCopies, Device, EmulatorOptions, HostBuffer, Order, StreamId, View};

pub const COMPUTE: StreamId = StreamId::Compute;

/// The emulator under the options that the environment asks for (`SCHNELL_EMU_SEED`: a random schedule).
pub fn emulator() -> Device {
    match std::env::var("SCHNELL_EMU_SEED").ok().and_then(|s| s.parse().ok()) {
        None => Device::emulator(EmulatorOptions::default()),
        Some(seed) => random_emulator(seed, 2),
    }
}

/// The emulator with everything that may be random made so by `seed`.
pub fn random_emulator(seed: u64, threads: usize) -> Device {
    let options = EmulatorOptions {
        threads,
        order: Order::Random,
        async_copies: AsyncCopies::Random,
        seed,
        ..Default::default()
    };
    Device::emulator(options)
}

/// The machine under test and its memory, bump-allocated and poisoned with NaN patterns.
pub struct Bench {
    pub device: Device,
    memory: std::sync::Arc<schnell::device::DeviceMemory>,
    next: std::cell::Cell<usize>,
}

impl Bench {
    pub fn new(device: Device) -> Self {
        Self::with_bytes(device, 64 << 20)
    }

    pub fn with_bytes(device: Device, bytes: usize) -> Self {
        let memory = device.allocate(bytes).unwrap();
        device.fill(COMPUTE, &memory.view::<u8>(0, bytes).unwrap(), 0xff).unwrap();
        Bench { device, memory, next: std::cell::Cell::new(0) }
    }

    /// `len` elements of NaN patterns, 256-byte aligned, with a poisoned gap behind.
    pub fn alloc<T>(&self, len: usize) -> View<T> {
        let at = self.next.get();
        let bytes = (len * size_of::<T>()).div_ceil(256) * 256 + 256;
        assert!(at + bytes <= self.memory.num_bytes(), "the test bench's memory is too small");
        self.next.set(at + bytes);
        self.memory.view(at, len).unwrap()
    }

    pub fn upload<T: bytemuck::NoUninit>(&self, data: &[T]) -> View<T> {
        let view = self.alloc::<T>(data.len().max(1));
        let view = view.slice(0, data.len()).unwrap();
        if !data.is_empty() {
            let bytes: &[u8] = bytemuck::cast_slice(data);
            let mut host = self.device.allocate_host(bytes.len()).unwrap();
            host.as_mut_slice().copy_from_slice(bytes);
            self.device.copy_to_device(COMPUTE, &view, &host, 0).unwrap();
            self.device.synchronize(COMPUTE).unwrap();
        }
        view
    }

    pub fn download<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self, view: &View<T>) -> Vec<T> {
        let mut host: HostBuffer = self.device.allocate_host(view.num_bytes().max(1)).unwrap();
        self.device.copy_to_host(COMPUTE, &mut host, 0, view).unwrap();
        self.device.synchronize(COMPUTE).unwrap();
        bytemuck::cast_slice(&host.as_slice()[..view.num_bytes()]).to_vec()
    }
}

/// splitmix64, so that a test's inputs are its seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn f32s(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.uniform() * scale).collect()
    }

    pub fn bf16s(&mut self, len: usize, scale: f32) -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f32(self.uniform() * scale)).collect()
    }
}

pub fn to_f32(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

pub fn round_bf16(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// ||got - want|| / ||want||, in f64.
pub fn rel_l2(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    let (mut err, mut norm) = (0f64, 0f64);
    for (g, w) in got.iter().zip(want) {
        err += (*g as f64 - *w as f64).powi(2);
        norm += (*w as f64).powi(2);
    }
    if norm == 0.0 { err.sqrt() } else { (err / norm).sqrt() }
}

pub fn max_abs(got: &[f32], want: &[f32]) -> f64 {
    got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).abs()).fold(0.0, f64::max)
}

/// The tolerance that sets itself: against the f32 oracle `want`, `got` may err at most twice as much as `plain`, the
/// same computation rounded to bf16 where a plain implementation would round. NaN and Inf must agree in place.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f32], plain: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    assert_eq!(plain.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.is_finite() == w.is_finite(), "{what}: element {i} is {g}, expected {w}");
    }
    let (error, allowed) = (rel_l2(got, want), 2.0 * rel_l2(plain, want));
    assert!(error <= allowed.max(1e-7), "{what}: relative L2 error {error:.3e}, allowed {allowed:.3e}");
    let (error, allowed) = (max_abs(got, want), 2.0 * max_abs(plain, want));
    let scale = want.iter().fold(0f32, |m, w| m.max(w.abs())) as f64;
    assert!(error <= allowed.max(1e-6 * scale), "{what}: max-abs error {error:.3e}, allowed {allowed:.3e}");
}

/// `x[m, k] . w[n, k]^T + bias[n]` in f32 by candle.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, [m, n, k]: [usize; 3]) -> Vec<f32> {
    use candle_core::{Device, Tensor};
    let x = Tensor::from_slice(x, (m, k), &Device::Cpu).unwrap();
    let w = Tensor::from_slice(w, (n, k), &Device::Cpu).unwrap();
    let mut y = x.matmul(&w.t().unwrap()).unwrap();
    if let Some(bias) = bias {
        y = y.broadcast_add(&Tensor::from_slice(bias, (1, n), &Device::Cpu).unwrap()).unwrap();
    }
    y.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| round_bf16(*v)).collect()
}

pub fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

pub fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + (-1.702 * x).exp())
}

pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// RMSNorm over `weight.len()` values, then RoPE of interleaved pairs.
pub fn norm_rope(x: &[f32], weight: &[f32], cos: &[f32], sin: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / x.len() as f64;
    let rms = 1.0 / (mean + eps as f64).sqrt();
    let y: Vec<f32> = x.iter().zip(weight).map(|(v, w)| (*v as f64 * rms * *w as f64) as f32).collect();
    let mut out = vec![0.0; y.len()];
    for p in 0..y.len() / 2 {
        out[2 * p] = y[2 * p] * cos[p] - y[2 * p + 1] * sin[p];
        out[2 * p + 1] = y[2 * p] * sin[p] + y[2 * p + 1] * cos[p];
    }
    out
}

/// Peak signal-to-noise ratio of 8-bit pictures, in dB.
pub fn psnr(got: &[u8], want: &[u8]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - f64::from(*w)).powi(2)).sum();
    10.0 * (255.0 * 255.0 / (sum / got.len() as f64)).log10()
}
