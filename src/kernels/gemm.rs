//! Matrix products `out[m, n] = epilogue(x[m, k] . w[n, k]^T + bias)`, whatever `w` is stored as: the problem, the epilogues
//! (one per range of columns), the choice of an entry point and the launch. [`nf4_gemm`](super::nf4_gemm) and
//! [`bf16_gemm`](super::bf16_gemm) bring a [`Weight`] each; [`conv2d`](super::conv2d) shares the problem.

mod low_rank;
mod split;

use half::bf16;

pub use low_rank::LowRank;
pub use split::Split;

use super::{check_len, matrix_len, refuse, to_i32, volume};
use crate::abi;
use crate::device::{
    Capability, Config, Device, Footprint, Kernel, NO_MAP, StreamId, TensorElement, TensorTile, View,
};
use crate::{Error, Result};

/// Columns of one FLUX head and of one CTA tile.
pub const HEAD_WIDTH: usize = abi::GEMM_BLOCK_N as usize;

/// Applied to `acc + bias` before the epilogue stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `x sigmoid(1.702 x)`
    QuickGelu,
}

impl Activation {
    fn code(self) -> i32 {
        (match self {
            Activation::None => abi::GEMM_ACT_NONE,
            Activation::GeluTanh => abi::GEMM_ACT_GELU_TANH,
            Activation::GeluErf => abi::GEMM_ACT_GELU_ERF,
            Activation::QuickGelu => abi::GEMM_ACT_QUICK_GELU,
        }) as i32
    }
}

/// Where a range of columns goes; `y` is the activated `acc + bias`.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `out = y`, rounded to bf16.
    Store(&'a View<bf16>),
    /// `out = y` in f32.
    StoreF32(&'a View<f32>),
    /// `out += gate * y`: the f32 residual stream. `gate` f32 `[columns]`, or 1.
    Add(&'a View<f32>, Option<&'a View<f32>>),
    /// `out = y + other`, one rounding to bf16; `other` has `out`'s pitch and may be `out` itself.
    AddBf16(&'a View<bf16>, &'a View<bf16>),
    /// `out = y * other`, likewise.
    MulBf16(&'a View<bf16>, &'a View<bf16>),
    /// Per 128 columns: RMSNorm with `weight` f32 `[128]`, then RoPE by the problem's tables, rounded to bf16.
    NormRope {
        /// Destination.
        out: &'a View<bf16>,
        /// Norm weights of one head.
        weight: &'a View<f32>,
    },
}

impl Epilogue<'_> {
    fn kind(&self) -> u32 {
        match self {
            Epilogue::Store(_) => abi::GEMM_STORE_BF16,
            Epilogue::StoreF32(_) => abi::GEMM_STORE_F32,
            Epilogue::Add(..) => abi::GEMM_ADD_F32,
            Epilogue::AddBf16(..) => abi::GEMM_ADD_BF16,
            Epilogue::MulBf16(..) => abi::GEMM_MUL_BF16,
            Epilogue::NormRope { .. } => abi::GEMM_NORM_ROPE,
        }
    }
}

/// The epilogues that an entry point has code for; `kernels/gemm.h` lists the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogues {
    /// [`Epilogue::Store`], with any activation.
    Store,
    /// [`Epilogue::StoreF32`] and [`Epilogue::Add`], without activation.
    Residual,
    /// [`Epilogue::AddBf16`] and [`Epilogue::MulBf16`], without activation.
    Combine,
    /// [`Epilogue::NormRope`], and [`Epilogue::Store`] with [`Activation::GeluTanh`] or none.
    Heads,
}

impl Epilogues {
    /// Kinds and activations, a bit each.
    fn bits(self) -> (u32, u32) {
        match self {
            Epilogues::Store => (abi::GEMM_STORE_KINDS, abi::GEMM_STORE_ACTS),
            Epilogues::Residual => (abi::GEMM_RESIDUAL_KINDS, abi::GEMM_RESIDUAL_ACTS),
            Epilogues::Combine => (abi::GEMM_COMBINE_KINDS, abi::GEMM_COMBINE_ACTS),
            Epilogues::Heads => (abi::GEMM_HEADS_KINDS, abi::GEMM_HEADS_ACTS),
        }
    }

    /// Whether there is code for all of these.
    pub(super) fn have<'a>(self, mut segments: impl Iterator<Item = &'a Segment<'a>>) -> bool {
        let (kinds, activations) = self.bits();
        segments.all(|s| kinds >> s.epilogue.kind() & 1 == 1 && activations >> s.activation.code() & 1 == 1)
    }
}

