//! The machine's face where no GPU is needed: how the absence of one is told, and what views refuse.

use schnell::Error;
use schnell::device::{Device, EmulatorOptions};

/// Without a driver, a GPU or kernels there is one typed error, which says what is missing; with all three, a GPU.
#[test]
fn a_missing_gpu_is_one_typed_error() {
    match Device::cuda(0) {
        Ok(device) => assert!(device.capability().arch >= 80 && !device.capability().is_emulator),
        Err(error) => {
            let text = error.to_string();
            assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
            assert_eq!(error.exit_code(), 5);
            let missing =
                ["libcuda", "no usable GPU", "there is no GPU", "scripts/get-nvcc", "driver for CUDA", "8.0"];
            assert_eq!(missing.iter().filter(|what| text.contains(*what)).count(), 1, "{text}");
        }
    }
}

#[test]
fn views_refuse_what_leaves_them() {
    let device = Device::emulator(EmulatorOptions { threads: 1, ..EmulatorOptions::default() });
    let memory = device.allocate(64).unwrap();
    assert!(memory.view::<f32>(0, 16).is_ok());
    assert!(memory.view::<f32>(4, 16).is_err(), "beyond the end");
    assert!(memory.view::<f32>(2, 1).is_err(), "misaligned");
    assert!(memory.view::<f32>(usize::MAX, 1).is_err(), "an offset that overflows");
    let view = memory.view::<u8>(0, 64).unwrap();
    assert!(view.slice(60, 5).is_err());
    assert!(view.slice(1, 6).unwrap().cast::<u32>().is_err());
    let host = device.allocate_host(16).unwrap();
    assert!(device.copy_to_host(schnell::device::StreamId::Copy, &host, 8, &view).is_err());
    assert_eq!(device.num_allocations(), 1);
}
