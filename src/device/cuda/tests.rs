//! The GPU's machine on a driver that does as it is told: what stays behind, and what becomes of failures.

use std::ffi::c_void;

use super::fake::{DRIVER, FREE_BYTES, Fake, PRIMARY};
use super::*;
use crate::device::{Config, Device, Footprint, Graph, Tape, TapedLaunch, View};

/// A context of the host program.
const HOST: usize = 0x7000;

unsafe extern "C" fn not_called(_: *const c_void) {}

/// Two CTAs of it fit an SM of the fake GPU.
static KERNEL: Kernel = Kernel {
    stem: "fake",
    name: "fake_entry",
    image: b"a fatbin",
    emulated: not_called,
    threads: 128,
    smem_bytes: 64 << 10,
};

fn open() -> Result<Device> {
    Ok(Device::new(Box::new(Cuda::open_with(&DRIVER, 0, 13000)?)))
}

fn launch(device: &Device) -> Result<()> {
    // SAFETY: the fake driver launches nothing.
    unsafe {
        device.launch(
            StreamId::Compute,
            Config { kernel: &KERNEL, grid: [1, 1, 1] },
            &0u64,
            &Footprint::new(device),
        )
    }
}

/// A launch, a fill, and a launch.
fn graph(device: &Device, view: &View<u8>) -> Result<Graph> {
    let tape = Tape::fresh(device.capability().clone());
    launch(&Device::tape(tape.clone()))?;
    let launches = tape.take();
    let TapedLaunch { config, params, work } = &launches[0];
    let launch = || Node::Launch { config: *config, params, work };
    // SAFETY: the fake driver launches nothing.
    unsafe { device.graph(&[launch(), Node::Fill { view, value: 7 }, launch()]) }
}

/// One of each of a device's operations.
fn use_all(device: &Device) -> Result<()> {
    let view = device.allocate(64)?.view::<u8>(0, 64)?;
    let mut host = device.allocate_host(64)?;
    let (event, later) = (device.create_event()?, device.create_event()?);
    device.free_bytes()?;
    device.prepare(&KERNEL)?;
    device.fill(StreamId::Copy, &view, 0)?;
    device.copy_to_device(StreamId::Copy, &view, &host, 0)?;
    device.record(StreamId::Copy, &event)?;
    device.wait(StreamId::Compute, &event)?;
    launch(device)?;
    let graph = graph(device, &view)?;
    // SAFETY: as in `launch`.
    unsafe { device.launch_graph(StreamId::Compute, &graph)? };
    device.copy_to_host(StreamId::Compute, &mut host, 0, &view)?;
    device.record(StreamId::Compute, &later)?;
    device.synchronize_event(&later)?;
    later.elapsed_ms_since(&event)?;
    host.as_mut_slice()[0] = 1;
    device.synchronize(StreamId::Compute)
}

fn is_empty(fake: &Fake) -> bool {
    let s = fake.state();
    [s.retained, s.streams, s.modules, s.events, s.pinned, s.device_memory, s.graphs] == [0; 7]
}

#[test]
fn the_host_programs_contexts_stay_where_they_are() {
    for stack in [vec![], vec![HOST], vec![HOST, PRIMARY], vec![PRIMARY, HOST]] {
        let fake = Fake::new();
        *fake.state().stack() = stack.clone();
        let device = open().unwrap();
        assert_eq!(*fake.state().stack(), stack, "opened");
        use_all(&device).unwrap();
        assert_eq!(*fake.state().stack(), stack, "used");
        drop(device);
        assert_eq!(*fake.state().stack(), stack, "dropped");
        assert!(is_empty(&fake));
    }
}

