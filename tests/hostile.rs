//! Hostile models, tokenizers, prompts and flags, made up from a seed, and the command on each of them in a process of its
//! own with a gibibyte of memory: a documented exit code and one message, no panic, no signal, no end that does not come, no
//! file that is changed, left over or half written, and no picture where damage can be seen.
//!
//! `SCHNELL_HOSTILE_SEED=N` makes up others (the default is always the same), `SCHNELL_HOSTILE_CASES=N` as many,
//! `SCHNELL_HOSTILE_ONLY=I` the one of that number; a failure says which to set.

#[path = "common/checkpoint.rs"]
mod checkpoint;
#[path = "common/command.rs"]
mod command;
#[path = "hostile/files.rs"]
mod files;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/golden.rs"]
mod golden;
#[path = "hostile/json.rs"]
mod json;
#[path = "hostile/judge.rs"]
mod judge;
#[path = "hostile/loras.rs"]
mod loras;
#[path = "hostile/models.rs"]
mod models;
#[path = "hostile/orders.rs"]
mod orders;
#[path = "common/rng.rs"]
mod rng;
#[path = "hostile/tokenizers.rs"]
mod tokenizers;
#[path = "hostile/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use judge::{Case, Must, judge};
use world::{Base, Bases, Dice, World};

const CASES: usize = 1040;

/// Makes a case's damage, and says what to run.
type Kind = fn(&mut Dice, &World) -> Case;

/// What there is, how often in a round, and on which base alone it can be.
const KINDS: [(&str, Kind, usize, Option<usize>); 26] = [
    ("config", models::config, 12, None),
    ("contradiction", models::contradiction, 3, None),
    ("container", models::container, 5, None),
    ("header", models::header, 3, None),
    ("entry", models::entry, 4, None),
    ("names", models::names, 4, None),
    ("not finite", models::not_finite, 5, None),
    ("quant state", models::quant_state, 4, Some(0)),
    ("index", models::index, 4, Some(2)),
    ("in place of a file", models::in_place_of_a_file, 8, None),
    ("GGUF header", files::gguf_header, 5, Some(0)),
    ("GGUF bytes", files::gguf_bytes, 3, Some(0)),
    ("GGUF in several files", files::gguf_divided, 3, Some(0)),
    ("fp8", files::fp8, 3, Some(0)),
    ("checkpoint", files::checkpoint, 3, Some(0)),
    ("LoRA", loras::lora, 5, Some(0)),
    ("settings", tokenizers::settings, 3, None),
    ("vocabulary", tokenizers::vocabulary, 4, None),
    ("spiece", tokenizers::spiece, 5, Some(2)),
    ("plan's flags", orders::plan_flags, 5, None),
    ("flags", orders::draw_flags, 6, None),
    ("prompt", orders::prompt, 2, None),
    ("prompts", orders::prompts, 4, None),
    ("noise", orders::noise, 4, None),
    ("outputs", orders::outputs, 6, None),
    ("dump", orders::dump, 2, None),
];

/// The beginning of a text, for messages.
fn start(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The kind of the case of that number.
fn kind(index: usize) -> (&'static str, Kind, Option<usize>) {
    let round: usize = KINDS.iter().map(|kind| kind.2).sum();
    // Neighbors are of different kinds, so that a few cases are some of many. Each has its turn: nothing divides both.
    let mut at = index * 37 % round;
    for (name, make, weight, base) in KINDS {
        match at.checked_sub(weight) {
            Some(rest) => at = rest,
            None => return (name, make, base),
        }
    }
    unreachable!("the weights' sum is larger")
}

/// What a base's picture is when nothing is wrong.
fn draw(base: &Base) {
    let world = World::new(base);
    let case = Case::picture(Must::Draw, "sound".to_string());
    let code = judge(&world, &case).unwrap_or_else(|wrong| panic!("{}: {wrong}", base.name));
    assert_eq!(code, 0);
    base.pixels.set(command::pixels(&world.work("out.png")).1).unwrap();
}

struct Tally {
    cases: usize,
    drawn: usize,
    time: Duration,
}

fn one(
    bases: &Bases,
    seed: u64,
    index: usize,
    tally: &Mutex<BTreeMap<&'static str, Tally>>,
) -> Result<(), String> {
    let mut dice = Dice::new(seed, index);
    let (name, make, base) = kind(index);
    let any = dice.below(5);
    // Most on the bundled model, which is the quickest.
    let base = &bases.all[base.unwrap_or(any.saturating_sub(2))];
    let world = World::new(base);
    let begun = Instant::now();
    let case = make(&mut dice, &world);
    let verdict = judge(&world, &case);
    let mut tally = tally.lock().unwrap();
    let entry = tally.entry(name).or_insert(Tally { cases: 0, drawn: 0, time: Duration::ZERO });
    entry.cases += 1;
    entry.drawn += usize::from(verdict == Ok(0));
    entry.time += begun.elapsed();
    drop(tally);
    let shown = |args: &[String]| args.iter().map(|arg| format!(" '{}'", start(arg))).collect::<String>();
    verdict.map(|_| ()).map_err(|wrong| {
        format!(
            "SCHNELL_HOSTILE_SEED={seed} SCHNELL_HOSTILE_ONLY={index}: {name}, base {}, {}, must {:?}: {wrong}\n  schnell{}",
            base.name,
            case.what.escape_debug(),
            case.must,
            shown(&case.args)
        )
    })
}

#[test]
fn hostile_input_is_refused_or_does_no_harm() {
    let seed = number("SCHNELL_HOSTILE_SEED").unwrap_or(1);
    let (first, cases) = match number("SCHNELL_HOSTILE_ONLY") {
        Some(only) => (only as usize, 1),
        None => (0, number("SCHNELL_HOSTILE_CASES").map_or(CASES, |n| n as usize)),
    };
    let begun = Instant::now();
    let bases = Bases::new();
    bases.all.iter().for_each(draw);
    let sound: Vec<_> = bases.all.iter().map(|base| World::new(base).snapshot().len()).collect();
    let (next, failures, tally) = (AtomicUsize::new(first), Mutex::new(Vec::new()), Mutex::default());
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= first + cases {
                        return;
                    }
                    if let Err(failure) = one(&bases, seed, index, &tally) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    for (name, tally) in tally.into_inner().unwrap() {
        println!("{name}: {} cases, {} done, {:.1} s", tally.cases, tally.drawn, tally.time.as_secs_f64());
    }
    println!("{cases} cases of seed {seed} in {:.1} s", begun.elapsed().as_secs_f64());
    // What all cases have links to is what it was.
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {cases}:\n{}", failures.len(), failures.join("\n"));
    for (base, sound) in bases.all.iter().zip(sound) {
        let world = World::new(base);
        assert_eq!(world.snapshot().len(), sound, "{}: files", base.name);
        judge(&world, &Case::picture(Must::Draw, String::new())).unwrap();
    }
}
