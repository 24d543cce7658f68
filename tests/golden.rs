//! The whole pipeline against diffusers, stage by stage: `tests/golden` holds what diffusers computed in float32 for
//! models whose weights this test writes anew from their hash.

mod common;
#[path = "common/golden.rs"]
mod golden;
use common::*;
use golden::{Golden, crc32, limit};
use schnell::device::Device;
use schnell::pipeline::{DumpValues, Output};
use serde_json::Value;

fn check(golden: &Golden, case: &Value, device: &Device) {
    let name = case["name"].as_str().unwrap();
    let output = golden.generate(case, device);
    let stages = case["tensors"].as_object().unwrap();
    for stage in stages.keys() {
        assert!(output.dumps.iter().any(|d| d.stage == *stage), "no {stage}");
    }
    // In the pipeline's order, so that the first failure names the stage at fault.
    for dump in output.dumps.iter().filter(|d| stages.contains_key(&d.stage)) {
        let stage = &dump.stage;
        let shape: Vec<usize> =
            stages[stage]["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        assert_eq!(dump.shape, shape, "{name}.{stage}");
        let want = golden.tensor(name, stage);
        match &dump.values {
            DumpValues::Ids(ids) => {
                assert_eq!(ids.iter().map(|&i| i as f32).collect::<Vec<_>>(), want, "{name}.{stage}");
            }
            DumpValues::F32(got) if stage == "sigmas" => assert_eq!(*got, want, "{name}.{stage}"),
            DumpValues::F32(got) => {
                let (error, limit) = (rel_l2(got, &want), limit(case, stage));
                assert!(error <= limit, "{name}.{stage}: relative L2 {error:.3e}, at most {limit:.3e}");
            }
        }
    }
    let psnr = psnr(&output.rgb, &golden.image(name));
    assert!(psnr >= 35.0, "{name}: PSNR {psnr:.1} dB");
    check_noise(case, &output);
}

/// Noise is compared bit for bit, by its checksum.
fn check_noise(case: &Value, output: &Output) {
    let want = if case["noise"].is_null() { return } else { &case["noise"]["crc32"] };
    let dump = output.dumps.iter().find(|d| d.stage == "noise").unwrap();
    let DumpValues::F32(noise) = &dump.values else { panic!("noise is f32") };
    let bytes: Vec<u8> = noise.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(format!("{:08x}", crc32(&bytes)), want.as_str().unwrap(), "{}", case["name"]);
}

fn check_all(name: &'static str, wanted: &dyn Fn(&str) -> bool) {
    let golden = Golden::open(name);
    let cases: Vec<&Value> = golden.cases.iter().filter(|c| wanted(c["name"].as_str().unwrap())).collect();
    assert!(!cases.is_empty());
    for case in cases {
        check(&golden, case, &emulator());
    }
}

/// Its kernels are other ones where the weights are NF4.
#[test]
fn a_hopper_agrees_too() {
    for name in ["a", "b"] {
        let golden = Golden::open(name);
        let is_nf4 = |case: &&Value| case["name"].as_str().unwrap().ends_with("nf4");
        for case in golden.cases.iter().filter(is_nf4) {
            let device = emulator_of(90);
            check(&golden, case, &device);
            let launched = device.launched();
            assert!(launched.contains(&"nf4_gemm_heads_sm90") && !launched.contains(&"nf4_gemm_heads_sm80"));
        }
    }
}

#[test]
fn pipeline_a_agrees_with_diffusers() {
    check_all("a", &|case| !case.ends_with("nf4"));
}

#[test]
fn pipeline_b_agrees_with_diffusers() {
    check_all("b", &|case| !case.ends_with("nf4"));
}

#[test]
fn nf4_agrees_with_diffusers_on_bitsandbytes_weights() {
    check_all("a", &|case| case.ends_with("nf4"));
    check_all("b", &|case| case.ends_with("nf4"));
}

/// The goldens are sharp: had the network one of these mistakes, the comparison above would fail. The mistaken tensors
/// come from the reference itself, mutated; so does the claim that they leave the tolerance by a margin of 1.5.
#[test]
fn planted_network_mistakes_leave_the_tolerance() {
    let golden = Golden::open("a");
    let (list, tensors) = golden.mistakes();
    let case = golden.case(list["case"].as_str().unwrap());
    let name = case["name"].as_str().unwrap();
    let output = golden.generate(case, &emulator());
    let mistakes = list["mistakes"].as_array().unwrap();
    assert!(mistakes.len() >= 10);
    for mistake in mistakes {
        for stage in mistake["rel_l2"].as_object().unwrap().keys() {
            let wrong = tensors.get(&format!("{}.{stage}", mistake["name"].as_str().unwrap())).unwrap();
            let wrong = wrong.read_f32().unwrap();
            let limit = limit(case, stage);
            let against_golden = rel_l2(&wrong, &golden.tensor(name, stage));
            assert!(against_golden > 1.5 * limit, "{}.{stage}: {against_golden:.3e}", mistake["name"]);
            // And what we compute is on the right side of it.
            let dump = output.dumps.iter().find(|d| d.stage == *stage).unwrap();
            let DumpValues::F32(got) = &dump.values else { panic!("{stage} is f32") };
            let against_us = rel_l2(got, &wrong);
            assert!(against_us > limit, "{}.{stage}: {against_us:.3e}", mistake["name"]);
        }
    }
}
