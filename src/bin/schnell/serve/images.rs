//! `POST /v1/images/generations` and what it answers; `GET /v1/images/{file}`; `GET /v1/models`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schnell::{ImageFormat, Output, Request, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::events;
use super::http::{Server, read_body};
use super::queue::Job;
use crate::options::Seed;
use crate::service::answer::{details, names};
use crate::service::asked::{Asked, ResponseFormat};
use crate::service::refusal::Refusal;

/// Says of an answer that it was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const KEY: &str = "idempotency-key";
/// Bytes of an idempotency key.
const LONGEST_KEY: usize = 255;

/// A file, and what is known of it.
#[derive(Debug)]
pub struct Picture {
    /// What nobody guesses.
    pub id: Uuid,
    pub file: Bytes,
    pub format: ImageFormat,
    /// Seed, size, steps, warnings, receipt and times, as JSON.
    details: Value,
}

impl Picture {
    /// # Errors
    /// Those of [`Output::encode`].
    pub fn new(output: &Output, request: &Request, format: ImageFormat) -> Result<Picture> {
        let details = details(output, request);
        Ok(Picture { id: Uuid::new_v4(), file: output.encode(format)?.into(), format, details })
    }

    /// Of so many bytes.
    #[cfg(test)]
    pub fn of_bytes(bytes: usize) -> Arc<Picture> {
        let (file, format, details) = (vec![0; bytes].into(), ImageFormat::Png, Value::Null);
        Arc::new(Picture { id: Uuid::new_v4(), file, format, details })
    }

    /// `{id}.{ending}`
    pub fn name(&self) -> String {
        format!("{}.{}", self.id, names(self.format).0)
    }
}

/// How pictures of a request are told of.
#[derive(Clone, Debug)]
pub struct Answer {
    pub response_format: ResponseFormat,
    /// What links begin with.
    base: String,
    /// Fields that were sent in vain.
    warnings: Vec<String>,
}

impl Answer {
    /// One picture as OpenAI's API has it, and `schnell`, which is ours. A picture behind a link is kept.
    pub fn of(&self, picture: &Arc<Picture>, server: &Server) -> serde_json::Map<String, Value> {
        let mut fields = serde_json::Map::new();
        match self.response_format {
            ResponseFormat::B64Json => {
                fields.insert("b64_json".to_string(), json!(STANDARD.encode(&picture.file)));
            }
            ResponseFormat::Url => {
                server.kept.put(picture);
                fields
                    .insert("url".to_string(), json!(format!("{}/v1/images/{}", self.base, picture.name())));
            }
        }
        let mut details = picture.details.clone();
        if let Some(Value::Array(warnings)) = details.get_mut("warnings") {
            warnings.extend(self.warnings.iter().map(|warning| json!(warning)));
        }
        fields.insert("schnell".to_string(), details);
        fields
    }
}

/// What is the same for all pictures of a job.
pub fn common(job: &Job) -> [(&'static str, Value); 2] {
    let size = format!("{}x{}", job.shape.width, job.shape.height);
    [("size", json!(size)), ("output_format", json!(names(job.format).0))]
}

/// Cancels what nobody waits for any more, unless somebody may come again for it.
pub struct Waiter {
    pub job: Arc<Job>,
    server: Arc<Server>,
    may_come_again: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.may_come_again && !self.job.has_ended() {
            self.server.queue.cancel(&self.job);
            self.server.metrics.cancelled();
        }
    }
}

