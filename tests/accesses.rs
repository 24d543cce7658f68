//! What the kernels' memory accesses cost: bank conflicts and sectors, by source line (scripts/sanitize accesses).
//!
//! Kernels run at shapes like those of FLUX, aligned and whole tiles, and must access memory at the least cost that there
//! is, but for the lines in [`ALLOWED`], each with its reason. `docs/accesses.txt` has every line's cost; `BLESS=1` writes it
//! anew for a reviewer to see.

mod common;
#[path = "common/typical.rs"]
mod typical;

use common::*;
use schnell::Error;
use schnell::device::emulator::accesses::{AccessKind, LineAccesses, records_accesses};
use schnell::device::{Device, EmulatorOptions, Order};
use schnell::kernels::FloatOut;
use schnell::kernels::probe;
use schnell::kernels::rms_norm::RmsNorm;

const COMMITTED: &str = "docs/accesses.txt";

/// A line that costs more than the least, the ratio that it may cost, and why that is all right.
struct Allowed {
    file: &'static str,
    kind: AccessKind,
    /// Part of the line.
    text: &'static str,
    ratio: f64,
    #[allow(dead_code)] // for the reader
    because: &'static str,
}

use AccessKind::{CopyFrom, GlobalRead, GlobalWrite, SharedRead, SharedWrite};

const fn allow(
    file: &'static str,
    kind: AccessKind,
    text: &'static str,
    ratio: f64,
    because: &'static str,
) -> Allowed {
    Allowed { file, kind, text, ratio, because }
}

const ONCE_PER_TILE: &str = "8 neighbors by 8 scalar loads, once per tile; after the first they are in L1";
const HALVES: &str =
    "one half of each lane's 32 bytes; the next instruction has the other half of the same sectors";
const PER_PICTURE: &str = "once per picture";
const AT_LOAD: &str = "once per weight, when a model is loaded";

const ALLOWED: &[Allowed] = &[
    // Epilogues.
    allow("gemm_epilogues.cuh", GlobalRead, "gates[c]", 8.0, ONCE_PER_TILE),
    allow("gemm_epilogues.cuh", GlobalRead, "return {old[0], old[1]}", 2.0, HALVES),
    allow("gemm_epilogues.cuh", GlobalRead, "reinterpret_cast<const float4 *>(in)[0], hi", 2.0, HALVES),
    allow(
        "gemm_epilogues.cuh",
        GlobalWrite,
        "gpu::store_vector(reinterpret_cast<float4 *>(out + at), float4",
        2.0,
        HALVES,
    ),
    allow(
        "gemm_epilogues.cuh",
        GlobalWrite,
        "gpu::store_vector(reinterpret_cast<float4 *>(out + at) + 1, float4",
        2.0,
        HALVES,
    ),
    allow(
        "kept_rows.cuh",
        GlobalRead,
        "const uint4 v = reinterpret_cast<const uint4 *>(from)[i];",
        2.0,
        HALVES,
    ),
    allow("attention.cu", CopyFrom, "&smem.bias[", 1.2, "the table's rows start anywhere"),
    allow(
        "gemv.cuh",
        GlobalWrite,
        "p.out[m * p.out_pitch + n]",
        2.0,
        "a warp has 4 of a row's results: half a sector, once",
    ),
    allow(
        "conv2d.cu",
        GlobalWrite,
        "static_cast<float *>(p.out)[",
        3.0,
        "3 channels of a pixel by two stores; an image is small beside the map that it is made of",
    ),
    // Norms.
    allow("group_norm_silu.cu", GlobalRead, "reinterpret_cast<const float4 *>(from)[0], hi", 2.0, HALVES),
    allow("group_norm_silu.cu", GlobalRead, "(partials[2 * chunk] - origin)", 2.0, "a pair by two loads"),
    allow("group_norm_silu.cu", GlobalRead, "partials[2 * chunk] - mean", 2.0, "a pair by two loads"),
    allow("group_norm_silu.cu", GlobalRead, "partials[2 * chunk + 1] /", 2.0, "a pair by two loads"),
    allow(
        "group_norm_silu.cu",
        SharedWrite,
        "smem.mean[slot * V + j] =",
        8.0,
        "once per chunk; nvcc makes STS.128 of them, 2-way",
    ),
    allow(
        "group_norm_silu.cu",
        SharedWrite,
        "smem.m2[slot * V + j] =",
        8.0,
        "once per chunk; nvcc makes STS.128 of them, 2-way",
    ),
    allow(
        "group_norm_silu.cu",
        SharedRead,
        "origin = smem.mean[",
        16.0,
        "a lane per group, groups side by side",
    ),
    allow("group_norm_silu.cu", GlobalWrite, "to[0] = mean", 8.0, "8 bytes per group and chunk of 64 pixels"),
    allow("group_norm_silu.cu", GlobalWrite, "to[1] = m2", 8.0, "8 bytes per group and chunk of 64 pixels"),
    allow("head_norm_rope.cu", GlobalRead, "p.weight[2 * pair]", 2.0, "a pair by two loads"),
    allow("head_norm_rope.cu", GlobalRead, "p.weight[2 * pair + 1]", 2.0, "a pair by two loads"),
    // Not in any loop over a model's layers.
    allow("nf4_quantize.cu", GlobalRead, "p.src_bf16[", 2.0, AT_LOAD),
    allow("nf4_quantize.cu", GlobalRead, "p.src_f32[", 2.0, AT_LOAD),
    allow("nf4_quantize.cu", GlobalWrite, "p.codes[", 2.0, AT_LOAD),
    allow("to_rgb.cu", GlobalRead, "p.x[pixel * p.pitch", 8.0, PER_PICTURE),
    allow("unpack_latents.cu", GlobalRead, "patch[4 * c]", 4.0, PER_PICTURE),
    allow("unpack_latents.cu", GlobalRead, "patch[4 * c + 4]", 4.0, PER_PICTURE),
];

