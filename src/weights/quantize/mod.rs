//! A network's tensors as bitsandbytes' checkpoints hold them, written from files that hold them wide: what
//! [`super::bitsandbytes`] reads.
//!
//! Reading order: `Output` here says what goes where, `linear.rs` makes one tensor after the other, chunk by chunk,
//! `nested.rs` is what becomes of absmax where that is quantized, too, and `file.rs` the file that is written.
//!
//! Names, types and shapes of all tensors, and every byte of them, are those that diffusers 0.42 and transformers 5.24 save
//! with bitsandbytes 0.50 on a CPU from the same files (f16 ones loaded as f16, f32 as f32), but for the last bits of a nested
//! offset that `nested.rs` tells of. The parts of a Linear are in one file: diffusers looks nowhere else.
//!
//! Source: bitsandbytes 0.50, `QuantState.as_dict`; what is left wide: transformers 5.24, `_keep_in_fp32_modules`.

mod file;
mod linear;
pub mod nested;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use self::file::{Entry, TensorWriter};
use self::nested::Nested;
use super::bitsandbytes::SUFFIXES;
use super::nf4::{BLOCK, CODE_BOOK};
use super::{Dtype, TensorInfo};
use crate::{Error, Result};

/// Digits, sign, point and exponent of an f64 in decimal.
const LONGEST_NUMBER: usize = 32;

/// What became of one Linear's weights.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QuantizedLinear {
    /// The folder of its network: `transformer` or `text_encoder_2`.
    pub folder: &'static str,
    /// The tensor's name.
    pub name: String,
    /// Output features, input features.
    pub shape: [usize; 2],
    /// Bytes in the file it is from.
    pub bytes_before: u64,
    /// Bytes of all that it is now: codes, absmax, and what describes them.
    pub bytes_after: u64,
    /// The root of the mean square error by that of the mean square weight. Normally distributed weights have 0.09.
    pub relative_rms_error: f64,
    /// The largest error of a weight.
    pub max_abs_error: f32,
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// The name that it gets.
    pub name: String,
    /// Where it is read.
    pub tensor: TensorInfo,
    /// Whether it is quantized.
    pub in_nf4: bool,
    /// Its type where it is not.
    pub dtype: Dtype,
}

/// The weight files of one network.
#[derive(Debug)]
pub(crate) struct Output {
    /// Of the network.
    pub folder: &'static str,
    /// What the names of its weight files begin with.
    pub stem: &'static str,
    /// Whether absmax is quantized, too.
    pub double_quant: bool,
    shards: Vec<Vec<Item>>,
}

/// Makes a file of that name.
pub(crate) type Create<'a> = dyn Fn(&str) -> Result<(PathBuf, File)> + 'a;

impl Output {
    /// Of `items`, in files of at most `shard_bytes` (but at least one item each).
    pub fn new(
        (folder, stem): (&'static str, &'static str),
        mut items: Vec<Item>,
        double_quant: bool,
        shard_bytes: u64,
    ) -> Output {
        items.sort_by(|a, b| a.name.cmp(&b.name));
        let mut output = Output { folder, stem, double_quant, shards: Vec::new() };
        let mut bytes = 0;
        for item in items {
            let more = output.bytes_of(&item);
            match output.shards.last_mut().filter(|_| bytes + more <= shard_bytes) {
                Some(shard) => shard.push(item),
                None => {
                    output.shards.push(vec![item]);
                    bytes = 0;
                }
            }
            bytes += more;
        }
        output
    }

    fn items(&self) -> impl Iterator<Item = &Item> {
        self.shards.iter().flatten()
    }

    /// Bytes of all tensors, at most.
    pub fn bytes(&self) -> u64 {
        self.items().map(|item| self.bytes_of(item)).sum()
    }

    /// Bytes that [`Output::write`] reads: what is quantized twice, the second time to see what was lost.
    pub fn bytes_to_read(&self) -> u64 {
        self.items().map(|item| if item.in_nf4 { 2 } else { 1 } * item.tensor.bytes).sum()
    }

