//! `model_index.json`: whether the folder is a FLUX pipeline made of parts that this crate stands in for.

use std::path::Path;

use super::fields::read_json;
use super::layout;
use crate::{Error, Result};

/// Each component and the classes that this crate stands in for.
const COMPONENTS: [(&str, &[&str]); 7] = [
    ("transformer", &["FluxTransformer2DModel"]),
    ("text_encoder", &["CLIPTextModel"]),
    ("text_encoder_2", &["T5EncoderModel"]),
    ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("tokenizer_2", &["T5TokenizerFast", "T5Tokenizer"]),
    ("vae", &["AutoencoderKL"]),
    ("scheduler", &["FlowMatchEulerDiscreteScheduler"]),
];

/// Refuses a folder that is another pipeline, or whose components are other classes than [`COMPONENTS`].
pub(super) fn check_model_index(dir: &Path) -> Result<()> {
    layout::check(dir)?;
    let path = dir.join("model_index.json");
    let index: serde_json::Map<String, serde_json::Value> = read_json(&path)?;
    let class = match index.get("_class_name") {
        // Code that came with the model: its file, and the class there.
        Some(serde_json::Value::Array(names)) => {
            names.iter().map(|name| name.as_str().unwrap_or("?")).collect::<Vec<_>>().join(".")
        }
        name => name.and_then(|name| name.as_str()).unwrap_or("").to_string(),
    };
    if class.is_empty() {
        return Err(Error::weights(path, "no _class_name: expected FluxPipeline"));
    }
    if class != "FluxPipeline" {
        return Err(Error::Unsupported(format!(
            "{}: pipeline class {class}: only FluxPipeline is supported",
            path.display()
        )));
    }
    for (component, classes) in COMPONENTS {
        // ["library", "class"], or [null, null] for a component that was left out.
        let found = index.get(component).and_then(|v| v.get(1)).and_then(|v| v.as_str());
        match found {
            Some(class) if classes.contains(&class) => {}
            Some(class) => {
                return Err(Error::Unsupported(format!(
                    "{}: {component} is a {class}: only {} is supported",
                    path.display(),
                    classes.join(" or ")
                )));
            }
            None => {
                return Err(Error::weights(
                    path,
                    format!("component {component} is absent: expected {}", classes.join(" or ")),
                ));
            }
        }
    }
    Ok(())
}
