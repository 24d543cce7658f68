//! What bitsandbytes says of a tensor in 4 bits: the JSON of its state, and dtypes and lengths of the parts beside it.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use safetensors::tensor::TensorView;
use schnell::weights::nf4::CODE_BOOK;
use schnell::weights::{Component, Dtype, First, bitsandbytes};

mod folder;

static DIR: LazyLock<PathBuf> = LazyLock::new(folder::new);

fuzz_target!(|data: &[u8]| {
    let Some((choices, state)) = data.split_at_checked(6) else { return };
    let book: Vec<u8> = CODE_BOOK.iter().flat_map(|value| value.to_le_bytes()).collect();
    let filler = vec![choices[5]; 4096];
    // The usual length of a part, or another one.
    let length = |at: usize, usual: usize| match choices[at] {
        0..128 => usual,
        other => usual.wrapping_add(usize::from(other & 7)).saturating_sub(4),
    };
    let nested = choices[4] % 2 == 1;
    let absmax = if nested { Dtype::U8 } else { Dtype::F32 };
    let suffix = if choices[4] < 250 { "nf4" } else { "fp4" };
    let state_name = format!("w.quant_state.bitsandbytes__{suffix}");
    let bytes = |dtype: Dtype, len: usize| len * dtype.bitsize() / 8;
    let mut parts = vec![
        ("w", Dtype::U8, vec![length(0, 64), 1]),
        ("w.absmax", absmax, vec![length(1, 2)]),
        ("w.nested_absmax", Dtype::F32, vec![length(2, 1)]),
        ("w.nested_quant_map", Dtype::F32, vec![length(3, 256)]),
    ];
    if choices[4] & 2 != 0 {
        parts.truncate(2);
    }
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let mut views: Vec<(&str, TensorView)> = parts
        .into_iter()
        .map(|(name, dtype, shape)| {
            let stored = &filler[..bytes(dtype, shape.iter().product())];
            (name, view(dtype, shape, stored))
        })
        .collect();
    views.push(("w.quant_map", view(Dtype::F32, vec![16], &book)));
    views.push((&state_name, view(Dtype::U8, vec![state.len()], state)));
    std::fs::write(DIR.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();

    let component = Component::open(&DIR, "model", First::Single).unwrap();
    let Ok(Some(tensor)) = bitsandbytes::open(&component, component.get("w").unwrap()) else { return };
    assert_eq!(tensor.bytes, 4 * tensor.elements() as u64);
    let mut values = vec![0; tensor.bytes as usize];
    let _ = tensor.read_at(0, &mut values);
    if values.len() >= 12 {
        let _ = tensor.read_at(4, &mut values[..8]);
    }
});
