//! Whether a launch did what it is timed for: some of its results beside a plain sum of f64 over the same inputs.
//!
//! Inputs are random and every one of them can be had alone, so that nothing is kept for this and little is computed. Results are
//! held to what bf16 and a tensor core's order of additions allow; how exact kernels are is for their tests to say.

use half::bf16;

use crate::check::{Lab, random_f32};
use crate::device::View;
use crate::{Error, Result};

/// Seeds of the inputs.
pub const X: u64 = 1;
pub const ABSMAX: u64 = 2;
pub const BIAS: u64 = 3;
pub const CODES: u64 = 4;
pub const KEYS: u64 = 5;
pub const VALUES: u64 = 6;
pub const NORM: u64 = 7;
pub const TAPS: u64 = 8;

/// Number `i` of a bf16 input.
pub fn bf16_at(seed: u64, i: usize, scale: f32) -> f64 {
    bf16::from_f32(random_f32(seed, i, scale)).to_f64()
}

/// Number `i` of an f32 input.
pub fn f32_at(seed: u64, i: usize, scale: f32) -> f64 {
    f64::from(random_f32(seed, i, scale))
}

/// What a result should be, and the root of the sum of its terms' squares: what rounding of them all is a share of.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    pub value: f64,
    pub norm: f64,
}

impl Want {
    /// A sum.
    pub fn sum(terms: impl Iterator<Item = f64>) -> Want {
        let (value, squares) =
            terms.fold((0.0, 0.0), |(sum, squares), term| (sum + term, squares + term * term));
        Want { value, norm: squares.sqrt() }
    }

    /// One more term.
    pub fn plus(self, term: f64) -> Want {
        Want { value: self.value + term, norm: self.norm.hypot(term) }
    }
}

/// The first, the last, and some between.
pub fn samples(len: usize) -> impl Iterator<Item = usize> {
    let between = (1..6).map(move |i| random_f32(i, len, 1.0).abs() * len as f32).map(|at| at as usize);
    let all: std::collections::BTreeSet<usize> =
        between.map(|at| at.min(len - 1)).chain([0, len - 1]).collect();
    all.into_iter()
}

/// Samples of `out [rows, columns]` beside what `want(row, column)` says.
///
/// # Errors
/// [`Error::Mismatch`] with the first that differs, and those of copies.
pub fn hold<T>(lab: &Lab, out: &View<T>, columns: usize, want: impl Fn(usize, usize) -> Want) -> Result<()>
where
    T: bytemuck::AnyBitPattern + bytemuck::NoUninit + Into<f64>,
{
    for row in samples(out.len() / columns) {
        let got = lab.download(&out.slice(row * columns, columns)?)?;
        for column in samples(columns) {
            let (got, want): (f64, Want) = (got[column].into(), want(row, column));
            // One rounding to bf16 of the result, and what each term's own roundings come to.
            let allowed = want.value.abs() / 128.0 + want.norm / 50.0;
            if got.is_nan() || (got - want.value).abs() > allowed {
                return Err(Error::Mismatch(format!(
                    "its result at [{row}, {column}] is {got:e}, not {:e}: it is not timed",
                    want.value
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Fill;
    use crate::device::{Device, EmulatorOptions};

    #[test]
    fn a_wrong_result_is_seen_at_either_end() {
        let device = Device::emulator(EmulatorOptions::default());
        let lab = Lab { device, fill: Fill::Nothing };
        let want = |row: usize, column: usize| Want { value: (row * 10 + column) as f64, norm: 1.0 };
        let right: Vec<f32> = (0..70).map(|i| i as f32).collect();
        hold(&lab, &lab.upload(&right).unwrap(), 10, want).unwrap();
        for at in [0, 9, 60, 69] {
            for wrong in [f32::NAN, right[at] + 1.0] {
                let mut values = right.clone();
                values[at] = wrong;
                let said = hold(&lab, &lab.upload(&values).unwrap(), 10, want).unwrap_err().to_string();
                assert!(said.contains(&format!("[{}, {}]", at / 10, at % 10)), "{said}");
            }
        }
    }
}
