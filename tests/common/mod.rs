//! What the kernel and network tests share: an emulator, an arena that starts as NaN, seeded inputs, and the tolerance
//! that sets itself.
#![allow(dead_code, unused_imports)] // every test file uses a part of it

use half::bf16;
use schnell::device::emulator::accesses::records_accesses;
pub use schnell::device::emulator::is_sanitized;
use schnell::device::{AsyncCopies, Device, EmulatorOptions, HostBuffer, Order, StreamId, View};

mod rng;
pub use rng::Rng;

pub const COMPUTE: StreamId = StreamId::Compute;

/// The emulator under the options that the environment asks for (`SCHNELL_EMU_SEED`: a random schedule).
pub fn emulator() -> Device {
    emulator_of(80)
}

/// The same, posing as a machine of this architecture.
pub fn emulator_of(arch: u32) -> Device {
    let options = EmulatorOptions { arch, track_writers: records_accesses(), ..EmulatorOptions::default() };
    match env_number("SCHNELL_EMU_SEED") {
        None => Device::emulator(options),
        Some(seed) => {
            let (order, async_copies) = (Order::Random, AsyncCopies::Random);
            Device::emulator(EmulatorOptions { threads: 2, order, async_copies, seed, ..options })
        }
    }
}

/// The bundled model, and the folder that it is in.
pub fn demo() -> (tempfile::TempDir, schnell::Model) {
    let dir = tempfile::tempdir().unwrap();
    schnell::demo::write(dir.path()).unwrap();
    let model = schnell::Model::open(dir.path()).unwrap();
    (dir, model)
}

/// The one file in `folder`, in which there is nothing else.
pub fn only_file(folder: &std::path::Path) -> std::path::PathBuf {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// Another for every file that had the path.
pub fn identity(path: &std::path::Path) -> (u64, i64) {
    use std::os::unix::fs::MetadataExt;
    let found = path.metadata().unwrap();
    (found.ino(), found.mtime_nsec())
}

pub fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
}

/// The emulator with everything that may be random made so by `seed`.
pub fn random_emulator(seed: u64, threads: usize) -> Device {
    let options = EmulatorOptions {
        threads,
        order: Order::Random,
        async_copies: AsyncCopies::Random,
        seed,
        track_writers: records_accesses(),
        ..EmulatorOptions::default()
    };
    Device::emulator(options)
}

/// Seeds of random schedules, whose bits are compared. Under a sanitizer one is enough: it sees what orders two accesses, whatever order
/// they had, and `tests/schedules.rs` has seeds of its own.
pub fn seeds(num: u64) -> std::ops::Range<u64> {
    0..if is_sanitized() { 1 } else { num }
}

/// An emulator that poses as a Hopper.
pub fn hopper_emulator(order: Order, async_copies: AsyncCopies, seed: u64) -> Device {
    Device::emulator(EmulatorOptions {
        threads: 1,
        order,
        async_copies,
        seed,
        arch: 90,
        ..EmulatorOptions::default()
    })
}

pub const ASYNC_COPIES: [AsyncCopies; 3] = [AsyncCopies::Eager, AsyncCopies::Lazy, AsyncCopies::Random];

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
        let values: Vec<T> = bytemuck::cast_slice(&host.as_slice()[..view.num_bytes()]).to_vec();
        provenance::remember(&self.device, view, &values);
        values
    }
}

/// Where the numbers of a comparison came from, for `scripts/sanitize accesses TEST`: comparisons see slices, so what
/// was downloaded is kept, and looked for when it turns out wrong.
mod provenance {
    use super::*;
    use std::cell::RefCell;
    use std::collections::{BTreeSet, VecDeque};

    struct Download {
        device: Device,
        view: View<u8>,
        element_bytes: usize,
        bytes: Vec<u8>,
    }

    const KEPT: usize = 6;

    thread_local! {
        static DOWNLOADS: RefCell<VecDeque<Download>> = const { RefCell::new(VecDeque::new()) };
    }

    pub fn remember<T: bytemuck::NoUninit>(device: &Device, view: &View<T>, values: &[T]) {
        if !records_accesses() {
            return;
        }
        let download = Download {
            device: device.clone(),
            view: view.cast().unwrap(),
            element_bytes: size_of::<T>(),
            bytes: bytemuck::cast_slice(values).to_vec(),
        };
        DOWNLOADS.with_borrow_mut(|downloads| {
            downloads.push_front(download);
            downloads.truncate(KEPT);
        });
    }

