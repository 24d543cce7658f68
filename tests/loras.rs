//! LoRAs in a pipeline: room for them, what stays the same, and what is refused. That they add what they should is held against
//! candle in `networks.rs`, and kernel by kernel in the kernels' own tests.

mod common;
#[path = "common/loras.rs"]
mod loras;
use std::path::Path;

use common::*;
use schnell::device::Device;
use schnell::pipeline::{Model, Pipeline, Plan, Precision, Quantize, Request, Shape};
use schnell::weights::Part;
use schnell::{Error, Lora};

const SHAPE: Shape = Shape { width: 64, height: 64, steps: 2, t5_length: 16, true_cfg: false };

fn request() -> Request {
    Request::new("a red circle").seed(3)
}

/// Of all of the transformer's matrices and CLIP's; of some; and of some others.
fn three(model: &Model, dir: &Path) -> [Lora; 3] {
    let open = |name: &str, (rank, seed), is_changed: &dyn Fn(Part, &str) -> bool| {
        let changes = loras::changes(model.config(), (rank, 0.3), seed, is_changed);
        Lora::open(loras::write(dir, name, &changes), model.config()).unwrap()
    };
    [
        open("all.safetensors", (4, 1), &|_, _| true),
        open("values.safetensors", (12, 2), &|part, name| {
            part == Part::Transformer && name.ends_with("to_v")
        }),
        open("mlp.safetensors", (70, 3), &|part, name| part == Part::Transformer && name.contains("mlp")),
    ]
}

fn load(model: &Model, plan: Plan, device: &Device) -> Pipeline {
    Pipeline::builder(model).with_plan(plan).device(device).load().unwrap()
}

fn draw(pipeline: &mut Pipeline) -> Vec<u8> {
    pipeline.generate(&request()).unwrap().rgb
}

fn plan(model: &Model, quantize: Quantize) -> Plan {
    Plan::new(model.config(), SHAPE, quantize).unwrap()
}

fn drawn_with(loras: &[(Lora, f32)], quantize: Quantize) -> Vec<u8> {
    let model = demo().1.with_loras(loras).unwrap();
    draw(&mut load(&model, plan(&model, quantize), &emulator()))
}

#[test]
fn without_strength_a_picture_is_what_it_was() {
    let (dir, model) = demo();
    let [all, values, mlp] = three(&model, dir.path());
    for quantize in [Quantize::Nf4, Quantize::None] {
        let without = drawn_with(&[], quantize);
        assert!(drawn_with(&[(all.clone(), 0.0), (mlp.clone(), -0.0)], quantize) == without, "{quantize}");
        assert!(drawn_with(&[(values.clone(), 0.5)], quantize) != without, "{quantize}: no effect");
    }
}

#[test]
fn those_that_come_and_go_leave_nothing_behind() {
    let (dir, model) = demo();
    let [all, values, mlp] = three(&model, dir.path());
    let sets = [
        vec![(all.clone(), 1.0)],
        vec![(values.clone(), 0.7), (mlp.clone(), -0.5)],
        vec![(all, 0.2), (values, 2.0), (mlp, 1.0)],
    ];
    let want: Vec<Vec<u8>> = sets.iter().map(|set| drawn_with(set, Quantize::Nf4)).collect();
    let without = drawn_with(&[], Quantize::Nf4);
    // Of CLIP as much as the sets need, of the transformer more than any.
    let model = model.with_loras(&sets[2]).unwrap().with_room_for_loras(96).unwrap();
    let whole = plan(&model, Quantize::Nf4);
    let least = whole.least_bytes().unwrap();
    for plan in [whole.clone(), whole.within(least).unwrap()] {
        let device = emulator();
        let streams = plan.traffic().pinned > 0;
        let mut pipeline = load(&model, plan, &device);
        for (set, want) in [(2, &want[2]), (0, &want[0]), (1, &want[1]), (2, &want[2])] {
            let bytes = pipeline.set_loras(&sets[set]).unwrap();
            assert_eq!(bytes, pipeline.plan().lora_bytes());
            // A prompt that is known, whose encoding is not any more.
            assert!(draw(&mut pipeline) == *want, "set {set}, streamed {streams}");
            assert!(draw(&mut pipeline) == *want, "set {set} again, streamed {streams}");
            pipeline.set_loras(&[]).unwrap();
            assert!(draw(&mut pipeline) == without, "after set {set}, streamed {streams}");
        }
        assert_eq!(device.num_allocations(), 1);
    }
}

#[test]
fn every_kind_of_weight_takes_them() {
    let (dir, model) = demo();
    let [all, values, mlp] = three(&model, dir.path());
    // Larger than what quantizing does to the picture.
    let set = [(all, 4.0), (values, 3.0), (mlp, -2.0)];
    for (quantize, precision) in [
        (Quantize::None, Precision::Full),
        (Quantize::Nf4All, Precision::Full),
        (Quantize::Nf4, Precision::Fast),
    ] {
        let distance = |loras: &[(Lora, f32)]| {
            let model = demo().1.with_loras(loras).unwrap();
            let plan = plan(&model, quantize).with_precision(precision).unwrap();
            let drawn = draw(&mut load(&model, plan, &emulator()));
            let reference = drawn_with(&set, Quantize::None);
            drawn.iter().zip(reference).map(|(a, b)| f64::from(a.abs_diff(b))).sum::<f64>()
                / drawn.len() as f64
        };
        let (with, without) = (distance(&set), distance(&[]));
        println!("{quantize}, {precision}: {with:.2} of 255 from bf16, {without:.2} without the LoRAs");
        assert!(with < without / 3.0, "{quantize}, {precision}: {with:.2} of {without:.2}");
    }
}

