//! What this build has been compiled with, and what the system tells of a GPU.

use std::path::Path;

use crate::device::Device;
use crate::kernels;
use crate::{Error, Result};

/// Who compiled the kernels for GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompiledBy {
    /// nvcc of this version, `13.0`.
    Nvcc(&'static str),
    /// There was none: the emulator alone runs.
    Nobody,
    /// The feature `cuda` was not asked for.
    WithoutCuda,
}

/// See [`CompiledBy`].
pub fn compiled_by() -> CompiledBy {
    match option_env!("SCHNELL_NVCC_VERSION").unwrap_or_default() {
        _ if !cfg!(feature = "cuda") => CompiledBy::WithoutCuda,
        "" => CompiledBy::Nobody,
        version => CompiledBy::Nvcc(version),
    }
}

/// A GPU's slot, as the kernel of the system knows it: the driver's API does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieLink {
    /// PCIe 3, 4, ...: that of now, which is lower where nothing is going on.
    pub generation: u32,
    /// That both ends are capable of.
    pub most_generation: u32,
    /// Lanes in use.
    pub lanes: u32,
    /// Lanes that the card has.
    pub most_lanes: u32,
}

impl PcieLink {
    /// That of the device at `bus_id`, `0000:41:00.0`, in `folder`, which is `/sys/bus/pci/devices`. Nothing where it cannot be told,
    /// as in some virtual machines.
    pub fn read(folder: &Path, bus_id: &str) -> Option<PcieLink> {
        // The driver writes it in capitals.
        let device = folder.join(bus_id.to_ascii_lowercase());
        let text = |name: &str| std::fs::read_to_string(device.join(name)).ok();
        let lanes = |name| text(name)?.trim().parse().ok().filter(|lanes| (1..=32).contains(lanes));
        Some(PcieLink {
            generation: generation(&text("current_link_speed")?)?,
            most_generation: generation(&text("max_link_speed")?)?,
            lanes: lanes("current_link_width")?,
            most_lanes: lanes("max_link_width")?,
        })
    }
}

/// Of `16.0 GT/s PCIe`.
fn generation(speed: &str) -> Option<u32> {
    match speed.split_whitespace().next()? {
        "2.5" => Some(1),
        "5" | "5.0" => Some(2),
        "8" | "8.0" => Some(3),
        "16" | "16.0" => Some(4),
        "32" | "32.0" => Some(5),
        "64" | "64.0" => Some(6),
        _ => None,
    }
}

/// The release of NVIDIA's kernel module, `580.95.05`, from the text of `/proc/driver/nvidia/version`.
pub fn driver_release(text: &str) -> Option<&str> {
    let numbers = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.lines().find(|line| line.starts_with("NVRM version"))?.split_whitespace().find(numbers)
}

/// Makes every kernel ready that this machine can run; how many there are. The driver looks at the code of each.
///
/// # Errors
/// What the driver says of the first that it does not take.
pub fn ready_kernels(device: &Device) -> Result<usize> {
    let mut ready = 0;
    for kernel in kernels_for(device) {
        device.prepare(kernel)?;
        ready += 1;
    }
    match ready {
        0 => Err(Error::Internal("a build without kernels".to_string())),
        _ => Ok(ready),
    }
}

/// Hopper's instructions run on Hopper alone.
pub(super) fn kernels_for(device: &Device) -> impl Iterator<Item = &'static crate::device::Kernel> {
    let capability = device.capability();
    let runs_all = capability.arch / 10 == 9;
    kernels::all().into_iter().filter(move |kernel| runs_all || !kernel.stem().ends_with("_sm90"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_told_by_what_the_system_says() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("0000:4a:00.0");
        std::fs::create_dir(&device).unwrap();
        let files = [
            ("current_link_speed", "2.5 GT/s PCIe\n"),
            ("max_link_speed", "16.0 GT/s PCIe\n"),
            ("current_link_width", "8\n"),
        ];
        for (name, text) in files {
            std::fs::write(device.join(name), text).unwrap();
        }
        let read = || PcieLink::read(folder.path(), "0000:4A:00.0");
        assert_eq!(read(), None, "its width is not told");
        std::fs::write(device.join("max_link_width"), "16\n").unwrap();
        assert_eq!(read(), Some(PcieLink { generation: 1, most_generation: 4, lanes: 8, most_lanes: 16 }));
        // As of a virtual machine.
        std::fs::write(device.join("max_link_speed"), "Unknown\n").unwrap();
        assert_eq!(read(), None);
        std::fs::write(device.join("max_link_speed"), "16.0 GT/s PCIe\n").unwrap();
        std::fs::write(device.join("current_link_width"), "0\n").unwrap();
        assert_eq!(read(), None);
    }

    #[test]
    fn releases_are_read_from_both_kinds_of_module() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (a@b)\nGCC version: gcc 12.2.0\n";
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n";
        assert_eq!(driver_release(open), Some("580.95.05"));
        assert_eq!(driver_release(closed), Some("535.183.01"));
        assert_eq!(driver_release("GCC version: gcc 12.2.0"), None);
    }
}
