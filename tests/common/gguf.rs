//! GGUF files, written byte by byte: sound ones, and ones that are not.

#![allow(dead_code)] // every test file uses a part of it

use half::f16;

/// A tensor: name, sizes (fastest-varying first), ggml's number of its type, bytes.
pub type Tensor = (String, Vec<u64>, u32, Vec<u8>);

/// What a header says, so that a test can make it say something else.
#[derive(Clone)]
pub struct Header {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensors: Option<u64>,
    pub metadata: Vec<(String, u32, Vec<u8>)>,
    pub alignment: u64,
}

impl Default for Header {
    fn default() -> Header {
        let architecture = ("general.architecture".to_string(), 8, string("flux"));
        Header { magic: *b"GGUF", version: 3, tensors: None, metadata: vec![architecture], alignment: 32 }
    }
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// What a tensor of T5 is called in these files, as `gguf/constants.py` has it.
pub fn t5_name(name: &str) -> String {
    let mut name = name.to_string();
    for (ours, theirs) in [
        ("shared.", "token_embd."),
        ("encoder.final_layer_norm.", "enc.output_norm."),
        ("encoder.block.", "enc.blk."),
        (".layer.0.SelfAttention.relative_attention_bias.", ".attn_rel_b."),
        (".layer.0.SelfAttention.", ".attn_"),
        (".layer.0.layer_norm.", ".attn_norm."),
        (".layer.1.layer_norm.", ".ffn_norm."),
        (".layer.1.DenseReluDense.wi_0.", ".ffn_gate."),
        (".layer.1.DenseReluDense.wi_1.", ".ffn_up."),
        (".layer.1.DenseReluDense.wo.", ".ffn_down."),
    ] {
        name = name.replace(ours, theirs);
    }
    name
}

/// A file of these tensors. `place` may say that a tensor lies elsewhere than it does.
pub fn file(header: &Header, tensors: &[Tensor], place: impl Fn(usize, u64) -> u64) -> Vec<u8> {
    let mut bytes = header.magic.to_vec();
    bytes.extend(header.version.to_le_bytes());
    bytes.extend(header.tensors.unwrap_or(tensors.len() as u64).to_le_bytes());
    bytes.extend((header.metadata.len() as u64).to_le_bytes());
    for (key, kind, value) in &header.metadata {
        bytes.extend(string(key));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    }
    let (mut data, mut aligned) = (Vec::new(), header.alignment.max(1) as usize);
    if aligned > 1 << 20 {
        aligned = 32;
    }
    for (i, (name, sizes, kind, values)) in tensors.iter().enumerate() {
        bytes.extend(string(name));
        bytes.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(place(i, data.len() as u64).to_le_bytes());
        data.extend(values);
        data.resize(data.len().next_multiple_of(aligned), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(aligned), 0);
    bytes.extend(data);
    bytes
}

pub fn sound(header: &Header, tensors: &[Tensor]) -> Vec<u8> {
    file(header, tensors, |_, offset| offset)
}

/// What the metadata of file `no` of `count` says.
pub fn split(no: u16, count: u16, tensors: i32) -> Vec<(String, u32, Vec<u8>)> {
    vec![
        ("split.no".to_string(), 2, no.to_le_bytes().to_vec()),
        ("split.count".to_string(), 2, count.to_le_bytes().to_vec()),
        ("split.tensors.count".to_string(), 5, tensors.to_le_bytes().to_vec()),
    ]
}

/// The file's name and bytes, for each of `count` into which these tensors are divided.
pub fn divided(stem: &str, tensors: &[Tensor], count: u16) -> Vec<(String, Vec<u8>)> {
    let each = tensors.len().div_ceil(count as usize);
    let file = |no: u16| {
        let mut header = Header::default();
        header.metadata.extend(split(no, count, tensors.len() as i32));
        let first = (each * no as usize).min(tensors.len());
        let own = &tensors[first..(first + each).min(tensors.len())];
        (format!("{stem}-{:05}-of-{count:05}.gguf", no + 1), sound(&header, own))
    };
    (0..count).map(file).collect()
}

/// Types that a test can quantize to by rounding: ggml's number, values and bytes of a block.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const BF16: u32 = 30;
pub const Q8_0: u32 = 8;
pub const Q4_0: u32 = 2;
pub const Q4_K: u32 = 12;

/// `values` in a type. Of `Q4_K` all eight scales of a block are alike: what it means is what counts here, not how well.
pub fn quantize(kind: u32, values: &[f32]) -> Vec<u8> {
    let blocks = |len: usize, block: &dyn Fn(&[f32]) -> Vec<u8>| values.chunks(len).flat_map(block).collect();
    let largest = |values: &[f32]| values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let half = |value: f32| f16::from_f32(value).to_le_bytes().to_vec();
    let nibble = |value: f32, d: f32| ((value / d).round() + 8.0).clamp(0.0, 15.0) as u8;
    match kind {
        F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        BF16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
        Q8_0 => blocks(32, &|block| {
            let d = (largest(block) / 127.0).max(1e-6);
            let codes = block.iter().map(|value| (value / d).round() as i8 as u8);
            half(d).into_iter().chain(codes).collect()
        }),
        Q4_0 => blocks(32, &|block| {
            let d = (largest(block) / 7.0).max(1e-6);
            let codes = (0..16).map(|j| nibble(block[j], d) | nibble(block[j + 16], d) << 4);
            half(d).into_iter().chain(codes).collect()
        }),
        Q4_K => blocks(256, &|block| {
            // y = d * 1 * q - dmin * 8, with dmin = d.
            let d = (largest(block) / 7.0).max(1e-6);
            let scales = [1, 1, 1, 1, 8, 8, 8, 8, 0x81, 0x81, 0x81, 0x81];
            let codes = (0..128).map(|at| {
                let (c, l) = (at / 32, at % 32);
                nibble(block[64 * c + l], d) | nibble(block[64 * c + 32 + l], d) << 4
            });
            half(d).into_iter().chain(half(d)).chain(scales).chain(codes).collect()
        }),
        other => panic!("type {other}"),
    }
}
