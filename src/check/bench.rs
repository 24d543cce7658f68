//! How fast the kernels are at the shapes of FLUX.1-schnell: each launch alone, timed by events on the device.
//!
//! Inputs are random numbers, since a GPU's power, and so its clock, depends on them. Before every launch a kernel reads
//! more than any cache keeps: the launch finds its operands in memory, nothing that must still be written back, and is
//! enqueued before its turn has come, so that the CPU's share of launching is not timed. What the first launch computed is held
//! against a plain sum before any other is timed.

mod launches;
mod verify;

use std::time::{Duration, Instant};

use super::{Fill, Lab};
use crate::device::{Device, Event, StreamId, View};
use crate::kernels::count_nonfinite::CountNonfinite;
use crate::kernels::kept::{Format, KeptLayout};
use crate::pipeline::Card;
use crate::{Error, Result};

const COMPUTE: StreamId = StreamId::Compute;
/// Read between launches: more than the L2 of any GPU there is (H200: 50 MB, RTX PRO 6000: 128 MB), and some 100
/// microseconds on the fastest.
const FLUSH_BYTES: usize = 512 << 20;
/// Of launches before those that count: idle GPUs run at a fraction of their clock.
const WARM_UP: Duration = Duration::from_millis(300);

/// One kernel at one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `out[m, n] = x[m, k] . w[n, k]^T + bias` with NF4 weights, bf16 in and out.
    Nf4Gemm {
        /// Tokens.
        m: usize,
        /// Features out.
        n: usize,
        /// Features in.
        k: usize,
    },
    /// The same with fp16 accumulators, and before it the tokens made fp16.
    Nf4HalfGemm {
        /// Tokens.
        m: usize,
        /// Features out.
        n: usize,
        /// Features in.
        k: usize,
    },
    /// The same with bf16 weights.
    Bf16Gemm {
        /// Tokens.
        m: usize,
        /// Features out.
        n: usize,
        /// Features in.
        k: usize,
    },
    /// Full attention.
    Attention {
        /// Heads.
        heads: usize,
        /// Queries and keys.
        tokens: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// 3x3 of `silu(GroupNorm(x))`, or of a map enlarged twofold; as many channels out as in.
    Conv2d {
        /// Height and width of the input.
        side: usize,
        /// Channels.
        channels: usize,
        /// To twice the side.
        upsample: bool,
    },
    /// `out[m, n] = silu(x[m, k]) . w[n, k]^T + bias` with NF4 weights.
    Nf4Gemv {
        /// Rows.
        m: usize,
        /// Features out.
        n: usize,
        /// Features in.
        k: usize,
    },
    /// As `Nf4Gemm` with weights in the bits of a file.
    KeptGemm {
        /// Which bits.
        format: Format,
        /// Rows.
        m: usize,
        /// Features out.
        n: usize,
        /// Features in.
        k: usize,
    },
    /// As `Nf4Gemv`, likewise.
    KeptGemv {
        /// Which bits.
        format: Format,
        /// Rows.
        m: usize,
        /// Features out.
        n: usize,
        /// Features in.
        k: usize,
    },
    /// With shift and scale, f32 to bf16.
    LayerNormMod {
        /// Tokens.
        rows: usize,
        /// Features.
        width: usize,
    },
    /// Statistics and application, 32 groups.
    GroupNormSilu {
        /// Height and width.
        side: usize,
        /// Channels.
        channels: usize,
    },
}

/// The launches of a 512x512 and of a 1024x1024 picture where its time goes, with 256 text tokens.
pub fn flux_shapes() -> Vec<Subject> {
    let mut shapes = Vec::new();
    for image in [1024, 4096] {
        let (d, joint) = (3072, image + 256);
        // Double block: qkv, out, mlp up and down of the image stream. Single block: both linears.
        shapes.extend([
            Subject::Nf4Gemm { m: image, n: 3 * d, k: d },
            Subject::Nf4Gemm { m: image, n: d, k: d },
            Subject::Nf4Gemm { m: image, n: 4 * d, k: d },
            Subject::Nf4Gemm { m: image, n: d, k: 4 * d },
            Subject::Nf4Gemm { m: joint, n: 7 * d, k: d },
            Subject::Nf4HalfGemm { m: joint, n: 7 * d, k: d },
            Subject::Nf4Gemm { m: joint, n: d, k: 5 * d },
            Subject::Nf4HalfGemm { m: joint, n: d, k: 5 * d },
            Subject::Attention { heads: 24, tokens: joint, head_dim: 128 },
            Subject::LayerNormMod { rows: joint, width: d },
        ]);
    }
    // The text stream's qkv, modulation of a block for four steps, T5's widest product.
    shapes.extend([
        Subject::Nf4Gemm { m: 256, n: 9216, k: 3072 },
        Subject::Nf4Gemv { m: 4, n: 18432, k: 3072 },
        Subject::Bf16Gemm { m: 256, n: 10240, k: 4096 },
    ]);
    // What files hold most: of each number of bits a single block's first product, and a modulation.
    for format in [Format::F8E4M3, Format::Q8_0, Format::Q6K, Format::Q5K, Format::Q4K, Format::Q2K] {
        shapes.push(Subject::KeptGemm { format, m: 1280, n: 21504, k: 3072 });
    }
    shapes.push(Subject::KeptGemv { format: Format::Q4K, m: 4, n: 18432, k: 3072 });
    for (side, channels) in [(64, 512), (128, 512), (256, 512), (512, 256), (1024, 128)] {
        shapes.push(Subject::Conv2d { side, channels, upsample: false });
        shapes.push(Subject::GroupNormSilu { side, channels });
    }
    shapes.push(Subject::Conv2d { side: 256, channels: 512, upsample: true });
    shapes
}

