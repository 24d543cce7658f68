//! Numbers as files hold them: conversions between the stored types, and NF4 as bitsandbytes packs it, to the bit.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use schnell::Error;
use schnell::weights::convert::{Converted, RowsOf, to_bf16, to_f32, within};
use schnell::weights::nf4::{self, Nf4};
use schnell::weights::{Dtype, SafeTensors};

// ---- conversions -----------------------------------------------------------------------------------------

#[test]
fn every_f16_and_bf16_converts_exactly() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut out = vec![0.0; 1 << 16];
    to_f32(Dtype::F16, &bytes, &mut out).unwrap();
    for (bits, got) in (0..=u16::MAX).zip(&out) {
        let expected = f16::from_bits(bits).to_f32();
        assert!(*got == expected || got.is_nan() && expected.is_nan(), "{bits:04x}");
    }
    to_f32(Dtype::BF16, &bytes, &mut out).unwrap();
    for (bits, got) in (0..=u16::MAX).zip(&out) {
        let expected = f32::from_bits(u32::from(bits) << 16);
        assert!(*got == expected || got.is_nan() && expected.is_nan(), "{bits:04x}");
    }
    // Copied, whatever it is.
    let mut copies = vec![bf16::ZERO; 1 << 16];
    to_bf16(Dtype::BF16, &bytes, &mut copies).unwrap();
    assert!((0..=u16::MAX).zip(&copies).all(|(bits, copy)| copy.to_bits() == bits));
}

#[test]
fn f32_rounds_to_the_nearest_bf16_ties_to_even() {
    let cases: [(u32, u16); 10] = [
        (0x3f80_0000, 0x3f80), // 1
        (0x3f80_7fff, 0x3f80), // just below the middle
        (0x3f80_8000, 0x3f80), // the middle, even below
        (0x3f81_8000, 0x3f82), // the middle, even above
        (0x3f80_8001, 0x3f81), // just above
        (0x8000_0000, 0x8000), // -0
        (0x7f7f_ffff, 0x7f80), // the largest f32 becomes infinite
        (0xff80_0000, 0xff80), // -infinity
        (0x0000_8000, 0x0000), // subnormal, tie
        (0x0001_8000, 0x0002), // subnormal, tie
    ];
    for (bits, expected) in cases {
        let mut out = [bf16::ONE];
        to_bf16(Dtype::F32, &bits.to_le_bytes(), &mut out).unwrap();
        assert_eq!(out[0].to_bits(), expected, "{bits:08x}");
    }
    for bits in [0x7fc0_0000u32, 0x7f80_0001, 0xffff_ffff] {
        let mut out = [bf16::ONE];
        to_bf16(Dtype::F32, &bits.to_le_bytes(), &mut out).unwrap();
        assert!(out[0].is_nan(), "{bits:08x}");
    }
    let mut out = [bf16::ZERO];
    to_bf16(Dtype::F16, &f16::from_f32(0.1).to_le_bytes(), &mut out).unwrap();
    assert_eq!(out[0], bf16::from_f32(f16::from_f32(0.1).to_f32()));
}

#[test]
fn conversions_refuse_other_dtypes_and_lengths() {
    assert!(matches!(to_f32(Dtype::U8, &[0; 4], &mut [0.0; 4]), Err(Error::Unsupported(_))));
    assert!(matches!(to_bf16(Dtype::F64, &[0; 8], &mut [bf16::ZERO]), Err(Error::Unsupported(_))));
    for (dtype, bytes) in [(Dtype::F32, 7), (Dtype::F32, 12), (Dtype::F16, 3), (Dtype::BF16, 6)] {
        assert!(matches!(to_f32(dtype, &vec![0; bytes], &mut [0.0; 2]), Err(Error::Input(_))));
        assert!(matches!(to_bf16(dtype, &vec![0; bytes], &mut [bf16::ZERO; 2]), Err(Error::Input(_))));
    }
}

/// Every pair of types, widths and pitches: the same as from one buffer into another.
#[test]
fn numbers_become_others_within_one_buffer() {
    fn check<T: Converted + PartialEq + std::fmt::Debug>(zero: T) {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            for (rows, row_len, pad) in
                [(1, 1, 0), (3, 5, 0), (3, 5, 3), (2, 1024, 8), (7, 1500, 0), (4, 2049, 7)]
            {
                let shape = RowsOf { rows, row_len, pitch: row_len + pad };
                let bytes = dtype.bitsize() / 8;
                let mut stored = Vec::new();
                for i in 0..rows * row_len {
                    let value = (i as f32 * 0.37).sin() * 100.0;
                    match dtype {
                        Dtype::F32 => stored.extend(value.to_le_bytes()),
                        Dtype::BF16 => stored.extend(bf16::from_f32(value).to_le_bytes()),
                        _ => stored.extend(half::f16::from_f32(value).to_le_bytes()),
                    }
                }
                let mut want = vec![zero; rows * shape.pitch];
                for (row, out) in want.chunks_mut(shape.pitch).enumerate() {
                    let from = &stored[row * row_len * bytes..(row + 1) * row_len * bytes];
                    T::convert(dtype, from, &mut out[..row_len]).unwrap();
                }
                let room = shape.room::<T>(dtype);
                // Aligned for any of them.
                let mut buffer = vec![u64::MAX; room.div_ceil(8)];
                let buffer = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut buffer)[..room];
                buffer[room - stored.len()..].copy_from_slice(&stored);
                assert_eq!(within::<T>(dtype, buffer, shape).unwrap(), &want[..], "{dtype} {shape:?}");
                let short = &mut buffer[..room - 1];
                assert!(matches!(within::<T>(dtype, short, shape), Err(Error::Internal(_))));
            }
        }
    }
    check(0.0f32);
    check(bf16::ZERO);
}