/// One node after the other, ready on the device before anything is launched.
#[test]
fn a_graph_is_a_chain() {
    let fake = Fake::new();
    let device = open().unwrap();
    let memory = device.allocate(64).unwrap();
    let made = graph(&device, &memory.view::<u8>(0, 64).unwrap()).unwrap();
    let state = fake.state();
    let [(0, first), (before, second), (last_before, _)] = state.nodes[..] else {
        panic!("{:?}", state.nodes)
    };
    assert_eq!((before, last_before), (first, second));
    // The template is gone, what was made of it is there.
    assert_eq!((state.graphs, state.count("cuGraphUpload")), (1, 1));
    drop(state);
    drop(made);
    assert_eq!(fake.state().graphs, 0);
}

/// As under some virtual GPUs: loading goes on without.
#[test]
fn a_driver_without_graphs_says_so() {
    let fake = Fake::new();
    let device = open().unwrap();
    fake.state().fail("cuGraphCreate", 0, sys::CUresult::CUDA_ERROR_NOT_SUPPORTED as u32);
    let memory = device.allocate(64).unwrap();
    let refused = graph(&device, &memory.view::<u8>(0, 64).unwrap()).unwrap_err();
    assert!(matches!(&refused, Error::Unsupported(why) if why.contains("no CUDA graphs")), "{refused}");
}

/// Whichever call it is that fails.
#[test]
fn a_failure_leaves_nothing_behind() {
    let fake = Fake::new();
    use_all(&open().unwrap()).unwrap();
    let num_calls = fake.state().calls.len();
    assert!(num_calls > 100, "{num_calls}");
    for call in 0..num_calls {
        let fake = Fake::new();
        *fake.state().stack() = vec![HOST];
        fake.state().fail_any = Some((call, 2));
        let result = open().and_then(|device| use_all(&device));
        let state = fake.state();
        let failed = state.calls[call];
        match result {
            Err(error) => {
                assert!(matches!(error, Error::Capacity { .. } | Error::Unsupported(_)), "{failed}: {error}")
            }
            // What is no more than a hint, a clean-up, or a look at what is current.
            Ok(()) => assert!(
                failed.contains("Destroy")
                    || failed.contains("Free")
                    || failed.contains("Release")
                    || failed.contains("Unload")
                    || failed.contains("Synchronize")
                    || failed.contains("PCIBusId")
                    || failed.contains("Occupancy")
                    || ["cuFuncSetAttribute", "cuDeviceGetAttribute"].contains(&failed)
                    || failed.starts_with("cuCtx"),
                "{failed} failed silently"
            ),
        }
        // Nor memory: what a clean-up does not give back is the driver's refusal to take it.
        let is_clean_up =
            ["Destroy", "Free", "Release", "Unload", "cuCtx"].iter().any(|part| failed.contains(part));
        drop(state);
        assert!(is_clean_up || is_empty(&fake), "{failed}, call {call}");
        let mut state = fake.state();
        // A pop that the driver itself refuses leaves the context where it is.
        if failed != "cuCtxPopCurrent_v2" {
            assert_eq!(*state.stack(), [HOST], "{failed}, call {call}");
        }
    }
}

#[test]
fn a_failure_to_open_releases_what_was_made() {
    for (function, after) in [("cuStreamCreate", 0), ("cuStreamCreate", 1), ("cuCtxPushCurrent_v2", 0)] {
        let fake = Fake::new();
        *fake.state().stack() = vec![HOST];
        fake.state().fail(function, after, 1);
        assert!(matches!(open(), Err(Error::Device { .. })));
        assert_eq!(*fake.state().stack(), [HOST]);
        assert!(is_empty(&fake));
    }
}

