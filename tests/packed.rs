//! The packed cache: what is loaded from it draws the same, and nothing else than a whole file of the same weights is loaded.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/golden.rs"]
mod golden;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::*;
use schnell::pipeline::{Model, Pipeline, Plan, Quantize, Request, Shape};
use sha2::{Digest, Sha256};

const SHAPE: Shape = Shape { width: 64, height: 64, steps: 1, t5_length: 16, true_cfg: false };

fn plan(model: &Model) -> Plan {
    Plan::new(model.config(), SHAPE, Quantize::Nf4).unwrap()
}

fn draw(model: &Model, plan: Plan, cache: Option<&Path>) -> Vec<u8> {
    let (mut builder, device) = (Pipeline::builder(model).with_plan(plan), emulator());
    if let Some(cache) = cache {
        builder = builder.cache(cache);
    }
    let mut pipeline = builder.device(&device).load().unwrap();
    let rgb = pipeline.generate(&Request::new("a red circle").seed(3)).unwrap().rgb;
    assert_eq!(device.num_allocations(), 1);
    rgb
}

/// Resident and streamed plans load from one file, and read little of the model beside it.
#[test]
fn what_is_loaded_from_it_draws_the_same() {
    let (dir, model) = demo();
    let want = draw(&model, plan(&model), None);
    let cache = dir.path().join("a/cache");
    assert!(draw(&model, plan(&model), Some(&cache)) == want);
    let made = identity(&only_file(&cache));
    let all = plan(&model).arena_bytes();
    let again = Model::open(dir.path()).unwrap();
    let from_files = model.bytes_read();
    for budget in [all, all * 9 / 10, all * 7 / 10] {
        let plan = plan(&again).within(budget).unwrap();
        assert_eq!(plan.traffic().pinned == 0, budget == all);
        assert!(draw(&again, plan, Some(&cache)) == want, "{budget}");
    }
    assert_eq!(identity(&only_file(&cache)), made, "made once");
    // Of the model: a piece of every tensor, and the tables that stay on the host.
    assert!(again.bytes_read() < from_files, "{} of {from_files}", again.bytes_read());
    // Made by a streamed plan, it is the same file.
    let other = dir.path().join("other");
    draw(&model, plan(&model).within(all * 7 / 10).unwrap(), Some(&other));
    assert!(draw(&model, plan(&model), Some(&other)) == want);
    // Weights that are kept in another way are in another file.
    let wide = || Plan::new(model.config(), SHAPE, Quantize::None).unwrap();
    assert!(draw(&model, wide(), Some(&cache)) == draw(&model, wide(), None));
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 2);
}

/// A digest of a packed file's weights. Where it changes, weights lie in another order than before: then
/// `weights::packed::LAYOUT_VERSION` goes up, so that no older file is taken for a new one, and this is written anew.
#[test]
fn another_order_is_another_version() {
    let (dir, model) = demo();
    let cache = dir.path().join("cache");
    draw(&model, plan(&model), Some(&cache));
    let bytes = std::fs::read(only_file(&cache)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
    assert_eq!(header % 4096, 0);
    let text = String::from_utf8_lossy(&bytes[..header]);
    assert!(text.contains("\"schnell 3\""), "{text}");
    let digest: String =
        Sha256::digest(&bytes[header..])[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "e7952c8db616bec0");
}

/// A bit of it that is another is no weight: the picture is right, and the file is made again.
#[test]
fn a_damaged_file_is_made_again() {
    let (dir, model) = demo();
    let cache = dir.path().join("cache");
    let want = draw(&model, plan(&model), Some(&cache));
    let path = only_file(&cache);
    let whole = std::fs::read(&path).unwrap();
    for (at, streams) in [(whole.len() / 2, false), (whole.len() - 1, true)] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let plan = plan(&model);
        let least = plan.least_bytes().unwrap();
        let plan = if streams { plan.within(least).unwrap() } else { plan };
        assert!(draw(&model, plan, Some(&cache)) == want, "another picture");
        assert!(std::fs::read(only_file(&cache)).unwrap() == whole, "not made again");
    }
}

/// Several that make it at once do not harm each other.
#[test]
fn several_may_make_it_at_once() {
    let (dir, model) = demo();
    let want = draw(&model, plan(&model), None);
    let cache = dir.path().join("cache");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(draw(&model, plan(&model), Some(&cache)) == want));
        }
    });
    let made = identity(&only_file(&cache));
    assert!(draw(&model, plan(&model), Some(&cache)) == want);
    assert_eq!(identity(&only_file(&cache)), made);
    // A file that another process writes right now is not taken for abandoned: it is locked.
    let living = cache.join(".schnell.1.0.0");
    let mut locked = std::fs::File::create(&living).unwrap();
    locked.lock().unwrap();
    locked.write_all(b"half").unwrap();
    let abandoned = cache.join(".schnell.2.0.0");
    std::fs::write(&abandoned, b"half").unwrap();
    let of_user = ["x", ".schnell.toml", ".schnell.toml.swp", ".schnell.1.2.x"].map(|name| cache.join(name));
    of_user.iter().for_each(|path| std::fs::write(path, b"whatever a user keeps there").unwrap());
    let packed = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let packed =
        packed.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap();
    std::fs::remove_file(packed).unwrap();
    assert!(draw(&model, plan(&model), Some(&cache)) == want);
    assert!(living.exists() && !abandoned.exists() && of_user.iter().all(|path| path.exists()));
}

/// In a folder where nothing can be written, what is there is read, and what is not, draws all the same.
#[test]
fn a_folder_that_cannot_be_written_to_does_no_harm() {
    let (dir, model) = demo();
    let want = draw(&model, plan(&model), None);
    let cache = dir.path().join("cache");
    draw(&model, plan(&model), Some(&cache));
    let read_only = |folder: &Path| {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o555)).unwrap();
    };
    read_only(&cache);
    let made = identity(&only_file(&cache));
    assert!(draw(&model, plan(&model), Some(&cache)) == want);
    assert_eq!(identity(&only_file(&cache)), made);
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o755)).unwrap();
    // A file in the file's place, which a rename cannot replace, fails for root as well.
    let path = only_file(&cache);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("full"), "").unwrap();
    assert!(draw(&model, plan(&model), Some(&cache)) == want);
}
