//! Tables of time and position: the sinusoid of a timestep, the rotations of RoPE, the buckets of T5.

use half::bf16;

/// Values of a timestep's sinusoid.
pub const SINUSOID: usize = 256;

/// In which precision the network's time is formed from sigma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeRounding {
    /// `1000 sigma` in f32.
    #[default]
    Exact,
    /// As diffusers does when it runs in bf16: times 1000, rounded, over 1000, rounded, times 1000, rounded. Sigma
    /// 0.75 becomes 752 instead of 750; 1, 0.5 and 0.25 are exact.
    Bf16,
}

/// The 256 values that stand for `sigma`: the cosines, then the sines, of `1000 sigma * 10000^(-j / 128)`. In f32; the
/// reference rounds them to the weights' dtype afterwards.
///
/// Source: diffusers `FluxPipeline.__call__` and `get_timestep_embedding`, which computes angles in f32.
pub fn timestep_embedding(sigma: f32, rounding: TimeRounding) -> [f32; SINUSOID] {
    let time = sigma * 1000.0;
    sinusoid(match rounding {
        TimeRounding::Exact => time,
        TimeRounding::Bf16 => bf16_of(bf16_of(bf16_of(time) / 1000.0) * 1000.0),
    })
}

/// The same for a guidance scale (FLUX.1-dev), which takes the same factor of 1000: in bf16 a scale of 3.5 becomes
/// 3504.
pub fn guidance_embedding(scale: f32, rounding: TimeRounding) -> [f32; SINUSOID] {
    sinusoid(match rounding {
        TimeRounding::Exact => scale * 1000.0,
        TimeRounding::Bf16 => bf16_of(bf16_of(scale) * 1000.0),
    })
}

fn bf16_of(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

fn sinusoid(time: f32) -> [f32; SINUSOID] {
    const HALF: usize = SINUSOID / 2;
    let mut out = [0.0; SINUSOID];
    let log_period = -(10_000f64.ln()) as f32;
    for j in 0..HALF {
        // f32 at every stop, as the reference; the functions themselves in f64, to be right whatever the platform's
        // f32 ones are.
        let exponent = log_period * j as f32 / HALF as f32;
        let frequency = f64::from(exponent).exp() as f32;
        let angle = f64::from(time * frequency);
        out[j] = angle.cos() as f32;
        out[HALF + j] = angle.sin() as f32;
    }
    out
}

/// Cosines and sines of RoPE, each `[text_tokens + height * width, sum(axes) / 2]`: text first, then the image row by
/// row; `height` and `width` in tokens.
///
/// A token at row r and column c has position (0, r, c), text (0, 0, 0). Axis a turns pair k of its `axes[a] / 2`
/// by `position * theta^(-2k / axes[a])`. Pair p is channels 2p and 2p + 1 of a head.
///
/// Source: diffusers `FluxPosEmbed`: angles in f64, results in f32.
pub fn rope_tables(
    axes: [usize; 3],
    theta: f64,
    text_tokens: usize,
    height: usize,
    width: usize,
) -> (Vec<f32>, Vec<f32>) {
    let frequencies = axes.map(|channels| -> Vec<f64> {
        (0..channels / 2).map(|k| 1.0 / theta.powf((2 * k) as f64 / channels as f64)).collect()
    });
    let pairs: usize = frequencies.iter().map(Vec::len).sum();
    let tokens = text_tokens + height * width;
    let mut cos = Vec::with_capacity(tokens * pairs);
    let mut sin = Vec::with_capacity(tokens * pairs);
    let text = std::iter::repeat_n([0, 0, 0], text_tokens);
    let image = (0..height).flat_map(|row| (0..width).map(move |column| [0, row, column]));
    for position in text.chain(image) {
        for (coordinate, frequencies) in position.into_iter().zip(&frequencies) {
            for frequency in frequencies {
                let (s, c) = (coordinate as f64 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
    }
    (cos, sin)
}

/// The bucket of T5's bidirectional relative position bias, for `relative` = key position - query position.
///
/// Half the `buckets` are for keys after the query. Of each half, the first half are single distances, the rest
/// grow logarithmically up to `max_distance`. `buckets` must be a multiple of 4 and `max_distance` above a quarter of
/// it, as [`PipelineConfig::open`](crate::config::PipelineConfig::open) checks.
///
/// Source: transformers `T5Attention._relative_position_bucket`, f32 arithmetic included.
pub fn t5_bucket(relative: i64, buckets: usize, max_distance: usize) -> usize {
    let per_direction = buckets / 2;
    let offset = if relative > 0 { per_direction } else { 0 };
    let distance = relative.unsigned_abs();
    let exact = per_direction / 2;
    if distance < exact as u64 {
        return offset + distance as usize;
    }
    let span = (max_distance as f64 / exact as f64).ln() as f32;
    let growth = (distance as f32 / exact as f32).ln() / span * (per_direction - exact) as f32;
    offset + (exact + growth as usize).min(per_direction - 1)
}
