//! Products with weights in the few bits of their file, a case for each format and layout.

use half::bf16;

use super::kernels::{BF16, COMPUTE, F32, gemm_heads, small};
use super::{Case, Lab, Output, random_bits};
use crate::Result;
use crate::device::View;
use crate::kernels::gemm::{Activation, Epilogue, Problem};
use crate::kernels::gemv::{Gemv, GemvActivation, GemvWeight};
use crate::kernels::kept::{Format, KeptLayout, PANEL, Section};
use crate::kernels::kept_gemm::{KeptGemm, KeptWeight};

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

/// Any codes; scales that are finite, and whose weights are of ordinary size.
pub(super) fn weights(lab: &Lab, format: Format, layout: KeptLayout, n: usize, k: usize) -> Result<View<u8>> {
    let len = format.kept_len(layout, n, k);
    let mut bytes = bytemuck::cast_slice::<u32, u8>(&random_bits(1, len.div_ceil(4))).to_vec();
    bytes.truncate(len);
    let group = if layout == KeptLayout::Panels { PANEL } else { n };
    // Of fp8 none that is no number; of the others no f16 that is infinite.
    let halves = |word: &mut [u8], exponent: u8| {
        word.chunks_exact_mut(2).for_each(|half| half[1] = half[1] & 0x8b | exponent);
    };
    for group in bytes.chunks_exact_mut(group * format.row_bytes(k)) {
        let mut rest = group;
        for section in Section::ALL {
            let (own, behind) = rest.split_at_mut(rest.len().min(group_len(format, layout, section, n, k)));
            rest = behind;
            match section {
                Section::Low if format.is_fp8() => own.iter_mut().for_each(|code| *code &= 0xbf),
                Section::Low | Section::High => {}
                Section::Words if format.is_fp8() => {
                    let power = if format == Format::F8E4M3 { 120f32 } else { 112.0 };
                    let scale = (0.05 * power.exp2()).to_le_bytes();
                    own.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&scale));
                }
                Section::Words if format.values() == 32 => halves(own, 0x20),
                Section::Words => {}
                Section::Extras => halves(own, if format.values() == 32 { 0x20 } else { 0x10 }),
            }
        }
    }
    lab.upload(&bytes)
}

fn group_len(format: Format, layout: KeptLayout, section: Section, n: usize, k: usize) -> usize {
    format.section_row(section, k) * if layout == KeptLayout::Panels { PANEL } else { n }
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
