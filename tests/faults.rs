//! Whatever fails, whenever it does: the error is typed and names it, nothing stays behind, and the next picture is right, at once or after a
//! recovery that the error asks for.
//!
//! Each operation of a machine, by its kind, and each read of a file fails at every place of a load and of a generation, once and from
//! then on, with all ways that weights can lie (`Way`). Kernels have stand-ins that pass every byte on; a few places are tried with the kernels
//! themselves. Of loads, which repeat a few operations for each tensor, all places are tried where all weights stay on the device, and some of
//! those of the other ways: `SCHNELL_FAULTS_EVERY=1` tries all of them, which takes minutes, `=7` every seventh of everything.

mod common;
#[path = "common/smallest.rs"]
mod smallest;

use std::path::PathBuf;

use common::*;
use schnell::device::injection::{Fault, Faults, Operation};
use schnell::device::{Device, EmulatorOptions, Order};
use schnell::files::ReadFaults;
use schnell::pipeline::{Model, Pipeline, Plan, Progress, Quantize, Shape};
use schnell::{Error, Result};
use smallest::{SHAPE, request, smallest};
use std::ops::ControlFlow::{Break, Continue};

/// Where weights are when no operation needs them, and how launches are handed over.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Resident,
    ResidentGraphs,
    Pinned,
    PinnedGraphs,
    Disk,
    DiskGraphs,
}

impl Way {
    const ALL: [Way; 6] =
        [Way::Resident, Way::ResidentGraphs, Way::Pinned, Way::PinnedGraphs, Way::Disk, Way::DiskGraphs];

    fn has_graphs(self) -> bool {
        matches!(self, Way::ResidentGraphs | Way::PinnedGraphs | Way::DiskGraphs)
    }

    fn is_on_disk(self) -> bool {
        matches!(self, Way::Disk | Way::DiskGraphs)
    }
}

/// A machine that fails when it is told to, and what is loaded on it.
struct World {
    way: Way,
    dir: tempfile::TempDir,
    model: Model,
    plan: Plan,
    faults: Faults,
    device: Device,
}

const STAND_IN: EmulatorOptions = EmulatorOptions {
    threads: 1,
    stand_in: true,
    order: Order::InOrder,
    async_copies: schnell::device::AsyncCopies::Eager,
    seed: 0,
    hang_seconds: 0,
    arch: 0,
    num_sms: 0,
    count_accesses: false,
    launches_nothing: false,
    copies_nothing: false,
    track_writers: false,
    no_signal_handlers: true,
};

impl World {
    fn new(way: Way, options: EmulatorOptions) -> World {
        // A ring of weights has room for two of a kind.
        let (dir, model) = smallest(if matches!(way, Way::Resident | Way::ResidentGraphs) { 1 } else { 2 });
        let all = Plan::new(model.config(), Shape { steps: 1, ..SHAPE }, Quantize::Nf4).unwrap();
        let plan = match way {
            Way::Resident | Way::ResidentGraphs => all,
            _ => {
                let least = all.least_bytes().unwrap();
                all.within(least).unwrap()
            }
        };
        let (loading, generating) = plan.host_bytes();
        let plan = if way.is_on_disk() { plan.within_host(loading + generating).unwrap() } else { plan };
        assert_eq!(plan.traffic().on_disk > 0, way.is_on_disk());
        let faults = Faults::default();
        let device = Device::failing(options, &faults);
        World { way, dir, model, plan, faults, device }
    }

    fn load_of(&self, model: &Model) -> Result<Pipeline> {
        let builder = Pipeline::builder(model).with_plan(self.plan.clone()).device(&self.device);
        let builder = builder.prompt_cache(0).graphs(self.way.has_graphs());
        match self.cache() {
            Some(cache) => builder.cache(cache).load(),
            None => builder.load(),
        }
    }

    fn load(&self) -> Result<Pipeline> {
        self.load_of(&self.model)
    }

    fn cache(&self) -> Option<PathBuf> {
        self.way.is_on_disk().then(|| self.dir.path().join("cache"))
    }

    /// What is held now.
    fn held(&self) -> (u64, u64, usize) {
        (self.device.held_bytes().now, self.device.held_host_bytes().now, self.faults.num_handles())
    }

