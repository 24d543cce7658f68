//! The launches that are timed, each on a set of buffers of its own, and what they should compute.

use half::bf16;

use super::verify::{ABSMAX, BIAS, CODES, KEYS, NORM, TAPS, VALUES, Want, X, bf16_at, f32_at, hold};
use crate::Result;
use crate::check::kernels::workspace;
use crate::check::{Lab, kept, random_byte, random_bytes, random_f32, random_f32s};
use crate::device::{StreamId, View};
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads};
use crate::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use crate::kernels::conv2d::{Conv2d, ConvOut, Filter};
use crate::kernels::gemm::{Activation, Epilogue, Problem, Workspace};
use crate::kernels::gemv::{Gemv, GemvActivation, GemvWeight};
use crate::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};
use crate::kernels::kept::{Format, KeptLayout};
use crate::kernels::kept_gemm::{KeptGemm, KeptWeight};
use crate::kernels::layer_norm_mod::LayerNormMod;
use crate::kernels::nf4_gemm::{Nf4Gemm, Nf4Weight};
use crate::kernels::nf4_half_gemm::{Nf4HalfGemm, Nf4HalfWeight};
use crate::kernels::nf4_quantize::{NF4_BLOCK, Nf4Layout, fragment_offset};
use crate::kernels::scale_rows::ScaleRows;
use crate::weights::nf4::CODE_BOOK;

const COMPUTE: StreamId = StreamId::Compute;
/// Of the norms of FLUX's blocks and of its VAE.
const EPS: f32 = 1e-6;
const GROUPS: usize = 32;

/// Rows, features out, features in.
pub type Shape = [usize; 3];

/// Looks at what a launch computed.
type Verify = dyn Fn(&Lab) -> Result<()>;

/// What is timed.
pub struct Work {
    /// Enqueues once more.
    pub launch: Box<dyn Fn() -> Result<()>>,
    /// Of the first launch.
    pub verify: Box<Verify>,
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn bf16s(lab: &Lab, len: usize) -> Result<View<bf16>> {
    lab.bf16s(X, len, 1.0)
}

/// Random codes and absmax.
struct Nf4 {
    codes: View<u8>,
    absmax: View<f32>,
}

impl Nf4 {
    const SCALE: f32 = 0.1;

    fn new(lab: &Lab, layout: Nf4Layout, n: usize, k: usize) -> Result<Nf4> {
        let codes = lab.upload(&random_bytes(CODES, layout.codes_len(n, k)))?;
        Ok(Nf4 { codes, absmax: lab.f32s(ABSMAX, layout.absmax_len(n, k), Nf4::SCALE)? })
    }

