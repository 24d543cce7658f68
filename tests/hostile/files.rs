//! Parts in files of their own that are damaged: GGUF, fp8, and the transformer under Black Forest Labs' names.

use std::sync::LazyLock;

use schnell::weights::{Dtype, Part};

use crate::checkpoint::{self, Tensors, bfl, converted, le, stored};
use crate::command::DEMO;
use crate::gguf::{self, Header, Tensor};
use crate::judge::{Case, Must};
use crate::world::{Dice, World};

static T5: LazyLock<Tensors> = LazyLock::new(|| stored(DEMO.path(), Part::T5));

/// Numbers that are read from a header where they do harm.
const NUMBERS: [u64; 12] =
    [0, 1, 31, 32, 33, 1 << 16, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, u64::MAX];

/// T5 of the bundled model in GGUF, the same numbers.
fn tensors() -> Vec<Tensor> {
    let tensor = |(ours, (_, shape, bytes)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
        (
            gguf::t5_name(ours),
            shape.iter().rev().map(|size| *size as u64).collect(),
            gguf::BF16,
            bytes.clone(),
        )
    };
    T5.iter().map(tensor).collect()
}

fn picture(world: &World, file: &str, flag: &str, bytes: &[u8], must: Must, what: String) -> Case {
    std::fs::write(world.work(file), bytes).unwrap();
    Case::with(must, format!("{file}: {what}"), &[flag, file])
}

/// Either draws with it or looks at it.
fn either(
    dice: &mut Dice,
    world: &World,
    file: &str,
    flag: &str,
    bytes: &[u8],
    must: Must,
    what: String,
) -> Case {
    let case = picture(world, file, flag, bytes, must, what);
    if dice.one_in(3) {
        return Case { args: vec!["inspect".into(), file.into()], must: Must::End, outputs: vec![], ..case };
    }
    case
}

