//! What the networks are made of: [`Builder`] plans weights and buffers, [`Linear`] is a planned matrix, [`Run`] turns
//! plans into launches. A network is a struct of slots with a method per phase; it holds no address and knows no device.

use half::bf16;

use crate::arena::{Arena, Group, Layout, Lifetime, Slot};
use crate::device::{Device, StreamId, View};
use crate::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use crate::kernels::gemm::{Activation, Epilogue, Problem, Segment};
use crate::kernels::gemv::{Gemv, GemvActivation, GemvAddend, GemvWeight};
use crate::kernels::nf4_gemm::{Nf4Gemm, Nf4Weight};
use crate::kernels::nf4_quantize::Nf4Layout;
use crate::weights::Part;
use crate::weights::upload::{Job, Target};
use crate::{Error, Result};

/// How the Linear layers of the transformer and T5 are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Quantize {
    /// NF4: 4 bits and an f32 absmax per 64 weights.
    #[default]
    Nf4,
    /// bf16, as most files hold them.
    None,
}

impl std::fmt::Display for Quantize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(if *self == Quantize::Nf4 { "nf4" } else { "none" })
    }
}

/// A planned weight matrix `[n, k]` with its optional bias.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    weight: LinearWeight,
    bias: Option<Slot<f32>>,
}

#[derive(Clone, Copy, Debug)]
enum LinearWeight {
    Nf4 { layout: Nf4Layout, codes: Slot<u8>, absmax: Slot<f32> },
    Bf16 { values: Slot<bf16>, pitch: usize },
}

/// Whether a [`Linear`] multiplies many rows (tokens) or few (steps).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Tokens: the tensor-core GEMM.
    Many,
    /// Steps: the bandwidth-bound GEMV.
    Few,
}

/// A convolution's planned weights.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Input channels.
    pub channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// 3 or 1.
    pub kernel: usize,
    /// Packed as [`crate::kernels::conv2d`] wants it.
    pub weight: Slot<bf16>,
    /// f32 `[out_channels]`.
    pub bias: Slot<f32>,
}

/// A norm's planned scale and shift.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// f32 `[width]`.
    pub weight: Slot<f32>,
    /// f32 `[width]`.
    pub bias: Slot<f32>,
}

/// Plans a network: its regions and the jobs that will fill the weights among them.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The arena's plan.
    pub layout: &'a mut Layout,
    /// What the loader will do.
    pub jobs: &'a mut Vec<Job>,
    part: Part,
    quantize: Quantize,
    weights: Group,
    nf4_bytes: u64,
}

impl<'a> Builder<'a> {
    /// For the network `part`; its weights go into the region `<part>.weights` until [`Builder::weights_region`].
    pub fn new(layout: &'a mut Layout, jobs: &'a mut Vec<Job>, part: Part, quantize: Quantize) -> Self {
        let weights = layout.group(format!("{part}.weights"), Lifetime::ALWAYS);
        Builder { layout, jobs, part, quantize, weights, nf4_bytes: 0 }
    }

    /// Puts the weights that follow into a region of their own.
    pub fn weights_region(&mut self, name: String) {
        self.weights = self.layout.group(name, Lifetime::ALWAYS);
    }

    /// Bytes of NF4 codes and absmax planned so far.
    pub fn nf4_bytes(&self) -> u64 {
        self.nf4_bytes
    }

    /// A vector of a file, kept as f32.
    pub fn vector(&mut self, name: &str, len: usize) -> Slot<f32> {
        let slot = self.layout.append::<f32>(self.weights, len);
        self.jobs.push(Job { part: self.part, tensor: name.to_string(), target: Target::F32 { slot } });
        slot
    }

    /// `<name>.weight` and `<name>.bias` of a norm.
    pub fn affine(&mut self, name: &str, width: usize) -> Affine {
        let weight = self.vector(&format!("{name}.weight"), width);
        Affine { weight, bias: self.vector(&format!("{name}.bias"), width) }
    }

    /// A convolution `<name>.weight`, `<name>.bias`.
    pub fn conv(&mut self, name: &str, channels: usize, out_channels: usize, kernel: usize) -> Conv {
        let row = crate::kernels::conv2d::weight_pitch(channels, kernel);
        let weight = self.layout.append::<bf16>(self.weights, out_channels * row);
        let target = Target::Conv { slot: weight, channels, kernel };
        self.jobs.push(Job { part: self.part, tensor: format!("{name}.weight"), target });
        Conv {
            channels,
            out_channels,
            kernel,
            weight,
            bias: self.vector(&format!("{name}.bias"), out_channels),
        }
    }

