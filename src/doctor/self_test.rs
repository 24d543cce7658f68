//! Whether the kernels compute on a machine what they compute on the emulator.

use std::collections::BTreeSet;

#[cfg(feature = "emulator")]
use crate::check::{self, Case, Fill};
use crate::device::Device;
#[cfg(feature = "emulator")]
use crate::device::{AsyncCopies, EmulatorOptions, Order};
use crate::{Error, Result};

/// What was compared.
#[derive(Clone, Debug, Default)]
pub struct SelfTest {
    /// Computations.
    pub cases: usize,
    /// Kernels that ran, and all that this machine can run.
    pub kernels: (usize, usize),
    /// Small cases alone: those of an emulator, which is compared with itself under another schedule.
    pub is_short: bool,
    /// Each case that failed or differs, in words.
    pub faults: Vec<String>,
}

/// Runs every case that `device` can run, there and on an emulator that poses as it, and compares. On an emulator only the
/// small ones, twice: in order, and as a seed of its own decides. `progress` is told how many of how many are done.
///
/// # Errors
/// [`Error::Unsupported`] in a build without the emulator.
#[cfg(feature = "emulator")]
pub fn self_test(device: &Device, progress: &mut dyn FnMut(usize, usize)) -> Result<SelfTest> {
    let is_short = device.capability().is_emulator;
    let options = EmulatorOptions { arch: device.capability().arch, ..EmulatorOptions::default() };
    let reference = Device::emulator(options);
    let under_test = match is_short {
        true => Device::emulator(EmulatorOptions {
            order: Order::Random,
            async_copies: AsyncCopies::Random,
            seed: 1,
            ..options
        }),
        false => device.clone(),
    };
    let cases: Vec<Case> = check::cases()
        .into_iter()
        .filter(|case| case.runs_on(&under_test) && (case.small || !is_short))
        .collect();
    let mut test = SelfTest { is_short, ..SelfTest::default() };
    for (i, case) in cases.iter().enumerate() {
        progress(i, cases.len());
        let both =
            case.run(&reference, Fill::Nan).and_then(|want| Ok((want, case.run(&under_test, Fill::Nan)?)));
        test.cases += 1;
        match both {
            Ok((want, got)) => {
                let compared = check::compare(&want, &got).into_iter();
                let fault = |c: check::Comparison| Some(format!("{}, {}: {}", case.name, c.name, c.fault?));
                test.faults.extend(compared.filter_map(fault));
            }
            Err(error) => {
                test.faults.push(format!("{}: {error}", case.name));
                // What a kernel's fault leaves of a context fails everything after it, too.
                if matches!(error, Error::Device { .. } | Error::Poisoned { .. }) {
                    break;
                }
            }
        }
    }
    let all: BTreeSet<&str> = super::machine::kernels_for(&under_test).map(|kernel| kernel.name()).collect();
    let ran = under_test.launched().into_iter().filter(|name| all.contains(name)).count();
    test.kernels = (ran, all.len());
    Ok(test)
}

/// As above, in a build without the emulator.
#[cfg(not(feature = "emulator"))]
pub fn self_test(_device: &Device, _progress: &mut dyn FnMut(usize, usize)) -> Result<SelfTest> {
    Err(Error::Unsupported("kernels are compared with the emulator, which this build lacks".to_string()))
}