/// Columns `begin..end` and what becomes of them. Column `begin` lands at column 0 of the destination.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// First column; a multiple of 8 (of 128 for [`Epilogue::NormRope`]).
    pub begin: usize,
    /// One past the last column; a multiple of 8 or the problem's `n`.
    pub end: usize,
    /// Elements from one row of the destination to the next.
    pub pitch: usize,
    /// Applied first.
    pub activation: Activation,
    /// Applied second.
    pub epilogue: Epilogue<'a>,
}

/// So many columns a product may have whose bf16 results take the place of the first of `x`'s own, at its pitch: one tile has them
/// all, and it has read all of its rows before it writes any.
pub const IN_PLACE_COLUMNS: usize = abi::GEMM_BLOCK_N as usize;

/// One matrix product with its epilogues.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    /// bf16 `[m, x_pitch]`; rows 16-byte aligned.
    pub x: &'a View<bf16>,
    /// Elements from row to row; a multiple of 8, at least `k`.
    pub x_pitch: usize,
    /// Rows: tokens or pixels.
    pub m: usize,
    /// Columns: features or channels.
    pub n: usize,
    /// Inner width.
    pub k: usize,
    /// f32 `[n]`.
    pub bias: Option<&'a View<f32>>,
    /// cos and sin, f32 `[m, 64]` each, for [`Epilogue::NormRope`].
    pub rope: Option<(&'a View<f32>, &'a View<f32>)>,
    /// Epsilon of that RMSNorm.
    pub norm_eps: f32,
    /// What a LoRA adds.
    pub low_rank: Option<LowRank<'a>>,
    /// Disjoint, at most 4.
    pub segments: Vec<Segment<'a>>,
}

impl<'a> Problem<'a> {
    /// A product whose columns all share one epilogue.
    pub fn simple(
        x: &'a View<bf16>,
        [m, n, k]: [usize; 3],
        bias: Option<&'a View<f32>>,
        activation: Activation,
        epilogue: Epilogue<'a>,
    ) -> Self {
        let segments = vec![Segment { begin: 0, end: n, pitch: n, activation, epilogue }];
        Problem { x, x_pitch: k, m, n, k, bias, rope: None, norm_eps: 0.0, low_rank: None, segments }
    }

    /// Multiply-adds times two.
    pub fn flops(&self) -> u64 {
        volume(&[2, self.m, self.n, self.k]) as u64
    }

    /// Checks every view against the shapes; `w`, `absmax` and `w_pitch` are the caller's.
    fn params(&self, kernel: &str, footprint: &mut Footprint<'_>) -> Result<abi::gemm_problem> {
        if self.m == 0 || self.n == 0 || self.k == 0 {
            return Err(refuse(kernel, format!("empty product {} x {} x {}", self.m, self.n, self.k)));
        }
        if self.x_pitch % 8 != 0 {
            return Err(refuse(kernel, format!("x_pitch {} is not a multiple of 8", self.x_pitch)));
        }
        if self.x_pitch < self.k {
            return Err(refuse(kernel, format!("x_pitch {} is less than k = {}", self.x_pitch, self.k)));
        }
        check_len(kernel, "x", self.x, matrix_len(self.m, self.x_pitch, self.k))?;
        check_aligned(kernel, "x", self.x.address())?;
        footprint.computes(self.flops());
        if let Some(bias) = self.bias {
            check_len(kernel, "bias", bias, self.n)?;
        }
        if self.segments.len() > abi::GEMM_MAX_SEGMENTS as usize {
            return Err(refuse(kernel, format!("{} segments", self.segments.len())));
        }
        let mut params = abi::gemm_problem {
            x: footprint.reads_rows(self.x, self.m, self.x_pitch, self.k)?,
            bias: footprint.reads_optional(self.bias)?,
            x_pitch: self.x_pitch as i64,
            m: to_i32(kernel, "m", self.m)?,
            n: to_i32(kernel, "n", self.n)?,
            k: to_i32(kernel, "k", self.k)?,
            num_segments: self.segments.len() as i32,
            norm_eps: self.norm_eps,
            ..Default::default()
        };
        let mut covered = 0;
        for (segment, out) in self.segments.iter().zip(&mut params.segment) {
            if segment.begin != covered {
                return Err(refuse(
                    kernel,
                    format!("segment {}..{} does not follow on", segment.begin, segment.end),
                ));
            }
            covered = segment.end;
            *out = self.segment_params(kernel, segment, footprint)?;
        }
        if covered != self.n {
            return Err(refuse(kernel, format!("segments cover {covered} of {} columns", self.n)));
        }
        if let Some((cos, sin)) = self.rope {
            let table_len = volume(&[self.m, HEAD_WIDTH / 2]);
            check_len(kernel, "rope cos", cos, table_len)?;
            check_len(kernel, "rope sin", sin, table_len)?;
            check_aligned(kernel, "rope cos", cos.address())?;
            check_aligned(kernel, "rope sin", sin.address())?;
            let half = HEAD_WIDTH / 2;
            params.rope_cos = footprint.reads_rows(cos, self.m, half, half)?;
            params.rope_sin = footprint.reads_rows(sin, self.m, half, half)?;
        }
        Ok(params)
    }

