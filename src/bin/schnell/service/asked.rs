//! The body of a request for pictures: read, and refused field by field.

use std::time::Duration;

use http::StatusCode;
use schnell::image::Note;
use schnell::{Error, ImageFormat, Late, Request, Shape};
use serde::Deserialize;

use super::limits::{Limits, Size, parse_size};
use super::refusal::Refusal;

/// What OpenAI's clients send, and what is ours. `null` is as if a field were not there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Body {
    prompt: String,
    n: Option<u64>,
    size: Option<String>,
    response_format: Option<ResponseFormat>,
    output_format: Option<OutputFormat>,
    model: Option<String>,
    user: Option<String>,
    stream: Option<bool>,
    partial_images: Option<u64>,
    // What this server has no use for.
    quality: Option<String>,
    style: Option<String>,
    background: Option<String>,
    moderation: Option<String>,
    output_compression: Option<u64>,
    // Ours.
    seed: Option<u64>,
    steps: Option<u64>,
    guidance: Option<f32>,
    negative_prompt: Option<String>,
    true_cfg_scale: Option<f32>,
    deadline_ms: Option<u64>,
    late: Option<LateBody>,
}

/// How a picture comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    #[default]
    B64Json,
    Url,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutputFormat {
    Png,
    Jpeg,
    Webp,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LateBody {
    Fail,
    FewerSteps,
    Estimate,
}

/// What is to be drawn, and how it is answered.
#[derive(Debug)]
pub struct Asked {
    /// One a picture.
    pub requests: Vec<Request>,
    pub shape: Shape,
    pub format: ImageFormat,
    pub response_format: ResponseFormat,
    pub stream: bool,
    /// Of each picture, on its way; of a stream alone.
    pub previews: usize,
    /// Fields that were sent in vain.
    pub warnings: Vec<String>,
}

/// Longest text of a field that is no prompt, in bytes.
const LONGEST_NAME: usize = 256;

impl Asked {
    /// `seed` is that of a request that says none.
    ///
    /// # Errors
    /// For a body that is no such JSON, and for the first field that cannot be.
    pub fn of(body: &[u8], limits: &Limits, seed: impl FnOnce() -> u64) -> Result<Asked, Refusal> {
        let body = parse(body)?;
        let shape = shape(&body, limits)?;
        check_names(&body, limits)?;
        let warnings = ignored(&body, limits);
        let prompts = [("prompt", Some(&body.prompt)), ("negative_prompt", body.negative_prompt.as_ref())];
        for (param, text) in prompts.into_iter().filter_map(|(param, text)| Some((param, text?))) {
            check_prompt(param, text, limits)?;
        }
        let format = match body.output_format {
            Some(OutputFormat::Jpeg) => ImageFormat::Jpeg,
            Some(OutputFormat::Webp) => ImageFormat::WebP,
            Some(OutputFormat::Png) | None => ImageFormat::Png,
        };
        check_file(&body, format, &shape)?;
        let n = number("n", body.n, 1, limits.most_n)?;
        let previews = match body.partial_images {
            None => 0,
            given => number("partial_images", given, 0, limits.most_steps)?,
        };
        let stream = body.stream.unwrap_or(false);
        let first = request(&body, &shape)?;
        let seed = body.seed.unwrap_or_else(seed);
        let requests = (0..n as u64).map(|i| first.clone().seed(seed.wrapping_add(i))).collect();
        Ok(Asked {
            requests,
            shape,
            format,
            response_format: body.response_format.unwrap_or_default(),
            stream,
            previews: if stream && limits.previews { previews } else { 0 },
            warnings,
        })
    }
}

fn parse(bytes: &[u8]) -> Result<Body, Refusal> {
    // Which would be read as values without their names.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "invalid_value",
            "the body is a list, not an object",
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read: Result<Body, _> = serde_path_to_error::deserialize(&mut deserializer);
    let body = read.map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let wrong = |code| Refusal::new(StatusCode::BAD_REQUEST, code, shown(&format!("the body: {inner}")));
        match inner.classify() {
            serde_json::error::Category::Data => {
                let text = inner.to_string();
                let code = match () {
                    () if text.starts_with("unknown field") => "unknown_parameter",
                    () if text.starts_with("missing field") => "missing_parameter",
                    () => "invalid_value",
                };
                let refusal = wrong(code);
                if path == "." { refusal } else { refusal.param(&shown(&path)) }
            }
            _ => wrong("invalid_json"),
        }
    })?;
    deserializer.end().map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body: {error}"))
    })?;
    Ok(body)
}

/// What a client sent, in an answer to it: escaped, and not at length.
fn shown(text: &str) -> String {
    Error::Input(text.to_string()).to_string()
}

/// A count from `least` to `most`; 1 if nothing is said.
fn number(param: &str, given: Option<u64>, least: usize, most: usize) -> Result<usize, Refusal> {
    let number = given.map_or(Some(1), |number| usize::try_from(number).ok());
    number.filter(|number| (least..=most).contains(number)).ok_or_else(|| {
        let given = given.unwrap_or_default();
        Refusal::value(param, format!("{param} is {given}; here it is {least} to {most}"))
    })
}

