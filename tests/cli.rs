//! The command: exit codes, the one message of a refusal and that it leaves nothing behind, and the files of a success.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use command::*;
use schnell::weights::{Dtype, SafeTensors};
use serde_json::{Value, json};

// ---- refusals ----------------------------------------------------------------------------------------------

#[test]
fn prompts_that_say_nothing_are_refused() {
    let sandbox = Sandbox::new();
    let empty = |prompt| ["generate", prompt, "--device", "emulator"];
    sandbox.refuses(empty(""), 2, &["the prompt is empty", "--allow-empty-prompt"]);
    sandbox.refuses(empty(" \t"), 2, &["the prompt is empty"]);
    sandbox.refuses(quick(&["--prompt-2", ""]), 2, &["the prompt is empty"]);
    sandbox.refuses(["generate"], 2, &["required"]);
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.refuses(quick(&["--width", "500"]), 2, &["width 500", "multiple of 16", "496 and 512"]);
    sandbox.refuses(quick(&["--height", "72"]), 2, &["height 72", "64 and 80"]);
    sandbox.refuses(quick(&["--height", "0"]), 2, &["height 0"]);
    sandbox.refuses(quick(&["--width", "8208"]), 2, &["width 8208", "8192"]);
    let most = usize::MAX.to_string();
    sandbox.refuses(quick(&["--width", &most]), 2, &["nearest are 8192 and 8192"]);
    sandbox.refuses(quick(&["--width", "-16"]), 2, &["-1"]);
    sandbox.refuses(quick(&["--steps", "0"]), 2, &["0 steps", "1 to 1000"]);
    for length in ["0", "513"] {
        let args = ["generate", "a red circle", "--device", "emulator", "--t5-length", length];
        sandbox.refuses(args, 2, &["T5 length", length, "1 to 512"]);
        sandbox.refuses(["plan", "--t5-length", length], 2, &["T5 length", length]);
    }
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.refuses(quick(&["--output", "missing/out.png"]), 7, &["cannot write missing/out.png"]);
    sandbox.refuses(quick(&["--output", "out.gif"]), 2, &["out.gif", ".png"]);
    sandbox.refuses(quick(&["--output", "out"]), 2, &["out", ".png"]);
    std::fs::create_dir(sandbox.path("folder.png")).unwrap();
    sandbox.refuses(quick(&["--output", "folder.png"]), 2, &["folder.png is a folder"]);
    sandbox.refuses(quick(&["--timings", "missing/t.json"]), 7, &["cannot write missing/t.json"]);
    std::fs::write(sandbox.path("file"), "").unwrap();
    sandbox.refuses(quick(&["--dump", "file"]), 7, &["cannot create file"]);
}

#[test]
fn a_refused_run_leaves_an_old_picture_alone() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("out.png"), "old").unwrap();
    sandbox.refuses(quick(&["--width", "500"]), 2, &["width 500"]);
    sandbox.refuses(quick(&["--dump", "dump", "--model", "nowhere"]), 7, &["nowhere"]);
    assert_eq!(bytes(&sandbox.path("out.png")), b"old");
}