    fn segment_params(
        &self,
        kernel: &str,
        s: &Segment<'_>,
        footprint: &mut Footprint<'_>,
    ) -> Result<abi::gemm_segment> {
        let columns = s.end.saturating_sub(s.begin);
        if columns == 0 || s.begin % 8 != 0 || (s.end % 8 != 0 && s.end != self.n) || s.pitch < columns {
            return Err(refuse(kernel, format!("segment {}..{} with pitch {}", s.begin, s.end, s.pitch)));
        }
        let extent = matrix_len(self.m, s.pitch, columns);
        let (out, aux) = match s.epilogue {
            Epilogue::Store(out) => {
                check_len(kernel, "out", out, extent)?;
                (footprint.writes_rows(out, self.m, s.pitch, columns)?, 0)
            }
            Epilogue::StoreF32(out) => {
                check_len(kernel, "out", out, extent)?;
                (footprint.writes_rows(out, self.m, s.pitch, columns)?, 0)
            }
            Epilogue::Add(out, gate) => {
                check_len(kernel, "out", out, extent)?;
                if let Some(gate) = gate {
                    check_len(kernel, "gate", gate, columns)?;
                }
                let gate = footprint.reads_optional(gate)?;
                (footprint.updates_rows(out, self.m, s.pitch, columns)?, gate)
            }
            Epilogue::AddBf16(out, other) | Epilogue::MulBf16(out, other) => {
                check_len(kernel, "out", out, extent)?;
                check_len(kernel, "other operand", other, extent)?;
                check_aligned(kernel, "other operand", other.address())?;
                (
                    footprint.writes_rows(out, self.m, s.pitch, columns)?,
                    footprint.reads_rows(other, self.m, s.pitch, columns)?,
                )
            }
            Epilogue::NormRope { out, weight } => {
                if s.begin % HEAD_WIDTH != 0
                    || s.end % HEAD_WIDTH != 0
                    || s.pitch % 8 != 0
                    || self.rope.is_none()
                {
                    return Err(refuse(kernel, format!("norm and RoPE over columns {}..{}", s.begin, s.end)));
                }
                if s.activation != Activation::None {
                    return Err(refuse(kernel, "an activation before norm and RoPE"));
                }
                check_len(kernel, "out", out, extent)?;
                check_len(kernel, "norm weight", weight, HEAD_WIDTH)?;
                check_aligned(kernel, "norm weight", weight.address())?;
                let weight = footprint.reads_rows(weight, 1, HEAD_WIDTH, HEAD_WIDTH)?;
                (footprint.writes_rows(out, self.m, s.pitch, columns)?, weight)
            }
        };
        check_aligned(kernel, "out", out)?;
        Ok(abi::gemm_segment {
            out,
            aux,
            out_pitch: s.pitch as i64,
            n_begin: to_i32(kernel, "segment begin", s.begin)?,
            n_end: to_i32(kernel, "segment end", s.end)?,
            kind: s.epilogue.kind() as i32,
            act: s.activation.code(),
        })
    }
}

/// 16-byte vector accesses start at this address.
pub(super) fn check_aligned(kernel: &str, what: &str, address: u64) -> Result<()> {
    if address % 16 != 0 {
        return Err(Error::Internal(format!("{kernel}: `{what}` is not 16-byte aligned")));
    }
    Ok(())
}