    fn bytes_of(&self, item: &Item) -> u64 {
        let (fixed, longest) = self.entries(item);
        fixed.iter().map(Entry::bytes).sum::<u64>() + longest.map_or(0, |(_, bytes)| bytes as u64)
    }

    /// The tensors that an item becomes, and the string that describes them, with its greatest length.
    fn entries(&self, item: &Item) -> (Vec<Entry>, Option<(String, usize)>) {
        let entry = |suffix: &str, dtype, shape: &[usize]| Entry {
            name: format!("{}{suffix}", item.name),
            dtype,
            shape: shape.to_vec(),
        };
        if !item.in_nf4 {
            return (vec![entry("", item.dtype, &item.tensor.shape)], None);
        }
        let elements = item.tensor.elements();
        let blocks = elements.div_ceil(BLOCK);
        let [absmax, quant_map, nested_absmax, nested_quant_map, state] = SUFFIXES;
        let mut entries = vec![
            entry("", Dtype::U8, &[elements.div_ceil(2), 1]),
            entry(absmax, if self.double_quant { Dtype::U8 } else { Dtype::F32 }, &[blocks]),
            entry(quant_map, Dtype::F32, &[CODE_BOOK.len()]),
        ];
        if self.double_quant {
            entries.push(entry(nested_absmax, Dtype::F32, &[blocks.div_ceil(nested::GROUP)]));
            entries.push(entry(nested_quant_map, Dtype::F32, &[nested::map().len()]));
        }
        let longest = quant_state(&item.tensor, self.double_quant.then_some("")).len() + LONGEST_NUMBER;
        (entries, Some((format!("{}{state}", item.name), longest)))
    }

    /// Writes the files into a folder, and an index where there are several; `told` hears of bytes read.
    ///
    /// # Errors
    /// [`Error::Weights`] for tensors that are not finite or all zero, [`Error::Stopped`] where `told` says so, [`Error::Io`].
    pub fn write(
        &self,
        create: &Create<'_>,
        told: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Vec<QuantizedLinear>> {
        let (stem, count) = (self.stem, self.shards.len());
        let (mut linears, mut total_bytes, mut places) = (Vec::new(), 0, Map::new());
        for (i, items) in self.shards.iter().enumerate() {
            let name = match count {
                1 => format!("{stem}.safetensors"),
                _ => format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1),
            };
            for (entries, string) in items.iter().map(|item| self.entries(item)) {
                let names = entries.into_iter().map(|entry| entry.name).chain(string.map(|(name, _)| name));
                places.extend(names.map(|tensor| (tensor, json!(name))));
            }
            let (path, file) = create(&name)?;
            total_bytes += self.write_file(path, file, items, &mut linears, told)?;
        }
        if count > 1 {
            let (path, mut file) = create(&format!("{stem}.safetensors.index.json"))?;
            let index = json!({"metadata": {"total_size": total_bytes}, "weight_map": places});
            let text = format!("{index:#}\n");
            let written =
                std::io::Write::write_all(&mut file, text.as_bytes()).and_then(|()| file.sync_all());
            written.map_err(Error::io("write", path))?;
        }
        Ok(linears)
    }

