//! What networks are made of: a [`Network`] asks for weights by name, makes buffers, and launches products on them.
//!
//! A weight is asked for where it is used; asked for again (by the next branch, or in another program of the same model) it is
//! the same. The list of what was asked for, [`Weights`], is what a loader reads.

mod products;

use std::collections::HashMap;

use half::bf16;

use crate::Result;
use crate::config::PipelineConfig;
use crate::device::{Device, View};
use crate::kernels::conv2d::Filter;
use crate::kernels::kept::{Format, KeptLayout, PANEL};
use crate::kernels::nf4_quantize::Nf4Layout;
use crate::memory::arena::Slot;
use crate::program::place::ALIGNMENT;
use crate::program::{Kind, Recorder, Tier};
use crate::weights::adapters::Half;
use crate::weights::target::Target;
use crate::weights::{Needed, Part};

pub(crate) use products::{FewRows, Product, Rope, Tokens};

/// How the Linear layers of the transformer and T5 are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Quantize {
    /// NF4 (4 bits and an f32 absmax per 64 weights), but for what bitsandbytes leaves wide. Of a transformer or T5 whose
    /// files hold any Linear in NF4, each stays as the file has it; of others all are quantized but T5's `wo`, whose outputs
    /// are large.
    #[default]
    Nf4,
    /// As the files have them: Linears in NF4, in fp8 or in the types of GGUF stay so, bit for bit, and those in 16 or 32 bits are
    /// bf16. A transformer or T5 whose files hold no Linear in few bits is kept as with [`Quantize::Nf4`].
    Keep,
    /// NF4 whatever the files hold: smaller, and farther from the reference.
    Nf4All,
    /// bf16, as most files hold them.
    None,
}

impl Quantize {
    /// What serves a model unless told otherwise: [`Quantize::Keep`] where its files hold the transformer or T5 in fp8 or in types
    /// of GGUF, else [`Quantize::Nf4`].
    pub fn usual(config: &PipelineConfig) -> Quantize {
        if config.in_formats.is_empty() { Quantize::Nf4 } else { Quantize::Keep }
    }
}

impl std::fmt::Display for Quantize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Quantize::Nf4 => "nf4",
            Quantize::Keep => "keep",
            Quantize::Nf4All => "nf4-all",
            Quantize::None => "none",
        })
    }
}

/// How the transformer's matrix products and its attention are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// bf16 operands, f32 accumulators.
    #[default]
    Full,
    /// fp16 operands; products with NF4 weights have fp16 accumulators within their quant blocks, f32 beyond. Tokens are scaled so that
    /// nothing overflows. Other pictures than [`Precision::Full`] draws, as near to the reference. Faster on GeForce (compute
    /// capability 8.6, 8.9 and 12.0), whose tensor cores have twice the rate with fp16 accumulators; no other GPU gains.
    Fast,
}

impl Precision {
    /// Whether tensor cores of compute capability `arch / 10` are faster so than in [`Precision::Full`].
    pub(crate) fn gains_on(self, arch: u32) -> bool {
        self == Precision::Fast && matches!(arch, 86 | 89 | 120)
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Precision::Full => "full",
            Precision::Fast => "fast",
        })
    }
}

/// A weight matrix `[n, k]` with its optional bias.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// One below the other; several where parts that run as one product are stored in several ways.
    pieces: Vec<Piece>,
    bias: Option<View<f32>>,
    /// Room for what LoRAs add.
    low_rank: Option<LowRankWeights>,
}

/// Factors of what LoRAs add to a matrix.
#[derive(Clone, Debug)]
struct LowRankWeights {
    /// Of each part of the matrix; a multiple of 8.
    rank: usize,
    /// One past the last row of each part.
    ends: Vec<usize>,
    /// bf16 `[parts * rank, pitch]`.
    down: View<bf16>,
    /// Elements from row to row of `down`.
    pitch: usize,
    /// bf16 `[n, rank]`.
    up: View<bf16>,
}