    impl Download {
        /// The elements at which `part` is found, as it was or widened from bf16.
        fn find(&self, part: &[u8], element_bytes: usize) -> Vec<usize> {
            let widened: Vec<u8>;
            let bytes = match self.element_bytes {
                2 if element_bytes == 4 => {
                    let pairs = self.bytes.chunks_exact(2);
                    widened = pairs.flat_map(|pair| [0, 0, pair[0], pair[1]]).collect();
                    &widened
                }
                n if n == element_bytes => &self.bytes,
                _ => return Vec::new(),
            };
            let places = bytes.windows(part.len()).step_by(element_bytes).enumerate();
            places.filter(|(_, place)| *place == part).map(|(element, _)| element).collect()
        }
    }

    /// Who wrote element `index` of `got`, if that came from a download and one place of it: looked for with all of `got`
    /// around it, then with some neighbors, since a test may have gathered its rows.
    pub fn of<T: bytemuck::NoUninit>(got: &[T], index: usize) -> String {
        DOWNLOADS.with_borrow(|downloads| {
            for reach in [got.len(), 16, 4, 1] {
                let (start, end) = (index.saturating_sub(reach), got.len().min(index + reach + 1));
                for download in downloads {
                    let places = download.find(bytemuck::cast_slice(&got[start..end]), size_of::<T>());
                    let writer = |place: &usize| {
                        let element = (place + index - start) * download.element_bytes;
                        download.device.last_writer(&download.view, element)
                    };
                    let writers: BTreeSet<_> = places.iter().filter_map(writer).collect();
                    match writers.into_iter().collect::<Vec<_>>().as_slice() {
                        [] => {}
                        [writer] => return format!("; {writer}"),
                        _ => return String::new(),
                    }
                }
            }
            String::new()
        })
    }
}

/// Equality that names the first element that differs, and in a build that knows, who wrote it.
#[track_caller]
pub fn assert_same<T: bytemuck::NoUninit + PartialEq + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    if let Some(i) = (0..got.len()).find(|&i| got[i] != want[i]) {
        panic!("{what}: element {i} is {:#x?}, expected {:#x?}{}", got[i], want[i], provenance::of(got, i));
    }
}

/// Puts `nan` behind the first `width` of every row, and nothing behind the last: none of it may be read.
pub fn end_rows<T: Copy>(rows: &mut Vec<T>, pitch: usize, width: usize, nan: T) {
    rows.chunks_mut(pitch).for_each(|row| row[width..].fill(nan));
    rows.truncate(rows.len() - (pitch - width));
}

/// The first `width` of every row of an output, what lies between them having been left as [`Bench::alloc`] made it.
pub fn without_gaps<T: bytemuck::NoUninit>(values: &[T], pitch: usize, width: usize) -> Vec<T> {
    let rows = values.chunks(pitch).enumerate();
    rows.flat_map(|(row, values)| {
        let gap = bytemuck::cast_slice::<T, u8>(&values[width..]);
        assert!(gap.iter().all(|byte| *byte == 0xff), "the gap behind row {row} was written");
        values[..width].to_vec()
    })
    .collect()
}

/// Elements of `rows` rows with nothing behind the last: a store there is one outside the view.
pub fn pitched_len(rows: usize, pitch: usize, width: usize) -> usize {
    (rows - 1) * pitch + width
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
        if g.is_finite() != w.is_finite() {
            panic!("{what}: element {i} is {g}, expected {w}{}", provenance::of(got, i));
        }
    }
    let worst = || {
        let error = |i: &usize| (got[*i] - want[*i]).abs();
        let Some(i) = (0..got.len()).max_by(|a, b| error(a).total_cmp(&error(b))) else {
            return String::new();
        };
        format!("; worst is element {i}: {}, expected {}{}", got[i], want[i], provenance::of(got, i))
    };
    let (error, allowed) = (rel_l2(got, want), 2.0 * rel_l2(plain, want));
    assert!(
        error <= allowed.max(1e-7),
        "{what}: relative L2 error {error:.3e}, allowed {allowed:.3e}{}",
        worst()
    );
    let (error, allowed) = (max_abs(got, want), 2.0 * max_abs(plain, want));
    let scale = want.iter().fold(0f32, |m, w| m.max(w.abs())) as f64;
    assert!(
        error <= allowed.max(1e-6 * scale),
        "{what}: max-abs error {error:.3e}, allowed {allowed:.3e}{}",
        worst()
    );
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
