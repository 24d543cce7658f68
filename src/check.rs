//! One computation on two machines: what `gpu-check` runs on the emulator and on a GPU, and how it compares the two.
//!
//! [`cases`] is the list. A case builds its inputs from a seed, launches, and returns named outputs with the tolerance
//! that each deserves; the first machine's outputs are what the second's are held against. The cases of kernels are in
//! `check/kernels.rs`, of which `next_step` is the shortest; `scripts/new-kernel` adds one.
//!
//! Left out: whether either machine is right. That is what the tests of the kernels are for, on the emulator.

pub mod bench;
mod kept;
mod kernels;
mod probe;
mod probe_sm90;

use half::bf16;

use crate::device::{Device, StreamId, View};
use crate::{Error, Result};

/// A machine, and how its memory is filled before a case writes to it.
#[derive(Debug)]
pub struct Lab {
    device: Device,
    fill: Fill,
}

/// What memory holds at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// NaN patterns, so that reading what was never written shows in the results.
    Nan,
    /// Nothing, so that a tool which watches for such reads (compute-sanitizer's initcheck) sees them.
    Nothing,
}

impl Lab {
    /// The machine.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `len` elements, an allocation of their own: tools and the emulator see an access past their end.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the machine has not that much.
    pub fn alloc<T>(&self, len: usize) -> Result<View<T>> {
        let bytes = (len * size_of::<T>()).max(1);
        let memory = self.device.allocate(bytes)?;
        if self.fill == Fill::Nan {
            self.device.fill(StreamId::Compute, &memory.view::<u8>(0, bytes)?, 0xff)?;
        }
        memory.view(0, len)
    }

    /// The data on the machine.
    ///
    /// # Errors
    /// Those of [`Lab::alloc`] and of copies.
    pub fn upload<T: bytemuck::NoUninit>(&self, data: &[T]) -> Result<View<T>> {
        let view = self.alloc::<T>(data.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if !bytes.is_empty() {
            let mut host = self.device().allocate_host(bytes.len())?;
            host.as_mut_slice().copy_from_slice(bytes);
            self.device().copy_to_device(StreamId::Compute, &view, &host, 0)?;
            self.device().synchronize(StreamId::Compute)?;
        }
        Ok(view)
    }

    /// `len` numbers in `[-scale, scale)`, the same for the same seed.
    ///
    /// # Errors
    /// Those of [`Lab::upload`].
    pub fn f32s(&self, seed: u64, len: usize, scale: f32) -> Result<View<f32>> {
        self.upload(&random_f32s(seed, len, scale))
    }

    /// As [`Lab::f32s`], rounded to bf16.
    ///
    /// # Errors
    /// Those of [`Lab::upload`].
    pub fn bf16s(&self, seed: u64, len: usize, scale: f32) -> Result<View<bf16>> {
        let values: Vec<bf16> = random_f32s(seed, len, scale).into_iter().map(bf16::from_f32).collect();
        self.upload(&values)
    }

    /// What the view holds after all work so far.
    ///
    /// # Errors
    /// [`Error::Device`] with whatever failed on the way.
    pub fn download<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        view: &View<T>,
    ) -> Result<Vec<T>> {
        let mut host = self.device().allocate_host(view.num_bytes())?;
        self.device().copy_to_host(StreamId::Compute, &mut host, 0, view)?;
        self.device().synchronize(StreamId::Compute)?;
        Ok(bytemuck::cast_slice(&host.as_slice()[..view.num_bytes()]).to_vec())
    }

    /// An output that must be the same to the bit.
    ///
    /// # Errors
    /// Those of [`Lab::download`].
    pub fn bits<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        name: &str,
        view: &View<T>,
    ) -> Result<Output> {
        let view = view.cast::<u8>()?;
        Ok(Output { name: name.to_string(), values: Values::Bytes(self.download(&view)?) })
    }

    /// An output of f32, or of bf16 with [`Lab::close_bf16`], that may differ by so much: the norm of the difference
    /// over the norm, and the largest difference over the largest value.
    ///
    /// # Errors
    /// Those of [`Lab::download`].
    pub fn close(&self, name: &str, view: &View<f32>, rel_l2: f64, rel_max: f64) -> Result<Output> {
        let values = Values::Close { values: self.download(view)?, rel_l2, rel_max };
        Ok(Output { name: name.to_string(), values })
    }

    /// As [`Lab::close`], of bf16.
    ///
    /// # Errors
    /// Those of [`Lab::download`].
    pub fn close_bf16(&self, name: &str, view: &View<bf16>, rel_l2: f64, rel_max: f64) -> Result<Output> {
        let values = self.download(view)?.into_iter().map(bf16::to_f32).collect();
        Ok(Output { name: name.to_string(), values: Values::Close { values, rel_l2, rel_max } })
    }
}