    /// Matrices `<name>.weight [rows, k]`, one below the other as one Linear, with biases where `bias` says so.
    pub fn linear(&mut self, parts: &[(&str, usize)], k: usize, bias: bool, rows: Rows) -> Linear {
        let n: usize = parts.iter().map(|(_, rows)| rows).sum();
        // NF4 blocks are 64 weights of one row; what they do not fit stays bf16.
        let nf4 = self.quantize == Quantize::Nf4 && k % crate::weights::nf4::BLOCK == 0;
        let weight = if nf4 {
            let layout = if rows == Rows::Many { Nf4Layout::Fragments } else { Nf4Layout::Rows };
            let codes = self.layout.append::<u8>(self.weights, layout.codes_len(n, k));
            let absmax = self.layout.append::<f32>(self.weights, layout.absmax_len(n, k));
            self.nf4_bytes += (codes.num_bytes() + absmax.num_bytes()) as u64;
            LinearWeight::Nf4 { layout, codes, absmax }
        } else {
            let pitch = k.next_multiple_of(8);
            LinearWeight::Bf16 { values: self.layout.append(self.weights, n * pitch), pitch }
        };
        let biases = bias.then(|| self.layout.append::<f32>(self.weights, n));
        let mut first_row = 0;
        for &(name, rows) in parts {
            let target = match weight {
                LinearWeight::Nf4 { layout, codes, absmax } => {
                    Target::Nf4 { layout, codes, absmax, first_row, num_rows: n }
                }
                LinearWeight::Bf16 { values, pitch } => {
                    Target::Bf16 { slot: Layout::part(&values, first_row * pitch, rows * pitch), pitch }
                }
            };
            self.jobs.push(Job { part: self.part, tensor: format!("{name}.weight"), target });
            if let Some(biases) = &biases {
                let target = Target::F32 { slot: Layout::part(biases, first_row, rows) };
                self.jobs.push(Job { part: self.part, tensor: format!("{name}.bias"), target });
            }
            first_row += rows;
        }
        Linear { n, k, weight, bias: biases }
    }
}

/// Launches on a bound arena.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The machine.
    pub device: &'a Device,
    /// Its memory.
    pub arena: &'a Arena,
}

/// The left-hand side of a [`Run::gemm`]: rows of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// bf16 `[rows, pitch]`.
    pub view: &'a View<bf16>,
    /// Elements from row to row.
    pub pitch: usize,
    /// How many.
    pub rows: usize,
}

/// q/k normalisation for [`Run::gemm`].
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// f32 `[rows, 64]`.
    pub cos: &'a View<f32>,
    /// f32 `[rows, 64]`.
    pub sin: &'a View<f32>,
    /// Epsilon of the RMSNorm.
    pub eps: f32,
}

/// One product of [`Run::gemm`].
#[derive(Clone, Debug)]
pub struct Product<'a> {
    /// The tokens.
    pub x: Tokens<'a>,
    /// The weights.
    pub linear: &'a Linear,
    /// For [`Epilogue::NormRope`].
    pub rope: Option<Rope<'a>>,
    /// What becomes of the columns.
    pub segments: Vec<Segment<'a>>,
}

impl<'a> Product<'a> {
    /// All columns share one epilogue; `pitch` is the destination's.
    pub fn new(
        x: Tokens<'a>,
        linear: &'a Linear,
        pitch: usize,
        activation: Activation,
        epilogue: Epilogue<'a>,
    ) -> Self {
        let segments = vec![Segment { begin: 0, end: linear.n, pitch, activation, epilogue }];
        Product { x, linear, rope: None, segments }
    }
}

impl<'a> Run<'a> {
    /// Where all of this runs.
    pub const STREAM: StreamId = StreamId::Compute;

    /// A slot's place in memory.
    pub fn view<T>(&self, slot: &Slot<T>) -> Result<View<T>> {
        self.arena.view(slot)
    }

