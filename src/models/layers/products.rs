//! Products with a network's weights: of tokens ([`Network::gemm`]) and of a few rows ([`Network::gemv`]), in as few launches as
//! can be, and what LoRAs add to them.

use half::bf16;

use crate::device::View;
use crate::kernels::bf16_gemm::Bf16Weight;
use crate::kernels::gemm::{self, Activation, Epilogue, Gemm, LowRank, Problem, Segment, Workspace};
use crate::kernels::gemv::{Gemv, GemvActivation, GemvAddend, GemvLowRank, GemvWeight};
use crate::kernels::kept::KeptLayout;
use crate::kernels::kept_gemm::KeptWeight;
use crate::kernels::nf4_gemm::Nf4Weight;
use crate::kernels::nf4_half_gemm::Nf4HalfWeight;
use crate::kernels::scale_rows::ScaleRows;
use crate::program::STREAM;
use crate::{Error, Result};

use super::{Linear, LowRankWeights, Network, Piece, Precision, Storage};

/// The left-hand side of [`Network::gemm`]: rows of tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens<'a> {
    /// bf16 `[rows, pitch]`.
    pub view: &'a View<bf16>,
    /// Elements from row to row.
    pub pitch: usize,
    /// How many.
    pub rows: usize,
}

/// q/k normalization for [`Network::gemm`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rope<'a> {
    /// f32 `[rows, 64]`.
    pub cos: &'a View<f32>,
    /// f32 `[rows, 64]`.
    pub sin: &'a View<f32>,
    /// Epsilon of the RMSNorm.
    pub eps: f32,
}

/// One product of [`Network::gemm`].
#[derive(Clone, Debug)]
pub(crate) struct Product<'a> {
    /// The tokens.
    pub x: Tokens<'a>,
    /// The weights.
    pub linear: &'a Linear,
    /// For [`Epilogue::NormRope`].
    pub rope: Option<Rope<'a>>,
    /// What becomes of the columns.
    pub segments: Vec<Segment<'a>>,
    /// Where the tokens are fp16 already ([`Network::halve`]): f32 `[rows]`, how much a row counts.
    pub x_scale: Option<View<f32>>,
    /// Where [`Network::lower`] came first: bf16 `[rows, parts * rank]`.
    pub lowered: Option<View<bf16>>,
}

/// What each piece of a product's weights has of its own.
struct PieceOperands {
    bias: Option<View<f32>>,
    /// `t`, `up`, and the ends of the parts.
    low_rank: Option<(View<bf16>, View<bf16>, Vec<usize>)>,
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
        Product { x, linear, rope: None, segments, x_scale: None, lowered: None }
    }

    /// The part of it that `rows` of the weight make, from row `first` on: columns of the result, of whole segments.
    fn of_piece<'b>(&'b self, first: usize, rows: usize, operands: &'b PieceOperands) -> Result<Problem<'b>> {
        let (own, end) = (|s: &&Segment<'_>| s.begin >= first && s.end <= first + rows, first + rows);
        let segments: Vec<Segment<'_>> = self.segments.iter().filter(own).copied().collect();
        if segments.first().map(|s| s.begin) != Some(first) || segments.last().map(|s| s.end) != Some(end) {
            let what = format!(
                "columns {first}..{end} of a product, whose weights are of one kind, are no segments"
            );
            return Err(Error::Internal(what));
        }
        let low_rank = |(t, up, ends): &'b (View<bf16>, View<bf16>, Vec<usize>)| {
            let low = self.linear.low_rank.as_ref()?;
            Some(LowRank { t, t_pitch: low.columns(), up, rank: low.rank, ends: ends.clone() })
        };
        let moved = |s: Segment<'b>| Segment { begin: s.begin - first, end: s.end - first, ..s };
        Ok(Problem {
            x: self.x.view,
            x_pitch: self.x.pitch,
            m: self.x.rows,
            n: rows,
            k: self.linear.k,
            bias: operands.bias.as_ref(),
            low_rank: operands.low_rank.as_ref().and_then(low_rank),
            rope: self.rope.map(|r| (r.cos, r.sin)),
            norm_eps: self.rope.map_or(0.0, |r| r.eps),
            segments: segments.into_iter().map(moved).collect(),
        })
    }

    /// Of each piece of the weights.
    fn operands(&self) -> Result<Vec<PieceOperands>> {
        let mut first = 0;
        let mut of_piece = |piece: &Piece| {
            let begin = first;
            first += piece.rows;
            let bias = self.linear.bias.as_ref().map(|bias| bias.slice(begin, piece.rows)).transpose()?;
            let low_rank = match (&self.linear.low_rank, &self.lowered) {
                (Some(low), Some(t)) => Some(low.of_rows(t, begin, piece.rows)?),
                (None, _) => None,
                (Some(_), None) => {
                    return Err(Error::Internal("a product of low rank has not come first".to_string()));
                }
            };
            Ok(PieceOperands { bias, low_rank })
        };
        self.linear.pieces.iter().map(&mut of_piece).collect()
    }
}