/// A header that is damaged.
pub fn gguf_header(dice: &mut Dice, world: &World) -> Case {
    let (mut header, mut tensors) = (Header::default(), tensors());
    let (mut must, mut moved) = (Must::Refuse, None);
    let what = match dice.below(11) {
        0 => {
            header.version = *dice.of(&[0, 1, 4, 3u32.swap_bytes(), u32::MAX]);
            format!("version {}", header.version)
        }
        1 => {
            let count = *dice.of(&NUMBERS);
            header.tensors = Some(count);
            format!("{count} tensors")
        }
        2 => {
            let kind = *dice.of(&[0u32, 4, 6, 7, 8, 9, 12, 13, u32::MAX]);
            let (element, count) = (*dice.of(&[0u32, 8, 9, 10, 12, 13]), *dice.of(&NUMBERS));
            let value = [element.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat();
            header.metadata.push(("x".into(), kind, value));
            must = Must::End;
            format!("metadata of type {kind}, of {element}, {count}")
        }
        3 => {
            let depth = 1 + dice.below(50_000);
            let one = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
            header.metadata.push(("x".into(), 9, one.repeat(depth)));
            format!("arrays of {depth} deep")
        }
        4 => {
            let alignment = *dice.of(&[0u32, 3, 33, 64, 1 << 20, 1 << 31, u32::MAX]);
            header.metadata.push(("general.alignment".into(), 4, alignment.to_le_bytes().to_vec()));
            must = Must::End;
            format!("aligned to {alignment}")
        }
        5 => {
            let (i, size) = (dice.below(tensors.len()), *dice.of(&NUMBERS));
            let at = dice.below(tensors[i].1.len());
            must = if tensors[i].1[at] == size { Must::Draw } else { Must::Refuse };
            tensors[i].1[at] = size;
            format!("{} has the size {size}", tensors[i].0)
        }
        6 => {
            let (i, dimensions) = (dice.below(tensors.len()), dice.below(9));
            tensors[i].1 = vec![*dice.of(&NUMBERS); dimensions];
            format!("{} has the sizes {:?}", tensors[i].0, tensors[i].1)
        }
        7 => {
            let (i, kind) = (dice.below(tensors.len()), dice.below(50) as u32);
            must = if kind == gguf::BF16 { Must::Draw } else { Must::End };
            tensors[i].2 = kind;
            format!("{} is of type {kind}", tensors[i].0)
        }
        8 => {
            let (i, offset) = (dice.below(tensors.len()), *dice.of(&NUMBERS));
            (must, moved) = (Must::End, Some((i, offset)));
            format!("{} lies at {offset}", tensors[i].0)
        }
        9 => {
            let (i, j) = (dice.below(tensors.len()), dice.below(tensors.len()));
            must = if i == j { Must::Draw } else { Must::Refuse };
            tensors[i].0 = tensors[j].0.clone();
            format!("{} is there twice", tensors[j].0)
        }
        _ => {
            let i = dice.below(tensors.len());
            let gone = tensors.remove(i);
            format!("{} is missing", gone.0)
        }
    };
    let bytes = gguf::file(&header, &tensors, |i, offset| match moved {
        Some((moved, to)) if moved == i => to,
        _ => offset,
    });
    either(dice, world, "t5.gguf", "--t5", &bytes, must, what)
}

/// T5 in several files, of which one is not there, not whole, or says that it is another.
pub fn gguf_divided(dice: &mut Dice, world: &World) -> Case {
    let tensors = tensors();
    let count = 2 + dice.below(4);
    let mut files = gguf::divided("t5", &tensors, count as u16);
    let (named, hurt) = (dice.below(count), dice.below(count));
    let mut must = Must::Refuse;
    let what = match dice.below(6) {
        0 => {
            files[hurt].0 = "t6.gguf".to_string();
            format!("{hurt} of {count} is called otherwise")
        }
        1 => {
            let len = dice.below(files[hurt].1.len() - 32);
            files[hurt].1.truncate(len);
            format!("{hurt} of {count} is cut at {len}")
        }
        2 | 3 => {
            let other = |dice: &mut Dice| *dice.of(&NUMBERS);
            let (no, of, tensors) = (other(dice) as u16, other(dice) as u16, other(dice) as i32);
            let mut header = Header::default();
            header.metadata.extend(gguf::split(no, of, tensors));
            files[hurt].1 = gguf::sound(&header, &[]);
            format!("{hurt} of {count} says {no} of {of}, {tensors} tensors")
        }
        4 => {
            let other = dice.below(count);
            must = if other == hurt { Must::Draw } else { Must::Refuse };
            files[hurt].1 = files[other].1.clone();
            format!("{hurt} of {count} is {other}")
        }
        _ => {
            let (at, bit) = (dice.below(300), dice.below(8));
            files[hurt].1[at] ^= 1 << bit;
            must = Must::End;
            format!("bit {bit} of byte {at} of {hurt} of {count}")
        }
    };
    files.iter().for_each(|(name, bytes)| std::fs::write(world.work(name), bytes).unwrap());
    let name = files.swap_remove(named).0;
    let bytes = std::fs::read(world.work(&name)).unwrap();
    either(dice, world, &name, "--t5", &bytes, must, what)
}

/// Bytes that are damaged, of the header or behind it.
pub fn gguf_bytes(dice: &mut Dice, world: &World) -> Case {
    let mut tensors = tensors();
    let whole = gguf::sound(&Header::default(), &tensors);
    let data: usize = tensors.iter().map(|(.., bytes)| bytes.len().next_multiple_of(32)).sum();
    let header = whole.len() - data;
    let mut bytes = whole;
    let (what, must) = match dice.below(6) {
        0 => {
            let len = if dice.one_in(2) { dice.below(header) } else { dice.below(bytes.len()) };
            bytes.truncate(len);
            // What pads the last tensor may go.
            (format!("cut at {len}"), if len + 32 > header + data { Must::End } else { Must::Refuse })
        }
        1 | 2 => {
            let (at, bit) = (dice.below(header), dice.below(8));
            bytes[at] ^= 1 << bit;
            (format!("bit {bit} of the header's byte {at}"), Must::End)
        }
        3 => {
            let (start, len) = (dice.below(header), 1 + dice.below(40));
            let end = (start + len).min(header);
            let noise = dice.bytes(end - start);
            bytes[start..end].copy_from_slice(&noise);
            (format!("noise in the header at {start}"), Must::End)
        }
        4 => {
            bytes[header..].fill(0);
            ("no data but zeros".to_string(), Must::Refuse)
        }
        _ => {
            // One number of what counts is not finite.
            let counts: Vec<usize> =
                (0..tensors.len()).filter(|i| !tensors[*i].0.contains("token_embd")).collect();
            let tensor = &mut tensors[*dice.of(&counts)];
            let at = 2 * dice.below(tensor.3.len() / 2);
            tensor.3[at..at + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
            let what = format!("byte {at} of {} is a NaN's", tensor.0);
            bytes = gguf::sound(&Header::default(), &tensors);
            (what, Must::Refuse)
        }
    };
    either(dice, world, "t5.gguf", "--t5", &bytes, must, what)
}

/// T5 in fp8, and what its scales may be.
pub fn fp8(dice: &mut Dice, world: &World) -> Case {
    let mut t5 = converted(&T5, |_, values| {
        // Any numbers will do.
        (Dtype::F8_E4M3, values.iter().map(|value| 0x30 | (value.to_bits() >> 31 << 7) as u8).collect())
    });
    let matrices: Vec<String> = t5.keys().filter(|name| name.contains("SelfAttention.q.")).cloned().collect();
    let stem = dice.of(&matrices).strip_suffix("weight").unwrap().to_string();
    let name = format!("{stem}{}", dice.of(&["scale_weight", "weight_scale"]));
    let (tensor, must, what) = match dice.below(7) {
        0 => {
            let scale = *dice.of(&[0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]);
            ((Dtype::F32, vec![], le(&[scale])), Must::Refuse, format!("a scale of {scale}"))
        }
        1 => {
            let scale = *dice.of(&[1.0, 1e-3, f32::MIN_POSITIVE, 1e30, f32::MAX]);
            ((Dtype::F32, vec![1], le(&[scale])), Must::End, format!("a scale of {scale}"))
        }
        2 => {
            let count = *dice.of(&[0, 2, 128]);
            ((Dtype::F32, vec![count], le(&vec![1.0f32; count])), Must::Refuse, format!("{count} scales"))
        }
        3 => {
            let dtype = *dice.of(&[Dtype::U8, Dtype::I32, Dtype::F8_E4M3, Dtype::BOOL]);
            let bytes = vec![1; dtype.bitsize() / 8];
            ((dtype, vec![], bytes), Must::Refuse, format!("a scale in {dtype}"))
        }
        4 => {
            let codes = t5.get_mut(&format!("{stem}weight")).unwrap();
            codes.0 = *dice.of(&[Dtype::U8, Dtype::I8, Dtype::F8_E8M0, Dtype::BOOL]);
            ((Dtype::F32, vec![], le(&[1.0f32])), Must::Refuse, format!("weights in {}", codes.0))
        }
        5 => {
            let codes = &mut t5.get_mut(&format!("{stem}weight")).unwrap().2;
            let at = dice.below(codes.len());
            codes[at] = *dice.of(&[0x7f, 0xff]);
            ((Dtype::F32, vec![], le(&[1.0f32])), Must::Refuse, format!("a NaN at {at}"))
        }
        _ => {
            t5.get_mut(&format!("{stem}weight")).unwrap().2.fill(*dice.of(&[0, 0x80]));
            ((Dtype::F32, vec![], le(&[1.0f32])), Must::End, "zeros of a sign".to_string())
        }
    };
    t5.insert(name.clone(), tensor);
    let file = world.work("t5.safetensors");
    checkpoint::save(&file, &t5);
    let bytes = std::fs::read(&file).unwrap();
    either(dice, world, "t5.safetensors", "--t5", &bytes, must, format!("{name}: {what}"))
}

/// The bundled transformer under Black Forest Labs' names, with codes of NF4 that are fused.
pub fn checkpoint(dice: &mut Dice, world: &World) -> Case {
    static BFL: LazyLock<Tensors> = LazyLock::new(|| bfl(&stored(DEMO.path(), Part::Transformer), 1, 4));
    let mut tensors = BFL.clone();
    let names: Vec<String> = tensors.keys().cloned().collect();
    let name = dice.of(&names).clone();
    let (what, must) = match dice.below(7) {
        0 => ("nothing".to_string(), Must::Draw),
        1 => {
            tensors = checkpoint::prefixed(
                dice.of::<&str>(&["model.diffusion_model.", "diffusion_model."]),
                tensors,
            );
            ("a prefix".to_string(), Must::Draw)
        }
        2 => {
            tensors.remove(&name);
            (format!("no {name}"), Must::Refuse)
        }
        3 => {
            let tensor = tensors.remove(&name).unwrap();
            tensors.insert(format!("model.diffusion_model.{name}"), tensor);
            (format!("a prefix of {name} alone"), Must::Refuse)
        }
        4 => {
            // Rows at the end are gone.
            let (_, shape, bytes) = tensors.get_mut(&name).unwrap();
            let row = bytes.len() / shape[0];
            let rows = dice.below(shape[0]);
            (shape[0], *bytes) = (rows, bytes[..rows * row].to_vec());
            // A code book's, a state's and all others' are missed.
            (format!("{name} has {rows} rows"), Must::Refuse)
        }
        5 => {
            let (dtype, shape, bytes) = tensors.get_mut(&name).unwrap();
            (*dtype, *shape) = (Dtype::U8, vec![bytes.len()]);
            (format!("{name} is bytes"), Must::End)
        }
        _ => {
            let (.., bytes) = tensors.get_mut(&name).unwrap();
            bytes.reverse();
            (format!("{name} is back to front"), Must::End)
        }
    };
    let file = world.work("flux.safetensors");
    checkpoint::save(&file, &tensors);
    let bytes = std::fs::read(&file).unwrap();
    picture(world, "flux.safetensors", "--transformer", &bytes, must, what)
}
