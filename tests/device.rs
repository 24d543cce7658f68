//! The machine's face where no GPU is needed: how the absence of one is told, and what views refuse.

use schnell::Error;
use schnell::device::{Device, EmulatorOptions};
use schnell::kernels::count_nonfinite::CountNonfinite;

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
    for (offset, len) in [(4, 16), (2, 1), (usize::MAX, 1)] {
        let refusal = memory.view::<f32>(offset, len).unwrap_err().to_string();
        assert!(refusal.contains("does not fit an allocation of 64 bytes"), "{len} at {offset}: {refusal}");
    }
    let view = memory.view::<u8>(0, 64).unwrap();
    assert!(view.slice(60, 5).unwrap_err().to_string().contains("elements 60..+5 leave a view of 64"));
    let odd = view.slice(1, 6).unwrap().cast::<u32>().unwrap_err().to_string();
    assert!(odd.contains("6 bytes are no whole number of 4"), "{odd}");
    assert!(matches!(view.cast::<()>(), Err(Error::Internal(_))), "elements of no size");
    assert!(device.last_writer(&view, usize::MAX).is_none());
    let mut host = device.allocate_host(16).unwrap();
    let short =
        device.copy_to_host(schnell::device::StreamId::Copy, &mut host, 8, &view).unwrap_err().to_string();
    assert!(short.contains("bytes 8..+64 leave a host buffer of 16 bytes"), "{short}");
    assert_eq!(device.num_allocations(), 1);
}

#[test]
fn machines_do_not_take_each_others_memory_or_events() {
    let stream = schnell::device::StreamId::Compute;
    let [a, b] =
        [0, 1].map(|_| Device::emulator(EmulatorOptions { threads: 1, ..EmulatorOptions::default() }));
    let view = a.allocate(64).unwrap().view::<u8>(0, 64).unwrap();
    let mut host = b.allocate_host(64).unwrap();
    let event = a.create_event().unwrap();
    for refused in [
        a.copy_to_device(stream, &view, &host, 0),
        b.copy_to_device(stream, &view, &host, 0),
        b.copy_to_host(stream, &mut host, 0, &view),
        b.fill(stream, &view, 0),
        b.record(stream, &event),
        b.wait(stream, &event),
    ] {
        assert!(refused.unwrap_err().to_string().contains("was given to another machine"));
    }
    assert!(a.fill(stream, &view, 0).is_ok() && a.record(stream, &event).is_ok());
    // Nor in a launch, whichever of its views it is.
    let floats = |device: &Device| device.allocate(64).unwrap().view::<f32>(0, 16).unwrap();
    let counter = |device: &Device| device.allocate(4).unwrap().view::<u32>(0, 1).unwrap();
    for (x, count, device, fits) in
        [(&a, &a, &a, true), (&b, &a, &a, false), (&a, &b, &a, false), (&a, &a, &b, false)]
    {
        let (x, counter) = (floats(x), counter(count));
        let launched = CountNonfinite::all(&x, &counter).launch(device, stream);
        assert_eq!(launched.is_ok(), fits, "{launched:?}");
    }
}

#[test]
fn looking_at_a_host_buffer_waits_for_its_copies() {
    let stream = schnell::device::StreamId::Compute;
    let device = Device::emulator(EmulatorOptions { threads: 1, ..EmulatorOptions::default() });
    let view = device.allocate(64).unwrap().view::<u8>(0, 64).unwrap();
    let mut host = device.allocate_host(64).unwrap();
    device.fill(stream, &view, 7).unwrap();
    device.copy_to_host(stream, &mut host, 0, &view).unwrap();
    assert_eq!(host.as_slice(), [7; 64]);
    // A source may be rewritten once it has been read: the copy enqueued before must see the old bytes.
    host.as_mut_slice().fill(1);
    device.copy_to_device(stream, &view, &host, 0).unwrap();
    host.as_mut_slice().fill(2);
    let mut back = device.allocate_host(64).unwrap();
    device.copy_to_host(stream, &mut back, 0, &view).unwrap();
    assert_eq!(back.as_slice(), [1; 64]);
}
