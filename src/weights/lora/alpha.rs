//! How strong a LoRA is of itself: `alpha / rank` times its product, where it says an alpha.
//!
//! | alpha | where | whose |
//! |---|---|---|
//! | `MODULE.alpha` | a tensor of one number | kohya, ComfyUI, older files of diffusers |
//! | `PREFIX.lora_alpha`, `PREFIX.alpha_pattern` | JSON in the file's metadata, `lora_adapter_metadata` | diffusers, PREFIX being `transformer` or `text_encoder` |
//! | `lora_alpha`, `alpha_pattern` | `adapter_config.json` beside `adapter_model.safetensors` | PEFT |
//!
//! The patterns of PEFT are regular expressions for the ends of names; trainers write whole names, and nothing else is read.
//! `use_rslora` divides by the root of the rank.
//!
//! Source: diffusers `lora_base.py` and `peft_utils.py`; PEFT `LoraConfig`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::weights::{Component, Dtype, TensorInfo};
use crate::{Error, Result, files, json};

/// Where diffusers writes its settings.
const METADATA: &str = "lora_adapter_metadata";

/// Where PEFT writes its own, and beside which file.
const PEFT: (&str, &str) = ("adapter_model.safetensors", "adapter_config.json");

/// What PEFT takes where no alpha is said.
const PEFT_ALPHA: f64 = 8.0;

/// The number in an alpha's tensor.
///
/// # Errors
/// [`Error::Weights`] for one of several numbers, of another type, or that is not finite; [`Error::Io`].
pub(super) fn of_tensor(info: &TensorInfo) -> Result<f64> {
    let wrong = |what: String| Error::weights(info.file.path(), format!("tensor {}: {what}", info.name));
    if info.elements() != 1 {
        return Err(wrong(format!("an alpha of shape {:?}: expected one number", info.shape)));
    }
    let mut bytes = [0; 8];
    let len = (info.dtype.bitsize() / 8).min(8);
    info.read_at(0, &mut bytes[..len])?;
    let [a, b, c, d, ..] = bytes;
    let alpha = match info.dtype {
        Dtype::F64 => f64::from_le_bytes(bytes),
        Dtype::F32 => f64::from(f32::from_le_bytes([a, b, c, d])),
        Dtype::F16 => half::f16::from_le_bytes([a, b]).to_f64(),
        Dtype::BF16 => half::bf16::from_le_bytes([a, b]).to_f64(),
        // Trainers that keep a whole alpha whole.
        Dtype::I64 => i64::from_le_bytes(bytes) as f64,
        Dtype::I32 => f64::from(i32::from_le_bytes([a, b, c, d])),
        other => return Err(wrong(format!("an alpha of dtype {other}: expected F32, BF16 or F16"))),
    };
    match alpha.is_finite() {
        true => Ok(alpha),
        false => Err(wrong(format!("an alpha of {alpha}: expected a finite number"))),
    }
}

/// What a file, or the one beside it, says of all its modules.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// By prefix of names.
    of: Vec<(&'static str, Adapter)>,
}

/// PEFT's settings of one network, as far as they matter to the product.
#[derive(Debug, PartialEq)]
struct Adapter {
    alpha: f64,
    /// Names of modules, or their ends; those that begin with `^` are whole.
    pattern: Vec<(String, f64)>,
    by_root: bool,
}

impl Settings {
    /// # Errors
    /// [`Error::Weights`] for settings that are malformed, [`Error::Unsupported`] for DoRA.
    pub fn of(file: &Component) -> Result<Settings> {
        let mut settings = Settings::default();
        if let Some(text) = file.metadata().get(METADATA) {
            let wrong = |what: String| Error::weights(file.path(), format!("{METADATA}: {what}"));
            let read = json::check(text.as_bytes(), &json::CONFIG);
            let read = read.and_then(|()| serde_json::from_str::<Map<String, Value>>(text));
            let map = read.map_err(|e| wrong(format!("malformed: {e}")).because(e))?;
            for prefix in ["transformer.", "text_encoder."] {
                if map.keys().any(|name| name.starts_with(prefix)) {
                    settings.of.push((prefix, Adapter::of(&map, prefix, file.path())?));
                }
            }
        }
        let beside = file.path().with_file_name(PEFT.1);
        if file.path().ends_with(PEFT.0) && files::exists(&beside)? {
            let map: Map<String, Value> = files::read_json(&beside, files::Kind::Config)?;
            for prefix in ["base_model.model.", "base_model.model.transformer."] {
                settings.of.push((prefix, Adapter::of(&map, "", &beside)?));
            }
        }
        Ok(settings)
    }