/// One of each kind, small enough for the emulator.
pub fn small_shapes() -> Vec<Subject> {
    vec![
        Subject::Nf4Gemm { m: 256, n: 512, k: 512 },
        Subject::Nf4HalfGemm { m: 256, n: 512, k: 512 },
        Subject::Bf16Gemm { m: 256, n: 512, k: 512 },
        Subject::Attention { heads: 2, tokens: 256, head_dim: 128 },
        Subject::Nf4Gemv { m: 4, n: 512, k: 512 },
        Subject::KeptGemm { format: Format::Q4K, m: 256, n: 512, k: 512 },
        Subject::KeptGemv { format: Format::F8E4M3, m: 4, n: 512, k: 512 },
        Subject::Conv2d { side: 32, channels: 64, upsample: false },
        Subject::Conv2d { side: 16, channels: 64, upsample: true },
        Subject::LayerNormMod { rows: 256, width: 512 },
        Subject::GroupNormSilu { side: 32, channels: 64 },
    ]
}

/// What there is to time on a machine.
pub fn shapes(device: &Device) -> Vec<Subject> {
    if device.capability().is_emulator { small_shapes() } else { flux_shapes() }
}

/// What the times of one shape were.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The shape.
    pub subject: Subject,
    /// Milliseconds of every repetition, ascending.
    pub ms: Vec<f64>,
}

impl Measured {
    /// The middle one.
    pub fn median_ms(&self) -> f64 {
        self.ms[self.ms.len() / 2]
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Subject::Nf4Gemm { m, n, k } => write!(f, "nf4_gemm {m}x{n}x{k}"),
            Subject::Nf4HalfGemm { m, n, k } => write!(f, "nf4_half_gemm {m}x{n}x{k}"),
            Subject::Bf16Gemm { m, n, k } => write!(f, "bf16_gemm {m}x{n}x{k}"),
            Subject::Attention { heads, tokens, head_dim } => {
                write!(f, "attention {heads}x{tokens}x{head_dim}")
            }
            Subject::Conv2d { side, channels, upsample } => {
                write!(f, "conv2d {side}x{side}x{channels}{}", if upsample { " upsample" } else { "" })
            }
            Subject::Nf4Gemv { m, n, k } => write!(f, "nf4_gemv {m}x{n}x{k}"),
            Subject::KeptGemm { format, m, n, k } => write!(f, "{format}_gemm {m}x{n}x{k}"),
            Subject::KeptGemv { format, m, n, k } => write!(f, "{format}_gemv {m}x{n}x{k}"),
            Subject::LayerNormMod { rows, width } => write!(f, "layer_norm_mod {rows}x{width}"),
            Subject::GroupNormSilu { side, channels } => {
                write!(f, "group_norm_silu {side}x{side}x{channels}")
            }
        }
    }
}

impl Subject {
    /// Multiply-adds times two; of the norms none are counted.
    pub fn flops(&self) -> f64 {
        match *self {
            Subject::Nf4Gemm { m, n, k }
            | Subject::Nf4HalfGemm { m, n, k }
            | Subject::Bf16Gemm { m, n, k }
            | Subject::Nf4Gemv { m, n, k }
            | Subject::KeptGemm { m, n, k, .. }
            | Subject::KeptGemv { m, n, k, .. } => 2.0 * (m * n * k) as f64,
            Subject::Attention { heads, tokens, head_dim } => {
                4.0 * (heads * tokens * tokens * head_dim) as f64
            }
            Subject::Conv2d { side, channels, upsample } => {
                // Enlarging, four taps for each of four pixels.
                2.0 * (side * side * channels * channels * if upsample { 16 } else { 9 }) as f64
            }
            Subject::LayerNormMod { .. } | Subject::GroupNormSilu { .. } => 0.0,
        }
    }