#[test]
fn noise_that_does_not_fit_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.refuses(quick(&["--noise", "pink"]), 2, &["--noise pink", "neither", "bf16-legacy"]);
    let save = |name: &str, tensors: &[(&'static str, Dtype, Vec<usize>)]| {
        let zeros = |(name, dtype, shape): &(&'static str, Dtype, Vec<usize>)| {
            (*name, *dtype, shape.clone(), vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
        };
        save_tensors(&sandbox.path(name), &tensors.iter().map(zeros).collect::<Vec<_>>());
    };
    std::fs::write(sandbox.path("text"), "not a tensor at all").unwrap();
    save("bf16.safetensors", &[("noise", Dtype::BF16, vec![1, 16, 64])]);
    save("flat.safetensors", &[("noise", Dtype::F32, vec![1024])]);
    save("two.safetensors", &[("a", Dtype::F32, vec![1, 16, 64]), ("b", Dtype::F32, vec![1, 16, 64])]);
    save("large.safetensors", &[("noise", Dtype::F32, vec![1, 24, 64])]);
    sandbox.refuses(quick(&["--noise", "text"]), 3, &["text"]);
    sandbox.refuses(quick(&["--noise", "bf16.safetensors"]), 3, &["BF16", "one f32 tensor"]);
    sandbox.refuses(quick(&["--noise", "flat.safetensors"]), 3, &["[1024]", "[1, tokens, channels]"]);
    sandbox.refuses(quick(&["--noise", "two.safetensors"]), 3, &["not exactly one tensor"]);
    let wanted = ["1536 values", "16 tokens x 64 channels"];
    sandbox.refuses(quick(&["--noise", "large.safetensors"]), 2, &wanted);
}

#[test]
fn budgets_and_devices_that_mean_nothing_are_refused() {
    let sandbox = Sandbox::new();
    for budget in ["lots", "5 apples", "0", "-1GiB"] {
        sandbox.refuses(quick(&[&format!("--budget={budget}")]), 2, &["--budget"]);
    }
    for device in ["gpu", "cuda:x", "cuda:-1"] {
        sandbox.refuses(["generate", "a red circle", "--device", device], 2, &["--device", "emulator"]);
    }
}

/// Both numbers, in bytes: the least that it takes, and what there is. With just that it runs, and draws the same.
#[test]
fn a_budget_that_is_too_small_is_refused_with_both_numbers() {
    let sandbox = Sandbox::new();
    let shape = ["--width", "64", "--height", "64", "--steps", "1", "--t5-length", "16"];
    let arena = |args: &[&str]| {
        let plan = sandbox.run(["plan"].iter().chain(&shape).chain(args));
        assert_eq!(plan.code, 0, "{}", plan.stderr);
        let line = plan.stdout.lines().find(|line| line.starts_with("arena")).unwrap().to_string();
        line.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap()
    };
    let said = sandbox.run(quick(&["--budget", "100KiB"])).stderr;
    let numbers = said.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let least = numbers.max().unwrap().to_string();
    sandbox.refuses(quick(&["--budget", "100KiB"]), 4, &[&least, "102400", "--budget"]);
    sandbox.refuses(["plan", "--budget", "100KiB"].iter().chain(&shape), 4, &[&least, "102400"]);
    let below = (least.parse::<u64>().unwrap() - 1).to_string();
    sandbox.refuses(quick(&["--budget", &below]), 4, &[&least, &below]);
    assert_eq!(arena(&["--budget", &least]).to_string(), least);
    assert!(arena(&[]).to_string() > least);
    let drawn = |name: &str, budget: &[&str]| {
        let args = [&["--output", name], budget].concat();
        assert_eq!(sandbox.run(quick(&args)).code, 0);
        pixels(&sandbox.path(name)).1
    };
    assert!(drawn("least.png", &["--budget", &least]) == drawn("all.png", &[]));
    // What is streamed lies in host memory, which may be counted, too.
    let streamed = ["--budget", &least, "--host-budget", "1MiB"];
    sandbox.refuses(quick(&streamed), 4, &["pinned host memory", "1048576", "--host-budget"]);
    drawn("within.png", &["--budget", &least, "--host-budget", "1GiB"]);
}

/// What a card that is not here would take: in words, as JSON, drawn.
#[test]
fn plans_predict() {
    let sandbox = Sandbox::new();
    let plan = |more: &[&str]| {
        let ran = sandbox.run([&["plan", "--width", "64", "--height", "64"], more].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    };
    let said = plan(&["--card", "rtx3060", "--pcie", "3x8", "--timeline", "when.svg"]);
    assert!(said.contains("predicted on rtx3060 (not measured), 6.2 GB/s"), "{said}");
    let lanes = String::from_utf8(bytes(&sandbox.path("when.svg"))).unwrap();
    assert!(
        lanes.starts_with("<svg") && lanes.contains("kernels") && lanes.matches("<rect").count() > 5,
        "{lanes}"
    );
    let json: Value = serde_json::from_str(&plan(&["--json", "--card", "h200"])).unwrap();
    let bytes_of = |plan: &str| plan.lines().find(|line| line.starts_with("arena")).unwrap().to_string();
    let arena = json["arena_bytes"].as_u64().unwrap().to_string();
    assert!(bytes_of(&plan(&[])).contains(&arena));
    assert!(json["predicted"]["total_ms"].as_f64().unwrap() > 0.0 && json["predicted"]["card"] == "h200");
    let regions = json["regions"].as_array().unwrap();
    assert!(regions.iter().any(|region| region["name"] == "vae.weights" && region["resident"] == true));
    let swept = plan(&["--sweep", "budgets.svg", "--card", "rtx4090"]);
    let rows = swept.lines().skip_while(|line| !line.contains("picture, ms")).count();
    assert!(rows > 20 && sandbox.path("budgets.svg").exists(), "{swept}");
    sandbox.refuses(["plan", "--card", "rtx1060"], 2, &["rtx3060"]);
    sandbox.refuses(["plan", "--card", "rtx3060", "--pcie", "6x16"], 2, &["6x16", "3x16"]);
    sandbox.refuses(["plan", "--timeline", "when.svg"], 2, &["required"]);
    sandbox.refuses(["plan", "--card", "h100", "--timeline", "when.png"], 2, &["when.png", ".svg"]);
    sandbox.refuses(["plan", "--card", "h100", "--timeline", "a.svg", "--sweep", "a.svg"], 2, &["name two"]);
}

#[test]
fn a_machine_without_a_driver_is_told_what_is_missing() {
    let sandbox = without_driver();
    for device in ["cuda:0", "cuda"] {
        sandbox.refuses(["generate", "a red circle", "--device", device], 5, &["libcuda"]);
    }
}

#[test]
fn the_emulator_counts_all_pictures_of_a_grid() {
    let sandbox = Sandbox::new();
    // One such picture takes minutes and is not refused; 256 are, before any is drawn.
    let args = [
        "generate", "a cat", "--device", "emulator", "--width", "1024", "--height", "1024", "--grid", "16x16",
    ];
    sandbox.refuses(
        args,
        5,
        &["256 pictures by this model at 1024 x 1024 would take about", "on the emulator"],
    );
}

#[test]
fn the_emulator_refuses_what_it_would_not_finish_from_config_files_alone() {
    let (sandbox, model) = (without_driver(), schnell_configs());
    for device in ["emulator", "auto"] {
        let args = ["generate", "a cat", "--model", text(model.path()), "--device", device];
        let error =
            sandbox.refuses(args, 5, &["1024 x 1024", "would take about", "on the emulator", "use a GPU"]);
        assert!(["minutes", "hours", "days"].iter().any(|unit| error.contains(unit)), "{error}");
    }
}

#[test]
fn broken_models_are_refused_by_file_and_tensor() {
    let sandbox = Sandbox::new();
    let refused = |dir: &Path, code, words: &[&str]| {
        sandbox.refuses(quick(&["--model", text(dir)]), code, words);
    };
    refused(Path::new("nowhere"), 7, &["cannot read", "nowhere"]);
    for tokenizer in ["tokenizer", "tokenizer_2"] {
        let dir = copy_of_demo();
        std::fs::remove_dir_all(dir.path().join(tokenizer)).unwrap();
        refused(dir.path(), 3, &[text(&dir.path().join(tokenizer)), "expected", "tokenizer.json"]);
    }

    // Each a rewritten header or a cut file of the transformer.
    let file = "transformer/diffusion_pytorch_model.safetensors";
    let rewritten = |change: &dyn Fn(&mut Value)| {
        let dir = copy_of_demo();
        let stored = bytes(&dir.path().join(file));
        let len = u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&stored[8..8 + len]).unwrap();
        change(&mut header);
        let header = header.to_string();
        let mut new = (header.len() as u64).to_le_bytes().to_vec();
        new.extend_from_slice(header.as_bytes());
        new.extend_from_slice(&stored[8 + len..]);
        std::fs::write(dir.path().join(file), new).unwrap();
        dir
    };
    let name = "x_embedder.bias";
    let missing = rewritten(&|header| {
        let tensor = header.as_object_mut().unwrap().remove(name).unwrap();
        header["another"] = tensor;
    });
    refused(missing.path(), 3, &["transformer", name, "missing", "[256]"]);
    let shape = rewritten(&|header| header[name]["shape"] = json!([2, 128]));
    refused(shape.path(), 3, &[file, name, "[2, 128]", "expected [256]"]);
    let dtype = rewritten(&|header| {
        header[name]["dtype"] = json!("I64");
        header[name]["shape"] = json!([64]);
    });
    refused(dtype.path(), 3, &[file, name, "I64", "expected F32, BF16, F16 or fp8"]);

    let cut = copy_of_demo();
    let stored = bytes(&cut.path().join(file));
    for len in [stored.len() - 1, stored.len() / 2, 100, 7, 0] {
        std::fs::write(cut.path().join(file), &stored[..len]).unwrap();
        refused(cut.path(), 3, &[file]);
    }
    std::fs::remove_file(cut.path().join(file)).unwrap();
    refused(cut.path(), 3, &["transformer"]);
}

#[test]
fn weights_that_no_code_stands_for_are_refused_by_tensor() {
    let sandbox = Sandbox::new();
    let t5 = "text_encoder_2/model.safetensors";
    let transformer = "transformer/diffusion_pytorch_model.safetensors";
    let (bf16_nan, f32_infinity) = (&0x7fc0u16.to_le_bytes()[..], &f32::INFINITY.to_le_bytes()[..]);
    // A plain weight, quantized on the way in, and the scale of a block of one that is NF4 in its file.
    let (plain, scales) =
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "context_embedder.weight.absmax");
    for (file, stored, number, name, count) in
        [(t5, plain, bf16_nan, plain, "1 of"), (transformer, scales, f32_infinity, scales, "1 of")]
    {
        let dir = copy_of_demo();
        let mut all = bytes(&dir.path().join(file));
        let header_end = 8 + u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&all[8..header_end]).unwrap();
        let end = header_end + header[stored]["data_offsets"][1].as_u64().unwrap() as usize;
        all[end - number.len()..end].copy_from_slice(number);
        std::fs::write(dir.path().join(file), all).unwrap();
        sandbox.refuses(quick(&["--model", text(dir.path())]), 3, &[file, name, count, "not finite"]);
    }
}