/// Weights `[n, k]` as they are stored: [`Nf4Weight`](super::nf4_gemm::Nf4Weight),
/// [`Bf16Weight`](super::bf16_gemm::Bf16Weight), [`KeptWeight`](super::kept_gemm::KeptWeight). Another format is a loader in `kernels/operands/`, a file of entry points
/// like `kernels/nf4_gemm.cu`, and an implementation of this.
#[expect(private_bounds, reason = "only this crate knows what a kernel reads")]
pub trait Weight: Stored {}

/// Entry points of one format, in the order in which they are tried, and the tile that they have.
#[derive(Clone, Copy)]
pub(super) struct Entries {
    pub tile: &'static Tile,
    pub kernels: [(Epilogues, &'static Kernel); 4],
}

/// What a CTA multiplies of a product, and what it costs to split that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Rows of x; columns are [`HEAD_WIDTH`] of all.
    pub tokens: usize,
    /// In percent of a k-step on a full SM: another prologue, the barriers and the fence; and, for each slice, that its sums go to the
    /// L2 cache and come back to the CTA that adds them.
    pub joining: usize,
    pub joining_each: usize,
    /// Whether TMA fetches x, by maps that are params.
    pub by_maps: bool,
}

/// `kernels/gemm_tile.cuh`. An sm_86 takes about half of the time for joining, whose k-steps are long.
pub(super) static TILE: Tile =
    Tile { tokens: abi::GEMM_BLOCK_M as usize, joining: 150, joining_each: 75, by_maps: false };

/// `kernels/gemm_tile_sm90.cuh`. A k-step has 1,024 clocks; for joining 3,400 are assumed, and 2,700 for each slice's 128 KB.
pub(super) static TILE_SM90: Tile =
    Tile { tokens: abi::GEMM_SM90_BLOCK_M as usize, joining: 340, joining_each: 270, by_maps: true };

/// What [`Weight`] is to the launch.
pub(super) trait Stored: Copy {
    /// The kernel's, for messages.
    fn name(&self) -> &'static str;

    /// The entry points for a machine.
    fn entries(&self, capability: &Capability) -> Entries;

    /// Checks the weights against a problem, and fills in where they lie.
    fn operand(
        &self,
        problem: &Problem<'_>,
        params: &mut abi::gemm_problem,
        footprint: &mut Footprint<'_>,
    ) -> Result<()>;
}

/// `out = epilogue(x . w^T + bias)` for one or two problems in one launch; `kernels/gemm_tile.cuh` says how.
///
/// - numerics: f32 accumulation, one rounding at the store
/// - source: ours
#[derive(Debug)]
pub struct Gemm<'a, W> {
    /// The products and their weights.
    pub problems: &'a [(Problem<'a>, W)],
    /// For the tiles that are [split](Gemm::split); without it none are.
    pub workspace: Option<Workspace<'a>>,
}

fn no_problems(count: usize) -> Error {
    refuse("gemm", format!("{count} problems in one launch"))
}

/// Memory in which slices of tiles are put together.
#[derive(Clone, Copy, Debug)]
pub struct Workspace<'a> {
    /// f32, as many as [`Split::partials_len`]; 16-byte aligned.
    pub partials: &'a View<f32>,
    /// u32, one for each split tile at least: zeros, and zeros again when the launch is through.
    pub arrivals: &'a View<u32>,
}