    /// Weight `(row, i)` of `[n, k]`.
    fn at(layout: Nf4Layout, [_, n, k]: Shape, row: usize, i: usize) -> f64 {
        let (byte, block) = match layout {
            Nf4Layout::Rows => ((row * k + i) / 2, row * (k / NF4_BLOCK) + i / NF4_BLOCK),
            Nf4Layout::Fragments => {
                (fragment_offset(row, i - i % 2, k), i / NF4_BLOCK * layout.padded_rows(n) + row)
            }
        };
        let pair = random_byte(CODES, byte);
        let code = if i % 2 == 0 { pair >> 4 } else { pair & 15 };
        bf16::from_f32(CODE_BOOK[usize::from(code)] * random_f32(ABSMAX, block, Nf4::SCALE)).to_f64()
    }
}

/// `out = x . w^T + bias`, x in bf16, of samples.
fn hold_product(
    lab: &Lab,
    out: &View<bf16>,
    [_, n, k]: Shape,
    weight: impl Fn(usize, usize) -> f64,
) -> Result<()> {
    hold(lab, out, n, |row, column| {
        let terms = (0..k).map(|i| bf16_at(X, row * k + i, 1.0) * weight(column, i));
        Want::sum(terms).plus(f32_at(BIAS, column, 1.0))
    })
}

pub fn nf4_gemm(lab: &Lab, shape: Shape) -> Result<Work> {
    let ([m, n, k], layout) = (shape, Nf4Layout::Fragments);
    let (device, w) = (lab.device().clone(), Nf4::new(lab, layout, n, k)?);
    let (x, bias, out) = (bf16s(lab, m * k)?, lab.f32s(BIAS, n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let written = out.clone();
    let problem = Problem::simple(&x, shape, None, Activation::None, Epilogue::Store(&out));
    let weight = Nf4Weight { codes: &w.codes, absmax: &w.absmax };
    let (partials, arrivals) = workspace(lab, &[(problem, weight)])?;
    Ok(Work {
        launch: Box::new(move || {
            let problem = Problem::simple(&x, shape, Some(&bias), Activation::None, Epilogue::Store(&out));
            let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
            let weight = Nf4Weight { codes: &w.codes, absmax: &w.absmax };
            Nf4Gemm { problems: &[(problem, weight)], workspace }.launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            hold_product(lab, &written, shape, |row, i| Nf4::at(layout, shape, row, i))
        }),
    })
}

pub fn kept_gemm(lab: &Lab, format: Format, shape: Shape) -> Result<Work> {
    let (device, [m, n, k]) = (lab.device().clone(), shape);
    let bytes = kept::weights(lab, format, KeptLayout::Panels, n, k)?;
    let (x, bias, out) = (bf16s(lab, m * k)?, lab.f32s(BIAS, n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let written = out.clone();
    let problem = Problem::simple(&x, shape, None, Activation::None, Epilogue::Store(&out));
    let (partials, arrivals) = workspace(lab, &[(problem, KeptWeight { format, bytes: &bytes })])?;
    Ok(Work {
        launch: Box::new(move || {
            let problem = Problem::simple(&x, shape, Some(&bias), Activation::None, Epilogue::Store(&out));
            let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
            KeptGemm { problems: &[(problem, KeptWeight { format, bytes: &bytes })], workspace }
                .launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            hold(lab, &written, n, |row, column| {
                let weights = kept::row(format, k, column);
                let terms = (0..k).map(|i| bf16_at(X, row * k + i, 1.0) * f64::from(weights[i]));
                Want::sum(terms).plus(f32_at(BIAS, column, 1.0))
            })
        }),
    })
}

/// Tokens are scaled anew each time: those of the last time are numbers like others.
pub fn nf4_half_gemm(lab: &Lab, shape: Shape) -> Result<Work> {
    let ([m, n, k], layout) = (shape, Nf4Layout::Fragments);
    let (device, w) = (lab.device().clone(), Nf4::new(lab, layout, n, k)?);
    let (x, bias, out) = (bf16s(lab, m * k)?, lab.f32s(BIAS, n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let (written, scale) = (out.clone(), lab.alloc::<f32>(m)?);
    let problem = Problem::simple(&x, shape, None, Activation::None, Epilogue::Store(&out));
    let weight = Nf4HalfWeight { weight: Nf4Weight { codes: &w.codes, absmax: &w.absmax }, x_scale: &scale };
    let (partials, arrivals) = workspace(lab, &[(problem, weight)])?;
    Ok(Work {
        launch: Box::new(move || {
            ScaleRows { x: &x, pitch: k, rows: m, width: k, scale: &scale }.launch(&device, COMPUTE)?;
            let problem = Problem::simple(&x, shape, Some(&bias), Activation::None, Epilogue::Store(&out));
            let weight = Nf4Weight { codes: &w.codes, absmax: &w.absmax };
            let weight = Nf4HalfWeight { weight, x_scale: &scale };
            let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
            Nf4HalfGemm { problems: &[(problem, weight)], workspace }.launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            hold_product(lab, &written, shape, |row, i| Nf4::at(layout, shape, row, i))
        }),
    })
}

pub fn bf16_gemm(lab: &Lab, shape: Shape) -> Result<Work> {
    let (device, [m, n, k]) = (lab.device().clone(), shape);
    let (x, values) = (bf16s(lab, m * k)?, lab.bf16s(VALUES, n * k, 1.0)?);
    let (bias, out) = (lab.f32s(BIAS, n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let written = out.clone();
    let problem = Problem::simple(&x, shape, None, Activation::None, Epilogue::Store(&out));
    let (partials, arrivals) = workspace(lab, &[(problem, Bf16Weight { values: &values, pitch: k })])?;
    Ok(Work {
        launch: Box::new(move || {
            let problem = Problem::simple(&x, shape, Some(&bias), Activation::None, Epilogue::Store(&out));
            let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
            Bf16Gemm { problems: &[(problem, Bf16Weight { values: &values, pitch: k })], workspace }
                .launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            hold_product(lab, &written, shape, |row, i| bf16_at(VALUES, row * k + i, 1.0))
        }),
    })
}

pub fn attention(lab: &Lab, heads: usize, tokens: usize, head_dim: usize) -> Result<Work> {
    let device = lab.device().clone();
    let width = heads * head_dim;
    let [q, k, v] = [X, KEYS, VALUES].map(|seed| lab.bf16s(seed, tokens * width, 1.0));
    let (q, k, v, out) = (q?, k?, v?, lab.alloc::<bf16>(tokens * width)?);
    let (written, softmax_scale) = (out.clone(), (head_dim as f32).sqrt().recip());
    Ok(Work {
        launch: Box::new(move || {
            let place = |view| Heads { view, pitch: width, head_stride: head_dim };
            Attention {
                q: place(&q),
                k: place(&k),
                v: place(&v),
                out: place(&out),
                bias: None,
                causal: false,
                softmax_scale,
                q_len: tokens,
                kv_len: tokens,
                heads,
                head_dim,
            }
            .launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            hold(lab, &written, width, |row, column| {
                let first = column / head_dim * head_dim;
                let score = |key: usize| {
                    let at =
                        |seed, row| (0..head_dim).map(move |i| bf16_at(seed, row * width + first + i, 1.0));
                    let product: f64 = at(X, row).zip(at(KEYS, key)).map(|(q, k)| q * k).sum();
                    (product * f64::from(softmax_scale)).exp()
                };
                let scores: Vec<f64> = (0..tokens).map(score).collect();
                let sum: f64 = scores.iter().sum();
                let value = |key: usize| bf16_at(VALUES, key * width + column, 1.0);
                Want::sum((0..tokens).map(|key| scores[key] / sum * value(key)))
            })
        }),
    })
}

/// 3x3 of `silu(x * scale + shift)`, or of `x` enlarged.
pub fn conv(lab: &Lab, side: usize, channels: usize, upsample: bool) -> Result<Work> {
    const TAP_SCALE: f32 = 0.1;
    let device = lab.device().clone();
    let zoom = if upsample { 2 } else { 1 };
    let (x, out) =
        (bf16s(lab, side * side * channels)?, lab.alloc::<bf16>(zoom * zoom * side * side * channels)?);
    let filter = if upsample { Filter::Enlarged } else { Filter::Plain };
    let pitch = filter.weight_pitch(channels);
    let mut packed = vec![bf16::ZERO; channels * pitch];
    let taps = random_f32s(TAPS, channels * channels * 9, TAP_SCALE);
    let taps: Vec<bf16> = taps.into_iter().map(bf16::from_f32).collect();
    for (taps, packed) in taps.chunks(channels * 9).zip(packed.chunks_mut(pitch)) {
        filter.pack(taps, packed);
    }
    let weight = lab.upload(&packed)?;
    let (bias, norm) = (lab.f32s(BIAS, channels, 1.0)?, lab.f32s(NORM, 2 * channels, 1.0)?);
    let written = out.clone();
    Ok(Work {
        launch: Box::new(move || {
            Conv2d {
                x: &x,
                x_pitch: channels,
                height: side,
                width: side,
                channels,
                out_channels: channels,
                filter,
                norm: (!upsample).then_some(&norm),
                weight: &weight,
                bias: Some(&bias),
                out: ConvOut::Bf16(&out),
                out_pitch: channels,
            }
            .launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            let seen = move |row: usize, column: usize, channel: usize| {
                let x = bf16_at(X, (row / zoom * side + column / zoom) * channels + channel, 1.0);
                match upsample {
                    true => x,
                    false => silu(x * f32_at(NORM, channel, 1.0) + f32_at(NORM, channels + channel, 1.0)),
                }
            };
            let out_side = side * zoom;
            hold(lab, &written, channels, |pixel, out_channel| {
                let taps = (0..channels * 9).filter_map(|i| {
                    let (channel, tap) = (i / 9, i % 9);
                    // Of the pixel above and to the left of what the tap sees.
                    let (row, column) = (pixel / out_side + tap / 3, pixel % out_side + tap % 3);
                    let inside = (1..=out_side).contains(&row) && (1..=out_side).contains(&column);
                    let tap = bf16_at(TAPS, out_channel * channels * 9 + i, TAP_SCALE);
                    inside.then(|| tap * seen(row - 1, column - 1, channel))
                });
                Want::sum(taps).plus(f32_at(BIAS, out_channel, 1.0))
            })
        }),
    })
}

pub fn nf4_gemv(lab: &Lab, shape: Shape) -> Result<Work> {
    let ([_, n, k], layout) = (shape, Nf4Layout::Rows);
    let w = Nf4::new(lab, layout, n, k)?;
    gemv(
        lab,
        shape,
        w,
        |w| GemvWeight::Nf4 { codes: &w.codes, absmax: &w.absmax },
        move |row| (0..k).map(|i| Nf4::at(layout, shape, row, i)).collect(),
    )
}

pub fn kept_gemv(lab: &Lab, format: Format, shape: Shape) -> Result<Work> {
    let [_, n, k] = shape;
    let bytes = kept::weights(lab, format, KeptLayout::Rows, n, k)?;
    gemv(
        lab,
        shape,
        bytes,
        move |bytes| GemvWeight::Kept { format, bytes },
        move |row| kept::row(format, k, row).into_iter().map(f64::from).collect(),
    )
}

fn gemv<W: 'static>(
    lab: &Lab,
    [m, n, k]: Shape,
    held: W,
    weight: impl for<'a> Fn(&'a W) -> GemvWeight<'a> + 'static,
    row_of_weight: impl Fn(usize) -> Vec<f64> + 'static,
) -> Result<Work> {
    let device = lab.device().clone();
    let (x, bias) = (lab.f32s(X, m * k, 1.0)?, lab.f32s(BIAS, n, 1.0)?);
    let out = lab.alloc::<f32>(m * n)?;
    let written = out.clone();
    Ok(Work {
        launch: Box::new(move || {
            Gemv {
                x: &x,
                pitch: k,
                m,
                n,
                k,
                weight: weight(&held),
                low_rank: None,
                bias: Some(&bias),
                act_in: GemvActivation::Silu,
                act_out: GemvActivation::None,
                add: None,
                out: &out,
                out_pitch: n,
            }
            .launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            hold(lab, &written, n, |row, column| {
                let weights = row_of_weight(column);
                let terms = (0..k).map(|i| silu(f32_at(X, row * k + i, 1.0)) * weights[i]);
                Want::sum(terms).plus(f32_at(BIAS, column, 1.0))
            })
        }),
    })
}

pub fn layer_norm_mod(lab: &Lab, rows: usize, width: usize) -> Result<Work> {
    let device = lab.device().clone();
    let x = lab.f32s(X, rows * width, 4.0)?;
    let (scale, shift) = (lab.f32s(NORM, width, 1.0)?, lab.f32s(BIAS, width, 1.0)?);
    let out = lab.alloc::<bf16>(rows * width)?;
    let written = out.clone();
    Ok(Work {
        launch: Box::new(move || {
            LayerNormMod {
                x: &x,
                pitch: width,
                rows,
                width,
                scale: &scale,
                shift: &shift,
                rest: None,
                scale_offset: 1.0,
                eps: EPS,
                out: FloatOut::Bf16(&out),
                out_pitch: width,
            }
            .launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            hold(lab, &written, width, |row, column| {
                let x = |i: usize| f32_at(X, row * width + i, 4.0);
                let [mean, rstd] = moments((0..width).map(x));
                let scaled = (x(column) - mean) * rstd * (1.0 + f32_at(NORM, column, 1.0));
                Want { value: scaled + f32_at(BIAS, column, 1.0), norm: 1.0 }
            })
        }),
    })
}

/// Mean, and the reciprocal of the deviation.
fn moments(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        count += 1.0;
        sum += value;
        squares += value * value;
    }
    let mean = sum / count;
    [mean, (squares / count - mean * mean + f64::from(EPS)).sqrt().recip()]
}

pub fn group_norm_silu(lab: &Lab, side: usize, channels: usize) -> Result<Work> {
    let device = lab.device().clone();
    let pixels = side * side;
    let (x, out) = (bf16s(lab, pixels * channels)?, lab.alloc::<bf16>(pixels * channels)?);
    let (weight, bias) = (lab.f32s(NORM, channels, 1.0)?, lab.f32s(BIAS, channels, 1.0)?);
    let workspace = lab.alloc::<f32>(GroupNorm::workspace_len(pixels, GROUPS))?;
    let norm = lab.alloc::<f32>(2 * channels)?;
    let written = out.clone();
    Ok(Work {
        launch: Box::new(move || {
            GroupNorm {
                x: &x,
                pitch: channels,
                pixels,
                channels,
                groups: GROUPS,
                weight: &weight,
                bias: &bias,
                eps: EPS,
                workspace: &workspace,
                norm: &norm,
            }
            .launch(&device, COMPUTE)?;
            GroupNormSilu {
                x: &x,
                pitch: channels,
                pixels,
                channels,
                norm: &norm,
                silu: true,
                out: &out,
                out_pitch: channels,
            }
            .launch(&device, COMPUTE)
        }),
        verify: Box::new(move |lab| {
            // One group's moments serve all of its samples.
            let per_group = channels / GROUPS;
            let known = std::cell::RefCell::new(std::collections::BTreeMap::new());
            hold(lab, &written, channels, |pixel, channel| {
                let at = |pixel: usize, channel: usize| bf16_at(X, pixel * channels + channel, 1.0);
                let group = channel / per_group;
                let [mean, rstd] = *known.borrow_mut().entry(group).or_insert_with(|| {
                    let members = (0..per_group).map(|i| group * per_group + i);
                    moments(
                        (0..pixels).flat_map(|pixel| members.clone().map(move |channel| at(pixel, channel))),
                    )
                });
                let scaled = (at(pixel, channel) - mean) * rstd * f32_at(NORM, channel, 1.0);
                Want { value: silu(scaled + f32_at(BIAS, channel, 1.0)), norm: 1.0 }
            })
        }),
    })
}