    /// Bytes that must cross the device's memory bus at least: every operand once.
    pub fn bytes(&self) -> usize {
        match *self {
            Subject::Nf4Gemm { m, n, k } => 2 * m * (n + k) + n * k / 2 + n * k / 16,
            Subject::Nf4HalfGemm { m, n, k } => 2 * m * (n + 3 * k) + n * k / 2 + n * k / 16,
            Subject::Bf16Gemm { m, n, k } => 2 * (m * (n + k) + n * k),
            Subject::Nf4Gemv { m, n, k } => 4 * m * (n + k) + n * k / 2 + n * k / 16,
            Subject::KeptGemm { format, m, n, k } => {
                2 * m * (n + k) + format.kept_len(KeptLayout::Panels, n, k)
            }
            Subject::KeptGemv { format, m, n, k } => {
                4 * m * (n + k) + format.kept_len(KeptLayout::Rows, n, k)
            }
            Subject::Attention { heads, tokens, head_dim } => 2 * 4 * heads * tokens * head_dim,
            Subject::Conv2d { side, channels, upsample } => {
                2 * channels
                    * if upsample { 5 * side * side + 16 * channels } else { 2 * side * side + 9 * channels }
            }
            Subject::LayerNormMod { rows, width } => 6 * rows * width,
            // Read for the statistics, read again, written.
            Subject::GroupNormSilu { side, channels } => 6 * side * side * channels,
        }
    }

    /// What a card would take at least: for its products by the tensor cores' peak, for its bytes by the memory's. Milliseconds.
    pub fn floor_ms(&self, card: Card) -> f64 {
        // GeForce's tensor cores take fp16 with fp16 accumulators twice as fast; nothing else here is timed at that rate.
        let twice = matches!(self, Subject::Nf4HalfGemm { .. }) && matches!(card.arch, 86 | 89 | 120);
        let flops_per_s = card.flops_per_s * if twice { 2.0 } else { 1.0 };
        1e3 * (self.flops() / flops_per_s).max(self.bytes() as f64 / card.memory_bytes_per_s)
    }

    /// Buffers for it, one launch, and some of what that computed held against the host's sums.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the machine has no room for the buffers, [`Error::Device`] when it refuses, [`Error::Mismatch`]
    /// when what it computed is wrong.
    pub fn prepare(&self, device: &Device) -> Result<Ready> {
        let lab = Lab { device: device.clone(), fill: Fill::Nothing };
        let work = self.work(&lab)?;
        (work.launch)()?;
        (work.verify)(&lab)?;
        // The emulator has neither clocks nor caches that these would change.
        let (flush_bytes, warm_up) = match device.capability().is_emulator {
            true => (1 << 10, Duration::ZERO),
            false => (FLUSH_BYTES, WARM_UP),
        };
        let flush = lab.alloc::<f32>(flush_bytes / size_of::<f32>())?;
        device.fill(COMPUTE, &flush.cast::<u8>()?, 0)?;
        let events = [device.create_event()?, device.create_event()?];
        Ok(Ready { device: device.clone(), work, flush, counter: lab.upload(&[0u32])?, warm_up, events })
    }

    /// Times `repetitions` launches, after some to warm up.
    ///
    /// # Errors
    /// Those of [`Subject::prepare`].
    pub fn measure(&self, device: &Device, repetitions: usize) -> Result<Measured> {
        let ready = self.prepare(device)?;
        ready.warm_up()?;
        let mut ms = (0..repetitions).map(|_| ready.time_ms()).collect::<Result<Vec<f64>>>()?;
        ms.sort_by(f64::total_cmp);
        if ms.is_empty() {
            return Err(Error::Input("a bench without repetitions".to_string()));
        }
        Ok(Measured { subject: *self, ms })
    }