// ---- NF4 -------------------------------------------------------------------------------------------------

#[test]
fn thresholds_are_bitsandbytes_own() {
    let bits = nf4::THRESHOLDS.map(f32::to_bits);
    assert_eq!(
        bits,
        [
            0xbf591cd8, 0xbf1c5270, 0xbeeb8480, 0xbeadea76, 0xbe703cec, 0xbe0d38bc, 0xbd3a7871, 0x3d22faff,
            0x3df64862, 0x3e5067e0, 0x3e9582d4, 0x3ec753f9, 0x3f006d04, 0x3f248daf, 0x3f5c89da
        ]
    );
    for (i, &threshold) in nf4::THRESHOLDS.iter().enumerate() {
        assert_eq!(nf4::code(threshold), i as u8, "on the threshold: the lower code");
        assert_eq!(nf4::code(threshold.next_up()), i as u8 + 1);
    }
    for (i, &value) in nf4::CODE_BOOK.iter().enumerate() {
        assert_eq!(nf4::code(value), i as u8, "a code's own value gives the code");
    }
    assert_eq!(nf4::CODE_BOOK[nf4::ZERO_CODE as usize], 0.0);
}

#[test]
fn the_golden_block_packs_as_bitsandbytes_packs_it() {
    let weights: Vec<f32> = (0..64).map(|i| ((37 * i % 64) as f32 - 31.5) / 32.0).collect();
    let quantized = nf4::quantize(&weights);
    assert_eq!(quantized.absmax, [0.984375]);
    let hex: String = quantized.packed.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "091c3e60a2d4f81b2e5f91c3e60a1d4f71b2e5f81c3e60a1d4e70b2d4f81c2e5");
}

/// `tests/golden/nf4.safetensors`: Gaussian weights, a zero block, values on and beside thresholds, bf16 weights, blocks below
/// 1e-38, and short ones.
#[test]
fn nf4_equals_bitsandbytes_to_the_bit() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nf4.safetensors");
    let golden = SafeTensors::open(&path).unwrap();
    let bytes = |name: String| {
        let info = golden.get(&name).unwrap_or_else(|| panic!("no {name}"));
        let mut bytes = vec![0; info.bytes as usize];
        info.read_at(0, &mut bytes).unwrap();
        bytes
    };
    for case in ["gaussian", "zero_block", "threshold", "bfloat", "tiny", "short", "short_zero"] {
        let weights = golden.get(&format!("{case}.weight")).unwrap().read_f32().unwrap();
        let quantized = nf4::quantize(&weights);
        let absmax = golden.get(&format!("{case}.absmax")).unwrap().read_f32().unwrap();
        assert_eq!(quantized.absmax, absmax, "{case}");
        assert_eq!(quantized.packed, bytes(format!("{case}.packed")), "{case}");
        let values = quantized.dequantize_bf16().unwrap();
        let expected = bytes(format!("{case}.dequantized"));
        let got: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(got, expected, "{case}");
    }
}

#[test]
fn short_blocks_odd_ends_and_zeros_quantize() {
    for elements in [0usize, 1, 2, 63, 64, 65, 127, 200] {
        let weights: Vec<f32> = (0..elements).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let quantized = nf4::quantize(&weights);
        assert_eq!(quantized.packed.len(), elements.div_ceil(2));
        assert_eq!(quantized.absmax.len(), elements.div_ceil(64));
        let back = quantized.dequantize().unwrap();
        for (i, (w, b)) in weights.iter().zip(&back).enumerate() {
            // Half the widest gap between codes, in units of the block's absmax.
            assert!(
                (w - b).abs() <= 0.152 * quantized.absmax[i / 64],
                "{elements} elements, {i}: {w} became {b}"
            );
        }
    }
    let zeros = nf4::quantize(&[0.0; 64]);
    assert_eq!((zeros.absmax.as_slice(), zeros.packed.as_slice()), (&[0.0][..], &[0x77; 32][..]));
    assert_eq!(zeros.dequantize().unwrap(), [0.0; 64]);
    // Not defined, but not a panic either.
    nf4::quantize(&[f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 4.0, 1.0]);
}

#[test]
fn dequantizing_checks_lengths() {
    let good = nf4::quantize(&[1.0; 65]);
    for broken in [
        Nf4 { packed: vec![0; 32], ..good.clone() },
        Nf4 { absmax: vec![1.0], ..good.clone() },
        Nf4 { elements: 67, ..good.clone() },
    ] {
        assert!(matches!(broken.dequantize(), Err(Error::Input(_))));
        assert!(matches!(broken.dequantize_bf16(), Err(Error::Input(_))));
    }
}
