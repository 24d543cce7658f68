//! Nodes look at each other's pictures: a share of them is drawn again elsewhere, on the same kind of machine and with the same model,
//! where every pixel has to be the same.

use async_nats::HeaderMap;
use async_nats::jetstream::message::{AckKind, Message};
use schnell::{Output, Receipt, Request};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::time::Duration;

use super::bus::Bus;
use super::job::{Job, seed};
use super::node::Node;
use crate::service::answer::num_steps;
use crate::service::asked::Asked;
use crate::service::limits::Limits;
use crate::terminal::{hex, say};

/// So long at least, and twice as long at most, a node leaves its own pictures to others before it may be handed them again. Always as
/// long, a node that asks once a second would be there first each time, for ever.
const OTHERS_FIRST: Duration = Duration::from_secs(5);

/// What two pictures of the same request have to have in common to be comparable: 16 hex digits of it.
pub fn class(receipt: &Receipt) -> String {
    let Receipt { model, loras, weights, precision, machine, kernels, .. } = receipt;
    let text = format!("{model}\n{loras}\n{weights}\n{precision}\n{machine}\n{kernels}");
    hex(&Sha256::digest(text)[..8])
}

/// A picture that was drawn, and the request for it.
#[derive(Debug, Serialize, Deserialize)]
struct Wish {
    id: String,
    node: String,
    latents: String,
    pixels: String,
    /// As it came.
    body: String,
}

/// Where it is sent, and what; nothing for a picture that came out otherwise than it was asked for, as in fewer steps.
pub fn wish(bus: &Bus, job: &Job, request: &Request, output: &Output) -> Option<(String, Vec<u8>)> {
    let is_whole = output.estimate.is_none() && request.steps.is_none_or(|asked| asked == num_steps(output));
    let receipt = &output.receipt;
    let wish = Wish {
        id: job.id.clone(),
        node: bus.node.clone(),
        latents: receipt.latents.first().cloned().unwrap_or_default(),
        pixels: receipt.pixels.clone(),
        body: String::from_utf8(job.body.clone()).ok()?,
    };
    let bytes = serde_json::to_vec(&wish).ok()?;
    is_whole.then(|| (format!("audits.{}", class(receipt)), bytes))
}

/// Not worth an answer that is late or missing.
pub async fn send(bus: &Bus, subject: &str, wish: &[u8]) {
    if let Err(error) = bus.publish(subject, HeaderMap::new(), wish).await {
        tracing::warn!("{subject} has not got it: {error}");
    }
}

/// A picture to draw again.
pub struct Audit {
    wish: Wish,
    pub request: Request,
}

impl Audit {
    /// # Errors
    /// For what is no wish, or asks for what cannot be drawn here.
    pub fn of(message: &Message, limits: &Limits) -> Result<Audit, String> {
        let wish: Wish = serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
        let asked = Asked::of(wish.body.as_bytes(), limits, || seed(&wish.id));
        let asked = asked.map_err(|refusal| refusal.body().to_string())?;
        let mut request = asked.requests.into_iter().next().ok_or("no picture is asked for")?;
        // It takes the time that it takes.
        request.deadline = None;
        Ok(Audit { wish, request })
    }

    pub fn is_of(&self, node: &str) -> bool {
        self.wish.node == node
    }

    /// Compares, and tells of what differs.
    pub async fn end(&self, bus: &Bus, node: &Node, message: &Message, output: &Output) {
        node.count("audited");
        let (wish, receipt) = (&self.wish, &output.receipt);
        let latents = receipt.latents.first().cloned().unwrap_or_default();
        if (&wish.pixels, &wish.latents) != (&receipt.pixels, &latents) {
            node.count("disagreed");
            say(format_args!(
                "warning: job {}: node {} drew other pixels than this one, and one of them is wrong; see {}",
                wish.id,
                wish.node,
                bus.subject("disagreed")
            ));
            let told = json!({
                "id": wish.id,
                "machine": receipt.machine,
                "kernels": receipt.kernels,
                "model": receipt.model,
                "drawn": [
                    { "node": wish.node, "latents": wish.latents, "pixels": wish.pixels },
                    { "node": node.name, "latents": latents, "pixels": receipt.pixels },
                ],
                "body": wish.body,
            });
            send(bus, "disagreed", told.to_string().as_bytes()).await;
        }
        acknowledge(message, AckKind::Ack).await;
    }
}

/// It is no wish, or nobody can draw it here.
pub async fn drop_it(message: &Message, why: &str) {
    tracing::warn!("a picture is not drawn again: {why}");
    acknowledge(message, AckKind::Term).await;
}

pub async fn leave_to_others(message: &Message) {
    let delay = OTHERS_FIRST.mul_f64(1.0 + fastrand::f64());
    acknowledge(message, AckKind::Nak(Some(delay))).await;
}

/// What is not heard comes again, and is drawn once more.
async fn acknowledge(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::warn!("a picture that was drawn again: {error}");
    }
}
