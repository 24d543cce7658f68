//! `Precision::Fast`: how far its results are from the default's and from the reference, the same bytes on every machine and budget,
//! and nothing of it where it was not asked for.
//!
//! `BLESS=1 cargo test --all-features --test precision` writes `docs/precision.tsv` anew.

mod common;
#[path = "common/golden.rs"]
mod golden;
use common::*;
use golden::{Golden, limit};
use schnell::Error;
use schnell::device::Device;
use schnell::pipeline::{DumpValues, Model, Output, Pipeline, Plan, Precision, Quantize, Request, Shape};
use serde_json::Value;

const TABLE: &str = "docs/precision.tsv";
/// By how much a distance may be above the table's: exp2 and its like differ in the last bit from one C library to the next.
const SLACK: f64 = 1.1;

fn load(model: &Model, shape: Shape, quantize: Quantize, precision: Precision, device: &Device) -> Pipeline {
    let plan = Plan::new(model.config(), shape, quantize).unwrap().with_precision(precision).unwrap();
    Pipeline::builder(model).with_plan(plan).device(device).dumps().load().unwrap()
}

fn draw(golden: &Golden, case: &Value, quantize: Quantize, precision: Precision) -> Output {
    let model = Model::open(golden.dir()).unwrap();
    let mut pipeline = load(&model, Golden::shape(case), quantize, precision, &emulator());
    pipeline.generate(&Golden::request(case)).unwrap()
}

fn stage<'a>(output: &'a Output, name: &str) -> &'a [f32] {
    let dump = output.dumps.iter().find(|dump| dump.stage == name).unwrap_or_else(|| panic!("no {name}"));
    let DumpValues::F32(values) = &dump.values else { panic!("{name} is f32") };
    values
}

/// Of two runs: the first step's velocity, the last step's latents (relative L2), the picture (dB).
fn distance(got: &Output, want: &Output, steps: usize) -> [f64; 3] {
    let of = |name: &str| rel_l2(stage(got, name), stage(want, name));
    [of("noise_pred_0"), of(&format!("latents_{}", steps - 1)), psnr(&got.rgb, &want.rgb)]
}

fn line(name: &str, [velocity, latents, picture]: [f64; 3]) -> String {
    format!("{name}\t{velocity:.2e}\t{latents:.2e}\t{picture:.1}\n")
}

/// Both goldens' cases with all Linears in NF4, and the bundled model's picture: fast against full.
#[test]
fn distances_from_full_are_those_of_the_table() {
    let mut table = String::from(
        "# Fast against full precision, the same weights in NF4, on the emulator: relative L2 of the first step's velocity and of the\n\
         # last step's latents, and PSNR of the picture in dB. Written by BLESS=1 cargo test --all-features --test precision.\n\
         case\tvelocity\tlatents\tpicture_db\n",
    );
    for name in ["a", "b"] {
        let golden = Golden::open(name);
        for case in &golden.cases {
            let run = |precision| draw(&golden, case, Quantize::Nf4All, precision);
            let (full, fast) = (run(Precision::Full), run(Precision::Fast));
            let found = distance(&fast, &full, Golden::shape(case).steps);
            assert!(found[0] > 0.0, "nothing was computed otherwise");
            table += &line(&format!("{name}.{}", case["name"].as_str().unwrap()), found);
        }
    }
    let (_dir, model) = demo();
    let request = Request { dump: true, ..Request::new("a red circle").seed(1) };
    let run = |precision| {
        let mut pipeline = load(&model, model.shape(128, 128), Quantize::Nf4, precision, &emulator());
        pipeline.generate(&request).unwrap()
    };
    let steps = model.shape(128, 128).steps;
    table += &line("demo", distance(&run(Precision::Fast), &run(Precision::Full), steps));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(TABLE, &table).unwrap();
    }
    let known = std::fs::read_to_string(TABLE).unwrap();
    assert_eq!(known.lines().count(), table.lines().count(), "{table}");
    for (now, known) in table.lines().zip(known.lines()).skip(3) {
        let fields = |line: &str| line.split('\t').map(str::to_string).collect::<Vec<_>>();
        let (now_fields, known_fields) = (fields(now), fields(known));
        assert_eq!(now_fields[0], known_fields[0]);
        let number = |fields: &[String], i: usize| fields[i].parse::<f64>().unwrap();
        for i in 1..3 {
            assert!(number(&now_fields, i) <= SLACK * number(&known_fields, i), "{now}; known: {known}");
        }
        assert!(number(&now_fields, 3) >= number(&known_fields, 3) - 1.0, "{now}; known: {known}");
    }
}

/// The tolerance that full precision has to keep against diffusers, kept; and no farther from it than full by much.
#[test]
fn nf4_agrees_with_diffusers_as_well_as_full_does() {
    for name in ["a", "b"] {
        let golden = Golden::open(name);
        let cases: Vec<&Value> = golden.cases.iter().filter(|case| case["weights"] == "nf4").collect();
        assert!(!cases.is_empty());
        for case in cases {
            let title = case["name"].as_str().unwrap();
            let [fast, full] =
                [Precision::Fast, Precision::Full].map(|how| draw(&golden, case, Quantize::Nf4All, how));
            for stage_name in case["tensors"].as_object().unwrap().keys() {
                if !stage_name.contains("noise_pred")
                    && !stage_name.contains("latents")
                    && stage_name != "vae_out"
                {
                    continue;
                }
                let want = golden.tensor(title, stage_name);
                let [fast, full] = [&fast, &full].map(|output| rel_l2(stage(output, stage_name), &want));
                println!("{name}.{title}.{stage_name}: fast {fast:.2e}, full {full:.2e} from diffusers");
                assert!(fast <= limit(case, stage_name), "{title}.{stage_name}: {fast:.3e} from diffusers");
                assert!(
                    fast <= 1.5 * full,
                    "{title}.{stage_name}: {fast:.3e}, full {full:.3e} from diffusers"
                );
            }
            let psnr = psnr(&fast.rgb, &golden.image(title));
            assert!(psnr >= 35.0, "{title}: PSNR {psnr:.1} dB");
        }
    }
}

