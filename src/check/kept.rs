//! Products with weights in the few bits of their file, a case for each format and layout.

use half::bf16;

use super::kernels::{BF16, COMPUTE, F32, gemm_heads, small};
use super::{Case, Lab, Output, random_bytes};
use crate::device::View;
use crate::kernels::gemm::{Activation, Epilogue, Problem};
use crate::kernels::gemv::{Gemv, GemvActivation, GemvWeight};
use crate::kernels::kept::{Format, KeptLayout};
use crate::kernels::kept_gemm::{KeptGemm, KeptWeight};
use crate::weights::kept::KeptRows;
use crate::{Error, Result};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in Format::ALL {
        let name = format.to_string().to_lowercase();
        cases.push(small(format!("kept_gemm_{name}"), move |lab| gemm(lab, format, [33, 136, 512])));
        let shape = ([130, 20], 2 * 128 + 136, 256);
        cases.push(small(format!("kept_gemm_{name}_heads"), move |lab| {
            let (_, n, k) = shape;
            let bytes = weights(lab, format, KeptLayout::Panels, n, k)?;
            gemm_heads(lab, shape, KeptWeight { format, bytes: &bytes })
        }));
        for m in [1, 3, 7] {
            cases.push(small(format!("kept_gemv_{name}_{m}"), move |lab| gemv(lab, format, m)));
        }
    }
    cases
}

/// Of a tensor in fp8: its largest codes are numbers of ordinary size.
const F8_SCALE: f32 = 0.05;

/// Any codes, with scales that are finite and weights of ordinary size: row `row` of a weight, as a file has it.
fn stored_row(format: Format, k: usize, row: usize) -> Vec<u8> {
    let len = k / format.values() * format.bytes();
    let mut bytes = random_bytes(1 + row as u64, len);
    if format.is_fp8() {
        // None that is no number, and none of the largest.
        bytes.iter_mut().for_each(|code| *code &= 0xbf);
        return bytes;
    }
    // Where a block has f16, and the exponent that they get.
    let (halves, exponent): (&[usize], u8) = match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => (&[0], 0x20),
        Format::Q4_1 | Format::Q5_1 => (&[0, 2], 0x20),
        Format::Q4K | Format::Q5K => (&[0, 2], 0x10),
        Format::Q2K => (&[80, 82], 0x10),
        Format::Q3K => (&[108], 0x10),
        Format::Q6K => (&[208], 0x10),
        Format::F8E4M3 | Format::F8E5M2 => (&[], 0),
    };
    for block in bytes.chunks_exact_mut(format.bytes()) {
        halves.iter().for_each(|at| block[at + 1] = block[at + 1] & 0x8b | exponent);
    }
    bytes
}

/// What row `row` of [`weights`] means.
pub(super) fn row(format: Format, k: usize, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; k];
    format.decode(&stored_row(format, k, row), &mut values);
    if format.is_fp8() {
        values.iter_mut().for_each(|value| *value *= F8_SCALE);
    }
    values
}

/// A weight `[n, k]`, as kernels read it.
pub(super) fn weights(lab: &Lab, format: Format, layout: KeptLayout, n: usize, k: usize) -> Result<View<u8>> {
    let rows = KeptRows { format, layout, k, rows: n };
    let stored: Vec<u8> = (0..n).flat_map(|row| stored_row(format, k, row)).collect();
    let mut kept = vec![0; rows.kept_len()];
    match rows.put(&stored, F8_SCALE, &mut kept) {
        0 => lab.upload(&kept),
        nonfinite => {
            Err(Error::Internal(format!("{nonfinite} numbers of a random weight in {format} are not finite")))
        }
    }
}

fn gemm(lab: &Lab, format: Format, [m, n, k]: [usize; 3]) -> Result<Vec<Output>> {
    let (x, bias, gate) = (lab.bf16s(1, m * k, 0.2)?, lab.f32s(2, n, 1.0)?, lab.f32s(3, n, 1.0)?);
    let bytes = weights(lab, format, KeptLayout::Panels, n, k)?;
    let (residual, gelu) = (lab.f32s(6, m * n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let product = lab.bf16s(7, m * n, 1.0)?;
    for (activation, epilogue) in [
        (Activation::None, Epilogue::Add(&residual, Some(&gate))),
        (Activation::None, Epilogue::MulBf16(&product, &product)),
        (Activation::GeluTanh, Epilogue::Store(&gelu)),
    ] {
        let problem = Problem::simple(&x, [m, n, k], Some(&bias), activation, epilogue);
        KeptGemm { problems: &[(problem, KeptWeight { format, bytes: &bytes })], workspace: None }
            .launch(lab.device(), COMPUTE)?;
    }
    Ok(vec![
        lab.close("residual", &residual, F32.0, F32.1)?,
        lab.close_bf16("product", &product, BF16.0, BF16.1)?,
        lab.close_bf16("gelu", &gelu, BF16.0, BF16.1)?,
    ])
}

fn gemv(lab: &Lab, format: Format, m: usize) -> Result<Vec<Output>> {
    // More than a chunk of k, of which the last is not whole.
    let (n, k) = (37, 1280);
    let (x, bias) = (lab.f32s(1, m * k, 2.0)?, lab.f32s(2, n, 1.0)?);
    let bytes = weights(lab, format, KeptLayout::Rows, n, k)?;
    let out = lab.alloc::<f32>(m * n)?;
    Gemv {
        x: &x,
        pitch: k,
        m,
        n,
        k,
        weight: GemvWeight::Kept { format, bytes: &bytes },
        low_rank: None,
        bias: Some(&bias),
        act_in: GemvActivation::Silu,
        act_out: GemvActivation::None,
        add: None,
        out: &out,
        out_pitch: n,
    }
    .launch(lab.device(), COMPUTE)?;
    Ok(vec![lab.close("out", &out, F32.0, F32.1)?])
}