/// `POST /v1/images/generations`
pub async fn generations(
    State(server): State<Arc<Server>>,
    request: axum::extract::Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    check_type(&parts.headers)?;
    let key = idempotency_key(&parts.headers)?;
    let body = read_body(&server.config, &parts.headers, body).await?;
    let asked = Asked::of(&body, &server.config.limits, || Seed::Random.number())?;
    let stream = asked.stream;
    let answer = Answer {
        response_format: asked.response_format,
        base: server.base(&parts.headers),
        warnings: asked.warnings.clone(),
    };
    let may_come_again = key.is_some();
    let (job, is_repeated) = match key {
        None => (admit(&server, asked)?, false),
        Some(key) => {
            let digest: [u8; 32] = Sha256::digest(&body).into();
            server.repeats.admit(key, digest, || admit(&server, asked))?
        }
    };
    drop(body);
    let waiter = Waiter { job, server: server.clone(), may_come_again };
    let mut response = match stream {
        true => events::stream(waiter, answer, server),
        false => whole(waiter, &answer, &server).await?,
    };
    if is_repeated {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// All pictures at once.
async fn whole(waiter: Waiter, answer: &Answer, server: &Server) -> Result<Response, Refusal> {
    let job = &waiter.job;
    let mut status = job.status();
    let gone = |_| Refusal::of(&schnell::Error::Internal("a job has no end".to_string()));
    let ended = status.wait_for(|status| status.end.is_some()).await.map_err(gone)?.clone();
    ended.end.unwrap_or(Ok(()))?;
    let data: Vec<Value> = ended.done.iter().map(|picture| answer.of(picture, server).into()).collect();
    let mut fields = serde_json::Map::new();
    fields.insert("created".to_string(), json!(job.created));
    fields.extend(common(job).map(|(name, value)| (name.to_string(), value)));
    fields.insert("data".to_string(), data.into());
    Ok(axum::Json(fields).into_response())
}

/// Into the queue.
fn admit(server: &Server, asked: Asked) -> Result<Arc<Job>, Refusal> {
    let n = asked.requests.len() as u32;
    let of =
        |steps: usize| server.times.expected(&asked.shape.steps(steps)).map(|time| time.saturating_mul(n));
    let expected = of(asked.shape.steps);
    let is_whole = asked.requests.iter().all(|request| request.late == schnell::Late::Fail);
    let least = if is_whole { expected } else { of(1) };
    let job = Job::new(asked.requests, asked.shape, asked.format, asked.previews);
    server.queue.push(job, expected, least)
}

/// Other pages' forms cannot send this type without asking first.
fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    match media_type.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => {
            let text = "the body has to come with Content-Type: application/json";
            Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text))
        }
    }
}

/// Together with whose it is.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<[u8; 32]>, Refusal> {
    let Some(key) = headers.get(KEY) else { return Ok(None) };
    if key.is_empty() || key.len() > LONGEST_KEY {
        let text = format!("an Idempotency-Key of {} bytes; it takes 1 to {LONGEST_KEY}", key.len());
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", text));
    }
    let whose = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let digest = Sha256::new().chain_update(Sha256::digest(whose)).chain_update(key.as_bytes()).finalize();
    Ok(Some(digest.into()))
}

/// `GET /v1/images/{file}`
pub async fn file(
    State(server): State<Arc<Server>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    // What is no text is no name.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let id = name.split_once('.').and_then(|(id, _)| Uuid::try_parse(id).ok());
    let picture = id.and_then(|id| server.kept.get(id)).filter(|picture| picture.name() == name);
    let picture = picture.ok_or_else(|| {
        let text = "there is no such picture, or it is kept no longer; draw it again";
        Refusal::new(StatusCode::NOT_FOUND, "picture_not_found", text)
    })?;
    let headers = [
        (header::CONTENT_TYPE, names(picture.format).1),
        (header::CACHE_CONTROL, "private, max-age=3600, immutable"),
    ];
    Ok((headers, picture.file.clone()).into_response())
}

fn model(server: &Server, name: &str) -> Value {
    let limits = &server.config.limits;
    json!({
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "schnell",
        "schnell": {
            "size": format!("{}x{}", limits.first.width, limits.first.height),
            "steps": limits.first.steps,
            "max_pixels": limits.most_pixels,
            "max_steps": limits.most_steps,
            "max_n": limits.most_n,
            "max_prompt": limits.most_prompt,
            "negative_prompts": limits.negative_prompts,
            "guidance": limits.model.flux.guidance,
        },
    })
}

/// `GET /v1/models`
pub async fn models(State(server): State<Arc<Server>>) -> axum::Json<Value> {
    let first: Vec<Value> =
        server.config.limits.names.iter().take(1).map(|name| model(&server, name)).collect();
    axum::Json(json!({ "object": "list", "data": first }))
}

/// `GET /v1/models/{name}`
pub async fn model_named(
    State(server): State<Arc<Server>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<axum::Json<Value>, Refusal> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    match server.config.limits.is_model(&name) {
        true => Ok(axum::Json(model(&server, &name))),
        false => {
            let text = "there is no such model here; /v1/models lists what there is";
            Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", text).param("model"))
        }
    }
}
