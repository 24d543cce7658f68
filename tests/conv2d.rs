//! `conv2d` against candle's convolution.

mod common;
use candle_core::{Device as Candle, Tensor};
use common::*;
use half::bf16;
use schnell::device::Device;
use schnell::kernels::conv2d::{Conv2d, ConvOut, Filter};

#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    Store,
    Add,
    /// At most 8 output channels, f32.
    Narrow,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    height: usize,
    width: usize,
    channels: usize,
    out_channels: usize,
    filter: Filter,
    norm: bool,
    to: To,
}

/// NHWC -> candle's NCHW.
fn nchw(x: &[f32], h: usize, w: usize, c: usize) -> Tensor {
    Tensor::from_slice(x, (1, h, w, c), &Candle::Cpu)
        .unwrap()
        .permute((0, 3, 1, 2))
        .unwrap()
        .contiguous()
        .unwrap()
}

/// What a case is computed from.
struct Inputs {
    x: Vec<bf16>,
    /// Scales, then shifts.
    norm: Vec<f32>,
    /// `[out, in, 3, 3]`.
    weight: Vec<bf16>,
    bias: Vec<f32>,
    /// `[pixels, out_pitch]`.
    old: Vec<bf16>,
}

impl Case {
    fn zoom(self) -> usize {
        if self.filter == Filter::Enlarged { 2 } else { 1 }
    }

    fn out_pixels(self) -> usize {
        self.height * self.width * self.zoom() * self.zoom()
    }

    /// Sums go to pixels that are farther apart than they are wide.
    fn out_pitch(self) -> usize {
        self.out_channels + if self.to == To::Add { 16 } else { 0 }
    }

    fn inputs(self) -> Inputs {
        let Case { height, width, channels, out_channels, .. } = self;
        let mut rng = Rng((height * 1000 + width * 100 + channels * 10 + out_channels) as u64);
        let scale = (1.0 / (9 * channels) as f32).sqrt();
        Inputs {
            x: rng.bf16s(height * width * channels, 1.0),
            norm: rng.f32s(2 * channels, 2.0),
            weight: rng.bf16s(out_channels * channels * 9, scale),
            bias: rng.f32s(out_channels, 0.5),
            old: rng.bf16s(self.out_pixels() * self.out_pitch(), 1.0),
        }
    }
}