    /// One set of buffers, and the launch on them.
    fn work(&self, lab: &Lab) -> Result<launches::Work> {
        match *self {
            Subject::Nf4Gemm { m, n, k } => launches::nf4_gemm(lab, [m, n, k]),
            Subject::Nf4HalfGemm { m, n, k } => launches::nf4_half_gemm(lab, [m, n, k]),
            Subject::Bf16Gemm { m, n, k } => launches::bf16_gemm(lab, [m, n, k]),
            Subject::Attention { heads, tokens, head_dim } => {
                launches::attention(lab, heads, tokens, head_dim)
            }
            Subject::Conv2d { side, channels, upsample } => launches::conv(lab, side, channels, upsample),
            Subject::Nf4Gemv { m, n, k } => launches::nf4_gemv(lab, [m, n, k]),
            Subject::KeptGemm { format, m, n, k } => launches::kept_gemm(lab, format, [m, n, k]),
            Subject::KeptGemv { format, m, n, k } => launches::kept_gemv(lab, format, [m, n, k]),
            Subject::LayerNormMod { rows, width } => launches::layer_norm_mod(lab, rows, width),
            Subject::GroupNormSilu { side, channels } => launches::group_norm_silu(lab, side, channels),
        }
    }
}

/// A kernel that computes what it should, and can be timed.
pub struct Ready {
    device: Device,
    work: launches::Work,
    flush: View<f32>,
    counter: View<u32>,
    warm_up: Duration,
    events: [Event; 2],
}

impl Ready {
    fn cold(&self) -> Result<()> {
        CountNonfinite::all(&self.flush, &self.counter).launch(&self.device, COMPUTE)
    }

    /// Launches until an idle GPU has found its clock.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn warm_up(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.cold()?;
            (self.work.launch)()?;
            self.device.synchronize(COMPUTE)?;
            if begun.elapsed() >= self.warm_up {
                return Ok(());
            }
        }
    }

    /// One launch, its operands in no cache: milliseconds between two events.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn time_ms(&self) -> Result<f64> {
        let [start, end] = &self.events;
        self.cold()?;
        self.device.record(COMPUTE, start)?;
        (self.work.launch)()?;
        self.device.record(COMPUTE, end)?;
        self.device.synchronize_event(end)?;
        Ok(f64::from(end.elapsed_ms_since(start)?))
    }
}

/// Pinned host memory to the device: gigabytes per second of the fastest of `repetitions` copies of `bytes`.
///
/// # Errors
/// [`Error::Capacity`] when either side has no room.
pub fn upload_rate(device: &Device, bytes: usize, repetitions: usize) -> Result<f64> {
    let memory = device.allocate(bytes)?;
    let view = memory.view::<u8>(0, bytes)?;
    let host = device.allocate_host(bytes)?;
    let (start, end) = (device.create_event()?, device.create_event()?);
    let mut fastest = f64::INFINITY;
    for _ in 0..repetitions {
        device.record(COMPUTE, &start)?;
        device.copy_to_device(COMPUTE, &view, &host, 0)?;
        device.record(COMPUTE, &end)?;
        device.synchronize_event(&end)?;
        fastest = fastest.min(f64::from(end.elapsed_ms_since(&start)?));
    }
    Ok(bytes as f64 / fastest / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_work_can_be_timed() {
        let device = Device::emulator(crate::device::EmulatorOptions::default());
        let small = small_shapes();
        let kind = std::mem::discriminant::<Subject>;
        for subject in flux_shapes() {
            assert!(small.iter().any(|s| kind(s) == kind(&subject)), "{subject} is not tried here");
        }
        for subject in small {
            let measured = subject.measure(&device, 3).unwrap();
            assert_eq!(measured.ms.len(), 3, "{subject}");
            assert!(measured.median_ms() > 0.0 && measured.ms[0] <= measured.median_ms(), "{subject}");
            assert!(subject.bytes() > 0);
        }
        assert!(upload_rate(&device, 1 << 20, 2).unwrap() > 0.0);
    }

    /// As an RTX 3060's published rates have it: by its tensor cores, fp16 twice as fast, or by its memory.
    #[test]
    fn the_floor_is_what_the_card_is_sold_with() {
        let card = Card::named("rtx3060").unwrap();
        let near = |subject: Subject, ms: f64| {
            let floor = subject.floor_ms(card);
            assert!((floor / ms - 1.0).abs() < 1e-3, "{subject}: {floor}");
        };
        let (m, n, k) = (1280, 21504, 3072);
        near(Subject::Nf4Gemm { m, n, k }, 6.632);
        near(Subject::Nf4HalfGemm { m, n, k }, 3.316);
        near(Subject::LayerNormMod { rows: 1280, width: 3072 }, 0.06554);
    }

    #[test]
    fn work_is_counted_as_the_literature_does() {
        assert_eq!(Subject::Nf4Gemm { m: 4096, n: 9216, k: 3072 }.flops(), 231_928_233_984.0);
        assert_eq!(Subject::Attention { heads: 24, tokens: 4608, head_dim: 128 }.flops(), 260_919_263_232.0);
        assert_eq!(Subject::Nf4Gemv { m: 1, n: 64, k: 64 }.bytes(), 4 * 128 + 2048 + 256);
    }
}