    /// What the product of `module`'s factors of this rank is multiplied with, where it is said.
    pub fn scale(&self, prefix: &str, module: &str, rank: usize) -> Option<f64> {
        let (_, adapter) = self.of.iter().find(|(of, _)| *of == prefix)?;
        let is_meant = |name: &str| match name.strip_prefix('^') {
            Some(whole) => module == whole,
            None => {
                module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
        };
        let own = adapter.pattern.iter().find(|(name, _)| is_meant(name)).map(|(_, alpha)| *alpha);
        let rank = rank as f64;
        Some(own.unwrap_or(adapter.alpha) / if adapter.by_root { rank.sqrt() } else { rank })
    }
}

impl Adapter {
    fn of(map: &Map<String, Value>, prefix: &str, path: &Path) -> Result<Adapter> {
        let get = |name: &str| map.get(&format!("{prefix}{name}")).filter(|value| !value.is_null());
        let wrong = |name: &str, what: &str| Error::weights(path, format!("{prefix}{name}: expected {what}"));
        let number = |name: &str, value: &Value| {
            value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| wrong(name, "a finite number"))
        };
        let flag = |name: &str| match get(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(name, "true or false")),
        };
        if flag("use_dora")? {
            return Err(super::unsupported(path, "DoRA", &format!("{prefix}use_dora")));
        }
        let alpha = get("lora_alpha").map_or(Ok(PEFT_ALPHA), |value| number("lora_alpha", value))?;
        let mut pattern = Vec::new();
        let map = match get("alpha_pattern") {
            None => None,
            Some(value) => {
                Some(value.as_object().ok_or_else(|| wrong("alpha_pattern", "names and numbers"))?)
            }
        };
        for (name, value) in map.into_iter().flatten() {
            let plain = name.replace("\\.", ".");
            if plain.contains(['\\', '*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '$']) {
                return Err(wrong("alpha_pattern", "names of modules, not other regular expressions"));
            }
            pattern.push((plain, number("alpha_pattern", value)?));
        }
        Ok(Adapter { alpha, pattern, by_root: flag("use_rslora")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn adapter(settings: &Value) -> Result<Adapter> {
        Adapter::of(settings.as_object().unwrap(), "transformer.", Path::new("x.safetensors"))
    }

    #[test]
    fn patterns_are_names_and_their_ends() {
        let settings = json!({
            "transformer.lora_alpha": 8,
            "transformer.alpha_pattern": {"^proj_out": 2, "attn.to_q": 32, "transformer_blocks\\.1\\.attn\\.to_k": 4},
        });
        let settings = Settings { of: vec![("transformer.", adapter(&settings).unwrap())] };
        let scale = |module: &str| settings.scale("transformer.", module, 16);
        assert_eq!(scale("proj_out"), Some(0.125));
        assert_eq!(scale("single_transformer_blocks.0.proj_out"), Some(0.5));
        assert_eq!(scale("transformer_blocks.7.attn.to_q"), Some(2.0));
        assert_eq!(scale("transformer_blocks.7.xattn.to_q"), Some(0.5), "no end of a name within a name");
        assert_eq!(scale("transformer_blocks.1.attn.to_k"), Some(0.25));
        assert_eq!(scale("transformer_blocks.11.attn.to_k"), Some(0.5));
        assert_eq!(settings.scale("text_encoder.", "proj_out", 16), None);
    }

    #[test]
    fn the_root_of_the_rank_divides_where_that_is_said() {
        let settings = json!({"transformer.lora_alpha": 8, "transformer.use_rslora": true});
        let settings = Settings { of: vec![("transformer.", adapter(&settings).unwrap())] };
        assert_eq!(settings.scale("transformer.", "a", 16), Some(2.0));
    }

    #[test]
    fn settings_that_mean_nothing_are_refused() {
        for (settings, words) in [
            (json!({"transformer.lora_alpha": "8"}), "transformer.lora_alpha: expected a finite number"),
            (
                json!({"transformer.lora_alpha": 1, "transformer.alpha_pattern": [1]}),
                "expected names and numbers",
            ),
            (
                json!({"transformer.alpha_pattern": {"a": null}}),
                "transformer.alpha_pattern: expected a finite",
            ),
            (json!({"transformer.alpha_pattern": {"a.*": 1}}), "not other regular expressions"),
            (json!({"transformer.use_rslora": 1}), "transformer.use_rslora: expected true or false"),
        ] {
            let error = adapter(&settings).unwrap_err();
            assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains(words), "{error}");
        }
        let error = adapter(&json!({"transformer.use_dora": true})).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("DoRA"), "{error}");
        assert_eq!(adapter(&json!({})).unwrap().alpha, PEFT_ALPHA);
    }
}
