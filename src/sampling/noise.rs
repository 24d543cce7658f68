//! Initial noise: `torch.randn` with a CPU generator on x86-64, bit for bit.
//!
//! The engine is MT19937, the transform Box-Muller in blocks of 16: the first eight uniforms of a block give the
//! radii, the last eight the angles, and the outputs lie as cosines, then sines. PyTorch evaluates logarithm, sine
//! and cosine by polynomials (Cephes, single precision) with fused multiply-adds, which is why they are written
//! out here: the platform's own functions differ in the last bit of every sixth value.
//!
//! For bf16 there are two incompatible generations of PyTorch, hence [`NoiseKind`]. Fewer than 16 values go a third
//! way, scalar and in f64.
//!
//! Source: PyTorch `aten/src/ATen/native/cpu/DistributionTemplates.h`, `aten/src/ATen/core/MT19937RNGEngine.h`,
//! `aten/src/ATen/core/DistributionsHelper.h`; avx_mathfun.h for the polynomials.

use half::bf16;

/// Which noise a seed means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoiseKind {
    /// `torch.randn(dtype=float32)`: the same in every version of PyTorch.
    #[default]
    F32,
    /// `torch.randn(dtype=bfloat16)` from PyTorch 2.12 on: the f32 noise, rounded.
    Bf16,
    /// `torch.randn(dtype=bfloat16)` up to PyTorch 2.11: 8-bit uniforms and every intermediate rounded to bf16. Never
    /// beyond 3.33, and unlike the other two. Most pictures published with their seed were made with it.
    Bf16Legacy,
}

/// Reads what [`std::fmt::Display`] writes.
impl std::str::FromStr for NoiseKind {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        [NoiseKind::F32, NoiseKind::Bf16, NoiseKind::Bf16Legacy]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| {
                crate::Error::Input(format!("`{text}` is no kind of noise: f32, bf16 or bf16-legacy"))
            })
    }
}

impl std::fmt::Display for NoiseKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            NoiseKind::F32 => "f32",
            NoiseKind::Bf16 => "bf16",
            NoiseKind::Bf16Legacy => "bf16-legacy",
        })
    }
}

/// Normal noise of `shape`, row-major, from a fresh generator. All kinds come as f32; the bf16 ones hold only
/// values that bf16 has.
pub fn noise(kind: NoiseKind, seed: u64, shape: &[usize]) -> Vec<f32> {
    Generator::new(seed).randn(kind, shape.iter().product())
}

/// A CPU `torch.Generator`. Successive draws continue the stream, as image-to-image needs.
#[derive(Debug, Clone)]
pub struct Generator {
    engine: Mt19937,
    /// The scalar path makes two values at a time and keeps the second, also across calls.
    spare: Option<f64>,
}

/// Values per Box-Muller block.
const BLOCK: usize = 16;
const HALF: usize = BLOCK / 2;

impl Generator {
    /// As `torch.Generator().manual_seed(seed)`: only the low 32 bits count.
    pub fn new(seed: u64) -> Self {
        Generator { engine: Mt19937::new(seed as u32), spare: None }
    }

    /// `torch.randn` of `count` contiguous values.
    pub fn randn(&mut self, kind: NoiseKind, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count)
                .map(|_| match kind {
                    NoiseKind::F32 => self.scalar_normal() as f32,
                    NoiseKind::Bf16 | NoiseKind::Bf16Legacy => round(self.scalar_normal() as f32),
                })
                .collect();
        }
        match kind {
            NoiseKind::F32 => self.fill_then_transform(count, uniform24, box_muller),
            NoiseKind::Bf16 => self.block_by_block(count),
            NoiseKind::Bf16Legacy => self.fill_then_transform(count, uniform8, box_muller_legacy),
        }
    }

    /// All uniforms first, then the blocks; a ragged end is redone from 16 new uniforms, over the last 16 values.
    fn fill_then_transform(
        &mut self,
        count: usize,
        uniform: fn(u32) -> f32,
        transform: fn(&mut [f32; BLOCK]),
    ) -> Vec<f32> {
        let mut values: Vec<f32> = (0..count).map(|_| uniform(self.engine.next())).collect();
        let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(transform);
        if !rest.is_empty() {
            let mut last: [f32; BLOCK] = std::array::from_fn(|_| uniform(self.engine.next()));
            transform(&mut last);
            values[count - BLOCK..].copy_from_slice(&last);
        }
        values
    }

    /// As f32 but for the ragged end, which takes its 16 uniforms right after those of the last whole block.
    fn block_by_block(&mut self, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        let mut fill = |out: &mut [f32]| {
            let mut block: [f32; BLOCK] = std::array::from_fn(|_| uniform24(self.engine.next()));
            box_muller(&mut block);
            out.copy_from_slice(&block.map(round));
        };
        values.chunks_exact_mut(BLOCK).for_each(&mut fill);
        if !count.is_multiple_of(BLOCK) {
            fill(&mut values[count - BLOCK..]);
        }
        values
    }

    fn scalar_normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let (a, b) = (self.uniform53(), self.uniform53());
        let radius = (-2.0 * (-b).ln_1p()).sqrt();
        let angle = std::f64::consts::TAU * a;
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    fn uniform53(&mut self) -> f64 {
        let high = u64::from(self.engine.next());
        let draw = (high << 32) | u64::from(self.engine.next());
        (draw & ((1 << 53) - 1)) as f64 * (0.5f64).powi(53)
    }
}