/// Uniform in `[-scale, scale)`.
fn random_f32s(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|i| random_f32(seed, i, scale)).collect()
}

/// Number `i` of [`random_f32s`].
fn random_f32(seed: u64, i: usize, scale: f32) -> f32 {
    ((random_word(seed, i) >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
}

fn random_bits(seed: u64, len: usize) -> Vec<u32> {
    (0..len).map(|i| random_word(seed, i)).collect()
}

fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| random_byte(seed, i)).collect()
}

fn random_byte(seed: u64, i: usize) -> u8 {
    (random_word(seed, i / 4) >> (i % 4 * 8)) as u8
}

/// splitmix64, whose every number can be had without those before it.
fn random_word(seed: u64, i: usize) -> u32 {
    let z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}

/// What a case computed.
#[derive(Debug)]
pub struct Output {
    /// Of the tensor.
    pub name: String,
    /// The numbers, with the tolerance that they deserve.
    pub values: Values,
}

/// Numbers and how far they may differ from another machine's. NaN must meet NaN, whatever its payload; an infinity
/// must meet itself.
#[derive(Debug)]
pub enum Values {
    /// Not at all.
    Bytes(Vec<u8>),
    /// See [`Lab::close`].
    Close {
        /// The numbers.
        values: Vec<f32>,
        /// Allowed norm of the difference over the norm.
        rel_l2: f64,
        /// Allowed largest difference over the largest value.
        rel_max: f64,
    },
    /// By so many units in the last place each, or by `floor`; 0 and 0 are the same bits but for NaN.
    Ulps {
        /// The numbers.
        values: Vec<f32>,
        /// Allowed steps between neighboring floats.
        ulps: u32,
        /// Allowed difference near zero.
        floor: f32,
    },
}

/// How two machines' outputs compare.
#[derive(Debug)]
pub struct Comparison {
    /// Of the output.
    pub name: String,
    /// How many numbers (or bytes).
    pub count: usize,
    /// The worst difference, in the tolerance's own unit.
    pub worst: f64,
    /// What was allowed.
    pub allowed: f64,
    /// The first number that differs by more, in words; `None` when all is well.
    pub fault: Option<String>,
}

/// Holds `got` against `want`, which come from the same case. An output that only one of them has is a fault.
pub fn compare(want: &[Output], got: &[Output]) -> Vec<Comparison> {
    (0..want.len().max(got.len()))
        .map(|i| match (want.get(i), got.get(i)) {
            (Some(want), Some(got)) if want.name == got.name => compare_one(want, got),
            (want, got) => {
                let name = |output: Option<&Output>| output.map_or("nothing".to_string(), |o| o.name.clone());
                let fault = format!("one machine returned {}, the other {}", name(want), name(got));
                let (name, worst) = (name(want.or(got)), f64::NAN);
                Comparison { name, count: 0, worst, allowed: 0.0, fault: Some(fault) }
            }
        })
        .collect()
}