#[test]
fn who_enters_switches_once() {
    let fake = Fake::new();
    *fake.state().stack() = vec![HOST];
    let device = open().unwrap();
    let before = fake.state().count("cuCtxPushCurrent_v2");
    let entered = device.enter().unwrap();
    assert_eq!(*fake.state().stack(), [HOST, PRIMARY]);
    for _ in 0..3 {
        use_all(&device).unwrap();
    }
    let again = device.enter().unwrap();
    drop(again);
    assert_eq!(*fake.state().stack(), [HOST, PRIMARY]);
    assert_eq!(fake.state().count("cuCtxPushCurrent_v2"), before + 1);
    // The host program may put another on top; the device finds its own all the same.
    fake.state().stack().push(HOST);
    use_all(&device).unwrap();
    assert_eq!(*fake.state().stack(), [HOST, PRIMARY, HOST]);
    fake.state().stack().pop();
    drop(entered);
    assert_eq!(*fake.state().stack(), [HOST]);
    // What the host program forgot to take off is not taken from it.
    let entered = device.enter().unwrap();
    fake.state().stack().push(HOST);
    drop(entered);
    assert_eq!(*fake.state().stack(), [HOST, PRIMARY, HOST]);
}

#[test]
fn other_threads_keep_no_context() {
    let fake = Fake::new();
    let device = open().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fake.join();
            use_all(&device).unwrap();
            assert!(fake.state().stack().is_empty());
        });
    });
    drop(device);
    assert!(is_empty(&fake));
}

/// cudarc's enum has no such values: to hold one is undefined behavior, and to print one was a crash.
#[test]
fn codes_without_a_name_are_told_by_number() {
    for (function, code) in [("cuLaunchKernel", 917), ("cuStreamSynchronize", 1234), ("cuMemAlloc_v2", 65536)]
    {
        let fake = Fake::new();
        let device = open().unwrap();
        fake.state().fail(function, 0, code);
        let error = match function {
            "cuLaunchKernel" => launch(&device),
            "cuMemAlloc_v2" => device.allocate(64).map(|_| ()),
            _ => device.synchronize(StreamId::Compute),
        };
        let text = error.unwrap_err().to_string();
        assert!(text.contains(&format!("error {code}")), "{text}");
    }
}

#[test]
fn lack_of_memory_is_typed_with_numbers_and_advice_wherever_it_shows() {
    for (function, needed, free) in [
        ("cuDevicePrimaryCtxRetain", 0, false),
        ("cuStreamCreate", 0, true),
        ("cuMemAlloc_v2", 64, true),
        ("cuMemHostAlloc", 64, false),
        ("cuEventCreate", 0, true),
        ("cuModuleLoadData", 0, true),
        ("cuModuleGetFunction", 0, true),
        ("cuFuncLoad", 0, true),
        ("cuLaunchKernel", 0, true),
    ] {
        let fake = Fake::new();
        fake.state().fail(function, 0, 2);
        let error = open().and_then(|device| use_all(&device)).unwrap_err();
        let text = error.to_string();
        let Error::Capacity { needed_bytes, available_bytes, advice, .. } = error else {
            panic!("{function}: {error:?}")
        };
        assert_eq!(needed_bytes, needed, "{text}");
        assert_eq!(available_bytes == FREE_BYTES as u64, free, "{text}");
        assert!(!text.contains("budget") && !advice.is_empty(), "{text}");
    }
}

/// The driver looks at code when it is loaded, looked up or first launched, as it likes.
#[test]
fn code_that_does_not_run_here_is_unsupported_wherever_it_shows() {
    let functions = [
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuFuncLoad",
        "cuFuncGetParamInfo",
        "cuFuncSetAttribute",
        "cuLaunchKernel",
    ];
    for function in functions {
        for (code, advice) in [
            (209, "an nvcc that knows this GPU"),
            (222, "install a driver at least as new"),
            (221, "libnvidia-ptxjitcompiler"),
            (223, "CUDA_DISABLE_PTX_JIT"),
            (218, "newer driver"),
        ] {
            let fake = Fake::new();
            let device = open().unwrap();
            fake.state().fail(function, 0, code);
            let error = launch(&device).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Unsupported(_)), "{function}: {error:?}");
            assert!(
                text.contains(advice) && text.contains("kernels/fake.cu") && text.contains("13.0"),
                "{text}"
            );
        }
    }
}

