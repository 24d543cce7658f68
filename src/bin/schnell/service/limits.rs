//! What requests may ask for, as planned at the start.

use std::path::Path;

use schnell::{Error, PipelineConfig, Result, Shape};

use super::DrawingOptions;

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub width: usize,
    pub height: usize,
}

/// `1024x768`.
pub fn parse_size(text: &str) -> Result<Size, String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((side(w)?, side(h)?)));
    sides
        .map(|(width, height)| Size { width, height })
        .ok_or_else(|| format!("`{text}` is no size; use WIDTHxHEIGHT in pixels, such as 1024x768"))
}

/// Digits alone: no sign, no spaces.
fn side(text: &str) -> Option<usize> {
    let is_number = (1..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// What does not change while pictures are drawn.
#[derive(Debug)]
pub struct Limits {
    pub model: PipelineConfig,
    /// What a request gets that says nothing.
    pub first: Shape,
    /// Pixels of the largest picture that was planned.
    pub most_pixels: usize,
    /// Whether negative prompts were planned for.
    pub negative_prompts: bool,
    /// Whether pictures are shown on their way.
    pub previews: bool,
    pub names: Vec<String>,
    pub most_n: usize,
    pub most_steps: usize,
    pub most_prompt: usize,
}

impl Limits {
    /// # Errors
    /// For fewer steps at most than a request has that says nothing.
    pub fn new(
        options: &DrawingOptions,
        model: &PipelineConfig,
        shapes: &[Shape],
        previews: bool,
    ) -> Result<Limits> {
        let first = shapes[0];
        Ok(Limits {
            model: model.clone(),
            first,
            most_pixels: shapes.iter().map(|shape| shape.width * shape.height).max().unwrap_or_default(),
            negative_prompts: options.negative_prompts,
            previews,
            names: names(options),
            most_n: options.max_n.into(),
            most_steps: Limits::most_steps(options, first.steps)?,
            most_prompt: options.max_prompt as usize,
        })
    }

    /// Of one picture.
    pub fn most_steps(options: &DrawingOptions, usual: usize) -> Result<usize> {
        match options.max_steps {
            None => Ok(usual.max(50)),
            Some(most) if most >= usual => Ok(most),
            Some(most) => Err(Error::Input(format!(
                "--max-steps {most} is less than the {usual} steps of a request that says nothing; raise it, or lower --steps"
            ))),
        }
    }

    /// Whether that is the model.
    pub fn is_model(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

/// By the flags, or by where the model is.
fn names(options: &DrawingOptions) -> Vec<String> {
    if !options.model_name.is_empty() {
        return options.model_name.clone();
    }
    let model = &options.plan.model;
    if model.is_demo() {
        return vec!["demo".to_string()];
    }
    let named = model.model.as_ref().map(Path::new).or(model.transformer.as_deref());
    let stem = named.map(|path| if path.is_file() { path.with_extension("") } else { path.to_path_buf() });
    let name = stem.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    vec![name.unwrap_or_else(|| "schnell".to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_digits_alone() {
        assert_eq!(parse_size("64x128"), Ok(Size { width: 64, height: 128 }));
        for bad in ["", "64", "64x", "x64", "+64x64", "64 x64", "64x64x64", "-1x64", "1234567x64", "64X64"] {
            assert!(parse_size(bad).unwrap_err().contains("is no size"), "{bad}");
        }
    }
}
