//! What the host pays for a step: the launches are counted, not carried out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::super::Quantize;
use super::*;
use crate::config::PipelineConfig;
use crate::device::EmulatorOptions;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all of it is the system's allocator; counting touches nothing of it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The bundled model, on a machine that counts launches.
fn bound(budget: Option<u64>, graphs: bool) -> (Device, Plan, Bound) {
    let dir = tempfile::tempdir().unwrap();
    crate::demo::write(dir.path()).unwrap();
    let config = PipelineConfig::open(dir.path()).unwrap();
    let device = Device::emulator(EmulatorOptions { launches_nothing: true, ..Default::default() });
    let shape = Shape { width: 128, height: 128, ..Shape::default() };
    let mut plan = Plan::new(&config, shape, Quantize::Nf4).unwrap().on(device.capability()).unwrap();
    if let Some(budget) = budget {
        plan = plan.within(budget).unwrap();
    }
    let arena = Arena::new(plan.arena_bytes() as usize, &device).unwrap();
    let bound = Bound::new(plan.shapes[0].clone(), &plan, &device, &arena, graphs).unwrap();
    (device, plan, bound)
}

/// Every operation is in one piece, in order; where all weights stay, a stage that computes is one graph, but for what it
/// sends and fetches; where some are streamed, what is between their copies is one.
#[test]
fn what_nothing_comes_between_is_a_graph() {
    let (_, plan, resident) = bound(None, true);
    let least = plan.least_bytes().unwrap();
    let (_, _, streamed) = bound(Some(least), true);
    let (_, _, each) = bound(Some(least), false);
    for bound in [&resident, &streamed, &each] {
        for stage in &bound.stages {
            let parts: Vec<usize> = stage.pieces.iter().flat_map(|piece| piece.ops.clone()).collect();
            assert_eq!(parts, stage.ops.clone().collect::<Vec<_>>(), "{}", stage.name);
        }
    }
    let graphs = |bound: &Bound, name: &str| -> usize {
        let stages = bound.stages.iter().filter(|stage| stage.name == name);
        stages.flat_map(|stage| &stage.pieces).filter(|piece| piece.graph.is_some()).count()
    };
    // The first step, and those that follow.
    assert_eq!(["clip", "t5", "step", "vae"].map(|name| graphs(&resident, name)), [1, 1, 2, 1]);
    for stage in resident.stages.iter().filter(|stage| ["clip", "t5", "step", "vae"].contains(&stage.name)) {
        let outside = stage.pieces.iter().filter(|piece| piece.graph.is_none());
        for op in outside.flat_map(|piece| &resident.ops[piece.ops.clone()]) {
            assert!(!matches!(op.what, Ready::Launch { .. }), "{}", stage.name);
        }
    }
    assert!(graphs(&streamed, "step") > 2, "{}", graphs(&streamed, "step"));
    assert_eq!(graphs(&each, "step"), 0);
}

/// A graph is as many launches as it was made of.
#[test]
fn a_graph_launches_what_it_was_made_of() {
    let launches = |graphs: bool| {
        let (device, plan, bound) = bound(None, graphs);
        let mut host = device.allocate_host(plan.host_bytes().1 as usize).unwrap();
        for _ in 0..2 {
            bound.enqueue_once(&device, None, &mut host, "step").unwrap();
        }
        device.synchronize(StreamId::Compute).unwrap();
        device.num_skipped_launches()
    };
    assert!(launches(false) > 40);
    assert_eq!(launches(true), launches(false));
}

#[test]
fn a_step_is_enqueued_quickly_and_without_allocating() {
    let (device, plan, bound) = bound(None, false);
    let mut host = device.allocate_host(plan.host_bytes().1 as usize).unwrap();
    let ops = bound.enqueue_once(&device, None, &mut host, "step").unwrap();
    assert!(ops > 20, "{ops}");
    // Fills are not skipped: their queue has grown to what it will hold before anything is counted.
    for _ in 0..200 {
        bound.enqueue_once(&device, None, &mut host, "step").unwrap();
    }
    device.synchronize(StreamId::Compute).unwrap();
    let skipped = device.num_skipped_launches();
    let allocations = ALLOCATIONS.get();
    // The best of many: other tests run beside this one.
    let best = (0..200)
        .map(|_| {
            let begun = std::time::Instant::now();
            bound.enqueue_once(&device, None, &mut host, "step").unwrap();
            begun.elapsed()
        })
        .min()
        .unwrap();
    assert_eq!(ALLOCATIONS.get() - allocations, 0);
    // All but the fill of the counters of split products.
    assert_eq!(device.num_skipped_launches() - skipped, 200 * (ops - 1) as u64);
    let each = best.as_nanos() as f64 / ops as f64;
    println!("{each:.0} ns an operation");
    assert!(each <= 2_000.0, "{each} ns an operation");
}