#[test]
fn an_event_that_cannot_be_recorded_hands_out_no_bytes_in_flight() {
    let stream = StreamId::Copy;
    let fake = Fake::new();
    let device = open().unwrap();
    let view = device.allocate(64).unwrap().view::<u8>(0, 64).unwrap();
    let mut host = device.allocate_host(64).unwrap();
    host.as_mut_slice().fill(1);
    fake.state().fail("cuEventRecord", 0, 1);
    assert!(matches!(device.copy_to_device(stream, &view, &host, 0), Err(Error::Device { .. })));
    host.as_mut_slice().fill(2);
    let mut back = device.allocate_host(64).unwrap();
    device.copy_to_host(stream, &mut back, 0, &view).unwrap();
    assert_eq!(back.as_slice(), [1; 64], "the bytes of when the copy was asked for");
}

#[test]
fn a_wait_that_fails_hands_out_no_bytes_in_flight() {
    let stream = StreamId::Copy;
    let fake = Fake::new();
    let device = open().unwrap();
    let view = device.allocate(64).unwrap().view::<u8>(0, 64).unwrap();
    let mut host = device.allocate_host(64).unwrap();
    host.as_mut_slice().fill(1);
    device.copy_to_device(stream, &view, &host, 0).unwrap();
    fake.state().fail("cuEventSynchronize", 0, 1);
    host.as_mut_slice().fill(2);
    let mut back = device.allocate_host(64).unwrap();
    device.copy_to_host(stream, &mut back, 0, &view).unwrap();
    assert_eq!(back.as_slice(), [1; 64]);
}

#[test]
fn a_kernels_fault_says_what_is_left_to_do() {
    for code in [700, 710, 714, 718, 719, 721] {
        let fake = Fake::new();
        let device = open().unwrap();
        fake.state().broken = code;
        for error in [device.synchronize(StreamId::Compute), launch(&device), open().map(|_| ())] {
            let error = error.unwrap_err();
            let text = error.to_string();
            if matches!(error, Error::Device { .. }) {
                assert!(text.contains("restart the process"), "{text}");
                assert!(text.contains("sync-launch") || cfg!(feature = "sync-launch"), "{text}");
            }
        }
    }
}

#[test]
fn a_driver_without_a_gpu_is_unsupported_and_says_why() {
    for (code, advice) in [(100, "CUDA_VISIBLE_DEVICES"), (803, "reboot"), (999, "check nvidia-smi")] {
        let fake = Fake::new();
        fake.state().fail("cuInit", 0, code);
        let error = open().unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("no usable GPU") && text.contains(advice), "{text}");
    }
    let _fake = Fake::new();
    let text = Cuda::open_with(&DRIVER, 1, 13000).err().unwrap().to_string();
    assert!(text.contains("there is no GPU cuda:1") && text.contains("CUDA_VISIBLE_DEVICES"), "{text}");
}

#[test]
fn kernels_that_share_an_sm_ask_for_shared_memory() {
    let fake = Fake::new();
    let device = open().unwrap();
    device.prepare(&KERNEL).unwrap();
    use sys::CUfunction_attribute_enum as Which;
    let expected = [
        (Which::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32, 64 << 10),
        // 2 x 65 KiB of 164.
        (Which::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as u32, 80),
    ];
    assert_eq!(fake.state().attributes, expected);
}

#[test]
fn a_gpu_is_known_by_its_place_on_the_bus() {
    let _fake = Fake::new();
    assert_eq!(open().unwrap().capability().pci_bus_id.as_deref(), Some("0000:41:00.0"));
}

/// Older than 12.4: neither is asked for.
#[test]
fn a_driver_without_the_newer_functions_will_do() {
    let fake = Fake::new();
    let old = Box::leak(Box::new(Driver { cuFuncLoad: None, cuFuncGetParamInfo: None, ..DRIVER }));
    let device = Device::new(Box::new(Cuda::open_with(old, 0, 13000).unwrap()));
    use_all(&device).unwrap();
    assert_eq!(fake.state().count("cuFuncLoad"), 0);
}

