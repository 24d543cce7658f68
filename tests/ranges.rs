//! Whoever listens is told what the host is doing: spans of `tracing`, and ranges of NVTX with the feature of that name.

#[cfg(feature = "nvtx")]
#[path = "common/command.rs"]
mod command;
mod common;
#[cfg(feature = "nvtx")]
#[path = "common/golden.rs"]
mod golden;

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use common::*;
use schnell::pipeline::{Pipeline, Request, Shape};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};

/// Names and fields of spans, and which were entered (`+`) and left (`-`).
#[derive(Clone, Default)]
struct Listener {
    names: Arc<Mutex<Vec<String>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Listener {
    fn note(&self, sign: char, id: &Id) {
        let name = self.names.lock().unwrap()[id.into_u64() as usize - 1].clone();
        self.seen.lock().unwrap().push(format!("{sign}{name}"));
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("schnell")
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut name = span.metadata().name().to_string();
        span.record(&mut Fields(&mut name));
        let mut names = self.names.lock().unwrap();
        names.push(name);
        Id::from_u64(names.len() as u64)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, id: &Id) {
        self.note('+', id);
    }
    fn exit(&self, id: &Id) {
        self.note('-', id);
    }
}

/// Begins (`+`) and ends (`-`) as text with an indent for what lies within, `wait`s left out: how often there is something to wait
/// for is the machine's affair.
fn outline(seen: &[String]) -> String {
    let (mut text, mut open) = (String::new(), Vec::new());
    for line in seen {
        let (sign, name) = line.split_at(1);
        if sign == "-" {
            assert_eq!(open.pop(), Some(name), "{seen:?}");
            continue;
        }
        if !name.ends_with("wait") {
            writeln!(text, "{}{name}", "  ".repeat(open.len())).unwrap();
        }
        open.push(name);
    }
    assert!(open.is_empty(), "{seen:?}");
    text
}

#[test]
fn spans_are_of_loads_pictures_phases_and_stages() {
    let (_dir, model) = demo();
    let shape = Shape { width: 64, height: 64, steps: 2, t5_length: 16, true_cfg: false };
    let listener = Listener::default();
    tracing::subscriber::with_default(listener.clone(), || {
        let mut pipeline = Pipeline::builder(&model).warm_up([shape]).device(&emulator()).load().unwrap();
        pipeline.generate(&Request::new("a red circle").seed(7)).unwrap();
        // What fails ends its spans, too.
        pipeline.generate(&Request::new("a red circle").size(63, 64)).unwrap_err();
    });
    let want = "\
load
generate width=64 height=64 steps=2 seed=7
  host what=tokenize
  host what=inputs
  host what=enqueue clip
  host what=enqueue t5
  host what=enqueue prepare
  host what=enqueue modulation
  host what=enqueue step 0
  host what=enqueue step 1
  host what=enqueue vae
  host what=enqueue copy
  host what=receipt
generate width=63 height=64 steps=2 seed=0
  host what=tokenize
";
    let seen = listener.seen.lock().unwrap();
    assert_eq!(outline(&seen), want);
    assert!(seen.iter().any(|line| line == "+host what=wait"), "{seen:?}");
}

/// NVTX's own library does nothing unless Nsight Systems is there: one with the same two functions writes down what it is told.
#[cfg(feature = "nvtx")]
#[test]
fn nvtx_is_told_the_same() {
    let sandbox = command::Sandbox::new();
    let source = sandbox.path("nvtx.c");
    std::fs::write(
        &source,
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        static void note(const char *sign, const char *text) {
            FILE *file = fopen(getenv("NOTES"), "a");
            fprintf(file, "%s%s\n", sign, text);
            fclose(file);
        }
        int nvtxRangePushA(const char *text) { note("+", text); return 0; }
        int nvtxRangePop(void) { note("-", ""); return 0; }
        "#,
    )
    .unwrap();
    std::fs::create_dir(sandbox.path("lib")).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let library = sandbox.path("lib/libnvtx3interop.so.1");
    let status = std::process::Command::new(compiler)
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(status.success());
    let draw = |libraries: &str| {
        let mut command = sandbox.command(command::quick(&["--seed", "0", "--output", "x.png"]));
        command.env("LD_LIBRARY_PATH", sandbox.path(libraries)).env("NOTES", sandbox.path("notes"));
        command.env("NVTX_INJECTION64_PATH", "a profiler's");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!draw("lib").contains("profiler"));
    let notes = std::fs::read_to_string(sandbox.path("notes")).unwrap();
    let (mut open, mut seen) = (Vec::new(), Vec::new());
    for line in notes.lines() {
        match line.split_at(1) {
            ("+", name) => {
                open.push(name);
                seen.push(format!("+{name}"));
            }
            _ => seen.push(format!("-{}", open.pop().expect("more ends than begins"))),
        }
    }
    let text = outline(&seen);
    let want = "\
generate 64x64, 1 steps, seed 0
  tokenize
  inputs
  enqueue clip
  enqueue t5
  enqueue prepare
  enqueue modulation
  enqueue step 0
  enqueue vae
  enqueue copy
  receipt
";
    assert_eq!(text, format!("load\n{want}"));
    std::fs::remove_file(&library).unwrap();
    assert!(draw("lib").contains("no ranges for the profiler"));
}