fn counting(arch: u32, order: Order) -> Bench {
    let (count_accesses, track_writers) = (true, true);
    let options =
        EmulatorOptions { arch, count_accesses, track_writers, order, ..EmulatorOptions::default() };
    Bench::with_bytes(Device::emulator(options), 32 << 20)
}

/// What the launches cost, in the order of the source.
fn counts(order: Order, launches: impl Fn(&Bench)) -> Vec<LineAccesses> {
    counts_on(80, order, launches)
}

fn counts_on(arch: u32, order: Order, launches: impl Fn(&Bench)) -> Vec<LineAccesses> {
    let bench = counting(arch, order);
    launches(&bench);
    bench.device.synchronize(COMPUTE).unwrap();
    bench.device.access_counts().unwrap().lines
}

/// Of every kernel of a pipeline, those that Hopper has in place of others last.
fn all_counts(order: Order) -> Vec<LineAccesses> {
    let mut lines = counts(order, typical::launch_all);
    lines.extend(counts_on(90, order, typical::launch_all_of_hopper));
    lines
}

fn source_text(line: &LineAccesses) -> String {
    // Files are known by their last name.
    let source = ["kernels", "kernels/operands"]
        .into_iter()
        .find_map(|folder| std::fs::read_to_string(format!("{folder}/{}", line.file)).ok())
        .unwrap_or_else(|| panic!("no source file is {}, where {line:?} should be", line.file));
    source.lines().nth(line.line as usize - 1).unwrap_or_default().trim().to_string()
}

/// One line per line, aligned.
fn table(lines: &[LineAccesses]) -> String {
    let mut table = String::from(concat!(
        "What the kernels' memory accesses cost, per access of a warp: wavefronts of shared memory, 32-byte sectors of\n",
        "device memory, and the least that its lanes and bytes could cost. At the shapes of tests/common/typical.rs, as g++ for\n",
        "the emulator sees the code. `BLESS=1 scripts/sanitize accesses` writes this file.\n",
    ));
    let mut kernel = "";
    for line in lines {
        if line.kernel != kernel {
            kernel = line.kernel;
            table += &format!("\n{kernel}\n      accesses  bytes   cost  least\n");
        }
        let (executions, per) = (line.executions, |n: u64| n as f64 / line.executions as f64);
        let mark = if line.cost > line.least { '*' } else { ' ' };
        let columns = format!(
            "{mark} {:13}{executions:7}{:5}{:7.2}{:7.2}  {}: {}",
            line.kind,
            line.bytes,
            per(line.cost),
            per(line.least),
            line.file,
            source_text(line)
        );
        table += &columns;
        table += "\n";
    }
    table
}