// ---- successes -----------------------------------------------------------------------------------------------

#[test]
fn the_bundled_model_draws_and_is_named() {
    let sandbox = Sandbox::new();
    let args = ["generate", "a red circle", "--device", "emulator", "--steps", "1", "--t5-length", "16"];
    let ran = sandbox.run(args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("using the bundled model"), "{}", ran.stderr);
    let last = ran.stderr.lines().last().unwrap();
    assert!(last.starts_with("out.png: 128 x 128, seed 0, "), "{last}");
    for part in ["s on emulator (text ", " ms, 1 step ", " ms, vae ", "of device memory"] {
        assert!(last.contains(part), "`{part}` is not in `{last}`");
    }
    assert_eq!(sandbox.entries(), ["out.png"]);
    let (info, pixels) = pixels(&sandbox.path("out.png"));
    assert_eq!((info.width, info.height), (128, 128));
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    assert!(pixels.iter().any(|p| p != &pixels[0]), "a blank picture");
}

#[test]
fn a_seed_is_its_bytes() {
    let sandbox = Sandbox::new();
    let draw = |seed, name: &str| {
        let ran = sandbox.run(quick(&["--seed", seed, "--output", name]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        bytes(&sandbox.path(name))
    };
    let first = draw("1", "a.png");
    assert_eq!(first, draw("1", "b.png"));
    assert_ne!(first, draw("2", "c.png"));
    assert_eq!(first, draw("1", "c.png"), "an old picture is replaced");
}

/// Keyword and text of every note in a PNG, in order.
fn notes(path: &Path) -> Vec<(String, String)> {
    let reader = png::Decoder::new(std::io::Cursor::new(bytes(path))).read_info().unwrap();
    let chunks = &reader.info().utf8_text;
    chunks.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap())).collect()
}