    fn write_file(
        &self,
        path: PathBuf,
        file: File,
        items: &[Item],
        linears: &mut Vec<QuantizedLinear>,
        told: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<u64> {
        let (mut fixed, mut strings) = (Vec::new(), Vec::new());
        for (entries, string) in items.iter().map(|item| self.entries(item)) {
            fixed.extend(entries);
            strings.extend(string);
        }
        let mut writer = TensorWriter::new(&path, file, fixed, &strings);
        for item in items {
            if item.in_nf4 {
                linears.push(self.write_linear(item, &mut writer, told)?);
            } else {
                linear::copy(&item.tensor, item.dtype, &writer, &writer.place(&item.name)?, told)?;
            }
        }
        writer.finish()
    }

    fn write_linear(
        &self,
        item: &Item,
        writer: &mut TensorWriter,
        told: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<QuantizedLinear> {
        let Item { name, tensor, .. } = item;
        let &[rows, columns] = &tensor.shape[..] else {
            return Err(Error::Internal(format!("tensor {name} is no matrix")));
        };
        let [absmax_of, quant_map, nested_absmax, nested_quant_map, state] = SUFFIXES;
        let codes = writer.place(name)?;
        let mut absmax = linear::write_codes(tensor, writer, &codes, told)?;
        let write =
            |suffix: &str, bytes: &[u8]| writer.write(&writer.place(&format!("{name}{suffix}"))?, 0, bytes);
        write(quant_map, &le_bytes(&CODE_BOOK))?;
        let nested = self.double_quant.then(|| nested::quantize(&absmax));
        if let Some(Nested { codes, scales, .. }) = &nested {
            write(absmax_of, codes)?;
            write(nested_absmax, &le_bytes(scales))?;
            write(nested_quant_map, &le_bytes(nested::map()))?;
        } else {
            write(absmax_of, &le_bytes(&absmax))?;
        }
        let offset = nested.as_ref().map(|nested| as_python_writes(nested.offset.into()));
        let text = quant_state(tensor, offset.as_deref());
        writer.string(&format!("{name}{state}"), &text)?;
        if let Some(nested) = nested {
            absmax = nested.dequantize();
        }
        let loss = linear::measure(tensor, writer, &codes, &absmax, told)?;
        let (fixed, _) = self.entries(item);
        Ok(QuantizedLinear {
            folder: self.folder,
            name: name.clone(),
            shape: [rows, columns],
            bytes_before: tensor.bytes,
            bytes_after: fixed.iter().map(Entry::bytes).sum::<u64>() + text.len() as u64,
            relative_rms_error: (loss.square_errors / loss.squares).sqrt(),
            max_abs_error: loss.max_abs_error,
        })
    }
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The JSON that describes a Linear in NF4; with the offset of its absmax, where these are quantized, too.
fn quant_state(tensor: &TensorInfo, nested_offset: Option<&str>) -> String {
    let dtype = match tensor.dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    };
    let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    let nested = nested_offset.map_or(String::new(), |offset| {
        format!(
            r#", "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {offset}"#,
            nested::GROUP
        )
    });
    format!(
        r#"{{"quant_type": "nf4", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": [{}]{nested}}}"#,
        shape.join(", ")
    )
}

/// The shortest decimal number that is read as `value`, in Python's form, so that files have the same bytes as those of its
/// libraries.
fn as_python_writes(value: f64) -> String {
    let shortest = format!("{value:e}");
    let num_digits =
        shortest.split('e').next().unwrap_or_default().chars().filter(char::is_ascii_digit).count();
    // Of two that are as short and as near Python takes the even one.
    let even = format!("{value:.*e}", num_digits.max(1) - 1);
    let text = if even.parse() == Ok(value) { even } else { shortest };
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        return format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    let places = (num_digits as i32 - 1 - exponent).max(1) as usize;
    format!("{value:.places$}")
}

/// A network's config file, saying that it is quantized, as diffusers and transformers write it.
pub(crate) fn config_file(mut config: Map<String, Value>, double_quant: bool) -> String {
    let quantization = json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    });
    config.insert(QUANTIZATION.to_string(), quantization);
    format!("{:#}\n", Value::Object(config))
}

/// The field of a network's config that says that it is quantized, and how.
pub(crate) const QUANTIZATION: &str = "quantization_config";

#[cfg(test)]
mod tests {
    use super::as_python_writes;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (value, text) in [
            (0.09593963623046875, "0.09593963623046875"),
            // Exactly between two of 16 digits.
            (f64::from(0.095_951_08f32), "0.09595108032226562"),
            (f64::from(0.1f32), "0.10000000149011612"),
            (1e-4, "0.0001"),
            (5e-5, "5e-05"),
            (1.2345e-7, "1.2345e-07"),
            (1e-100, "1e-100"),
            (3.0, "3.0"),
            (1.5e15, "1500000000000000.0"),
            (1e16, "1e+16"),
            (0.0, "0.0"),
        ] {
            assert_eq!(as_python_writes(value), text);
        }
    }
}