fn run(case: Case, inputs: &Inputs, device: Device) -> Vec<f32> {
    let Case { height, width, channels, out_channels, filter, norm, to } = case;
    let bench = Bench::new(device);
    let (pitch, out_pitch) = (channels.next_multiple_of(8), case.out_pitch());
    let mut map = vec![bf16::NAN; height * width * pitch];
    for (to, from) in map.chunks_mut(pitch).zip(inputs.x.chunks(channels)) {
        to[..channels].copy_from_slice(from);
    }
    end_rows(&mut map, pitch, channels, bf16::NAN);
    let row = filter.weight_pitch(channels);
    let mut packed = vec![bf16::NAN; out_channels * row];
    for (taps, packed) in inputs.weight.chunks(channels * 9).zip(packed.chunks_mut(row)) {
        filter.pack(taps, packed);
    }
    let mut old = inputs.old.clone();
    end_rows(&mut old, out_pitch, out_channels, bf16::NAN);
    let (x, weight, bias) = (bench.upload(&map), bench.upload(&packed), bench.upload(&inputs.bias));
    let (scales, old) = (bench.upload(&inputs.norm), bench.upload(&old));
    let out_len = pitched_len(case.out_pixels(), out_pitch, out_channels);
    let (out, narrow) = (bench.alloc::<bf16>(out_len), bench.alloc::<f32>(out_len));
    Conv2d {
        x: &x,
        x_pitch: pitch,
        height,
        width,
        channels,
        out_channels,
        filter,
        norm: norm.then_some(&scales),
        weight: &weight,
        bias: Some(&bias),
        out: match to {
            To::Store => ConvOut::Bf16(&out),
            To::Add => ConvOut::AddBf16(&out, &old),
            To::Narrow => ConvOut::F32(&narrow),
        },
        out_pitch,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    match to {
        To::Narrow => without_gaps(&bench.download(&narrow), out_pitch, out_channels),
        _ => to_f32(&without_gaps(&bench.download(&out), out_pitch, out_channels)),
    }
}

/// By candle, of the map as it is enlarged and normalized; every result through `round`.
fn reference(case: Case, inputs: &Inputs, round: &dyn Fn(f32) -> f32) -> Vec<f32> {
    let Case { height, width, channels, out_channels, filter, norm, to } = case;
    let mut x = to_f32(&inputs.x);
    if norm {
        for pixel in x.chunks_mut(channels) {
            for (c, x) in pixel.iter_mut().enumerate() {
                let y = *x * inputs.norm[c] + inputs.norm[channels + c];
                *x = round(y / (1.0 + (-y).exp()));
            }
        }
    }
    let mut input = nchw(&x, height, width, channels);
    if filter == Filter::Enlarged {
        input = input.upsample_nearest2d(2 * height, 2 * width).unwrap();
    }
    let shape = (out_channels, channels, 3, 3);
    let weight = Tensor::from_slice(&to_f32(&inputs.weight), shape, &Candle::Cpu).unwrap();
    let y = input.conv2d(&weight, 1, 1, 1, 1).unwrap();
    let y: Vec<f32> = y.permute((0, 2, 3, 1)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let add = |(i, v): (usize, &f32)| {
        let v = round(round(*v) + inputs.bias[i % out_channels]);
        match to {
            To::Add => round(v + inputs.old[i / out_channels * case.out_pitch() + i % out_channels].to_f32()),
            _ => v,
        }
    };
    y.iter().enumerate().map(add).collect()
}

const CASES: [Case; 19] = {
    let c = Case {
        height: 8,
        width: 16,
        channels: 16,
        out_channels: 32,
        filter: Filter::Plain,
        norm: false,
        to: To::Store,
    };
    let (enlarged, normed) = (Case { filter: Filter::Enlarged, ..c }, Case { norm: true, ..c });
    let narrow = Case { to: To::Narrow, out_channels: 3, ..normed };
    [
        c,
        Case { height: 1, width: 1, ..c },
        // One more than a tile, one less, every way; channels that fill no block of 32.
        Case { height: 9, width: 17, channels: 40, out_channels: 136, ..c },
        Case { height: 15, width: 31, channels: 3, out_channels: 8, ..c },
        Case { height: 9, width: 5, out_channels: 16, to: To::Add, ..c },
        Case { height: 12, width: 12, channels: 32, to: To::Add, ..c },
        Case { height: 4, width: 4, channels: 512, out_channels: 8, ..c },
        Case { height: 4, width: 20, channels: 96, out_channels: 264, ..c },
        Case { channels: 64, out_channels: 64, ..enlarged },
        Case { height: 1, width: 1, ..enlarged },
        Case { height: 9, width: 17, channels: 72, to: To::Add, ..enlarged },
        Case { height: 7, width: 13, channels: 20, out_channels: 136, ..enlarged },
        Case { channels: 128, out_channels: 128, ..normed },
        Case { height: 1, width: 1, channels: 8, ..normed },
        Case { height: 9, width: 17, channels: 72, out_channels: 136, to: To::Add, ..normed },
        Case { height: 23, width: 33, channels: 64, out_channels: 24, to: To::Add, ..normed },
        narrow,
        Case { height: 9, width: 17, channels: 72, out_channels: 8, ..narrow },
        Case { height: 1, width: 3, channels: 128, out_channels: 1, ..narrow },
    ]
};

#[test]
fn agrees_with_candle() {
    for case in CASES {
        let inputs = case.inputs();
        let want = reference(case, &inputs, &|v| v);
        let plain = reference(case, &inputs, &round_bf16);
        assert_close(&format!("{case:?}"), &run(case, &inputs, emulator()), &want, &plain);
    }
}

#[test]
fn folded_taps_are_sums() {
    let taps: Vec<bf16> = (1..=9).map(|tap| bf16::from_f32(tap as f32)).collect();
    let mut packed = vec![bf16::NAN; Filter::Enlarged.weight_pitch(1)];
    Filter::Enlarged.pack(&taps, &mut packed);
    // 1 2 3, 4 5 6, 7 8 9; 32 channels a tap.
    let sums: Vec<f32> = packed.chunks(32).map(|channels| channels[0].to_f32()).collect();
    #[rustfmt::skip]
    let want = [
        1.0, 2.0 + 3.0, 4.0 + 7.0, 5.0 + 6.0 + 8.0 + 9.0,
        1.0 + 2.0, 3.0, 4.0 + 5.0 + 7.0 + 8.0, 6.0 + 9.0,
        1.0 + 4.0, 2.0 + 3.0 + 5.0 + 6.0, 7.0, 8.0 + 9.0,
        1.0 + 2.0 + 4.0 + 5.0, 3.0 + 6.0, 7.0 + 8.0, 9.0,
    ];
    assert_eq!(sums, want);
    assert!(packed.chunks(32).all(|channels| channels[1..].iter().all(|c| *c == bf16::ZERO)));
}

#[test]
fn schedules_and_thread_counts_do_not_change_a_bit() {
    for case in [CASES[2], CASES[10], CASES[14], CASES[17]] {
        let inputs = case.inputs();
        let want = run(case, &inputs, emulator());
        for seed in seeds(10) {
            let device = random_emulator(seed, [1, 2, 4][seed as usize % 3]);
            assert_eq!(run(case, &inputs, device), want);
        }
    }
}

#[test]
fn refuses_what_it_cannot_take() {
    let bench = Bench::new(emulator());
    let (x, w) = (bench.alloc::<bf16>(64 * 8), bench.alloc::<bf16>(8 * 9 * 32));
    let (out, floats) = (bench.alloc::<bf16>(256 * 8), bench.alloc::<f32>(64 * 16));
    let (odd, odd_floats) = (x.slice(1, 511).unwrap(), floats.slice(1, 512).unwrap());
    let good = Conv2d {
        x: &x,
        x_pitch: 8,
        height: 8,
        width: 8,
        channels: 8,
        out_channels: 8,
        filter: Filter::Plain,
        norm: None,
        weight: &w,
        bias: None,
        out: ConvOut::Bf16(&out),
        out_pitch: 8,
    };
    let fails = |conv: Conv2d, why: &str| {
        let error = conv.launch(&bench.device, COMPUTE).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    good.launch(&bench.device, COMPUTE).unwrap();
    fails(Conv2d { out_channels: 16, out_pitch: 16, ..good }, "`weight`");
    fails(Conv2d { out_channels: 7, ..good }, "7 output channels");
    fails(Conv2d { out_pitch: 9, ..good }, "pixels 9 apart");
    fails(Conv2d { channels: 9, ..good }, "`x_pitch`");
    fails(Conv2d { x_pitch: 9, ..good }, "9 elements apart");
    fails(Conv2d { height: 9, ..good }, "`x`");
    fails(Conv2d { width: 0, ..good }, "a map 8 x 0 x 8");
    fails(Conv2d { x: &odd, height: 7, ..good }, "16 bytes");
    fails(Conv2d { out_pitch: 7, ..good }, "`out_pitch`");
    fails(Conv2d { out_pitch: 40, ..good }, "`out`");
    fails(Conv2d { out: ConvOut::AddBf16(&out, &x), filter: Filter::Enlarged, ..good }, "`weight`");
    fails(Conv2d { out: ConvOut::AddBf16(&out, &x), out_pitch: 16, ..good }, "`residual`");
    fails(Conv2d { norm: Some(&odd_floats), ..good }, "16 bytes");
    fails(Conv2d { norm: Some(&floats), channels: 7, ..good }, "a norm of 7 channels");
    Conv2d { out: ConvOut::F32(&floats), ..good }.launch(&bench.device, COMPUTE).unwrap();
    let narrow = Conv2d { norm: Some(&floats), out: ConvOut::F32(&floats), ..good };
    fails(
        Conv2d { out_channels: 9, out_pitch: 9, weight: &bench.alloc(9 * 9 * 32), ..narrow },
        "9 output channels",
    );
    let enlarged = Conv2d { filter: Filter::Enlarged, weight: &bench.alloc(8 * 16 * 32), ..good };
    enlarged.launch(&bench.device, COMPUTE).unwrap();
    fails(Conv2d { norm: Some(&floats), ..enlarged }, "Enlarged");
}