/// After a fault of a kernel, and after a wait that failed for whatever reason; not after what was merely refused.
#[test]
fn a_lost_context_is_made_anew_when_nothing_of_it_is_left() {
    for (function, code, is_lost) in [
        ("cuStreamSynchronize", 700, true),
        ("cuStreamSynchronize", 999, true),
        ("cuEventSynchronize", 1, true),
        ("cuLaunchKernel", 719, true),
        ("cuMemcpyHtoDAsync_v2", 709, true),
        ("cuLaunchKernel", 701, false),
        ("cuMemAlloc_v2", 2, false),
        ("cuEventCreate", 2, false),
    ] {
        let fake = Fake::new();
        let device = open().unwrap();
        let other = device.clone();
        fake.state().fail(function, 0, code);
        let failed = use_all(&device);
        assert_eq!(device.check_alive().is_err(), is_lost, "{function} {code}: {failed:?}");
        if !is_lost {
            device.revive().unwrap();
            assert_eq!(fake.state().count("cuDevicePrimaryCtxRetain"), 1);
            continue;
        }
        fake.state().broken = code;
        for device in [&device, &other] {
            let error = device.check_alive().unwrap_err();
            assert!(matches!(error, Error::Poisoned { .. }), "{error:?}");
        }
        device.revive().unwrap();
        for device in [&device, &other] {
            device.check_alive().unwrap();
            use_all(device).unwrap();
        }
        let state = fake.state();
        assert_eq!((state.retained, state.streams), (1, 2), "{function}");
        drop(state);
        drop((device, other));
        assert!(is_empty(&fake));
    }
}

/// What is left of it would be freed in another context, or be used there.
#[test]
fn a_lost_context_stays_while_anything_of_it_is_left() {
    let lose = |fake: &Fake, device: &Device| {
        fake.state().broken = 700;
        device.synchronize(StreamId::Compute).unwrap_err();
    };
    type Make = fn(&Device) -> Box<dyn std::any::Any>;
    let makes: [Make; 5] = [
        |device| Box::new(device.allocate(64).unwrap()),
        |device| Box::new(device.allocate_host(64).unwrap()),
        |device| Box::new(device.create_event().unwrap()),
        |device| {
            let view = device.allocate(64).unwrap().view::<u8>(0, 64).unwrap();
            Box::new(graph(device, &view).unwrap())
        },
        |device| Box::new(device.enter().unwrap()),
    ];
    for (i, make) in makes.into_iter().enumerate() {
        let fake = Fake::new();
        let device = open().unwrap();
        let made = make(&device);
        lose(&fake, &device);
        let error = device.revive().unwrap_err();
        assert!(
            matches!(error, Error::Poisoned { .. }) && error.to_string().contains("other pipelines"),
            "{i}: {error}"
        );
        assert_eq!(fake.state().count("cuDevicePrimaryCtxRelease_v2"), 0, "{i}");
        drop(made);
        device.revive().unwrap();
        use_all(&device).unwrap();
        drop(device);
        assert!(is_empty(&fake), "{i}");
    }
}

/// The host program, or another library in it, keeps the primary context alive, broken as it is.
#[test]
fn a_context_that_somebody_else_holds_stays_lost() {
    let fake = Fake::new();
    fake.state().retained = 1;
    let device = open().unwrap();
    fake.state().broken = 718;
    assert!(launch(&device).is_err());
    for _ in 0..2 {
        let error = device.revive().unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }) && error.to_string().contains("restart"), "{error}");
        assert_eq!(fake.state().retained, 1, "the host program's own");
        assert!(device.allocate(64).is_err() && device.enter().is_err() && device.free_bytes().is_err());
    }
    // It lets go.
    fake.state().retained = 0;
    fake.state().reset();
    device.revive().unwrap();
    use_all(&device).unwrap();
    drop(device);
    assert!(is_empty(&fake));
}