#[test]
fn a_picture_says_what_made_it_unless_told_not_to() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(quick(&["--seed", "7", "--output", "with.png"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let told: BTreeMap<String, String> = notes(&sandbox.path("with.png")).into_iter().collect();
    let digest = schnell::pipeline::Model::open(DEMO.path()).unwrap().digest().unwrap();
    assert_eq!((digest.len(), digest.chars().all(|c| c.is_ascii_hexdigit())), (16, true), "{digest}");
    let version = concat!("schnell ", env!("CARGO_PKG_VERSION"));
    for (keyword, text) in [
        ("prompt", "a red circle"),
        ("seed", "7"),
        ("steps", "1"),
        ("t5_length", "16"),
        ("weights", "nf4"),
        ("noise", "f32"),
        ("model", &digest),
        ("Software", version),
    ] {
        assert_eq!(told.get(keyword).map(String::as_str), Some(text), "{keyword}");
    }

    // What is not as usual is told, too.
    let more = [
        &["--timesteps", "bf16", "--prompt-2", "a blue star", "--noise", "bf16", "--quantize", "none"][..],
        &["--negative-prompt", "a ring", "--true-cfg-scale", "2.5", "--output", "more.png"],
    ];
    assert_eq!(sandbox.run(quick(&more.concat())).code, 0);
    let told: BTreeMap<String, String> = notes(&sandbox.path("more.png")).into_iter().collect();
    for (keyword, text) in [
        ("timesteps", "bf16"),
        ("prompt_2", "a blue star"),
        ("noise", "bf16"),
        ("weights", "none"),
        ("negative_prompt", "a ring"),
        ("true_cfg_scale", "2.5"),
    ] {
        assert_eq!(told.get(keyword).map(String::as_str), Some(text), "{keyword}");
    }

    assert_eq!(sandbox.run(quick(&["--seed", "7", "--no-metadata", "--output", "without.png"])).code, 0);
    assert_eq!(notes(&sandbox.path("without.png")), []);
    assert_eq!(pixels(&sandbox.path("with.png")).1, pixels(&sandbox.path("without.png")).1);
}

#[test]
fn other_weights_have_another_digest() {
    let digest = |dir: &Path| schnell::pipeline::Model::open(dir).unwrap().digest().unwrap();
    let dir = copy_of_demo();
    assert_eq!(digest(dir.path()), digest(DEMO.path()));
    let file = dir.path().join("vae/diffusion_pytorch_model.safetensors");
    let mut stored = bytes(&file);
    // The first byte of weight and bias of the decoder's last layer; the encoder's tensors would not count.
    let len = u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&stored[8..8 + len]).unwrap();
    for (name, tensor) in header.as_object().unwrap() {
        if name.starts_with("decoder.conv_out") {
            stored[8 + len + tensor["data_offsets"][0].as_u64().unwrap() as usize] ^= 1;
        }
    }
    std::fs::write(file, stored).unwrap();
    assert_ne!(digest(dir.path()), digest(DEMO.path()));
}

/// Pixels of the picture in one cell of a sheet of 64 x 64 pictures.
fn cell(sheet: &Path, column: usize, row: usize) -> Vec<u8> {
    let (info, rgb) = pixels(sheet);
    let (left, top) = (column * 68, row * 68);
    (top..top + 64).flat_map(|y| rgb[3 * (y * info.width as usize + left)..][..3 * 64].to_vec()).collect()
}

#[test]
fn a_grid_is_prompt_after_prompt_then_the_next_seed() {
    let sandbox = Sandbox::new();
    let one = |prompt, seed| {
        let mut args = quick(&["--seed", seed]);
        args[1] = prompt;
        assert_eq!(sandbox.run(args).code, 0);
        pixels(&sandbox.path("out.png")).1
    };
    let (red, green, red_next) =
        (one("a red circle", "5"), one("a green star", "5"), one("a red circle", "6"));

    std::fs::write(sandbox.path("prompts.txt"), "a red circle\n\n  a green star \r\n").unwrap();
    let mut args = quick(&["--prompts", "prompts.txt", "--grid", "2x2", "--seed", "5"]);
    args.remove(1);
    let ran = sandbox.run([&args[..], &["--output", "sheet.png", "--timings", "t.json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("sheet.png: 132 x 132, 4 pictures of 64 x 64, from seed 5, "),
        "{}",
        ran.stderr
    );
    let sheet = sandbox.path("sheet.png");
    assert_eq!((pixels(&sheet).0.width, pixels(&sheet).0.height), (132, 132));
    assert!(cell(&sheet, 0, 0) == red && cell(&sheet, 1, 0) == green && cell(&sheet, 0, 1) == red_next);
    let told: BTreeMap<String, String> = notes(&sheet).into_iter().collect();
    assert_eq!(told["prompt"], "a red circle\na green star\na red circle\na green star");
    assert_eq!(told["seed"], "5\n5\n6\n6");
    let timings: Value = serde_json::from_slice(&bytes(&sandbox.path("t.json"))).unwrap();
    assert_eq!(timings.as_array().unwrap().len(), 4);

    // Whatever prompt was cut is named.
    std::fs::write(sandbox.path("long.txt"), format!("a red circle\n{}", "a blue square and ".repeat(30)))
        .unwrap();
    let mut args = quick(&["--prompts", "long.txt", "--grid", "2x2", "--output", "long.png"]);
    args.remove(1);
    let stderr = sandbox.run(args).stderr;
    let cut: Vec<&str> = stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(cut.len() == 2 && cut.iter().all(|line| line.contains("`a blue square and")), "{stderr}");

    // One prompt: one seed after the other.
    assert_eq!(sandbox.run(quick(&["--grid", "1x2", "--seed", "5", "--output", "seeds.png"])).code, 0);
    let seeds = sandbox.path("seeds.png");
    assert!(cell(&seeds, 0, 0) == red && cell(&seeds, 0, 1) == red_next);
}

#[test]
fn grids_that_cannot_be_are_refused() {
    let sandbox = Sandbox::new();
    for grid in ["3", "0x2", "2x17", "axb", "2x2x2"] {
        sandbox.refuses(quick(&["--grid", grid]), 2, &["--grid", "3x3"]);
    }
    sandbox.refuses(quick(&["--grid", "2x2", "--dump", "d"]), 2, &["--grid", "--dump"]);
    // Before the file is looked at.
    sandbox.refuses(quick(&["--grid", "2x2", "--noise", "noise"]), 2, &["--grid", "--noise FILE"]);
    let big = ["generate", "a cat", "--grid", "16x16", "--width", "8192", "--height", "8192"];
    sandbox.refuses(big, 2, &["contact sheet", "256 pictures of 8192 x 8192"]);
    let from = |file: &'static str, grid: &'static str| ["generate", "--prompts", file, "--grid", grid];
    sandbox.refuses(from("missing.txt", "2x2"), 7, &["cannot read missing.txt"]);
    std::fs::write(sandbox.path("none.txt"), "\n \n").unwrap();
    sandbox.refuses(from("none.txt", "2x2"), 2, &["none.txt: 0 prompts", "1 to 4"]);
    std::fs::write(sandbox.path("many.txt"), "a\nb\nc\n").unwrap();
    sandbox.refuses(from("many.txt", "1x2"), 2, &["many.txt: 3 prompts", "1 to 2"]);
    sandbox.refuses(["generate", "--prompts", "many.txt"], 2, &["required"]);
    sandbox.refuses(quick(&["--prompts", "many.txt", "--grid", "3x1"]), 2, &["cannot be used with"]);
}

#[test]
fn a_plan_lists_its_operations_if_asked() {
    let sandbox = Sandbox::new();
    let plan = ["plan", "--width", "64", "--height", "64", "--steps", "3"];
    let short = sandbox.run(plan).stdout;
    let long = sandbox.run([&plan[..], &["--launches"]].concat()).stdout;
    let launches = long.strip_prefix(&short).unwrap();
    for line in
        ["clip x 1, of a new prompt", "step x 1, of new steps", "step x 3, those that are left", "vae x 1"]
    {
        assert!(launches.lines().any(|l| l == line), "{line} is not in {launches}");
    }
    let gemm = launches.lines().find(|l| l.contains("nf4_gemm_store_sm80")).unwrap();
    assert!(gemm.contains("GFLOP") && gemm.contains("<transformer.") || gemm.contains("<t5."), "{gemm}");
}

#[test]
fn timings_name_every_stage_in_order() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(quick(&["--steps", "2", "--timings", "t.json"])).code, 0);
    let timings: Value = serde_json::from_slice(&bytes(&sandbox.path("t.json"))).unwrap();
    let stages = timings["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "tokenize",
            "inputs",
            "clip",
            "t5",
            "prepare",
            "modulation",
            "step 0",
            "step 1",
            "vae",
            "copy",
            "receipt"
        ]
    );
    let times: Vec<f64> = stages.iter().map(|stage| stage["ms"].as_f64().unwrap()).collect();
    assert!(times.iter().all(|ms| *ms > 0.0), "{times:?}");
    assert!((timings["total_ms"].as_f64().unwrap() - times.iter().sum::<f64>()).abs() < 1e-6);
    assert_eq!(timings["device"], "emulator");
}