impl<W: Weight> Gemm<'_, W> {
    /// How the tiles of all problems, which run side by side, are spread over the machine.
    pub fn split(&self, capability: &Capability) -> Split {
        let steps = || self.problems.iter().map(|(p, _)| p.k.div_ceil(abi::GEMM_BLOCK_K as usize));
        let steps = [steps().min().unwrap_or(0), steps().max().unwrap_or(0)];
        let Some((_, weight)) = self.problems.first() else { return Split::none(0, &TILE) };
        let entries = weight.entries(capability);
        Split::new(self.tiles(entries.tile), steps, &entries, capability)
    }

    fn tiles(&self, tile: &Tile) -> usize {
        let tiles = |p: &Problem<'_>| volume(&[p.m.div_ceil(tile.tokens), p.n.div_ceil(HEAD_WIDTH)]);
        self.problems.iter().fold(0, |sum, (problem, _)| sum.saturating_add(tiles(problem)))
    }

    /// What [`Gemm::split`] says, where there is a workspace.
    fn division(&self, capability: &Capability) -> Split {
        match (self.workspace, self.problems.first()) {
            (None, Some((_, weight))) => {
                let tile = weight.entries(capability).tile;
                Split::none(self.tiles(tile), tile)
            }
            _ => self.split(capability),
        }
    }

    /// The entry point that has all of the problems' epilogues, and its grid: a CTA for each tile or slice.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when none has.
    pub fn select(&self, capability: &Capability) -> Result<Config> {
        let segments = || self.problems.iter().flat_map(|(problem, _)| &problem.segments);
        let Some((_, weight)) = self.problems.first() else { return Err(no_problems(0)) };
        let ctas = u32::try_from(self.division(capability).ctas()).unwrap_or(u32::MAX);
        weight
            .entries(capability)
            .kernels
            .into_iter()
            .find(|(set, _)| set.have(segments()))
            .map(|(_, kernel)| Config { kernel, grid: [ctas, 1, 1] })
            .ok_or_else(|| {
                let asked: Vec<String> = segments()
                    .map(|s| format!("kind {} with activation {:?}", s.epilogue.kind(), s.activation))
                    .collect();
                refuse(weight.name(), format!("no entry point has the epilogues {}", asked.join(", ")))
            })
    }

    /// Enqueues the products.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for shapes and epilogues that no entry point can take, [`Error::Internal`] for views that are too
    /// small or misaligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let first = match self.problems {
            [(_, first), ..] if self.problems.len() <= abi::GEMM_MAX_PROBLEMS as usize => first,
            _ => return Err(no_problems(self.problems.len())),
        };
        let name = first.name();
        if self.problems.iter().any(|(_, weight)| weight.name() != name) {
            return Err(refuse(name, "weights of several formats in one launch"));
        }
        let mut footprint = Footprint::new(device);
        let mut params = abi::gemm_params::default();
        for (i, (problem, weight)) in self.problems.iter().enumerate() {
            params.problem[i] = problem.params(name, &mut footprint)?;
            weight.operand(problem, &mut params.problem[i], &mut footprint)?;
            if let Some(low_rank) = &problem.low_rank {
                params.low_rank[i] = low_rank.params(name, problem.m, problem.n, &mut footprint)?;
            }
        }
        let config = self.select(device.capability())?;
        let split = self.division(device.capability());
        params.num_whole = to_i32(name, "tiles", split.whole)?;
        params.num_slices = to_i32(name, "slices", split.slices)?;
        if let Some(Workspace { partials, arrivals }) = self.workspace.filter(|_| split.split > 0) {
            check_len(name, "partials", partials, split.partials_len())?;
            check_len(name, "arrivals", arrivals, split.split)?;
            check_aligned(name, "partials", partials.address())?;
            params.partials =
                footprint.writes_rows(partials, 1, split.partials_len(), split.partials_len())?;
            params.arrivals = footprint.updates_rows(arrivals, 1, split.split, split.split)?;
        }
        if first.entries(device.capability()).tile.by_maps {
            let params = self.with_maps(params, &mut footprint)?;
            // SAFETY: as below; the maps are of the problems' own x and t, whose extents were checked.
            return unsafe { device.launch(stream, config, &params, &footprint) };
        }
        // SAFETY: params is the generated type of all these entries; `Problem::params` and `Weight::operand` cover every
        // address for the problems' m, n and k; the grid has the tiles of the problems filled in, and where `num_whole` leaves some
        // to be split, partials and arrivals were checked for the slices of all of them.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }

    /// Hopper's params.
    fn with_maps(
        &self,
        gemm: abi::gemm_params,
        footprint: &mut Footprint<'_>,
    ) -> Result<abi::gemm_sm90_params> {
        let map = |footprint: &mut Footprint<'_>, matrix: &View<bf16>, [m, width, pitch]: [usize; 3]| {
            let tile = TensorTile {
                element: TensorElement::Bf16,
                width,
                num_rows: m,
                pitch_bytes: pitch * size_of::<bf16>(),
                box_width: abi::GEMM_BLOCK_K as usize,
                box_num_rows: abi::GEMM_SM90_BLOCK_M as usize,
                swizzled: true,
            };
            footprint.tensor_map(matrix, &tile)
        };
        let mut params = abi::gemm_sm90_params { x: [NO_MAP; 2], t: [NO_MAP; 2], gemm, unused: [0; 2] };
        for (i, (problem, _)) in self.problems.iter().enumerate() {
            params.x[i] = map(footprint, problem.x, [problem.m, problem.k, problem.x_pitch])?;
            if let Some(low) = &problem.low_rank {
                params.t[i] = map(footprint, low.t, [problem.m, low.ends.len() * low.rank, low.t_pitch])?;
            }
        }
        Ok(params)
    }
}
