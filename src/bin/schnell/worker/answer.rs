//! Files of pictures, and the answer to a job.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::message::AckKind;
use schnell::{Output, Request};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::audit;
use super::bus::{Answered, Bus};
use super::job::{Job, is_sampled};
use super::node::Node;
use crate::service::answer::{details, names};
use crate::service::asked::{Asked, ResponseFormat};
use crate::service::refusal::Refusal;
use crate::terminal::hex;

/// What becomes of a job: pictures, or why there are none.
pub type Drawn = Result<(Asked, Vec<Output>), Refusal>;

/// What a node counts an answer as; nothing where another's is the answer.
type Counted = schnell::Result<Option<&'static str>>;

/// Answers, and only then acknowledges: whatever is lost on the way, the job comes again.
pub async fn answer(bus: Arc<Bus>, node: Arc<Node>, job: Arc<Job>, drawn: Drawn, share: f64) {
    let extended = extend(&bus, &job);
    let answered = async {
        match drawn {
            Ok((asked, outputs)) => pictures(&bus, &job, asked, outputs, share).await,
            Err(refusal) => refuse(&bus, &job, &refusal).await,
        }
    };
    let answered = tokio::select! {
        answered = answered => answered,
        () = extended => return,
    };
    match answered {
        Ok(counted) => {
            if let Some(counted) = counted {
                node.count(counted);
            }
            bus.done(&job).await;
        }
        // No server for a minute: when there is one, the job comes again.
        Err(error) => tracing::warn!("job {} has no answer: {error}", job.id),
    }
}

/// The job is its own while it is answered, or waits to be; never ends.
pub async fn extend(bus: &Bus, job: &Job) {
    loop {
        tokio::time::sleep(bus.ack_wait / 3).await;
        let _ = job.acker.ack_with(AckKind::Progress).await;
    }
}

async fn refuse(bus: &Bus, job: &Job, refusal: &Refusal) -> Counted {
    let mut answer = common(bus, job);
    answer["error"] = refusal.body()["error"].clone();
    answer["status"] = json!(refusal.status.as_u16());
    if let Some(after) = refusal.retry_after {
        answer["retry_after_s"] = json!(after.as_secs_f64());
    }
    let answered = bus.answer(&job.id, &answer).await?;
    Ok(matches!(answered, Answered::Here).then_some("refused"))
}

/// What every answer has.
fn common(bus: &Bus, job: &Job) -> Value {
    let mut answer = json!({ "id": job.id, "node": bus.node, "attempt": job.attempt });
    if job.renamed {
        answer["warning"] =
            json!("the message's id is none, and was not taken; use letters, digits, `-` and `_`");
    }
    answer
}

async fn pictures(bus: &Arc<Bus>, job: &Job, mut asked: Asked, outputs: Vec<Output>, share: f64) -> Counted {
    if asked.stream || asked.previews > 0 || asked.response_format == ResponseFormat::Url {
        let text = "stream and response_format have no effect here";
        asked.warnings.push(text.to_string());
    }
    let audit = (outputs.len() == 1 && is_sampled(&job.id, share))
        .then(|| audit::wish(bus, job, &asked.requests[0], &outputs[0]))
        .flatten();
    let format = asked.format;
    let requests = asked.requests.clone();
    // Making files takes a thread of its own.
    let files = tokio::task::spawn_blocking(move || {
        let files = outputs.iter().zip(&requests).map(|(output, request)| encode(output, request, format));
        files.collect::<schnell::Result<Vec<_>>>()
    });
    let files = match files.await {
        Ok(Ok(files)) => files,
        Ok(Err(error)) => return refuse(bus, job, &Refusal::of(&error)).await,
        Err(error) => {
            let error = schnell::Error::Internal(format!("the thread of files: {error}"));
            return refuse(bus, job, &Refusal::of(&error)).await;
        }
    };
    let ending = names(format).0;
    let mut put = Vec::new();
    let mut data = Vec::new();
    for (index, (file, mut details)) in files.into_iter().enumerate() {
        if let Value::Array(warnings) = &mut details["warnings"] {
            warnings.extend(asked.warnings.iter().map(|warning| json!(warning)));
        }
        let name = format!("{}-{index}-{}.{ending}", job.id, job.attempt);
        bus.put(&name, &file).await?;
        let sha256 = hex(&Sha256::digest(&file));
        data.push(json!({ "object": name, "bytes": file.len(), "sha256": sha256, "schnell": details }));
        put.push(name);
    }
    let mut answer = common(bus, job);
    answer["size"] = json!(format!("{}x{}", asked.shape.width, asked.shape.height));
    answer["output_format"] = json!(ending);
    answer["waited_ms"] = json!(job.waited().as_millis() as u64);
    answer["data"] = data.into();
    match bus.answer(&job.id, &answer).await? {
        Answered::Here => {
            if let Some((subject, wish)) = audit {
                audit::send(bus, &subject, &wish).await;
            }
            Ok(Some("answered"))
        }
        Answered::Elsewhere => {
            for name in put {
                bus.remove(&name).await;
            }
            Ok(None)
        }
    }
}

/// A file, and what is said of it.
fn encode(
    output: &Output,
    request: &Request,
    format: schnell::ImageFormat,
) -> schnell::Result<(Vec<u8>, Value)> {
    Ok((output.encode(format)?, details(output, request)))
}

/// A job that has been begun too often: a copy for a person, and an answer for whoever waits.
pub async fn give_up(bus: &Bus, job: &Job, tries: u16) {
    let reason = format!("begun {tries} times, and every worker was lost over it");
    let said = async {
        bus.bury(job, &reason).await?;
        let text = format!("{reason}; its message is in {}", bus.subject("dead"));
        let refusal = Refusal::new(http::StatusCode::INTERNAL_SERVER_ERROR, "given_up", text);
        refuse(bus, job, &refusal).await
    };
    match tokio::time::timeout(Duration::from_secs(180), said).await {
        Ok(Ok(_)) => bus.done(job).await,
        // It comes again.
        Ok(Err(error)) => tracing::warn!("job {}: {error}", job.id),
        Err(_) => tracing::warn!("job {}: the server does not answer", job.id),
    }
}