/// Rows of a matrix.
#[derive(Clone, Debug)]
struct Piece {
    rows: usize,
    storage: Storage,
}

/// How a part of a matrix is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Nf4,
    Kept(Format),
    Bf16,
}

/// How a matrix lies in memory, which decides the kernel that multiplies with it.
#[derive(Clone, Debug)]
enum Storage {
    /// For tokens, by the tensor-core GEMM.
    Nf4Fragments { codes: View<u8>, absmax: View<f32> },
    /// For a few rows, by the bandwidth-bound GEMV.
    Nf4Rows { codes: View<u8>, absmax: View<f32> },
    /// For tokens, in panels, or for a few rows, as `layout` says.
    Kept { format: Format, layout: KeptLayout, bytes: View<u8> },
    /// For both.
    Bf16 { values: View<bf16>, pitch: usize },
}

/// A convolution's weights.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    /// Output channels.
    pub out_channels: usize,
    /// What its taps, 3 x 3, pass over.
    pub filter: Filter,
    /// Packed as [`Filter::pack`] does.
    pub weight: View<bf16>,
    /// f32 `[out_channels]`.
    pub bias: View<f32>,
}

/// A norm's scale and shift.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    /// f32 `[width]`.
    pub weight: View<f32>,
    /// f32 `[width]`.
    pub bias: View<f32>,
}

/// A tensor of the model's files and what becomes of it.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    pub part: Part,
    pub needed: Needed,
    pub target: Target,
}

/// All tensors that were asked for, in that order.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    pub list: Vec<Weight>,
    /// Bytes of NF4 codes and absmax, by [`Part`].
    pub nf4_bytes: [u64; 4],
    /// Bytes of Linears in the other formats of few bits of their files, likewise.
    pub kept_bytes: [u64; 4],
    /// Bytes of room for LoRAs.
    pub low_rank_bytes: u64,
    /// Bytes that they fill, one behind the other; [`Target`] tells places in these.
    pub image_bytes: usize,
    made: HashMap<(Part, String), Made>,
}

#[derive(Clone, Debug)]
enum Made {
    Vector(View<f32>),
    Linear(Linear),
    Conv(Conv),
}

/// One network in the making.
pub(crate) struct Network<'a> {
    /// Where it is recorded.
    pub recorder: &'a mut Recorder,
    weights: &'a mut Weights,
    part: Part,
    quantize: Quantize,
    precision: Precision,
    config: &'a PipelineConfig,
    /// Printed with the weights that follow; how soon they leave the device when they do not all fit.
    unit: (String, Tier),
}

impl<'a> Network<'a> {
    /// The network `part`; `quantize` says how its Linear layers are kept, and `config` what its files hold in few bits.
    pub fn new(
        recorder: &'a mut Recorder,
        weights: &'a mut Weights,
        part: Part,
        quantize: Quantize,
        config: &'a PipelineConfig,
    ) -> Self {
        let unit = (format!("{part}.weights"), Tier::Fixed);
        Network { recorder, weights, part, quantize, precision: Precision::Full, config, unit }
    }