    /// One or two matrix products, in one launch where their weights are of one kind.
    pub fn gemm(&self, products: &[Product<'_>]) -> Result<()> {
        let (mut nf4, mut dense) = (Vec::new(), Vec::new());
        let biases: Vec<Option<View<f32>>> = products
            .iter()
            .map(|p| p.linear.bias.map(|b| self.view(&b)).transpose())
            .collect::<Result<_>>()?;
        for (p, bias) in products.iter().zip(&biases) {
            let problem = Problem {
                x: p.x.view,
                x_pitch: p.x.pitch,
                m: p.x.rows,
                n: p.linear.n,
                k: p.linear.k,
                bias: bias.as_ref(),
                rope: p.rope.map(|r| (r.cos, r.sin)),
                norm_eps: p.rope.map_or(0.0, |r| r.eps),
                segments: p.segments.clone(),
            };
            match p.linear.weight {
                LinearWeight::Nf4 { layout: Nf4Layout::Fragments, codes, absmax } => {
                    nf4.push((problem, self.view(&codes)?, self.view(&absmax)?));
                }
                LinearWeight::Bf16 { values, pitch } => dense.push((problem, self.view(&values)?, pitch)),
                LinearWeight::Nf4 { layout: Nf4Layout::Rows, .. } => {
                    return Err(Error::Unsupported(
                        "a matrix product with weights laid out for few rows".to_string(),
                    ));
                }
            }
        }
        if !nf4.is_empty() {
            let problems: Vec<_> =
                nf4.iter().map(|(p, codes, absmax)| (p.clone(), Nf4Weight { codes, absmax })).collect();
            Nf4Gemm { problems: &problems }.launch(self.device, Self::STREAM)?;
        }
        if !dense.is_empty() {
            let problems: Vec<_> = dense
                .iter()
                .map(|(p, values, pitch)| (p.clone(), Bf16Weight { values, pitch: *pitch }))
                .collect();
            Bf16Gemm { problems: &problems }.launch(self.device, Self::STREAM)?;
        }
        Ok(())
    }

    /// `out[rows, n] = act_out(linear(act_in(x[rows, k]))) + add`, f32, a few rows at a time.
    pub fn gemv(&self, linear: &Linear, few: &FewRows<'_>) -> Result<()> {
        let bias = linear.bias.map(|b| self.view(&b)).transpose()?;
        let (codes, absmax, values);
        let weight = match linear.weight {
            LinearWeight::Nf4 { layout: Nf4Layout::Rows, codes: c, absmax: a } => {
                (codes, absmax) = (self.view(&c)?, self.view(&a)?);
                GemvWeight::Nf4 { codes: &codes, absmax: &absmax }
            }
            LinearWeight::Bf16 { values: v, pitch } => {
                values = self.view(&v)?;
                GemvWeight::Bf16 { weight: &values, pitch }
            }
            LinearWeight::Nf4 { layout: Nf4Layout::Fragments, .. } => {
                return Err(Error::Unsupported(
                    "few rows times weights laid out for matrix products".to_string(),
                ));
            }
        };
        let act = |silu| if silu { GemvActivation::Silu } else { GemvActivation::None };
        let mut row = 0;
        while row < few.rows {
            let m = (few.rows - row).min(crate::abi::GEMV_MAX_M as usize);
            let x = few.x.slice(row * linear.k, m * linear.k)?;
            let out = few.out.slice(row * few.out_pitch, (m - 1) * few.out_pitch + linear.n)?;
            Gemv {
                x: &x,
                pitch: linear.k,
                m,
                n: linear.n,
                k: linear.k,
                weight,
                bias: bias.as_ref(),
                act_in: act(few.silu_in),
                act_out: act(few.silu_out),
                // One row, added to all.
                add: few.add.map(|rows| GemvAddend { rows, pitch: 0 }),
                out: &out,
                out_pitch: few.out_pitch,
            }
            .launch(self.device, Self::STREAM)?;
            row += m;
        }
        Ok(())
    }
}

/// Operands of [`Run::gemv`].
#[derive(Clone, Copy, Debug)]
pub struct FewRows<'a> {
    /// f32 `[rows, k]`.
    pub x: &'a View<f32>,
    /// How many.
    pub rows: usize,
    /// SiLU on the way in.
    pub silu_in: bool,
    /// SiLU on the way out.
    pub silu_out: bool,
    /// f32 `[n]`, added to every row.
    pub add: Option<&'a View<f32>>,
    /// f32 `[rows, out_pitch]`.
    pub out: &'a View<f32>,
    /// Elements from row to row.
    pub out_pitch: usize,
}