#[test]
#[ignore = "needs instrumented kernels: scripts/sanitize accesses"]
fn product_kernels_cost_the_least_but_for_what_is_listed() {
    let lines = all_counts(Order::InOrder);
    let table = table(&lines);
    println!("{table}");
    let mut faults = Vec::new();
    let mut used = vec![false; ALLOWED.len()];
    for line in lines.iter().filter(|line| line.cost > line.least) {
        let text = source_text(line);
        let applies = |a: &Allowed| a.file == line.file && a.kind == line.kind && text.contains(a.text);
        let allowed = ALLOWED.iter().position(applies);
        let ratio = line.cost as f64 / line.least as f64;
        match allowed {
            Some(i) if ratio <= ALLOWED[i].ratio => used[i] = true,
            _ => faults.push(format!(
                "{}: {}:{}: {}: {ratio:.2} times the least: {text}",
                line.kernel, line.file, line.line, line.kind
            )),
        }
    }
    for (allowed, used) in ALLOWED.iter().zip(used) {
        if !used {
            faults.push(format!("no longer needed: {}: {}: {}", allowed.file, allowed.kind, allowed.text));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    if std::env::var_os("BLESS").is_some() {
        std::fs::write(COMMITTED, &table).unwrap();
    }
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    for (now, reviewed) in table.lines().zip(committed.lines()) {
        assert_eq!(now, reviewed, "`BLESS=1 scripts/sanitize accesses` accepts it");
    }
    assert_eq!(table.lines().count(), committed.lines().count(), "{COMMITTED} is stale");
}

/// Entry points that FLUX does not use: what is not aligned, and the probe.
#[test]
fn every_entry_point_of_a_pipeline_is_counted() {
    let (bench, hopper) = (Bench::new(emulator()), Bench::new(emulator_of(90)));
    typical::launch_all(&bench);
    typical::launch_all_of_hopper(&hopper);
    bench.device.synchronize(COMPUTE).unwrap();
    hopper.device.synchronize(COMPUTE).unwrap();
    let launched = [bench.device.launched(), hopper.device.launched()].concat();
    let exempt = ["_any", "partials_x1", "apply_x1"];
    for kernel in schnell::kernels::of_pipelines() {
        let counted = launched.contains(&kernel.name());
        assert!(counted != exempt.iter().any(|end| kernel.name().ends_with(end)), "{kernel:?}");
    }
}

/// Accesses happen in the order of the schedule, and CTAs on any worker; what they cost must not depend on it.
#[test]
#[ignore = "needs instrumented kernels: scripts/sanitize accesses"]
fn counts_do_not_depend_on_the_schedule() {
    assert_eq!(all_counts(Order::Random), all_counts(Order::InOrder));
}

/// Per access of a warp: text of the line, how often, cost and least.
const PROBE: &[(&str, AccessKind, u64, u64, u64)] = &[
    ("words[lane];", SharedRead, 1, 1, 1),
    ("words[2 * lane];", SharedRead, 1, 2, 1),
    ("words[32 * lane];", SharedRead, 1, 32, 1),
    ("words[33 * lane];", SharedRead, 1, 1, 1),
    ("words[lane / 8];", SharedRead, 1, 1, 1),
    ("uint8_t *>(words)[lane];", SharedRead, 1, 1, 1),
    ("pair = pairs[lane];", SharedRead, 1, 2, 2),
    ("far_pair = pairs[2 * lane];", SharedRead, 1, 4, 2),
    ("quad = quads[lane];", SharedRead, 1, 4, 4),
    ("far_quad = quads[2 * lane];", SharedRead, 1, 8, 4),
    ("same_quad = quads[lane / 8];", SharedRead, 1, 4, 4),
    ("words[2 * lane + 1];", SharedRead, 1, 1, 1),
    // Three times four turns, of 32, 24, 16 and 8 lanes; grouped across turns of the outer loop they would be fewer.
    ("words[32 * j + lane];", SharedRead, 12, 1, 1),
    ("words[64 + i];", SharedRead, 3, 1, 1),
    ("words[2 * t] = sum;", SharedWrite, 1, 2, 1),
    ("quads[2 * t] = quad;", SharedWrite, 1, 8, 4),
    ("p.input[lane];", GlobalRead, 1, 4, 4),
    ("p.input[8 * lane];", GlobalRead, 1, 32, 4),
    ("p.input[lane + 1];", GlobalRead, 1, 5, 4),
    ("p.input[0];", GlobalRead, 1, 1, 1),
    ("device_quad =", GlobalRead, 1, 16, 16),
    ("p.input[7 - lane];", GlobalRead, 1, 1, 1),
    ("p.output[t] = sum;", GlobalWrite, 1, 4, 4),
    ("atomic_add", GlobalWrite, 1, 1, 1),
    ("&quads[lane], p.input", AccessKind::CopyFrom, 1, 16, 16),
    ("&quads[lane], p.input", AccessKind::CopyTo, 1, 4, 4),
    ("&quads[2 * lane], p.input", AccessKind::CopyFrom, 1, 16, 4),
    ("&quads[2 * lane], p.input", AccessKind::CopyTo, 1, 8, 4),
    // Two tiles of four matrices: rows side by side, and 8 rows that begin in one bank.
    ("ldmatrix_x4_tile", AccessKind::LoadMatrix, 2, (4 + 32) / 2, 4),
    ("p.output[t] +=", GlobalRead, 1, 4, 4),
    ("p.output[t] +=", GlobalWrite, 1, 4, 4),
];

#[test]
#[ignore = "needs instrumented kernels: scripts/sanitize accesses"]
fn accesses_of_known_cost_are_counted_so() {
    const NUM_WARPS: u64 = 2;
    for order in [Order::InOrder, Order::Random] {
        let lines = counts(order, |bench| {
            let (input, output) = (bench.upload(&[1u32; 256]), bench.upload(&[0u32; 65]));
            probe::launch_accesses(&bench.device, &input, &output).unwrap();
        });
        assert_eq!(lines.len(), PROBE.len());
        for &(text, kind, executions, cost, least) in PROBE {
            let mut found = lines.iter().filter(|line| line.kind == kind && source_text(line).contains(text));
            let line = found.next().unwrap_or_else(|| panic!("{text}: {kind} was not counted"));
            assert!(found.next().is_none(), "{text}: twice");
            let times = executions * NUM_WARPS;
            assert_eq!(
                (line.executions, line.cost, line.least),
                (times, times * cost, times * least),
                "{text}"
            );
        }
    }
}

#[test]
#[ignore = "needs instrumented kernels: scripts/sanitize accesses"]
fn the_last_writer_is_named() {
    let bench = counting(80, Order::InOrder);
    let (input, output) = (bench.upload(&[1u32; 256]), bench.upload(&[0u32; 65]));
    let writer = |index| bench.device.last_writer(&output, index).unwrap();
    assert!(writer(40).contains("no kernel"), "{}", writer(40));
    for launch in 1..3 {
        probe::launch_accesses(&bench.device, &input, &output).unwrap();
        bench.device.synchronize(COMPUTE).unwrap();
        let line = |text| {
            let source = std::fs::read_to_string("kernels/probe.cu").unwrap();
            source.lines().position(|line| line.contains(text)).unwrap() + 1
        };
        let place = format!(
            "kernel probe_accesses (launch {launch}), CTA [0, 0, 0], thread 40 at probe.cu:{} (seed 0)",
            line("p.output[t] += ")
        );
        assert!(writer(40).contains(&place), "{}", writer(40));
        // In order, the warp that completes a barrier goes on.
        let atomic = format!("thread 31 at probe.cu:{}", line("gpu::atomic_add(p.output + PROBE_THREADS"));
        assert!(writer(64).contains(&atomic), "{}", writer(64));
    }
    bench.device.fill(COMPUTE, &output, 0).unwrap();
    bench.device.synchronize(COMPUTE).unwrap();
    assert!(writer(40).contains("no kernel"), "{}", writer(40));
}

/// The way of a failing comparison: rows gathered from a pitched download, widened.
#[test]
#[ignore = "needs instrumented kernels: scripts/sanitize accesses"]
fn a_wrong_element_is_reported_with_its_writer() {
    let bench = Bench::new(emulator());
    let (rows, pitch) = (3, 40);
    let x = bench.upload(&Rng(4).f32s(rows * 32, 1.0));
    let weight = bench.upload(&(0..32).map(|i| i as f32).collect::<Vec<f32>>());
    let out = bench.alloc(rows * pitch);
    let (weight, to) = (&weight, FloatOut::Bf16(&out));
    RmsNorm { x: &x, pitch: 32, rows, width: 32, weight, eps: 1e-6, out: to, out_pitch: pitch }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    let got = to_f32(&bench.download(&out));
    let got: Vec<f32> = got.chunks(pitch).flat_map(|row| row[..32].to_vec()).collect();
    let mut want = got.clone();
    want[2 * 32 + 5] += 1.0;
    let panic = std::panic::catch_unwind(|| assert_close("x", &got, &want, &want)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    // Four columns a lane, one warp a row.
    assert!(message.contains("element 69: "), "{message}");
    assert!(
        message.contains("; last written by kernel rms_norm_small (launch 1), CTA [0, 0, 0]"),
        "{message}"
    );
    assert!(message.contains("thread 65 at row.cuh:"), "{message}");
}

#[test]
fn what_is_missing_for_counts_is_said() {
    let error = Device::emulator(EmulatorOptions::default()).access_counts().unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)));
    let missing = if records_accesses() { "count_accesses" } else { "scripts/sanitize accesses" };
    assert!(error.to_string().contains(missing), "{error}");
}
