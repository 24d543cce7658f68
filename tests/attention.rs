//! `attention` against candle's softmax(q k^T) v.

mod common;
use candle_core::{D, Device as Candle, Tensor};
use common::*;
use half::bf16;
use schnell::device::Device;
use schnell::kernels::attention::{Attention, Heads, RelativeBias};

#[derive(Clone, Copy, Debug)]
struct Case {
    q_len: usize,
    kv_len: usize,
    heads: usize,
    head_dim: usize,
    causal: bool,
    bias: bool,
    /// q, k and v as columns of one buffer, as a fused projection writes them.
    fused: bool,
}

/// What a case multiplies: q, k and v of all heads side by side, and the bias's table.
struct Inputs {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    table: Vec<f32>,
}

impl Case {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        if self.bias { 1.0 } else { 1.0 / (self.head_dim as f32).sqrt() }
    }

    /// Positions that the bias's table has, each way.
    fn table_len(&self) -> usize {
        self.kv_len.max(self.q_len)
    }

    fn inputs(&self) -> Inputs {
        let mut rng = Rng((self.q_len * 7 + self.kv_len * 3 + self.head_dim) as u64);
        let amplitude = if self.bias { 1.5 / (self.head_dim as f32).sqrt() } else { 2.5 };
        Inputs {
            q: rng.bf16s(self.q_len * self.width(), amplitude),
            k: rng.bf16s(self.kv_len * self.width(), amplitude),
            v: rng.bf16s(self.kv_len * self.width(), 1.0),
            table: rng.f32s(self.heads * (2 * self.table_len() - 1), 3.0),
        }
    }
}