fn shape(body: &Body, limits: &Limits) -> Result<Shape, Refusal> {
    let first = limits.first;
    let size = match body.size.as_deref() {
        None | Some("auto") => Size { width: first.width, height: first.height },
        Some(text) => parse_size(text).map_err(|text| Refusal::value("size", shown(&text)))?,
    };
    let steps = match body.steps {
        None => first.steps,
        given => number("steps", given, 1, limits.most_steps)?,
    };
    let shape = Shape::new(size.width, size.height).steps(steps).t5_length(first.t5_length);
    shape.check(&limits.model).map_err(|error| Refusal::value("size", error.to_string()))?;
    if shape.width * shape.height > limits.most_pixels {
        let text = format!(
            "{} x {} pixels, and {} at most were planned for: ask for fewer, or start with --size",
            shape.width, shape.height, limits.most_pixels
        );
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "image_too_large", text).param("size"));
    }
    let true_cfg = body.negative_prompt.is_some() && body.true_cfg_scale.is_some_and(|scale| scale > 1.0);
    match (true_cfg, limits.negative_prompts) {
        (false, _) => Ok(shape),
        (true, true) => Ok(shape.true_cfg()),
        (true, false) => {
            let text =
                "negative prompts take more memory, which was not planned: start with --negative-prompts";
            Err(Refusal::value("negative_prompt", text))
        }
    }
}

fn check_names(body: &Body, limits: &Limits) -> Result<(), Refusal> {
    if let Some(name) = body.model.as_deref().filter(|name| !limits.is_model(name)) {
        let text = format!("there is no model `{name}` here, but {}", limits.names.join(", "));
        return Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", shown(&text)).param("model"));
    }
    match &body.user {
        Some(user) if user.len() > LONGEST_NAME => {
            Err(Refusal::value("user", format!("{} bytes; it takes at most {LONGEST_NAME}", user.len())))
        }
        _ => Ok(()),
    }
}

fn check_prompt(param: &str, text: &str, limits: &Limits) -> Result<(), Refusal> {
    let len = text.chars().count();
    if len > limits.most_prompt {
        let text = format!("{len} characters, and {} at most are taken: shorten it", limits.most_prompt);
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "prompt_too_long", text).param(param));
    }
    if text.contains('\0') {
        return Err(Refusal::value(param, "a NUL character, which no prompt has"));
    }
    if param == "prompt" && text.trim().is_empty() {
        return Err(Refusal::value(param, "the prompt is empty; say what to draw"));
    }
    Ok(())
}

/// Refuses now what the file could not hold later.
fn check_file(body: &Body, format: ImageFormat, shape: &Shape) -> Result<(), Refusal> {
    let negative = body.negative_prompt.clone().unwrap_or_default();
    // Hashes and settings take less than the last ever.
    let notes: [Note; 3] =
        [("prompt", body.prompt.clone()), ("negative_prompt", negative), ("seed", "0".repeat(1000))];
    format
        .check(shape.width, shape.height, &notes)
        .map_err(|error| Refusal::value("output_format", error.to_string()))
}

/// The seed is still to come.
fn request(body: &Body, shape: &Shape) -> Result<Request, Refusal> {
    for (param, value) in [("guidance", body.guidance), ("true_cfg_scale", body.true_cfg_scale)] {
        if value.is_some_and(|value| !value.is_finite()) {
            return Err(Refusal::value(param, "a number that no f32 holds"));
        }
    }
    let mut request = Request::new(body.prompt.clone()).size(shape.width, shape.height);
    request = request.steps(shape.steps).t5_length(shape.t5_length);
    request.guidance = body.guidance;
    request.negative_prompt = body.negative_prompt.clone();
    request.true_cfg_scale = body.true_cfg_scale.unwrap_or(1.0);
    let late = match body.late {
        Some(LateBody::FewerSteps) => Late::FewerSteps,
        Some(LateBody::Estimate) => Late::Estimate,
        Some(LateBody::Fail) | None => Late::Fail,
    };
    match body.deadline_ms {
        None if body.late.is_some() => Err(Refusal::value("late", "it says something of deadline_ms alone")),
        None => Ok(request),
        Some(0) => Err(Refusal::value("deadline_ms", "0 ms; no picture is drawn in no time")),
        Some(ms) => Ok(request.deadline(Duration::from_millis(ms), late)),
    }
}

/// What has no effect here, which a client should be told.
fn ignored(body: &Body, limits: &Limits) -> Vec<String> {
    let has_previews = limits.previews && body.stream == Some(true);
    let there = [
        ("quality", body.quality.as_ref().is_some_and(|value| value != "auto")),
        ("style", body.style.is_some()),
        ("background", body.background.as_ref().is_some_and(|value| value != "auto" && value != "opaque")),
        ("moderation", body.moderation.as_ref().is_some_and(|value| value != "auto")),
        ("output_compression", body.output_compression.is_some()),
        ("partial_images", body.partial_images.is_some_and(|count| count > 0) && !has_previews),
    ];
    let names = there.into_iter().filter(|(_, there)| *there).map(|(name, _)| name);
    let ignored = names.map(|name| match name {
        "partial_images" if limits.previews => "partial_images has no effect without stream".to_string(),
        name => format!("{name} has no effect here"),
    });
    ignored.collect()
}