    /// What there is of each kind in `work`.
    fn count(&self, work: impl FnOnce()) -> Vec<(Operation, u64)> {
        self.faults.clear();
        work();
        let counts = Operation::ALL.map(|operation| (operation, self.faults.count(operation)));
        self.faults.clear();
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

fn draw(pipeline: &mut Pipeline) -> Result<Vec<u8>> {
    Ok(pipeline.generate(&request())?.rgb)
}

/// Places to try of so many.
fn places(count: u64) -> impl Iterator<Item = u64> {
    some_places(count, 1)
}

/// The same where there are more than a test has time for; the last always.
fn some_places(count: u64, usual: u64) -> impl Iterator<Item = u64> {
    let every = env_number("SCHNELL_FAULTS_EVERY").unwrap_or(usual);
    (0..count).filter(move |place| place % every == 0 || place + 1 == count)
}

/// Is of the machine, and names the operation.
#[track_caller]
fn assert_named(error: &Error, operation: Operation, at: &str) {
    assert!(matches!(error, Error::Device { .. } | Error::Capacity { .. }), "{at}: {error:?}");
    assert!(error.to_string().contains(operation.words()), "{at}: {error}");
}

/// All of it says so, whatever is asked.
#[track_caller]
fn assert_poisoned(pipeline: &mut Pipeline, at: &str) {
    assert!(pipeline.is_poisoned(), "{at}");
    let errors = [
        pipeline.generate(&request()).map(drop),
        pipeline.generate_into(&request(), &mut [0; 16 * 16 * 3][..]).map(drop),
        pipeline.warm_up(SHAPE),
        pipeline.set_loras(&[]).map(drop),
    ];
    for error in errors.map(Result::unwrap_err) {
        let text = error.to_string();
        assert!(matches!(&error, Error::Poisoned { cause, .. } if !cause.is_empty()), "{at}: {error:?}");
        assert!(text.contains("is lost (") && text.contains("recover the pipeline"), "{at}: {text}");
        assert_eq!(error.exit_code(), 13);
    }
}

/// In `way`, at every place of a generation.
fn a_generation_fails_everywhere(way: Way) {
    let world = World::new(way, STAND_IN);
    let mut pipeline = world.load().unwrap();
    let want = draw(&mut pipeline).unwrap();
    let held = world.held();
    let counts = world.count(|| assert!(draw(&mut pipeline).unwrap() == want));
    let kinds: Vec<Operation> = counts.iter().map(|(operation, _)| *operation).collect();
    for operation in [
        Operation::CopyToDevice,
        Operation::CopyToHost,
        Operation::Fill,
        Operation::Record,
        Operation::Elapsed,
    ] {
        assert!(kinds.contains(&operation), "{operation:?}");
    }
    assert_eq!(kinds.contains(&Operation::LaunchGraph), way.has_graphs());
    assert_eq!(kinds.contains(&Operation::Call), way.is_on_disk());
    assert_eq!(kinds.contains(&Operation::Wait), !matches!(way, Way::Resident | Way::ResidentGraphs));
    let mut tried = 0;
    for (operation, count) in counts {
        for place in places(count) {
            for lasts in [false, true] {
                let at = format!("{way:?}: {operation:?} {place} of {count}, {lasts}");
                world.faults.arm(Some(operation), place, Fault::Refused, lasts);
                let failed = draw(&mut pipeline);
                tried += 1;
                match failed {
                    Err(error) if !operation.is_awaited() => {
                        assert_named(&error, operation, &at);
                        assert_eq!(world.faults.clear(), Some(operation), "{at}");
                    }
                    Err(error) => {
                        // A wait that nobody looks at is told by the next who does.
                        assert!(
                            matches!(error, Error::Device { .. } | Error::Poisoned { .. }),
                            "{at}: {error:?}"
                        );
                        assert!(error.to_string().contains("finish the"), "{at}: {error}");
                        assert_poisoned(&mut pipeline, &at);
                        world.faults.clear();
                        pipeline.recover(&world.model).unwrap();
                    }
                    Ok(_) => panic!("{at}: a picture"),
                }
                assert!(!pipeline.is_poisoned(), "{at}");
                assert_eq!(world.held(), held, "{at}");
                // Once and lasting, one after the other, and then it is right.
                if lasts {
                    assert!(draw(&mut pipeline).unwrap() == want, "{at}: another picture");
                }
            }
        }
    }
    drop(pipeline);
    assert_eq!(world.held(), (0, 0, 0));
    println!("{way:?}: {tried} places of a generation");
}

/// The machine is lost by what was enqueued, which shows later, at every place.
fn a_generation_is_lost_everywhere(way: Way) {
    let world = World::new(way, STAND_IN);
    let mut pipeline = world.load().unwrap();
    let want = draw(&mut pipeline).unwrap();
    let held = world.held();
    let counts = world.count(|| drop(draw(&mut pipeline).unwrap()));
    let mut tried = 0;
    for (operation, count) in counts.into_iter().filter(|(operation, _)| operation.is_enqueued()) {
        for place in places(count) {
            let at = format!("{way:?}: {operation:?} {place} of {count}");
            world.faults.arm(Some(operation), place, Fault::Lost, false);
            let error = draw(&mut pipeline).unwrap_err();
            tried += 1;
            assert!(error.to_string().contains("(injected)"), "{at}: {error}");
            assert_eq!(world.faults.clear(), Some(operation), "{at}");
            assert_poisoned(&mut pipeline, &at);
            pipeline.recover(&world.model).unwrap();
            assert_eq!(world.held(), held, "{at}");
            assert!(draw(&mut pipeline).unwrap() == want, "{at}: another picture");
        }
    }
    println!("{way:?}: {tried} places of a generation that loses the machine");
}

/// At every place of a load: nothing is left, and the next one is as if it were the first.
fn a_load_fails_everywhere(way: Way) {
    let world = World::new(way, STAND_IN);
    let want = draw(&mut world.load().unwrap()).unwrap();
    let from_files = || {
        if let Some(cache) = world.cache() {
            let _ = std::fs::remove_dir_all(cache);
        }
    };
    from_files();
    // To be dropped when it has been counted.
    let mut loaded = None;
    let counts = world.count(|| loaded = Some(world.load().unwrap()));
    drop(loaded);
    assert_eq!(counts.iter().any(|(operation, _)| *operation == Operation::MakeGraph), way.has_graphs());
    let mut tried = 0;
    for (operation, count) in counts {
        for place in some_places(count, if way == Way::Resident { 1 } else { 31 }) {
            // Refused, once or from then on; and what loses the machine, which the next load opens again.
            let faults = [(Fault::Refused, place % 2 == 0), (Fault::Lost, false)];
            for (fault, lasts) in
                faults.into_iter().filter(|(fault, _)| *fault == Fault::Refused || operation.is_enqueued())
            {
                let at = format!("{way:?}: {operation:?} {place} of {count}, {fault:?}, {lasts}");
                from_files();
                world.faults.arm(Some(operation), place, fault, lasts);
                let error = world.load().map(drop).expect_err(&at);
                tried += 1;
                if fault == Fault::Refused && !operation.is_awaited() {
                    assert_named(&error, operation, &at);
                }
                assert!(
                    matches!(error, Error::Device { .. } | Error::Capacity { .. } | Error::Poisoned { .. }),
                    "{at}: {error:?}"
                );
                assert_eq!(world.faults.clear(), Some(operation), "{at}");
                assert_eq!(world.held(), (0, 0, 0), "{at}");
                // Nothing is left but the machine, whose state some of each kind show.
                if place < 2 || place + 1 == count {
                    assert!(draw(&mut world.load().unwrap()).unwrap() == want, "{at}: another picture");
                    assert_eq!(world.held(), (0, 0, 0), "{at}");
                }
            }
        }
    }
    println!("{way:?}: {tried} places of a load");
}

#[test]
fn a_generation_with_all_on_the_device_fails_everywhere() {
    a_generation_fails_everywhere(Way::Resident);
}

#[test]
fn a_generation_by_graphs_fails_everywhere() {
    a_generation_fails_everywhere(Way::ResidentGraphs);
}

#[test]
fn a_streamed_generation_fails_everywhere() {
    a_generation_fails_everywhere(Way::Pinned);
}

#[test]
fn a_streamed_generation_by_graphs_fails_everywhere() {
    a_generation_fails_everywhere(Way::PinnedGraphs);
}

#[test]
fn a_generation_from_disk_fails_everywhere() {
    a_generation_fails_everywhere(Way::Disk);
}

#[test]
fn a_generation_from_disk_by_graphs_fails_everywhere() {
    a_generation_fails_everywhere(Way::DiskGraphs);
}

#[test]
fn a_generation_with_all_on_the_device_loses_it_everywhere() {
    a_generation_is_lost_everywhere(Way::Resident);
}

#[test]
fn a_generation_by_graphs_loses_it_everywhere() {
    a_generation_is_lost_everywhere(Way::ResidentGraphs);
}

#[test]
fn a_streamed_generation_loses_it_everywhere() {
    a_generation_is_lost_everywhere(Way::Pinned);
}

#[test]
fn a_streamed_generation_by_graphs_loses_it_everywhere() {
    a_generation_is_lost_everywhere(Way::PinnedGraphs);
}

#[test]
fn a_generation_from_disk_loses_it_everywhere() {
    a_generation_is_lost_everywhere(Way::Disk);
}

#[test]
fn a_generation_from_disk_by_graphs_loses_it_everywhere() {
    a_generation_is_lost_everywhere(Way::DiskGraphs);
}

#[test]
fn a_load_fails_everywhere_with_all_on_the_device() {
    a_load_fails_everywhere(Way::Resident);
}

#[test]
fn a_load_of_graphs_fails_everywhere() {
    a_load_fails_everywhere(Way::ResidentGraphs);
}

#[test]
fn a_load_fails_everywhere_with_pinned_weights() {
    a_load_fails_everywhere(Way::Pinned);
}

#[test]
fn a_load_fails_everywhere_with_weights_on_disk() {
    a_load_fails_everywhere(Way::Disk);
}

/// Every read of a file by which a model is opened.
#[test]
fn every_read_of_a_model_fails() {
    let world = World::new(Way::Resident, STAND_IN);
    let reads = ReadFaults::under(world.dir.path());
    let open = || Model::open_as(world.model.config().clone(), world.dir.path());
    open().unwrap();
    let count = reads.count();
    assert!(count >= 16, "{count}");
    for place in 0..count {
        for lasts in [false, true] {
            reads.arm(place, lasts);
            let error = open().unwrap_err();
            assert!(matches!(error, Error::Io { action: "read", .. }), "read {place} of {count}: {error:?}");
            assert!(error.to_string().contains("os error 5") && reads.clear(), "{error}");
        }
    }
    open().unwrap();
}

/// Every read of a load: from the model's files, into the cache and from there, and from the cache alone.
#[test]
fn every_read_of_a_load_fails() {
    for way in [Way::Resident, Way::Pinned, Way::Disk] {
        let world = World::new(way, STAND_IN);
        let want = draw(&mut world.load().unwrap()).unwrap();
        let reads = ReadFaults::under(world.dir.path());
        for cached in [false, true].into_iter().filter(|cached| !cached || way.is_on_disk()) {
            let from_files = || {
                if let Some(cache) = world.cache().filter(|_| !cached) {
                    let _ = std::fs::remove_dir_all(cache);
                }
            };
            from_files();
            reads.clear();
            world.load().unwrap();
            let (count, mut outlived) = (reads.count(), 0);
            for place in some_places(count, if way == Way::Resident { 1 } else { 13 }) {
                for lasts in [false, true] {
                    let at = format!("{way:?}: read {place} of {count}, {lasts}, cached {cached}");
                    from_files();
                    reads.arm(place, lasts);
                    match world.load() {
                        Err(error) => {
                            assert!(matches!(error, Error::Io { action: "read", .. }), "{at}: {error:?}");
                            assert!(error.to_string().contains("os error 5"), "{at}: {error}");
                        }
                        // The cache was made again in place of what could not be read.
                        Ok(mut pipeline) => {
                            assert!(!lasts && way.is_on_disk(), "{at}");
                            assert!(
                                reads.clear() && draw(&mut pipeline).unwrap() == want,
                                "{at}: another picture"
                            );
                            outlived += 1;
                            continue;
                        }
                    }
                    assert!(reads.clear(), "{at}");
                    assert_eq!(world.held(), (0, 0, 0), "{at}");
                    if place % 16 == 0 {
                        assert!(draw(&mut world.load().unwrap()).unwrap() == want, "{at}");
                    }
                }
            }
            println!("{way:?}, cached {cached}: {count} reads, of which {outlived} are made good");
        }
    }
}

/// A generation's own reads: of embeddings, and of weights on disk, whose reader goes on after them.
#[test]
fn every_read_of_a_generation_fails() {
    for way in Way::ALL {
        let world = World::new(way, STAND_IN);
        let mut pipeline = world.load().unwrap();
        let want = draw(&mut pipeline).unwrap();
        let reads = ReadFaults::under(world.dir.path());
        draw(&mut pipeline).unwrap();
        let count = reads.count();
        assert!(count > 16, "{count}");
        for place in places(count) {
            for lasts in [true, false] {
                reads.arm(place, lasts);
                let error = draw(&mut pipeline).unwrap_err();
                assert!(
                    matches!(error, Error::Io { action: "read", .. }),
                    "{way:?}, read {place} of {count}: {error:?}"
                );
                assert!(reads.clear());
            }
            assert!(
                draw(&mut pipeline).unwrap() == want,
                "{way:?}, read {place} of {count}: another picture"
            );
        }
    }
}

/// As [`Operation::ALL`] counted in one: a generation that is wanted no more before whatever operation, with more or less of those before it
/// done; and when its progress is told.
#[test]
fn a_generation_is_stopped_at_every_operation() {
    for way in Way::ALL {
        for options in [STAND_IN, EmulatorOptions { order: Order::Random, seed: 5, ..STAND_IN }] {
            let world = World::new(way, options);
            let mut pipeline = world.load().unwrap();
            let want = draw(&mut pipeline).unwrap();
            let held = world.held();
            world.faults.clear();
            draw(&mut pipeline).unwrap();
            let (count, mut stopped) = (world.faults.total(), 0);
            for place in places(count) {
                world.faults.arm(None, place, Fault::Stopped, false);
                match draw(&mut pipeline) {
                    Err(error) => {
                        assert!(matches!(error, Error::Stopped), "{way:?}, {place} of {count}: {error:?}");
                        stopped += 1;
                    }
                    // A wait that another makes good.
                    Ok(picture) => assert!(picture == want, "{way:?}, {place} of {count}"),
                }
                world.faults.clear();
                assert!(draw(&mut pipeline).unwrap() == want, "{way:?}, {place} of {count}: another picture");
                assert_eq!(world.held(), held);
            }
            assert!(
                stopped + 6 >= count || env_number("SCHNELL_FAULTS_EVERY").is_some(),
                "{stopped} of {count}"
            );
            let mut told = 0;
            for at in 0.. {
                let (mut left, mut last) = (at, None);
                let result = pipeline.generate_with(&request(), &mut |progress| {
                    last = Some(progress);
                    left -= 1;
                    if left < 0 { Break(()) } else { Continue(()) }
                });
                assert!(draw(&mut pipeline).unwrap() == want, "{way:?}, told {at} times");
                if last == Some(Progress::Done) {
                    assert!(result.unwrap().rgb == want);
                    break;
                }
                assert!(matches!(result, Err(Error::Stopped)));
                told += 1;
            }
            assert_eq!(told, 3, "encoders, a step, the decoder");
        }
    }
}

/// The same with the kernels themselves, at a few places.
#[test]
fn kernels_draw_the_same_after_a_fault() {
    for way in [Way::ResidentGraphs, Way::Pinned] {
        let world = World::new(way, EmulatorOptions { stand_in: false, threads: 0, ..STAND_IN });
        let mut pipeline = world.load().unwrap();
        let want = draw(&mut pipeline).unwrap();
        let counts = world.count(|| drop(draw(&mut pipeline).unwrap()));
        let launches = if way.has_graphs() { Operation::LaunchGraph } else { Operation::Launch };
        for (operation, count) in counts {
            if ![launches, Operation::CopyToDevice, Operation::Record].contains(&operation) {
                continue;
            }
            let faults = [Fault::Refused, Fault::Stopped, Fault::Lost];
            for (place, fault) in [0, count / 2, count - 1].into_iter().zip(faults) {
                let at = format!("{way:?}: {operation:?} {place} of {count}, {fault:?}");
                world.faults.arm(Some(operation), place, fault, false);
                draw(&mut pipeline).map(drop).expect_err(&at);
                assert_eq!(
                    (world.faults.clear(), pipeline.is_poisoned()),
                    (Some(operation), fault == Fault::Lost)
                );
                pipeline.recover(&world.model).unwrap();
                assert!(draw(&mut pipeline).unwrap() == want, "{at}: another picture");
            }
        }
    }
}
