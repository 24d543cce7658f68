//! The shapes and epilogues that `nf4_gemm` and `bf16_gemm` share; each test file brings its weights, and the architecture of the
//! machines.

use super::{ARCH, *};
use half::bf16;
use schnell::device::{AsyncCopies, Device, EmulatorOptions, Order, View};
use schnell::kernels::gemm::{Activation, Epilogue, Gemm, LowRank, Problem, Segment, Weight, Workspace};

/// `launch(bench, problems, weights as f32 [n, k])` uploads the weights in the kernel's format and launches: results are in the
/// problems' destinations. It returns whether tiles were split. `weights[i]` are already what the kernel will see after
/// dequantization and rounding.
pub type Launch<'a> = &'a dyn Fn(&Bench, &[Problem<'_>], &[Weights]) -> bool;

/// A weight matrix as the oracle sees it, and the file's values that it came from.
pub struct Weights {
    pub raw: Vec<f32>,
    pub seen: Vec<f32>,
}

/// Launches with a workspace, which holds what it has to afterwards. True if tiles were split.
pub fn launch<W: Weight>(bench: &Bench, problems: &[(Problem<'_>, W)]) -> bool {
    let capability = bench.device.capability();
    let split = Gemm { problems, workspace: None }.split(capability);
    let zeros = vec![0u32; split.split];
    let (partials, arrivals) = (bench.alloc::<f32>(split.partials_len()), bench.upload(&zeros));
    let gemm = Gemm { problems, workspace: Some(Workspace { partials: &partials, arrivals: &arrivals }) };
    assert_eq!(gemm.select(capability).unwrap().grid, [split.ctas() as u32, 1, 1]);
    gemm.launch(&bench.device, COMPUTE).unwrap();
    assert_eq!(bench.download(&arrivals), zeros, "the next launch needs zeros");
    split.split > 0
}

/// Poses as a machine of so many SMs.
pub fn machine(num_sms: u32) -> Device {
    Device::emulator(EmulatorOptions { num_sms, arch: ARCH, ..EmulatorOptions::default() })
}

/// The same, in an order of its own.
pub fn random_machine(num_sms: u32, seed: u64) -> Device {
    let (order, async_copies) = (Order::Random, AsyncCopies::Random);
    let threads = [1, 2, 4][seed as usize % 3];
    let arch = ARCH;
    Device::emulator(EmulatorOptions {
        num_sms,
        arch,
        threads,
        order,
        async_copies,
        seed,
        ..Default::default()
    })
}

/// k of products that are split: Hopper's k-steps are shorter, and joining costs more of them.
const LONG_K: usize = if ARCH == 90 { 2048 } else { 1024 };

pub fn plain_store(
    launch: Launch<'_>,
    make: &dyn Fn(&mut Rng, usize, usize) -> Weights,
    device: Device,
    [m, n, k]: [usize; 3],
) -> Vec<bf16> {
    let bench = Bench::new(device);
    let mut rng = Rng((m * 31 + n * 7 + k) as u64);
    let x = rng.bf16s(m * k, 1.0);
    let pitch = k.next_multiple_of(8);
    let mut padded = vec![bf16::NAN; m * pitch];
    for r in 0..m {
        padded[r * pitch..r * pitch + k].copy_from_slice(&x[r * k..(r + 1) * k]);
    }
    let weights = make(&mut rng, n, k);
    let bias = rng.f32s(n, 0.5);
    end_rows(&mut padded, pitch, k, bf16::NAN);
    let (x_view, bias_view) = (bench.upload(&padded), bench.upload(&bias));
    // Rows that whole vectors can be stored to, though the last is not whole; and rows of an odd pitch.
    let out_pitch = if n % 8 > 1 { n.next_multiple_of(8) } else { n };
    let out = bench.alloc::<bf16>(pitched_len(m, out_pitch, n));
    let mut problem =
        Problem::simple(&x_view, [m, n, k], Some(&bias_view), Activation::None, Epilogue::Store(&out));
    problem.x_pitch = pitch;
    problem.segments[0].pitch = out_pitch;
    launch(&bench, &[problem], std::slice::from_ref(&weights));
    let want = linear(&to_f32(&x), &weights.seen, Some(&bias), [m, n, k]);
    let plain = rounded(&linear(&to_f32(&x), &weights.seen, None, [m, n, k]));
    let plain: Vec<f32> = plain.iter().enumerate().map(|(i, v)| round_bf16(v + bias[i % n])).collect();
    let got = without_gaps(&bench.download(&out), out_pitch, n);
    assert_close(&format!("{m} x {n} x {k}"), &to_f32(&got), &want, &plain);
    got
}

/// Every epilogue in one matrix: q and k with norm and RoPE, v stored, the rest activated.
pub fn segments(
    launch: Launch<'_>,
    make: &dyn Fn(&mut Rng, usize, usize) -> Weights,
    device: Device,
    k: usize,
) -> Vec<bf16> {
    let bench = Bench::new(device);
    let (m, heads) = (150, 2);
    let d = heads * 128;
    let n = 3 * d + 135;
    let mut rng = Rng(5);
    let x = rng.bf16s(m * k, 1.0);
    let weights = make(&mut rng, n, k);
    let bias = rng.f32s(n, 0.5);
    let (wq, wk) = (rng.f32s(128, 1.5), rng.f32s(128, 1.5));
    let angles = rng.f32s(m * 64, 3.0);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let (q, k_out, v) = (bench.alloc::<bf16>(m * d), bench.alloc::<bf16>(m * d), bench.alloc::<bf16>(m * d));
    let mlp_pitch = 200;
    let mlp = bench.alloc::<bf16>(pitched_len(m, mlp_pitch, 135));
    let views = (bench.upload(&x), bench.upload(&bias), bench.upload(&wq), bench.upload(&wk));
    let (cos_view, sin_view) = (bench.upload(&cos), bench.upload(&sin));
    let segment =
        |begin, end, pitch, activation, epilogue| Segment { begin, end, pitch, activation, epilogue };
    let none = Activation::None;
    let problem = Problem {
        x: &views.0,
        x_pitch: k,
        m,
        n,
        k,
        bias: Some(&views.1),
        rope: Some((&cos_view, &sin_view)),
        norm_eps: 1e-6,
        low_rank: None,
        segments: vec![
            segment(0, d, d, none, Epilogue::NormRope { out: &q, weight: &views.2 }),
            segment(d, 2 * d, d, none, Epilogue::NormRope { out: &k_out, weight: &views.3 }),
            segment(2 * d, 3 * d, d, none, Epilogue::Store(&v)),
            segment(3 * d, n, mlp_pitch, Activation::GeluTanh, Epilogue::Store(&mlp)),
        ],
    };
    assert_eq!(launch(&bench, &[problem], std::slice::from_ref(&weights)), k > 1000);
    let y = linear(&to_f32(&x), &weights.seen, Some(&bias), [m, n, k]);
    let columns = |row: usize, begin: usize, end: usize| &y[row * n + begin..row * n + end];
    let mut every = Vec::new();
    for (name, view, first, weight) in [("q", &q, 0, &wq), ("k", &k_out, d, &wk)] {
        let (mut want, mut plain) = (Vec::new(), Vec::new());
        for row in 0..m {
            for head in 0..heads {
                let x = columns(row, first + head * 128, first + head * 128 + 128);
                let (cos, sin) = (&cos[row * 64..row * 64 + 64], &sin[row * 64..row * 64 + 64]);
                want.extend(norm_rope(x, weight, cos, sin, 1e-6));
                plain.extend(rounded(&norm_rope(&rounded(x), weight, cos, sin, 1e-6)));
            }
        }
        assert_close(name, &to_f32(&bench.download(view)), &want, &plain);
        every.extend(bench.download(view));
    }
    let want: Vec<f32> = (0..m).flat_map(|row| columns(row, 2 * d, 3 * d).to_vec()).collect();
    assert_close("v", &to_f32(&bench.download(&v)), &want, &rounded(&want));
    let got = to_f32(&without_gaps(&bench.download(&mlp), mlp_pitch, 135));
    let want: Vec<f32> = (0..m).flat_map(|row| columns(row, 3 * d, n).to_vec()).collect();
    let plain: Vec<f32> = want.iter().map(|v| round_bf16(gelu_tanh(round_bf16(*v)))).collect();
    let want: Vec<f32> = want.iter().map(|v| gelu_tanh(*v)).collect();
    assert_close("mlp", &got, &want, &plain);
    every.extend(bench.download(&v));
    every
}

/// Residual, gate, product and f32 epilogues, each activation, with tails everywhere: once in rows that take no vectors,
/// once in rows that do.
pub fn epilogues(
    launch: Launch<'_>,
    make: &dyn Fn(&mut Rng, usize, usize) -> Weights,
    num_sms: u32,
    k: usize,
) {
    for (n, pitch) in [(140, 140), (135, 136)] {
        epilogues_of(launch, make, num_sms, [n, pitch, k]);
    }
}

fn epilogues_of(
    launch: Launch<'_>,
    make: &dyn Fn(&mut Rng, usize, usize) -> Weights,
    num_sms: u32,
    [n, pitch, k]: [usize; 3],
) {
    let m = 131;
    let bench = Bench::new(machine(num_sms));
    let mut rng = Rng(9);
    let x = rng.bf16s(m * k, 1.0);
    let weights = make(&mut rng, n, k);
    let (bias, gate) = (rng.f32s(n, 0.5), rng.f32s(n, 2.0));
    let (mut residual, mut other) = (rng.f32s(m * pitch, 1.0), rng.bf16s(m * pitch, 1.0));
    end_rows(&mut residual, pitch, n, f32::from_bits(u32::MAX));
    end_rows(&mut other, pitch, n, bf16::from_bits(u16::MAX));
    let x_view = bench.upload(&x);
    let (bias_view, gate_view) = (bench.upload(&bias), bench.upload(&gate));
    let y = linear(&to_f32(&x), &weights.seen, Some(&bias), [m, n, k]);
    let run = |activation, epilogue: Epilogue<'_>| {
        let mut problem = Problem::simple(&x_view, [m, n, k], Some(&bias_view), activation, epilogue);
        problem.segments[0].pitch = pitch;
        assert_eq!(launch(&bench, &[problem], std::slice::from_ref(&weights)), k > 1000);
    };
    let check = |what: &str, got: &[f32], f: &dyn Fn(usize, f32) -> f32| {
        let want: Vec<f32> = y.iter().enumerate().map(|(i, v)| f(i, *v)).collect();
        let plain: Vec<f32> = y.iter().enumerate().map(|(i, v)| round_bf16(f(i, round_bf16(*v)))).collect();
        assert_close(&format!("{what}, pitch {pitch}"), got, &want, &plain);
    };
    let f32s = |out: &View<f32>| without_gaps(&bench.download(out), pitch, n);
    let bf16s = |out: &View<bf16>| to_f32(&without_gaps(&bench.download(out), pitch, n));
    let at = |i: usize| i / n * pitch + i % n;

    let activations: [(Activation, &dyn Fn(f32) -> f32); 3] = [
        (Activation::GeluTanh, &gelu_tanh),
        (Activation::QuickGelu, &quick_gelu),
        (Activation::GeluErf, &|x| {
            let x = candle_core::Tensor::new(&[x], &candle_core::Device::Cpu).unwrap();
            x.gelu_erf().unwrap().to_vec1::<f32>().unwrap()[0]
        }),
    ];
    for (activation, f) in activations {
        let out = bench.alloc::<bf16>(other.len());
        run(activation, Epilogue::Store(&out));
        check(&format!("{activation:?}"), &bf16s(&out), &|_, v| f(v));
    }
    let out = bench.alloc::<f32>(residual.len());
    run(Activation::None, Epilogue::StoreF32(&out));
    check("f32", &f32s(&out), &|_, v| v);
    let out = bench.upload(&residual);
    run(Activation::None, Epilogue::Add(&out, Some(&gate_view)));
    check("gated residual", &f32s(&out), &|i, v| residual[at(i)] + gate[i % n] * v);
    let out = bench.upload(&residual);
    run(Activation::None, Epilogue::Add(&out, None));
    check("residual", &f32s(&out), &|i, v| residual[at(i)] + v);
    let out = bench.upload(&other);
    run(Activation::None, Epilogue::AddBf16(&out, &out));
    check("bf16 residual", &bf16s(&out), &|i, v| other[at(i)].to_f32() + v);
    let (out, factor) = (bench.alloc::<bf16>(other.len()), bench.upload(&other));
    run(Activation::None, Epilogue::MulBf16(&out, &factor));
    check("product", &bf16s(&out), &|i, v| other[at(i)].to_f32() * v);
}

/// What a LoRA adds, to parts that share a tile and to one that has several: of ranks below, at and above a k-step; on machines that
/// split tiles along `k`, too.
pub fn low_rank(launch: Launch<'_>, make: &dyn Fn(&mut Rng, usize, usize) -> Weights, k: usize) {
    for rank in [8, 64, 72, 136] {
        let want = low_rank_of(launch, make, emulator_of(ARCH), [rank, k]);
        for seed in seeds(4) {
            assert_eq!(low_rank_of(launch, make, random_machine(1, seed), [rank, k]), want, "seed {seed}");
        }
    }
    for num_sms in [40, 132] {
        low_rank_of(launch, make, machine(num_sms), [72, LONG_K]);
    }
}

fn low_rank_of(
    launch: Launch<'_>,
    make: &dyn Fn(&mut Rng, usize, usize) -> Weights,
    device: Device,
    [rank, k]: [usize; 2],
) -> Vec<bf16> {
    let bench = Bench::new(device);
    let (m, ends, n) = (150, [72, 200, 456], 456);
    let mut rng = Rng(rank as u64);
    let x = rng.bf16s(m * k, 1.0);
    let weights = make(&mut rng, n, k);
    let bias = rng.f32s(n, 0.5);
    let (columns, t_pitch) = (ends.len() * rank, ends.len() * rank + 8);
    let (mut t, up) = (rng.bf16s(m * t_pitch, 1.0), rng.bf16s(n * rank, 1.0));
    end_rows(&mut t, t_pitch, columns, bf16::NAN);
    let views = (bench.upload(&x), bench.upload(&bias), bench.upload(&t), bench.upload(&up));
    let out = bench.alloc::<bf16>(m * n);
    let epilogue = Epilogue::Store(&out);
    let low_rank = LowRank { t: &views.2, t_pitch, up: &views.3, rank, ends: ends.to_vec() };
    let problem = Problem {
        low_rank: Some(low_rank),
        ..Problem::simple(&views.0, [m, n, k], Some(&views.1), Activation::GeluTanh, epilogue)
    };
    assert_eq!(launch(&bench, &[problem], std::slice::from_ref(&weights)), k > 1000);
    let mut want = linear(&to_f32(&x), &weights.seen, Some(&bias), [m, n, k]);
    let mut begin = 0;
    for (part, &end) in ends.iter().enumerate() {
        let columns = part * rank..(part + 1) * rank;
        let t: Vec<f32> = t.chunks(t_pitch).flat_map(|row| to_f32(&row[columns.clone()])).collect();
        let added = linear(&t, &to_f32(&up[begin * rank..end * rank]), None, [m, end - begin, rank]);
        for (row, added) in added.chunks(end - begin).enumerate() {
            want[row * n + begin..row * n + end].iter_mut().zip(added).for_each(|(sum, more)| *sum += more);
        }
        begin = end;
    }
    let plain: Vec<f32> = want.iter().map(|v| round_bf16(gelu_tanh(round_bf16(*v)))).collect();
    let want: Vec<f32> = want.iter().map(|v| gelu_tanh(*v)).collect();
    let got = bench.download(&out);
    assert_close(&format!("rank {rank}"), &to_f32(&got), &want, &plain);
    got
}

/// Two problems of different height in one launch equal two launches.
pub fn grouped(launch: Launch<'_>, make: &dyn Fn(&mut Rng, usize, usize) -> Weights) {
    let bench = Bench::new(emulator_of(ARCH));
    let mut rng = Rng(21);
    let (n, k) = (256, 64);
    let rows = [300, 20];
    let x: Vec<View<bf16>> = rows.iter().map(|m| bench.upload(&rng.bf16s(m * k, 1.0))).collect();
    let weights = [make(&mut rng, n, k), make(&mut rng, n, k)];
    let run = |together: bool| -> Vec<Vec<bf16>> {
        let out: Vec<View<bf16>> = rows.iter().map(|m| bench.alloc::<bf16>(m * n)).collect();
        let problems: Vec<Problem<'_>> = (0..2)
            .map(|i| {
                Problem::simple(&x[i], [rows[i], n, k], None, Activation::None, Epilogue::Store(&out[i]))
            })
            .collect();
        if together {
            launch(&bench, &problems, &weights);
        } else {
            for i in 0..2 {
                launch(&bench, &problems[i..=i], &weights[i..=i]);
            }
        }
        out.iter().map(|view| bench.download(view)).collect()
    };
    let (together, alone) = (run(true), run(false));
    assert!(together.iter().flatten().all(|v| v.is_finite()));
    assert_eq!(together, alone);
}

/// Of the 6 + 2 tiles of two problems, or 4 + 2, the second's are split, or all; on SMs that hold `ctas` of the kernel each.
pub fn split(launch: Launch<'_>, make: &dyn Fn(&mut Rng, usize, usize) -> Weights, ctas: u32, k: usize) {
    let first = if ARCH == 90 { 4 } else { 6 };
    for num_sms in [first, 32, 264].map(|slots| slots / ctas) {
        let want = split_pair(launch, make, machine(num_sms), k);
        for seed in seeds(6) {
            assert_eq!(split_pair(launch, make, random_machine(num_sms, seed), k), want, "seed {seed}");
        }
    }
}

fn split_pair(
    launch: Launch<'_>,
    make: &dyn Fn(&mut Rng, usize, usize) -> Weights,
    device: Device,
    k: usize,
) -> Vec<Vec<bf16>> {
    let bench = Bench::new(device);
    let mut rng = Rng(23);
    let (rows, n, pitch) = ([300, 20], 250, k.next_multiple_of(8));
    let x: Vec<Vec<bf16>> = rows.iter().map(|m| rng.bf16s(m * pitch, 1.0)).collect();
    let weights = [make(&mut rng, n, k), make(&mut rng, n, k)];
    let views: Vec<View<bf16>> = x.iter().map(|x| bench.upload(x)).collect();
    let out: Vec<View<bf16>> = rows.iter().map(|m| bench.alloc::<bf16>(m * n)).collect();
    let problems = [0, 1].map(|i| Problem {
        x_pitch: pitch,
        ..Problem::simple(&views[i], [rows[i], n, k], None, Activation::None, Epilogue::Store(&out[i]))
    });
    assert!(launch(&bench, &problems, &weights));
    for i in 0..2 {
        let x: Vec<f32> = x[i].chunks(pitch).flat_map(|row| to_f32(&row[..k])).collect();
        let want = linear(&x, &weights[i].seen, None, [rows[i], n, k]);
        assert_close(&format!("problem {i}"), &to_f32(&bench.download(&out[i])), &want, &rounded(&want));
    }
    out.iter().map(|view| bench.download(view)).collect()
}

/// Every epilogue on machines that split tiles along `k`, under random schedules.
pub fn split_epilogues(launch: Launch<'_>, make: &dyn Fn(&mut Rng, usize, usize) -> Weights, k: usize) {
    for num_sms in [40, 132] {
        let want = segments(launch, make, machine(num_sms), LONG_K);
        for seed in seeds(4) {
            assert_eq!(segments(launch, make, random_machine(num_sms, seed), LONG_K), want, "seed {seed}");
        }
    }
    epilogues(launch, make, 16, k);
}

/// One tile, whole or in any number of slices.
pub fn machines_of_all_sizes(launch: Launch<'_>, make: &dyn Fn(&mut Rng, usize, usize) -> Weights, k: usize) {
    for num_sms in (1..=20).step_by(if is_sanitized() { 6 } else { 1 }) {
        let want = plain_store(launch, make, machine(num_sms), [20, 127, k]);
        let random = random_machine(num_sms, num_sms.into());
        assert_eq!(plain_store(launch, make, random, [20, 127, k]), want);
    }
}