    /// The same, computed otherwise where [`Network::multiplies_halves`] says so.
    pub fn with_precision(self, precision: Precision) -> Network<'a> {
        Network { precision, ..self }
    }

    /// How it is computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What kernels are launched on.
    pub fn device(&self) -> &Device {
        self.recorder.device()
    }

    /// A buffer called `<part>.<name>`.
    pub fn buffer<T>(&mut self, name: &str, len: usize) -> Result<View<T>> {
        let name = format!("{}.{name}", self.part);
        self.recorder.buffer(&name, len)
    }

    /// The weights that follow are called `name`, and stay or leave together.
    pub fn unit(&mut self, name: String, tier: Tier) {
        self.unit = (name, tier);
    }

    /// Memory for weights, and its place among them all: one behind the other in the order in which they are asked for.
    fn resident<T>(&mut self, len: usize) -> Result<(View<T>, Slot<T>)> {
        let (name, tier) = &self.unit;
        let (_, view) = self.recorder.resident::<T>(name, len, Kind::Weight(*tier))?;
        let slot = Slot::new(self.weights.image_bytes, len);
        self.weights.image_bytes += (len * size_of::<T>()).next_multiple_of(ALIGNMENT);
        Ok((view, slot))
    }

    fn needs(&mut self, name: String, shape: &[usize], target: Target) {
        let needed = Needed::new(self.part, name, shape);
        self.weights.list.push(Weight { part: self.part, needed, target });
    }

    fn made(&self, name: &str) -> Option<Made> {
        self.weights.made.get(&(self.part, name.to_string())).cloned()
    }

    fn keep(&mut self, name: &str, made: Made) {
        self.weights.made.insert((self.part, name.to_string()), made);
    }

    /// A tensor that the host reads and the device never sees.
    pub fn host_tensor(&mut self, name: &str, shape: &[usize]) {
        if !self.weights.list.iter().any(|w| w.part == self.part && w.needed.name == name) {
            self.needs(name.to_string(), shape, Target::Host);
        }
    }

    /// A vector, kept as f32.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<View<f32>> {
        if let Some(Made::Vector(view)) = self.made(name) {
            return Ok(view);
        }
        let (view, slot) = self.resident::<f32>(len)?;
        self.needs(name.to_string(), &[len], Target::F32 { slot });
        self.keep(name, Made::Vector(view.clone()));
        Ok(view)
    }

    /// `<name>.weight` and `<name>.bias` of a norm.
    pub fn affine(&mut self, name: &str, width: usize) -> Result<Affine> {
        let weight = self.vector(&format!("{name}.weight"), width)?;
        Ok(Affine { weight, bias: self.vector(&format!("{name}.bias"), width)? })
    }

    /// A convolution 3 x 3 `<name>.weight`, `<name>.bias`.
    pub fn conv(&mut self, name: &str, channels: usize, out_channels: usize, filter: Filter) -> Result<Conv> {
        if let Some(Made::Conv(conv)) = self.made(name) {
            return Ok(conv);
        }
        let (weight, slot) = self.resident::<bf16>(out_channels * filter.weight_pitch(channels))?;
        let shape = [out_channels, channels, 3, 3];
        self.needs(format!("{name}.weight"), &shape, Target::Conv { slot, channels, filter });
        let bias = self.vector(&format!("{name}.bias"), out_channels)?;
        let conv = Conv { out_channels, filter, weight, bias };
        self.keep(name, Made::Conv(conv.clone()));
        Ok(conv)
    }

    /// A convolution 1 x 1 `<name>.weight`, `<name>.bias`: a matrix product of the pixels.
    pub fn conv_1x1(&mut self, name: &str, channels: usize, out_channels: usize) -> Result<Linear> {
        if let Some(Made::Linear(linear)) = self.made(name) {
            return Ok(linear);
        }
        let pitch = channels.next_multiple_of(8);
        let (values, slot) = self.resident::<bf16>(out_channels * pitch)?;
        let shape = [out_channels, channels, 1, 1];
        self.needs(format!("{name}.weight"), &shape, Target::Bf16 { slot, pitch });
        let bias = Some(self.vector(&format!("{name}.bias"), out_channels)?);
        let pieces = vec![Piece { rows: out_channels, storage: Storage::Bf16 { values, pitch } }];
        let linear = Linear { n: out_channels, k: channels, pieces, bias, low_rank: None };
        self.keep(name, Made::Linear(linear.clone()));
        Ok(linear)
    }

    /// Matrices `<name>.weight [rows, k]`, one below the other as one Linear for many tokens, with biases where `bias` says so.
    pub fn linear(&mut self, parts: &[(&str, usize)], k: usize, bias: bool) -> Result<Linear> {
        self.matrix(parts, k, bias, Nf4Layout::Fragments, false)
    }

    /// As [`Network::linear`], one matrix that bitsandbytes leaves wide when it quantizes.
    pub fn linear_left_wide(&mut self, name: &str, n: usize, k: usize) -> Result<Linear> {
        self.matrix(&[(name, n)], k, false, Nf4Layout::Fragments, true)
    }

    /// As [`Network::linear`], one matrix for a few rows: [`Network::gemv`].
    pub fn linear_of_rows(&mut self, name: &str, n: usize, k: usize) -> Result<Linear> {
        self.matrix(&[(name, n)], k, true, Nf4Layout::Rows, false)
    }

    /// How the parts of a matrix are kept.
    fn kinds(&self, parts: &[(&str, usize)], k: usize, left_wide: bool) -> Vec<Form> {
        // NF4 blocks are 64 weights of one row; what they do not fit stays bf16.
        let fits = k % crate::weights::nf4::BLOCK == 0;
        let (in_nf4, in_formats) = (&self.config.in_nf4, &self.config.in_formats);
        if self.quantize == Quantize::Keep && in_formats.has_any(self.part) {
            let kind = |name: &str| {
                let name = format!("{name}.weight");
                match in_formats.of(self.part, &name) {
                    Some(format) if format.takes(k) => Form::Kept(format),
                    _ if fits && in_nf4.holds(self.part, &name) => Form::Nf4,
                    _ => Form::Bf16,
                }
            };
            let kinds: Vec<Form> = parts.iter().map(|(name, _)| kind(name)).collect();
            // Columns of a product are cut between whole vectors.
            let are_cut = parts.iter().all(|(_, rows)| rows % 8 == 0);
            if are_cut || kinds.windows(2).all(|pair| pair[0] == pair[1]) {
                return kinds;
            }
            return vec![Form::Bf16; parts.len()];
        }
        // Where they differ all become bf16: of those in NF4 it is what the product would be with, anyway.
        let all_are = || parts.iter().all(|(name, _)| in_nf4.holds(self.part, &format!("{name}.weight")));
        let is_nf4 = fits
            && match self.quantize {
                Quantize::None => false,
                Quantize::Nf4All => true,
                Quantize::Nf4 | Quantize::Keep if in_nf4.has_any(self.part) => all_are(),
                Quantize::Nf4 | Quantize::Keep => !left_wide,
            };
        vec![if is_nf4 { Form::Nf4 } else { Form::Bf16 }; parts.len()]
    }

    /// Memory for a piece of a matrix, of parts of so many rows, and what becomes of each.
    fn piece(
        &mut self,
        form: Form,
        parts: &[usize],
        k: usize,
        layout: Nf4Layout,
    ) -> Result<(Piece, Vec<Target>)> {
        let num_rows: usize = parts.iter().sum();
        let mut next = 0;
        let first_rows = parts.iter().map(|rows| {
            next += rows;
            next - rows
        });
        let (storage, targets) = match form {
            Form::Nf4 => {
                let (codes, codes_slot) = self.resident::<u8>(layout.codes_len(num_rows, k))?;
                let (absmax, absmax_slot) = self.resident::<f32>(layout.absmax_len(num_rows, k))?;
                self.weights.nf4_bytes[self.part as usize] += (codes.num_bytes() + absmax.num_bytes()) as u64;
                let target = |first_row| Target::Nf4 {
                    layout,
                    codes: codes_slot,
                    absmax: absmax_slot,
                    first_row,
                    num_rows,
                };
                let targets = first_rows.map(target).collect();
                let storage = match layout {
                    Nf4Layout::Fragments => Storage::Nf4Fragments { codes, absmax },
                    Nf4Layout::Rows => Storage::Nf4Rows { codes, absmax },
                };
                (storage, targets)
            }
            Form::Kept(format) => {
                let layout = match layout {
                    Nf4Layout::Fragments => KeptLayout::Panels,
                    Nf4Layout::Rows => KeptLayout::Rows,
                };
                let (bytes, slot) = self.resident::<u8>(format.kept_len(layout, num_rows, k))?;
                self.weights.kept_bytes[self.part as usize] += bytes.num_bytes() as u64;
                let target = |first_row| Target::Kept { format, layout, slot, first_row, num_rows };
                (Storage::Kept { format, layout, bytes }, first_rows.map(target).collect())
            }
            Form::Bf16 => {
                let pitch = k.next_multiple_of(8);
                let (values, slot) = self.resident::<bf16>(num_rows * pitch)?;
                let target = |(first_row, rows): (usize, &usize)| Target::Bf16 {
                    slot: slot.part(first_row * pitch, rows * pitch),
                    pitch,
                };
                (Storage::Bf16 { values, pitch }, first_rows.zip(parts).map(target).collect())
            }
        };
        Ok((Piece { rows: num_rows, storage }, targets))
    }

    fn matrix(
        &mut self,
        parts: &[(&str, usize)],
        k: usize,
        bias: bool,
        layout: Nf4Layout,
        left_wide: bool,
    ) -> Result<Linear> {
        let first = parts.first().map_or("", |part| part.0);
        if let Some(Made::Linear(linear)) = self.made(first) {
            return Ok(linear);
        }
        let n: usize = parts.iter().map(|(_, rows)| rows).sum();
        let kinds = self.kinds(parts, k, left_wide);
        let all_rows: Vec<usize> = parts.iter().map(|(_, rows)| *rows).collect();
        let (mut pieces, mut targets, mut at) = (Vec::new(), Vec::new(), 0);
        while let Some(&kind) = kinds.get(at) {
            // What is kept in panels goes on with the next part where one ends.
            let joins = |i: &usize| {
                kinds[*i] == kind
                    && (!matches!(kind, Form::Kept(_)) || all_rows[*i - 1].is_multiple_of(PANEL))
            };
            let end = at + 1 + (at + 1..kinds.len()).take_while(joins).count();
            let (piece, of_piece) = self.piece(kind, &all_rows[at..end], k, layout)?;
            pieces.push(piece);
            targets.extend(of_piece);
            at = end;
        }
        let biases = bias.then(|| self.resident::<f32>(n)).transpose()?;
        let mut first_row = 0;
        for (&(name, rows), target) in parts.iter().zip(targets) {
            self.needs(format!("{name}.weight"), &[rows, k], target);
            if let Some((_, slot)) = &biases {
                let target = Target::F32 { slot: slot.part(first_row, rows) };
                self.needs(format!("{name}.bias"), &[rows], target);
            }
            first_row += rows;
        }
        let low_rank = self.low_rank(parts, k)?;
        let linear = Linear { n, k, pieces, bias: biases.map(|(view, _)| view), low_rank };
        self.keep(first, Made::Linear(linear.clone()));
        Ok(linear)
    }

    /// Memory for what LoRAs add to a matrix, where the config has room for some: of the largest rank among its parts.
    fn low_rank(&mut self, parts: &[(&str, usize)], k: usize) -> Result<Option<LowRankWeights>> {
        let adapters = &self.config.adapters;
        let rank = parts.iter().map(|(name, _)| adapters.rank(self.part, name)).max().unwrap_or(0);
        if rank == 0 {
            return Ok(None);
        }
        let (n, pitch) = (parts.iter().map(|(_, rows)| rows).sum::<usize>(), k.next_multiple_of(8));
        let (down, down_slot) = self.resident::<bf16>(parts.len() * rank * pitch)?;
        let (up, up_slot) = self.resident::<bf16>(n * rank)?;
        self.weights.low_rank_bytes += (down.num_bytes() + up.num_bytes()) as u64;
        let mut ends = Vec::new();
        let mut first = 0;
        for (i, &(name, rows)) in parts.iter().enumerate() {
            let slot = down_slot.part(i * rank * pitch, rank * pitch);
            self.needs(Half::Down.of(name), &[rank, k], Target::Bf16 { slot, pitch });
            let slot = up_slot.part(first * rank, rows * rank);
            self.needs(Half::Up.of(name), &[rows, rank], Target::Bf16 { slot, pitch: rank });
            first += rows;
            ends.push(first);
        }
        Ok(Some(LowRankWeights { rank, ends, down, pitch, up }))
    }
}