#[test]
fn a_dump_has_every_stage_and_its_noise_draws_the_picture_again() {
    let sandbox = Sandbox::new();
    let shape = ["--width", "96", "--steps", "2"];
    let first = [&shape[..], &["--seed", "5", "--dump", "new/dump", "--output", "a.png"]].concat();
    let ran = sandbox.run(quick(&first));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(sandbox.path("new/dump")).unwrap() {
        let path = entry.unwrap().path();
        let file = SafeTensors::open(&path).unwrap();
        let tensors: Vec<_> = file.iter().collect();
        assert_eq!(tensors.len(), 1, "{}", path.display());
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("{}.safetensors", tensors[0].name));
        found.insert(tensors[0].name.clone(), (tensors[0].dtype, tensors[0].shape.clone()));
    }
    let mut expected: BTreeMap<String, (Dtype, Vec<usize>)> = [
        ("tokens_clip", Dtype::I32, vec![1, 77]),
        ("tokens_t5", Dtype::I32, vec![1, 16]),
        ("noise", Dtype::F32, vec![1, 24, 64]),
        ("sigmas", Dtype::F32, vec![3]),
        ("clip_pooled", Dtype::F32, vec![1, 128]),
        ("t5_embeds", Dtype::F32, vec![1, 16, 128]),
        ("vae_out", Dtype::F32, vec![1, 3, 64, 96]),
    ]
    .map(|(name, dtype, shape)| (name.to_string(), (dtype, shape)))
    .into();
    for step in 0..2 {
        for stage in ["noise_pred", "latents"] {
            expected.insert(format!("{stage}_{step}"), (Dtype::F32, vec![1, 24, 64]));
        }
    }
    assert_eq!(found, expected);

    let again = [&shape[..], &["--noise", "new/dump/noise.safetensors", "--output", "b.png"]].concat();
    assert_eq!(sandbox.run(quick(&again)).code, 0);
    assert!(pixels(&sandbox.path("a.png")).1 == pixels(&sandbox.path("b.png")).1);
    let told: BTreeMap<String, String> = notes(&sandbox.path("b.png")).into_iter().collect();
    assert_eq!((told["noise"].as_str(), told.get("seed")), ("given", None));
}