/// Where no weights are in NF4 there is nothing that fast would do otherwise.
#[test]
fn weights_in_bf16_are_multiplied_as_ever() {
    let (_dir, model) = demo();
    let shape = Shape { width: 64, height: 64, steps: 1, t5_length: 16, true_cfg: false };
    let run = |precision| {
        let mut pipeline = load(&model, shape, Quantize::None, precision, &emulator());
        pipeline.generate(&Request::new("a red circle").seed(1)).unwrap().rgb
    };
    assert_eq!(run(Precision::Fast), run(Precision::Full));
}

/// The whole picture of the bundled model, by a checksum: fast draws these bytes until somebody says that it shall not.
#[test]
fn the_bundled_models_picture_is_the_same_on_every_budget_and_schedule() {
    let (_dir, model) = demo();
    let shape = Shape { width: 128, height: 128, steps: 2, t5_length: 16, true_cfg: false };
    let all = Plan::new(model.config(), shape, Quantize::Nf4).unwrap();
    let plan = all.clone().with_precision(Precision::Fast).unwrap();
    let picture = |plan: &Plan, device: Device| {
        let mut pipeline = Pipeline::builder(&model).with_plan(plan.clone()).device(&device).load().unwrap();
        let output = pipeline.generate(&Request::new("a red circle").seed(1)).unwrap();
        assert_eq!(device.num_allocations(), 1);
        assert!(output.notes.contains(&("precision", "fast".to_string())), "{:?}", output.notes);
        output.rgb
    };
    let want = picture(&plan, emulator());
    assert_eq!(fnv1a(&want), PICTURE, "another picture");
    let (least, most) = (plan.least_bytes().unwrap(), plan.arena_bytes());
    for (seed, budget) in [least, (least + most) / 2, most].into_iter().enumerate() {
        let plan = plan.clone().within(budget).unwrap();
        assert_eq!(plan.precision(), Precision::Fast);
        assert!(picture(&plan, random_emulator(seed as u64, 2)) == want, "{budget} bytes: another picture");
    }
    // In either order of saying so.
    let budget = (least + most) / 2;
    let plan = all.clone().within(budget).unwrap().with_precision(Precision::Fast).unwrap();
    assert!(plan.arena_bytes() <= budget && picture(&plan, emulator()) == want);
    let error = all.within(most).unwrap().within(1).unwrap_err();
    assert!(matches!(error, Error::Capacity { available_bytes: 1, .. }), "{error}");
}

const PICTURE: u64 = 3_017_468_497_460_171_398;

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Never silently: a plan that was not asked for it has no kernel of it, and one that was says what it is worth where.
#[test]
fn plans_say_what_they_are() {
    let (_dir, model) = demo();
    let full = Plan::new(model.config(), Shape::square(128), Quantize::Nf4).unwrap();
    assert_eq!(full.precision(), Precision::Full);
    assert!(!full.launches().contains("half") && !full.launches().contains("scale_rows"));
    assert!(!full.to_string().contains("precision"));
    let fast = full.clone().with_precision(Precision::Fast).unwrap();
    assert!(fast.launches().contains("nf4_half_gemm_") && fast.launches().contains("scale_rows_wide"));
    assert!(
        fast.to_string().contains("precision fast: other pictures than full draws; faster on sm_86"),
        "{fast}"
    );
    let h200 = schnell::Card::named("h200").unwrap().capability();
    let there = fast.on(&h200).unwrap();
    assert!(there.to_string().contains("no faster on sm_90"), "{there}");
    let wide = Plan::new(model.config(), Shape::square(128), Quantize::None).unwrap();
    let wide = wide.with_precision(Precision::Fast).unwrap();
    assert!(wide.to_string().contains("precision fast: without effect"), "{wide}");
    let back = there.with_precision(Precision::Full).unwrap();
    assert!(!back.launches().contains("half"));
    assert_eq!(back.regions(), full.on(&h200).unwrap().regions());
}

#[test]
fn the_command_takes_its_word_and_no_other() {
    let run = |args: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_schnell")).args(args).output().unwrap()
    };
    let said = |output: &std::process::Output| String::from_utf8(output.stdout.clone()).unwrap();
    for precision in ["full", "fast"] {
        let output = run(&["plan", "--json", "--precision", precision]);
        assert!(output.status.success());
        let plan: Value = serde_json::from_str(&said(&output)).unwrap();
        assert_eq!(plan["precision"], precision);
    }
    let plan: Value = serde_json::from_str(&said(&run(&["plan", "--json"]))).unwrap();
    assert_eq!(plan["precision"], "full", "nobody gets the other unasked");
    let refused = run(&["plan", "--precision", "half"]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && why.contains("full, fast"), "{why}");
}
