//! What a message asks for.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::message::{Acker, Message};
use sha2::{Digest, Sha256};

use super::config::is_name;

/// Of a message: how it is called.
pub const ID: &str = "Nats-Msg-Id";

/// One request that was fetched.
pub struct Job {
    /// What its answer is found by.
    pub id: String,
    /// Why the id is not the one that it came with.
    pub renamed: bool,
    /// From 1.
    pub attempt: u64,
    /// Since it was sent, when it was fetched; by the clocks of server and node.
    age: Duration,
    fetched: Instant,
    pub body: Vec<u8>,
    pub acker: Acker,
}

impl Job {
    /// Nothing for what has not come from a stream.
    pub fn of(message: Message) -> Option<Job> {
        let info = message.info().ok()?;
        let (attempt, sequence) = (u64::try_from(info.delivered).ok()?, info.stream_sequence);
        let sent = info.published.unix_timestamp_nanos();
        let given = message.headers.as_ref().and_then(|headers| headers.get(ID)).map(|id| id.as_str());
        let known = given.filter(|id| is_name(id)).map(str::to_string);
        // Both together come once, even if a stream begins anew.
        let id = known.clone().unwrap_or_else(|| format!("{sequence}-{}", sent / 1_000_000));
        let renamed = given.is_some() && known.is_none();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128);
        let age = Duration::from_nanos(u64::try_from(now - sent).unwrap_or(0));
        let (message, acker) = message.split();
        let body = message.payload.to_vec();
        Some(Job { id, renamed, attempt, age, fetched: Instant::now(), body, acker })
    }

    /// From when it was sent to when it was fetched.
    pub fn waited(&self) -> Duration {
        self.age
    }

    /// Since it was sent.
    pub fn age(&self) -> Duration {
        self.age + self.fetched.elapsed()
    }

    /// Of a request that says none: the same whoever draws it, and however often.
    pub fn seed(&self) -> u64 {
        seed(&self.id)
    }
}

/// Bytes that tell ids apart, and what is wanted of them.
fn digest(what: &str, id: &str) -> [u8; 32] {
    Sha256::new().chain_update(what).chain_update(id).finalize().into()
}

/// 32 bits of a job's id.
pub fn seed(id: &str) -> u64 {
    let bytes = digest("seed of ", id);
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into()
}

/// Whether a job is of the share that is drawn again.
pub fn is_sampled(id: &str, share: f64) -> bool {
    let bytes = digest("audit of ", id);
    let number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    f64::from(number) < share * 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_its_seed_and_jobs_have_others() {
        assert_eq!(seed("a"), seed("a"));
        assert_ne!(seed("a"), seed("b"));
        assert!(seed("a") <= u32::MAX.into());
    }

    #[test]
    fn shares_are_drawn_evenly() {
        let of = |share| (0..10_000).filter(|i| is_sampled(&i.to_string(), share)).count();
        assert_eq!((of(0.0), of(1.0)), (0, 10_000));
        assert!((60..=140).contains(&of(0.01)), "{}", of(0.01));
    }
}