#[test]
fn prompts_reach_their_encoders() {
    let sandbox = Sandbox::new();
    let draw = |args: &[&str]| {
        let ran = sandbox.run(args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (ran.stderr, pixels(&sandbox.path("out.png")).1)
    };
    let (_, one) = draw(&quick(&[]));
    let (_, same) = draw(&quick(&["--prompt-2", "a red circle"]));
    let (_, other) = draw(&quick(&["--prompt-2", "a blue square on a hill"]));
    assert_eq!(one, same);
    assert_ne!(one, other);
    let mut empty = quick(&["--allow-empty-prompt"]);
    empty[1] = "";
    assert_ne!(one, draw(&empty).1);
    let long = "a red circle and a blue square ".repeat(30);
    let mut args = quick(&[]);
    args[1] = &long;
    let (stderr, _) = draw(&args);
    for encoder in ["CLIP", "T5"] {
        assert!(stderr.contains(&format!("warning: {encoder} did not see the last")), "{stderr}");
    }
}

#[test]
fn plans_print_every_region_from_config_files_alone() {
    let (sandbox, schnell) = (Sandbox::new(), schnell_configs());
    for (model, sides) in [("demo", ["64", "128"]), (text(schnell.path()), ["512", "1024"])] {
        for side in sides {
            let ran = sandbox.run(["plan", "--model", model, "--width", side, "--height", side]);
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            let dir = if model == "demo" { DEMO.path() } else { schnell.path() };
            let config = schnell::config::PipelineConfig::open(dir).unwrap();
            if model != "demo" {
                assert_eq!(config, schnell::config::PipelineConfig::schnell());
            }
            let pixels = side.parse().unwrap();
            let t5_length = if model == "demo" { 24 } else { 256 };
            let shape =
                schnell::pipeline::Shape { width: pixels, height: pixels, t5_length, ..Default::default() };
            let plan = schnell::pipeline::Plan::new(&config, shape, Default::default()).unwrap();
            assert_eq!(ran.stdout, plan.to_string());
            for region in plan.regions() {
                let line = ran.stdout.lines().find(|l| l.split_whitespace().next() == Some(&region.name));
                let line = line.unwrap_or_else(|| panic!("{} is not in the plan", region.name));
                for number in [region.offset, region.bytes] {
                    assert!(line.split_whitespace().any(|word| word == number.to_string()), "{line}");
                }
            }
            assert_eq!(sandbox.entries(), [""; 0]);
        }
    }
}

#[test]
fn a_model_of_devs_family_has_devs_defaults() {
    let (sandbox, model) = (Sandbox::new(), schnell_configs());
    let starts = |words: &str| {
        let ran = sandbox.run(["plan", "--model", text(model.path())]);
        assert!(ran.stdout.starts_with(words), "{}", ran.stdout);
    };
    starts("1024 x 1024, 4 steps, 256 T5 tokens");
    let path = model.path().join("transformer/config.json");
    let mut config: Value = serde_json::from_slice(&bytes(&path)).unwrap();
    config["guidance_embeds"] = true.into();
    std::fs::write(&path, config.to_string()).unwrap();
    starts("1024 x 1024, 28 steps, 512 T5 tokens");
}

/// A warning stands before the work, once.
#[test]
fn flags_without_effect_are_said_before_the_work() {
    let sandbox = Sandbox::new();
    let together = "take effect only together";
    save_tensors(&sandbox.path("n.safetensors"), &[("noise", Dtype::F32, vec![1, 16, 64], vec![0; 4096])]);
    for (flags, words) in [
        (&["--guidance", "7"][..], "guidance 7 has no effect"),
        (&["--guidance", "3.5"], "guidance 3.5 has no effect"),
        (&["--negative-prompt", "a square"], together),
        (&["--true-cfg-scale", "2"], together),
        (&["--true-cfg-scale", "0.5"], together),
        (&["--seed", "4294967303"], "seed 4294967303 draws the same picture as seed 7: torch's"),
        (
            &["--seed", "4294967303", "--grid", "2x1"],
            "seed 4294967304 draws the same picture as seed 8: torch's",
        ),
        (&["--seed", "7", "--noise", "n.safetensors"], "seed 7 has no effect"),
    ] {
        let ran = sandbox.run(quick(flags));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let warned: Vec<usize> = ran.stderr.match_indices("warning:").map(|(at, _)| at).collect();
        assert_eq!(warned.len(), 1, "{flags:?}: {}", ran.stderr);
        let work = ran.stderr.find("running on the emulator").unwrap();
        assert!(warned[0] < work && ran.stderr[warned[0]..work].contains(words), "{}", ran.stderr);
    }
    let high = sandbox.run(quick(&["--seed", "4294967303", "--no-metadata", "--output", "high.png"]));
    let low = sandbox.run(quick(&["--seed", "7", "--no-metadata", "--output", "low.png"]));
    assert!(high.code == 0 && low.code == 0 && !low.stderr.contains("warning"), "{}", low.stderr);
    assert_eq!(bytes(&sandbox.path("high.png")), bytes(&sandbox.path("low.png")));
}

#[test]
fn a_random_seed_is_said_and_draws_the_picture_again() {
    let sandbox = Sandbox::new();
    let seed = |name: &str| {
        let ran = sandbox.run(quick(&["--seed", "random", "--output", name]));
        let line = ran.stderr.lines().find_map(|line| line.strip_prefix("--seed random: "));
        line.unwrap_or_else(|| panic!("{}", ran.stderr)).to_string()
    };
    let (a, b) = (seed("a.png"), seed("b.png"));
    assert!(a != b && a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok(), "{a} {b}");
    sandbox.run(quick(&["--seed", &a, "--output", "again.png"]));
    assert_eq!(bytes(&sandbox.path("a.png")), bytes(&sandbox.path("again.png")));
    sandbox.refuses(quick(&["--seed", "-1"]), 2, &["-1"]);
    sandbox.refuses(quick(&["--seed", "dice"]), 2, &["`dice` is no seed", "random"]);
}

/// Address space that ends somewhere in the middle: no panic, and no end that never comes.
#[test]
fn little_memory_is_no_reason_to_wait_forever() {
    let sandbox = Sandbox::new();
    for kib in (80_000..130_000).step_by(8_000) {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("ulimit -v {kib} && exec timeout -k 1 100 \"$@\""), "-"]);
        command.arg(env!("CARGO_BIN_EXE_schnell")).args(quick(&[])).current_dir(sandbox.path(""));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // What the allocator of Rust cannot give ends in SIGABRT.
        assert!(
            matches!(output.status.code(), Some(0 | 4 | 7 | 134) | None),
            "{kib}: {:?} {said}",
            output.status
        );
        assert!(!said.contains("panicked"), "{kib}: {said}");
    }
}