/// What the kernel makes of it.
fn launch(case: Case, inputs: &Inputs, device: Device) -> Vec<bf16> {
    let Case { q_len, kv_len, heads, head_dim, causal, bias, fused } = case;
    let bench = Bench::new(device);
    let width = case.width();
    let out_pitch = width + 8;
    let out = bench.alloc::<bf16>(pitched_len(q_len, out_pitch, width));
    let table = bench.upload(&inputs.table);
    let views = if fused {
        assert_eq!(q_len, kv_len);
        let mut all = Vec::new();
        for row in 0..q_len {
            for x in [&inputs.q, &inputs.k, &inputs.v] {
                all.extend_from_slice(&x[row * width..(row + 1) * width]);
            }
        }
        let all = bench.upload(&all);
        let part = |i: usize| all.slice(i * width, all.len() - i * width).unwrap();
        [part(0), part(1), part(2)]
    } else {
        [bench.upload(&inputs.q), bench.upload(&inputs.k), bench.upload(&inputs.v)]
    };
    let pitch = if fused { 3 * width } else { width };
    let [q, k, v] = [0, 1, 2].map(|i| Heads { view: &views[i], pitch, head_stride: head_dim });
    Attention {
        q,
        k,
        v,
        out: Heads { view: &out, pitch: out_pitch, head_stride: head_dim },
        bias: bias.then_some(RelativeBias { view: &table, len: case.table_len() }),
        causal,
        softmax_scale: case.scale(),
        q_len,
        kv_len,
        heads,
        head_dim,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    without_gaps(&bench.download(&out), out_pitch, width)
}

/// What is added to the scores: the bias by relative position, and the mask of what comes later.
fn added(case: Case, table: &[f32]) -> Tensor {
    let Case { q_len, kv_len, heads, causal, bias, .. } = case;
    let len = case.table_len();
    let mut add = vec![0f32; heads * q_len * kv_len];
    for h in 0..heads {
        for i in 0..q_len {
            for j in 0..kv_len {
                let at = (h * q_len + i) * kv_len + j;
                if bias {
                    add[at] = table[h * (2 * len - 1) + j + len - 1 - i];
                }
                if causal && j > i {
                    add[at] = f32::NEG_INFINITY;
                }
            }
        }
    }
    Tensor::from_slice(&add, (heads, q_len, kv_len), &Candle::Cpu).unwrap()
}

/// Candle's, rounded to bf16 after each operation if `round`.
fn oracle(case: Case, inputs: &Inputs, round: bool) -> Vec<f32> {
    let tensor = |x: &[bf16], len: usize| {
        let x = Tensor::from_slice(&to_f32(x), (len, case.heads, case.head_dim), &Candle::Cpu).unwrap();
        x.transpose(0, 1).unwrap().contiguous().unwrap()
    };
    let (q, k, v) =
        (tensor(&inputs.q, case.q_len), tensor(&inputs.k, case.kv_len), tensor(&inputs.v, case.kv_len));
    let r = |t: Tensor| {
        if !round {
            return t;
        }
        t.to_dtype(candle_core::DType::BF16).unwrap().to_dtype(candle_core::DType::F32).unwrap()
    };
    let s = r(q.matmul(&k.t().unwrap()).unwrap());
    let s = r(((s * case.scale() as f64).unwrap() + &added(case, &inputs.table)).unwrap());
    let e = s.broadcast_sub(&s.max_keepdim(D::Minus1).unwrap()).unwrap().exp().unwrap();
    let p = r(e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap());
    let o = r(p.matmul(&v).unwrap());
    o.transpose(0, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn run(case: Case, device: Device) -> Vec<bf16> {
    let inputs = case.inputs();
    let got = launch(case, &inputs, device);
    let (exact, rounded) = (oracle(case, &inputs, false), oracle(case, &inputs, true));
    assert_close(&format!("{case:?}"), &to_f32(&got), &exact, &rounded);
    got
}

const BASE: Case =
    Case { q_len: 64, kv_len: 64, heads: 2, head_dim: 128, causal: false, bias: false, fused: false };

#[test]
fn joint_heads_at_tile_edges_and_tails() {
    for (q_len, kv_len) in [(64, 64), (1, 1), (63, 65), (65, 63), (128, 129), (20, 200), (200, 20)] {
        run(Case { q_len, kv_len, ..BASE }, emulator());
    }
    run(Case { q_len: 300, kv_len: 300, heads: 3, fused: true, ..BASE }, emulator());
    run(Case { q_len: 70, kv_len: 70, heads: 24, ..BASE }, emulator());
}

#[test]
fn every_padded_head_width() {
    for head_dim in [8, 16, 32, 40, 64, 72, 96, 136, 256, 264, 512] {
        run(Case { q_len: 70, kv_len: 70, heads: 1, head_dim, ..BASE }, emulator());
    }
}

#[test]
fn causal_and_position_bias() {
    run(
        Case { q_len: 77, kv_len: 77, heads: 12, head_dim: 64, causal: true, fused: true, ..BASE },
        emulator(),
    );
    run(Case { q_len: 130, kv_len: 130, head_dim: 32, causal: true, fused: true, ..BASE }, emulator());
    // Tiles of keys before the diagonal, on it and after it; fewer keys than queries.
    run(Case { q_len: 200, kv_len: 200, heads: 1, causal: true, ..BASE }, emulator());
    run(Case { q_len: 200, kv_len: 130, heads: 1, causal: true, ..BASE }, emulator());
    // Several tiles of keys beside one of queries.
    for head_dim in [64, 128, 200, 512] {
        let heads = 1;
        run(Case { q_len: 100, kv_len: 100, heads, head_dim, causal: true, bias: true, ..BASE }, emulator());
    }
    run(
        Case { q_len: 256, kv_len: 256, heads: 4, head_dim: 64, bias: true, fused: true, ..BASE },
        emulator(),
    );
    run(Case { q_len: 16, kv_len: 16, heads: 2, head_dim: 16, bias: true, fused: true, ..BASE }, emulator());
}

/// One query and, of its keys, those from `first` on, with a bias of -inf on the `masked` first of them and 0 elsewhere.
fn run_biased(first: usize, masked: usize) -> Vec<bf16> {
    const KEYS: usize = 150;
    const HEAD_DIM: usize = 64;
    let bench = Bench::new(emulator());
    let mut rng = Rng(1);
    let [q, k, v] = [1, KEYS, KEYS].map(|tokens| bench.upload(&rng.bf16s(tokens * HEAD_DIM, 1.0)));
    let kv_len = KEYS - first;
    let mut table = vec![0f32; 2 * kv_len - 1];
    table[kv_len - 1..][..masked].fill(f32::NEG_INFINITY);
    let table = bench.upload(&table);
    let out = bench.alloc::<bf16>(HEAD_DIM);
    let place = |view| Heads { view, pitch: HEAD_DIM, head_stride: HEAD_DIM };
    let [k, v] = [k, v].map(|all| all.slice(first * HEAD_DIM, kv_len * HEAD_DIM).unwrap());
    Attention {
        q: place(&q),
        k: place(&k),
        v: place(&v),
        out: place(&out),
        bias: Some(RelativeBias { view: &table, len: kv_len }),
        causal: false,
        softmax_scale: 1.0,
        q_len: 1,
        kv_len,
        heads: 1,
        head_dim: HEAD_DIM,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    bench.download(&out)
}

#[test]
fn keys_that_a_bias_masks_count_for_nothing() {
    // A whole tile, or two, before the first key that counts.
    for masked in [64, 128] {
        assert_eq!(run_biased(0, masked), run_biased(masked, 0));
    }
    assert_eq!(run_biased(0, 150), [bf16::ZERO; 64]);
}

#[test]
fn schedules_and_thread_counts_do_not_change_a_bit() {
    let wide = Case { q_len: 150, kv_len: 70, ..BASE };
    let vae = Case { q_len: 100, kv_len: 100, heads: 1, head_dim: 512, ..BASE };
    for case in [wide, vae] {
        let want = run(case, emulator());
        for seed in seeds(20) {
            assert_eq!(run(case, random_emulator(seed, [1, 2, 4][seed as usize % 3])), want);
        }
    }
}

#[test]
fn refuses_what_it_cannot_take() {
    let bench = Bench::new(emulator());
    let view = bench.alloc::<bf16>(16 * 1024);
    let scaled = |q_len, head_dim, pitch, softmax_scale| {
        let heads = Heads { view: &view, pitch, head_stride: head_dim };
        Attention {
            q: heads,
            k: heads,
            v: heads,
            out: heads,
            bias: None,
            causal: false,
            softmax_scale,
            q_len,
            kv_len: 4,
            heads: 1,
            head_dim,
        }
        .launch(&bench.device, COMPUTE)
    };
    let run = |q_len, head_dim, pitch| scaled(q_len, head_dim, pitch, 1.0);
    for softmax_scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(scaled(4, 16, 16, softmax_scale).unwrap_err().to_string().contains("softmax_scale"));
    }
    assert!(run(4, 520, 1024).unwrap_err().to_string().contains("520"));
    assert!(run(4, 12, 16).unwrap_err().to_string().contains("1 heads of 12"));
    assert!(run(4, 16, 20).unwrap_err().to_string().contains("strides"));
    assert!(run(17, 512, 1024).unwrap_err().to_string().contains("`q`"));
    assert!(run(0, 16, 16).unwrap_err().to_string().contains("0 x 4 tokens"));
}