impl LowRankWeights {
    /// Of `t`: those of all parts.
    fn columns(&self) -> usize {
        self.ends.len() * self.rank
    }

    /// What `rows` of the matrix from row `begin` on, which are whole parts, need of `t` and `up`; and where the parts end there.
    fn of_rows(
        &self,
        t: &View<bf16>,
        begin: usize,
        rows: usize,
    ) -> Result<(View<bf16>, View<bf16>, Vec<usize>)> {
        let before = self.ends.iter().filter(|&&end| end <= begin).count() * self.rank;
        let own = self.ends.iter().filter(|&&end| begin < end && end <= begin + rows);
        let ends: Vec<usize> = own.map(|end| end - begin).collect();
        Ok((t.slice(before, t.len() - before)?, self.up.slice(begin * self.rank, rows * self.rank)?, ends))
    }
}

/// Operands of [`Network::gemv`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FewRows<'a> {
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

impl Network<'_> {
    /// Whether products with `linear` may take fp16 tokens, which [`Network::halve`] makes.
    pub fn multiplies_halves(&self, linear: &Linear) -> bool {
        let is_nf4 = |piece: &Piece| matches!(piece.storage, Storage::Nf4Fragments { .. });
        self.precision == Precision::Fast && linear.pieces.iter().all(is_nf4)
    }

    /// Makes the product's tokens fp16, where they are: nobody else must want to read them. `scale`, f32 `[rows]`, becomes how much
    /// each row counts.
    pub fn halve(&self, product: &mut Product<'_>, scale: View<f32>) -> Result<()> {
        let Tokens { view: x, pitch, rows } = product.x;
        ScaleRows { x, pitch, rows, width: product.linear.k, scale: &scale }.launch(self.device(), STREAM)?;
        product.x_scale = Some(scale);
        Ok(())
    }

    /// The first half of what LoRAs add to the products, in one launch: it reads the tokens as they are, before they become
    /// [fp16](Network::halve). [`Network::gemm`] does it where nobody did.
    pub fn lower(&mut self, products: &mut [Product<'_>]) -> Result<()> {
        let mut lowered = Vec::new();
        for product in products.iter() {
            let low = product.linear.low_rank.as_ref().filter(|_| product.lowered.is_none());
            if low.is_some() && product.x_scale.is_some() {
                return Err(Error::Internal(
                    "tokens became fp16 before their product of low rank".to_string(),
                ));
            }
            let room = |low: &LowRankWeights| self.buffer::<bf16>("low_rank", product.x.rows * low.columns());
            lowered.push(low.map(room).transpose()?);
        }
        let problem = |(product, t)| {
            let (product, t): (&Product<'_>, &Option<View<bf16>>) = (product, t);
            let (t, low) = t.as_ref().zip(product.linear.low_rank.as_ref())?;
            let Tokens { view: x, pitch: x_pitch, rows } = product.x;
            let shape = [rows, low.columns(), product.linear.k];
            let problem = Problem::simple(x, shape, None, Activation::None, Epilogue::Store(t));
            Some((Problem { x_pitch, ..problem }, Bf16Weight { values: &low.down, pitch: low.pitch }))
        };
        let problems: Vec<_> = products.iter().zip(&lowered).filter_map(problem).collect();
        self.multiply(&problems)?;
        for (product, t) in products.iter_mut().zip(lowered) {
            product.lowered = product.lowered.take().or(t);
        }
        Ok(())
    }

    /// One or two matrix products, in one launch where their weights are of one kind.
    pub fn gemm(&mut self, products: &[Product<'_>]) -> Result<()> {
        let (mut nf4, mut halves, mut dense) = (Vec::new(), Vec::new(), Vec::new());
        let mut kept: Vec<(Problem<'_>, KeptWeight<'_>)> = Vec::new();
        let mut products = products.to_vec();
        self.lower(&mut products)?;
        let operands = products.iter().map(Product::operands).collect::<Result<Vec<_>>>()?;
        for (p, operands) in products.iter().zip(&operands) {
            let mut first = 0;
            for (piece, operands) in p.linear.pieces.iter().zip(operands) {
                let problem = p.of_piece(first, piece.rows, operands)?;
                first += piece.rows;
                match (&piece.storage, &p.x_scale) {
                    (Storage::Nf4Fragments { codes, absmax }, None) => {
                        nf4.push((problem, Nf4Weight { codes, absmax }));
                    }
                    (Storage::Nf4Fragments { codes, absmax }, Some(x_scale)) => {
                        let weight = Nf4Weight { codes, absmax };
                        halves.push((problem, Nf4HalfWeight { weight, x_scale }));
                    }
                    (_, Some(_)) => {
                        return Err(Error::Internal("fp16 tokens for weights that are not NF4".to_string()));
                    }
                    (Storage::Kept { format, layout: KeptLayout::Panels, bytes }, None) => {
                        kept.push((problem, KeptWeight { format: *format, bytes }));
                    }
                    (Storage::Bf16 { values, pitch }, None) => {
                        dense.push((problem, Bf16Weight { values, pitch: *pitch }));
                    }
                    (Storage::Nf4Rows { .. } | Storage::Kept { .. }, None) => {
                        return Err(Error::Unsupported(
                            "a matrix product with weights laid out for few rows".to_string(),
                        ));
                    }
                }
            }
        }
        self.multiply(&nf4)?;
        self.multiply(&halves)?;
        // Those of one format are neighbors then; the order of products of one format stays.
        kept.sort_by_key(|(_, weight)| weight.format);
        for of_format in kept.chunk_by(|a, b| a.1.format == b.1.format) {
            self.multiply(of_format)?;
        }
        self.multiply(&dense)
    }

    /// As few launches as can be.
    fn multiply<W: gemm::Weight>(&mut self, problems: &[(Problem<'_>, W)]) -> Result<()> {
        problems
            .chunks(crate::abi::GEMM_MAX_PROBLEMS as usize)
            .try_for_each(|some| self.multiply_at_once(some))
    }

    fn multiply_at_once<W: gemm::Weight>(&mut self, problems: &[(Problem<'_>, W)]) -> Result<()> {
        let split = Gemm { problems, workspace: None }.split(self.device().capability());
        if split.split == 0 {
            return Gemm { problems, workspace: None }.launch(self.device(), STREAM);
        }
        let (partials, arrivals) = &self.recorder.workspace(split.partials_len(), split.split)?;
        Gemm { problems, workspace: Some(Workspace { partials, arrivals }) }.launch(self.device(), STREAM)
    }

    /// `out[rows, n] = act_out(linear(act_in(x[rows, k]))) + add`, f32, a few rows at a time.
    pub fn gemv(&mut self, linear: &Linear, few: &FewRows<'_>) -> Result<()> {
        let [Piece { storage, .. }] = &linear.pieces[..] else {
            return Err(Error::Unsupported("few rows times a matrix of several kinds".to_string()));
        };
        let weight = match storage {
            Storage::Nf4Rows { codes, absmax } => GemvWeight::Nf4 { codes, absmax },
            Storage::Bf16 { values, pitch } => GemvWeight::Bf16 { weight: values, pitch: *pitch },
            Storage::Kept { format, layout: KeptLayout::Rows, bytes } => {
                GemvWeight::Kept { format: *format, bytes }
            }
            Storage::Nf4Fragments { .. } | Storage::Kept { .. } => {
                return Err(Error::Unsupported(
                    "few rows times weights laid out for matrix products".to_string(),
                ));
            }
        };
        let act = |silu| if silu { GemvActivation::Silu } else { GemvActivation::None };
        let low = linear.low_rank.as_ref();
        let t = low.map(|low| self.buffer::<f32>("low_rank", few.rows * low.rank)).transpose()?;
        let mut row = 0;
        while row < few.rows {
            let m = (few.rows - row).min(crate::abi::GEMV_MAX_M as usize);
            let x = few.x.slice(row * linear.k, m * linear.k)?;
            let out = few.out.slice(row * few.out_pitch, (m - 1) * few.out_pitch + linear.n)?;
            let t = low.zip(t.as_ref()).map(|(low, t)| t.slice(row * low.rank, m * low.rank)).transpose()?;
            if let Some((LowRankWeights { rank, down, pitch, .. }, t)) = low.zip(t.as_ref()) {
                Gemv {
                    x: &x,
                    pitch: linear.k,
                    m,
                    n: *rank,
                    k: linear.k,
                    weight: GemvWeight::Bf16 { weight: down, pitch: *pitch },
                    low_rank: None,
                    bias: None,
                    act_in: act(few.silu_in),
                    act_out: GemvActivation::None,
                    add: None,
                    out: t,
                    out_pitch: *rank,
                }
                .launch(self.device(), STREAM)?;
            }
            let low_rank = low.zip(t.as_ref());
            let low_rank = low_rank.map(|(low, t)| GemvLowRank { t, up: &low.up, rank: low.rank });
            Gemv {
                x: &x,
                pitch: linear.k,
                m,
                n: linear.n,
                k: linear.k,
                weight,
                low_rank,
                bias: linear.bias.as_ref(),
                act_in: act(few.silu_in),
                act_out: act(few.silu_out),
                // One row, added to all.
                add: few.add.map(|rows| GemvAddend { rows, pitch: 0 }),
                out: &out,
                out_pitch: few.out_pitch,
            }
            .launch(self.device(), STREAM)?;
            row += m;
        }
        Ok(())
    }
}