fn compare_one(want: &Output, got: &Output) -> Comparison {
    let fine =
        |count, worst, allowed, fault| Comparison { name: want.name.clone(), count, worst, allowed, fault };
    match (&want.values, &got.values) {
        (Values::Bytes(want), Values::Bytes(got)) if want.len() == got.len() => {
            let wrong: Vec<usize> = (0..want.len()).filter(|&i| want[i] != got[i]).collect();
            let fault =
                wrong.first().map(|&i| format!("byte {i} is {:#04x}, expected {:#04x}", got[i], want[i]));
            fine(want.len(), wrong.len() as f64, 0.0, fault)
        }
        (Values::Close { values: want, rel_l2, rel_max }, Values::Close { values: got, .. })
            if want.len() == got.len() =>
        {
            let (mut sum, mut norm, mut max, mut largest) = (0f64, 0f64, 0f64, 0f64);
            let mut fault = odd_one(want, got);
            for (w, g) in want.iter().zip(got).filter(|(w, g)| w.is_finite() && g.is_finite()) {
                let (w, difference) = (*w as f64, *w as f64 - *g as f64);
                sum += difference * difference;
                norm += w * w;
                max = max.max(difference.abs());
                largest = largest.max(w.abs());
            }
            let (l2, max) = ((sum / norm.max(1e-30)).sqrt(), max / largest.max(1e-30));
            if max > *rel_max {
                fault = fault.or(Some(format!(
                    "largest difference {max:.2e} of the largest value, allowed {rel_max:.2e}"
                )));
            }
            if l2 > *rel_l2 {
                fault = fault.or(Some(format!("relative L2 error {l2:.2e}, allowed {rel_l2:.2e}")));
            }
            fine(want.len(), l2, *rel_l2, fault)
        }
        (Values::Ulps { values: want, ulps, floor }, Values::Ulps { values: got, .. })
            if want.len() == got.len() =>
        {
            let mut worst = 0u32;
            let mut fault = odd_one(want, got);
            for (i, (w, g)) in want.iter().zip(got).enumerate() {
                let both_finite = w.is_finite() && g.is_finite();
                if !both_finite || *floor > 0.0 && (w - g).abs() <= *floor {
                    continue;
                }
                let distance = ordered(*w).abs_diff(ordered(*g));
                worst = worst.max(distance);
                if distance > *ulps {
                    fault = fault.or(Some(format!("number {i} is {g:e}, expected {w:e}")));
                }
            }
            fine(want.len(), worst as f64, *ulps as f64, fault)
        }
        _ => fine(
            0,
            f64::NAN,
            0.0,
            Some("the two machines returned different kinds or numbers of values".to_string()),
        ),
    }
}

/// Where NaN or infinity is in one only.
fn odd_one(want: &[f32], got: &[f32]) -> Option<String> {
    let agree = |w: f32, g: f32| w == g || (w.is_finite() && g.is_finite()) || (w.is_nan() && g.is_nan());
    let i = (0..want.len()).find(|&i| !agree(want[i], got[i]))?;
    Some(format!("number {i} is {:e}, expected {:e}", got[i], want[i]))
}

/// Neighboring floats are neighboring integers; the two zeros are neighbors, too.
fn ordered(f: f32) -> i32 {
    let bits = f.to_bits() as i32;
    if bits < 0 { i32::MIN.wrapping_sub(bits).wrapping_sub(1) } else { bits }
}

/// Builds inputs, launches, returns outputs.
type Compute = Box<dyn Fn(&Lab) -> Result<Vec<Output>>>;

/// One computation.
pub struct Case {
    /// The part of `gpu-check` that runs it: `probe`, `kernels`.
    pub part: &'static str,
    /// Unique within the part.
    pub name: String,
    /// Made to be run hundreds of times, or under a tool that slows it down a hundredfold.
    pub small: bool,
    run: Compute,
    /// Whether it needs the instructions of compute capability 9.0.
    hopper: bool,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.part, self.name)
    }
}

impl Case {
    /// The case on one machine.
    ///
    /// # Errors
    /// Whatever the machine or the wrapper refuses.
    pub fn run(&self, device: &Device, fill: Fill) -> Result<Vec<Output>> {
        (self.run)(&Lab { device: device.clone(), fill })
    }

    /// Whether the machine has what the case needs.
    pub fn runs_on(&self, device: &Device) -> bool {
        !self.hopper || device.capability().arch / 10 == 9
    }
}

fn case(
    part: &'static str,
    name: impl Into<String>,
    run: impl Fn(&Lab) -> Result<Vec<Output>> + 'static,
) -> Case {
    Case { part, name: name.into(), small: false, run: Box::new(run), hopper: false }
}

/// All of them, primitives first: where those differ, nothing else matters.
pub fn cases() -> Vec<Case> {
    let mut cases = probe::cases();
    cases.extend(probe_sm90::cases());
    cases.extend(kernels::cases());
    cases
}

