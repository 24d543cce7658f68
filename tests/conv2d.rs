//! `conv2d` against candle's convolution.

mod common;
use candle_core::{Device as Candle, Tensor};
use common::*;
use half::bf16;
use schnell::device::Device;
use schnell::kernels::conv2d::{Conv2d, weight_pitch};
use schnell::kernels::gemm::Epilogue;

#[derive(Clone, Copy, Debug)]
struct Case {
    height: usize,
    width: usize,
    channels: usize,
    out_channels: usize,
    kernel: usize,
    upsample: bool,
    residual: bool,
}

/// NHWC with padded channels -> candle's NCHW.
fn nchw(x: &[f32], h: usize, w: usize, c: usize) -> Tensor {
    Tensor::from_slice(x, (1, h, w, c), &Candle::Cpu)
        .unwrap()
        .permute((0, 3, 1, 2))
        .unwrap()
        .contiguous()
        .unwrap()
}

fn run(case: Case, device: Device) -> Vec<bf16> {
    let Case { height, width, channels, out_channels, kernel, upsample, residual } = case;
    let bench = Bench::new(device);
    let mut rng = Rng((height * 1000 + width * 100 + channels * 10 + out_channels) as u64);
    let pitch = channels.next_multiple_of(8);
    let zoom = 1 + upsample as usize;
    let pixels = height * width * zoom * zoom;
    let x = rng.bf16s(height * width * channels, 1.0);
    let mut map = vec![bf16::NAN; height * width * pitch];
    for p in 0..height * width {
        map[p * pitch..p * pitch + channels].copy_from_slice(&x[p * channels..(p + 1) * channels]);
    }
    end_rows(&mut map, pitch, channels, bf16::NAN);
    let taps = kernel * kernel;
    let scale = (1.0 / (taps * channels) as f32).sqrt();
    let w = rng.bf16s(out_channels * channels * taps, scale); // [out, in, kh, kw]
    let row = weight_pitch(channels, kernel);
    let mut packed = vec![bf16::ZERO; out_channels * row];
    for o in 0..out_channels {
        for c in 0..channels {
            for t in 0..taps {
                packed[o * row + t * pitch + c] = w[(o * channels + c) * taps + t];
            }
        }
    }
    let bias = rng.f32s(out_channels, 0.5);
    // Rows that whole vectors can be stored to, though the last is not whole; and rows of an odd pitch.
    let out_pitch = if out_channels % 8 > 2 { out_channels.next_multiple_of(8) } else { out_channels };
    let mut old = rng.bf16s(pixels * out_pitch, 1.0);
    end_rows(&mut old, out_pitch, out_channels, bf16::NAN);
    let views = (bench.upload(&map), bench.upload(&packed), bench.upload(&bias), bench.upload(&old));
    let out = bench.alloc::<bf16>(pitched_len(pixels, out_pitch, out_channels));
    Conv2d {
        x: &views.0,
        x_pitch: pitch,
        height,
        width,
        channels,
        out_channels,
        kernel,
        upsample,
        weight: &views.1,
        bias: Some(&views.2),
        epilogue: if residual { Epilogue::AddBf16(&out, &views.3) } else { Epilogue::Store(&out) },
        out_pitch,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    let got = without_gaps(&bench.download(&out), out_pitch, out_channels);

    let mut input = nchw(&to_f32(&x), height, width, channels);
    if upsample {
        input = input.upsample_nearest2d(2 * height, 2 * width).unwrap();
    }
    let weight =
        Tensor::from_slice(&to_f32(&w), (out_channels, channels, kernel, kernel), &Candle::Cpu).unwrap();
    let y = input.conv2d(&weight, kernel / 2, 1, 1, 1).unwrap();
    let y: Vec<f32> = y.permute((0, 2, 3, 1)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let finish = |round: &dyn Fn(f32) -> f32| -> Vec<f32> {
        let add = |(i, v): (usize, &f32)| {
            let v = round(round(*v) + bias[i % out_channels]);
            if residual {
                round(v + old[i / out_channels * out_pitch + i % out_channels].to_f32())
            } else {
                v
            }
        };
        y.iter().enumerate().map(add).collect()
    };
    assert_close(&format!("{case:?}"), &to_f32(&got), &finish(&|v| v), &finish(&round_bf16));
    got
}

const CASES: [Case; 14] = {
    let c = Case {
        height: 8,
        width: 8,
        channels: 16,
        out_channels: 32,
        kernel: 3,
        upsample: false,
        residual: false,
    };
    [
        c,
        Case { height: 1, width: 1, ..c },
        Case { height: 13, width: 11, channels: 24, out_channels: 130, ..c },
        Case { height: 16, width: 9, channels: 3, out_channels: 5, ..c },
        Case { height: 6, width: 10, channels: 64, out_channels: 64, upsample: true, ..c },
        Case { height: 12, width: 12, channels: 32, residual: true, ..c },
        Case { height: 9, width: 5, out_channels: 15, residual: true, ..c },
        Case { channels: 48, out_channels: 16, kernel: 1, ..c },
        Case { height: 4, width: 4, channels: 512, out_channels: 8, ..c },
        Case { height: 4, width: 4, channels: 8, out_channels: 512, kernel: 1, residual: true, ..c },
        // Several tiles of pixels; taps of a whole k-step, of two, and of parts of them.
        Case { height: 11, width: 21, channels: 128, ..c },
        Case { height: 9, width: 15, channels: 64, upsample: true, ..c },
        Case { height: 7, width: 13, channels: 20, upsample: true, ..c },
        Case { height: 7, width: 13, channels: 72, kernel: 1, upsample: true, ..c },
    ]
};

#[test]
fn agrees_with_candle() {
    for case in CASES {
        run(case, emulator());
    }
}

#[test]
fn schedules_and_thread_counts_do_not_change_a_bit() {
    for case in [CASES[2], CASES[4]] {
        let want = run(case, emulator());
        for seed in 0..10 {
            assert_eq!(run(case, random_emulator(seed, [1, 2, 4][seed as usize % 3])), want);
        }
    }
}

#[test]
fn refuses_what_it_cannot_take() {
    let bench = Bench::new(emulator());
    let (x, w) = (bench.alloc::<bf16>(64 * 8), bench.alloc::<bf16>(8 * 72));
    let out = bench.alloc::<bf16>(64 * 8);
    let conv = |kernel, out_channels| {
        Conv2d {
            x: &x,
            x_pitch: 8,
            height: 8,
            width: 8,
            channels: 8,
            out_channels,
            kernel,
            upsample: false,
            weight: &w,
            bias: None,
            epilogue: Epilogue::Store(&out),
            out_pitch: 8,
        }
        .launch(&bench.device, COMPUTE)
    };
    assert!(conv(3, 8).is_ok());
    assert!(conv(5, 8).unwrap_err().to_string().contains("5 x 5"));
    assert!(conv(3, 9).unwrap_err().to_string().contains("`weight`"));
}