/// In [0, 1), from the low 24 bits.
fn uniform24(draw: u32) -> f32 {
    (draw & 0xff_ffff) as f32 * (1.0 / 16_777_216.0)
}

/// In [0, 1), from the low 8 bits: as many as bf16 has.
fn uniform8(draw: u32) -> f32 {
    (draw & 0xff) as f32 * (1.0 / 256.0)
}

fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// Uniforms to normals, in f32.
fn box_muller(block: &mut [f32; BLOCK]) {
    for j in 0..HALF {
        let u1 = 1.0 - block[j];
        let radius = (-2.0 * log(u1)).sqrt();
        let angle = std::f32::consts::TAU * block[j + HALF];
        let (sin, cos) = sin_cos(angle);
        // PyTorch adds the mean, 0: it turns -0 into +0.
        block[j] = radius * cos + 0.0;
        block[j + HALF] = radius * sin + 0.0;
    }
}

/// Uniforms to normals with every intermediate rounded to bf16.
fn box_muller_legacy(block: &mut [f32; BLOCK]) {
    for j in 0..HALF {
        let u1 = round(1.0 - block[j]);
        let radius = round(round(-2.0 * round(u1.ln())).sqrt());
        let angle = round((std::f64::consts::TAU * f64::from(block[j + HALF])) as f32);
        block[j] = round(radius * round(angle.cos())) + 0.0;
        block[j + HALF] = round(radius * round(angle.sin())) + 0.0;
    }
}

/// The natural logarithm of x in (0, 1].
#[allow(clippy::excessive_precision)] // constants as published
fn log(x: f32) -> f32 {
    const POLY: [f32; 9] = [
        7.037_683_629_2e-2,
        -1.151_461_031_0e-1,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    // x = mantissa * 2^exponent, mantissa in [0.5, 1)
    let mut exponent = (bits >> 23) as i32 - 126;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let t = if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1;
        (mantissa - 1.0) + mantissa
    } else {
        mantissa - 1.0
    };
    let exponent = exponent as f32;
    let z = t * t;
    let mut y = POLY[0];
    for &c in &POLY[1..] {
        y = y.mul_add(t, c);
    }
    y *= t;
    y = y.mul_add(z, exponent * -2.121_944_40e-4);
    y = z.mul_add(-0.5, y);
    exponent.mul_add(0.693_359_375, t + y)
}

/// Sine and cosine of x >= 0.
#[allow(clippy::excessive_precision)] // constants as published
fn sin_cos(x: f32) -> (f32, f32) {
    // The octant, rounded up to even: the polynomials hold on both sides of a multiple of pi/2.
    let octant = ((x * 1.273_239_544_735_16) as i32 + 1) & !1;
    let f = octant as f32;
    let mut x = x;
    // pi/4 in three pieces, so that nothing is lost by cancellation.
    x = f.mul_add(-0.785_156_25, x);
    x = f.mul_add(-2.418_756_484_985_351_562_5e-4, x);
    x = f.mul_add(-3.774_894_977_445_941_08e-8, x);
    let z = x * x;

    let mut c = 2.443_315_711_809_948e-5f32.mul_add(z, -1.388_731_625_493_765e-3);
    c = c.mul_add(z, 4.166_664_568_298_827e-2);
    c *= z;
    c = c.mul_add(z, -(0.5 * z));
    c += 1.0;
    let mut s = (-1.951_529_589_1e-4f32).mul_add(z, 8.332_160_873_6e-3);
    s = s.mul_add(z, -1.666_665_461_1e-1);
    s *= z;
    s = s.mul_add(x, x);

    let (mut sin, mut cos) = if octant & 2 == 0 { (s, c) } else { (c, s) };
    if octant & 4 != 0 {
        sin = -sin;
    }
    if (octant - 2) & 4 == 0 {
        cos = -cos;
    }
    (sin, cos)
}

/// The Mersenne twister (Matsumoto and Nishimura 1998), 32 bits.
#[derive(Clone)]
struct Mt19937 {
    state: [u32; Mt19937::N],
    next: usize,
}

impl std::fmt::Debug for Mt19937 {
    /// The state is 624 words that nobody wants to read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mt19937").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [0; Self::N];
        state[0] = seed;
        for j in 1..Self::N {
            let previous: u32 = state[j - 1];
            state[j] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(j as u32);
        }
        Mt19937 { state, next: Self::N }
    }

    fn next(&mut self) -> u32 {
        if self.next == Self::N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for k in 0..Self::N {
            let y = (self.state[k] & 0x8000_0000) | (self.state[(k + 1) % Self::N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[k] = self.state[(k + Self::M) % Self::N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_starts_as_published() {
        for (seed, expected) in [
            (0, [2_357_136_044, 2_546_248_239, 3_071_714_933, 3_626_093_760]),
            (42, [1_608_637_542, 3_421_126_067, 4_083_286_876, 787_846_414u32]),
        ] {
            let mut engine = Mt19937::new(seed);
            assert_eq!(std::array::from_fn(|_| engine.next()), expected, "seed {seed}");
        }
    }
}