/// The two machines differ, or one failed: what `gpu-check` says at the end.
pub fn mismatch(num_faults: usize) -> Error {
    Error::Mismatch(format!("{num_faults} outputs differ by more than allowed, or could not be computed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(values: &[f32], ulps: u32) -> Output {
        Output { name: "x".to_string(), values: Values::Ulps { values: values.to_vec(), ulps, floor: 0.0 } }
    }

    fn fault(want: Output, got: Output) -> Option<String> {
        compare(&[want], &[got]).remove(0).fault
    }

    #[test]
    fn nan_and_infinity_must_agree_in_place() {
        let (nan, other_nan) = (f32::NAN, f32::from_bits(0xffc0_0001));
        assert_eq!(fault(ulps(&[1.0, nan], 0), ulps(&[1.0, other_nan], 0)), None);
        assert!(fault(ulps(&[nan], 9), ulps(&[1.0], 9)).is_some());
        assert!(fault(ulps(&[1.0], 9), ulps(&[nan], 9)).is_some());
        assert!(fault(ulps(&[f32::INFINITY], 9), ulps(&[f32::NEG_INFINITY], 9)).is_some());
        let close = |v| Output {
            name: String::new(),
            values: Values::Close { values: vec![v], rel_l2: 1.0, rel_max: 1.0 },
        };
        assert!(fault(close(1.0), close(nan)).is_some());
    }

    /// A case that computes nothing agrees with everything.
    #[test]
    fn every_case_has_its_own_name_and_computes_numbers() {
        let devices = [80, 90]
            .map(|arch| Device::emulator(crate::device::EmulatorOptions { arch, ..Default::default() }));
        let mut names = std::collections::BTreeSet::new();
        for case in cases() {
            assert!(names.insert((case.part, case.name.clone())), "{case:?} twice");
            let device = devices.iter().find(|device| case.runs_on(device)).unwrap();
            for output in case.run(device, Fill::Nan).unwrap_or_else(|e| panic!("{case:?}: {e}")) {
                match output.values {
                    Values::Close { values, .. } => {
                        assert!(values.iter().all(|v| v.is_finite()), "{case:?}, {}", output.name)
                    }
                    Values::Ulps { values, .. } => {
                        // Half of the numbers have no square root.
                        let finite = values.iter().filter(|v| v.is_finite()).count();
                        assert!(3 * finite > values.len(), "{case:?}, {}", output.name);
                    }
                    Values::Bytes(bytes) => {
                        let poison = bytes.iter().filter(|b| **b == 0xff).count();
                        assert!(2 * poison < bytes.len(), "{case:?}, {}", output.name);
                    }
                }
            }
        }
    }

    #[test]
    fn ulps_are_counted_across_zero() {
        let next = f32::from_bits(1.0f32.to_bits() + 2);
        assert!(fault(ulps(&[1.0], 2), ulps(&[next], 2)).is_none());
        assert!(fault(ulps(&[1.0], 1), ulps(&[next], 1)).is_some());
        assert!(fault(ulps(&[0.0], 0), ulps(&[-0.0], 0)).is_some());
        assert!(fault(ulps(&[0.0], 1), ulps(&[-0.0], 1)).is_none());
        assert!(fault(ulps(&[1.0], 1000), ulps(&[-1.0], 1000)).is_some());
    }

    #[test]
    fn errors_beyond_the_tolerance_and_other_lengths_show() {
        let close = |values: &[f32]| Output {
            name: String::new(),
            values: Values::Close { values: values.to_vec(), rel_l2: 0.01, rel_max: 0.02 },
        };
        assert_eq!(fault(close(&[1.0, 2.0]), close(&[1.005, 2.0])), None);
        assert!(fault(close(&[1.0, 2.0]), close(&[1.1, 2.0])).is_some());
        assert!(fault(close(&[1.0, 2.0]), close(&[1.0])).is_some());
    }

    #[test]
    fn outputs_that_one_machine_lacks_or_calls_otherwise_show() {
        let named = |name: &str| Output { name: name.to_string(), ..ulps(&[1.0], 0) };
        let faults = |want: &[&str], got: &[&str]| {
            let of = |names: &[&str]| names.iter().map(|name| named(name)).collect::<Vec<_>>();
            compare(&of(want), &of(got)).iter().filter(|row| row.fault.is_some()).count()
        };
        assert_eq!(faults(&["a", "b"], &["a", "b"]), 0);
        assert_eq!(faults(&["a", "b"], &["a"]), 1);
        assert_eq!(faults(&["a"], &["a", "b", "c"]), 2);
        assert_eq!(faults(&["a", "b"], &["b", "a"]), 2);
        assert_eq!(faults(&["a"], &[]), 1);
    }
}