#[test]
fn what_has_no_room_is_refused_and_changes_nothing() {
    let (dir, model) = demo();
    let [all, values, _] = three(&model, dir.path());
    let want = drawn_with(&[(all.clone(), 1.0)], Quantize::Nf4);
    let model = model.with_loras(&[(all.clone(), 1.0)]).unwrap();
    let mut pipeline = load(&model, plan(&model, Quantize::Nf4), &emulator());
    for (loras, why) in [
        (vec![(values.clone(), 1.0)], "with a rank of 16, and there is room for 8"),
        (vec![(all.clone(), 1.0), (values, 0.0)], "and there is room for 8"),
        (vec![(all.clone(), f32::NAN)], "a strength of NaN"),
    ] {
        match pipeline.set_loras(&loras) {
            Err(Error::Input(said)) => assert!(said.contains(why), "{said}"),
            other => panic!("{other:?}"),
        }
        assert!(draw(&mut pipeline) == want);
    }
    for rank in [0, 1025, usize::MAX] {
        let error = demo().1.with_room_for_loras(rank).unwrap_err();
        assert!(matches!(&error, Error::Input(said) if said.contains("1 to 1024")), "{error}");
    }
    let error = demo().1.with_loras(&[(all, f32::INFINITY)]).unwrap_err();
    assert!(
        matches!(&error, Error::Input(said) if said.contains("all.safetensors: a strength of inf")),
        "{error}"
    );
}

#[test]
fn numbers_that_are_not_finite_are_refused_with_their_tensor() {
    let (dir, model) = demo();
    let mut changes = loras::changes(model.config(), (4, 0.3), 1, |_, name| name.ends_with("to_v"));
    changes[1].up[5] = f32::NAN;
    let name = changes[1].target.clone();
    let torn = Lora::open(loras::write(dir.path(), "torn.safetensors", &changes), model.config()).unwrap();
    let said = |error: Error| match error {
        Error::Weights { path, what, .. } => {
            assert!(
                path.ends_with("torn.safetensors") && what.contains(&format!("{name}.lora_B.weight")),
                "{what}"
            );
        }
        other => panic!("{other:?}"),
    };
    let without = drawn_with(&[], Quantize::Nf4);
    let with_it = demo().1.with_loras(&[(torn.clone(), 1.0)]).unwrap();
    let loaded =
        Pipeline::builder(&with_it).with_plan(plan(&with_it, Quantize::Nf4)).device(&emulator()).load();
    said(loaded.unwrap_err());
    let model = model.with_room_for_loras(8).unwrap();
    let mut pipeline = load(&model, plan(&model, Quantize::Nf4), &emulator());
    said(pipeline.set_loras(&[(torn, 1.0)]).unwrap_err());
    assert!(draw(&mut pipeline) == without, "half of it is in use");
}

#[test]
fn they_stay_in_the_cache_and_on_disk_by_what_they_say() {
    let (dir, model) = demo();
    let [all, values, _] = three(&model, dir.path());
    let cache = tempfile::tempdir().unwrap();
    let drawn = |loras: &[(Lora, f32)], host_budget: Option<u64>| {
        let model = demo().1.with_loras(loras).unwrap();
        let whole = plan(&model, Quantize::Nf4);
        let least = whole.least_bytes().unwrap();
        let plan = whole.within(least).unwrap();
        let (loading, generating) = plan.host_bytes();
        let plan = match host_budget {
            Some(more) => plan.within_host(loading + generating + more).unwrap(),
            None => plan,
        };
        let builder =
            Pipeline::builder(&model).with_plan(plan).device(&emulator()).cache(cache.path()).load();
        let mut pipeline = builder.unwrap();
        (draw(&mut pipeline), pipeline)
    };
    let sets = [vec![(all.clone(), 1.0)], vec![(all.clone(), 0.5)], vec![(values, 1.0)]];
    for set in [0, 1, 2, 0, 1, 2] {
        let want = drawn_with(&sets[set], Quantize::Nf4);
        assert!(drawn(&sets[set], None).0 == want, "set {set}");
        assert!(drawn(&sets[set], Some(0)).0 == want, "set {set} on disk");
    }
    let (want, mut pipeline) = drawn(&sets[0], Some(0));
    let error = pipeline.set_loras(&[]).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(said) if said.contains("stay on disk")), "{error}");
    assert!(draw(&mut pipeline) == want);
}

#[test]
fn a_picture_names_them() {
    let (dir, model) = demo();
    let [all, values, _] = three(&model, dir.path());
    let model = model.with_loras(&[(all, 0.25), (values, -1.0)]).unwrap();
    let mut pipeline = load(&model, plan(&model, Quantize::Nf4), &emulator());
    let note = |pipeline: &mut Pipeline| {
        let notes = pipeline.generate(&request()).unwrap().notes;
        notes.into_iter().find(|(name, _)| *name == "loras").map(|(_, value)| value)
    };
    let said = note(&mut pipeline).unwrap();
    assert!(said.starts_with("all.safetensors:0.25 ") && said.contains(", values.safetensors:-1 "), "{said}");
    pipeline.set_loras(&[]).unwrap();
    assert_eq!(note(&mut pipeline), None);
}
