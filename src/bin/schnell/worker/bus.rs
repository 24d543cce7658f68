//! The server, as far as a worker needs it: streams of jobs, answers and what was given up; buckets of pictures and nodes.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{AckKind, Message, PublishMessage};
use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context, kv};
use futures_util::StreamExt;
use schnell::{Error, Result};
use serde_json::Value;
use tokio::sync::watch;

use super::config::Config;
use super::job::{ID, Job};

/// So long the server holds a wish for a job before it says that there is none.
const WISH: Duration = Duration::from_secs(2);
/// So long is tried again what the server does not take, as while it starts again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Jobs of which the server knows that they came before.
const DUPLICATES: Duration = Duration::from_secs(600);
/// What was given up is kept for a person to look at.
const KEEP_DEAD: Duration = Duration::from_secs(7 * 86_400);
/// Pictures that nobody has drawn again by then are not.
const KEEP_AUDITS: Duration = Duration::from_secs(3600);
const MOST_AUDITS: i64 = 1000;
/// How long a job may stand still where nobody has said.
const ACK_WAIT: Duration = Duration::from_secs(30);

pub struct Bus {
    context: Context,
    prefix: String,
    pub node: String,
    jobs: Consumer<pull::Config>,
    results: Stream,
    audit_stream: Stream,
    /// Of this kind of node; nothing before that is known.
    audits: Option<Consumer<pull::Config>>,
    pictures: ObjectStore,
    pub nodes: kv::Store,
    /// How long a job may stand still.
    pub ack_wait: Duration,
}

/// What there is to do.
pub enum Next {
    Job(Job),
    /// A picture to draw again.
    Audit(Message),
    Nothing,
    /// Nothing more is taken.
    Drained,
}

/// Who has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Here,
    /// Another worker, or this one at another attempt, came first.
    Elsewhere,
}

/// What the server did not do, for a message.
fn failed(what: impl Display) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |error| Error::Network(format!("{what}: {error}"))
}

impl Bus {
    /// Connects, and makes the streams and buckets that are not there.
    ///
    /// # Errors
    /// [`Error::Network`] if no server is there, or does not do what it should; [`Error::Unsupported`] if a stream is of another kind;
    /// [`Error::Io`] for files of certificates and credentials.
    pub async fn connect(config: &Config) -> Result<Bus> {
        let mut options = async_nats::ConnectOptions::new().name(format!("schnell worker {}", config.node));
        if let Some(file) = &config.credentials {
            options = options.credentials_file(file).await.map_err(Error::io("read", file))?;
        }
        if let Some(file) = &config.ca {
            std::fs::File::open(file).map_err(Error::io("read", file))?;
            options = options.add_root_certificates(file.clone());
        }
        let client = options.connect(config.servers.as_slice()).await.map_err(|error| {
            let places = config.places();
            Error::Network(format!("no NATS server at {places}: {error}; start one (`nats-server --jetstream`), or say where with --nats"))
        })?;
        let context = jetstream::new(client);
        context.query_account().await.map_err(|error| {
            Error::Unsupported(format!(
                "the NATS server keeps no streams: {error}; start it with --jetstream"
            ))
        })?;
        let prefix = &config.prefix;
        let streams = Streams { context: &context, config };
        let jobs = streams.jobs().await?;
        let consumer = streams.consumer(&jobs).await?;
        let ack_wait = consumer.cached_info().config.ack_wait;
        Ok(Bus {
            prefix: prefix.clone(),
            node: config.node.clone(),
            jobs: consumer,
            results: streams.results().await?,
            audit_stream: streams.audits().await?,
            audits: None,
            pictures: streams.pictures().await?,
            nodes: streams.nodes().await?,
            ack_wait,
            context,
        })
    }

    pub fn subject(&self, of: &str) -> String {
        format!("{}.{of}", self.prefix)
    }

    /// From now on pictures of this class are drawn again.
    pub async fn take_audits(&mut self, class: &str) -> Result<()> {
        let config = pull::Config {
            durable_name: Some(class.to_string()),
            filter_subject: self.subject(&format!("audits.{class}")),
            ack_policy: AckPolicy::Explicit,
            // Whoever draws it says nothing meanwhile.
            ack_wait: KEEP_AUDITS / 6,
            max_deliver: -1,
            inactive_threshold: KEEP_AUDITS,
            ..Default::default()
        };
        let consumer = self.audit_stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| failed("a consumer of audits")(error.into()))?;
        self.audits = Some(consumer);
        Ok(())
    }

    /// What there is to do, within a short time: a picture to draw again if that is due, and a job otherwise. Nothing that is taken is lost.
    pub async fn next(&self, draining: &watch::Receiver<bool>, is_audit_due: bool) -> Next {
        if *draining.borrow() {
            return Next::Drained;
        }
        if let Some(audits) = self.audits.as_ref().filter(|_| is_audit_due)
            && let Ok(mut batch) = audits.fetch().max_messages(1).messages().await
            && let Some(Ok(message)) = batch.next().await
        {
            return Next::Audit(message);
        }
        let wish = async {
            let mut batch = self.jobs.batch().max_messages(1).expires(WISH).messages().await.ok()?;
            batch.next().await
        };
        // The server answers in time, if it is there.
        match tokio::time::timeout(WISH * 3, wish).await {
            // Also of one that is draining by now: given back, it would have been tried once in vain.
            Ok(Some(Ok(message))) => Job::of(message).map_or(Next::Nothing, Next::Job),
            Ok(Some(Err(error))) => {
                tracing::warn!("no job: {error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
                Next::Nothing
            }
            // None within that time, or no server: the client connects again by itself.
            Ok(None) | Err(_) => {
                if self.context.client().connection_state() != async_nats::connection::State::Connected {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Next::Nothing
            }
        }
    }

    /// Whether somebody has answered it: a worker that was thought lost.
    pub async fn is_answered(&self, job: &Job) -> bool {
        self.answer_of(&job.id).await.is_ok_and(|answer| answer.is_some())
    }

    /// The answer that is there, once the server can say.
    async fn answer_of(&self, id: &str) -> Result<Option<Value>> {
        let subject = self.subject(&format!("results.{id}"));
        again("look for an answer", || async {
            match self.results.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => Ok(Some(serde_json::from_slice(&message.payload).unwrap_or_default())),
                Err(error) if error.kind() == stream::LastRawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// The first answer to a job is the answer; `answer` has its `node` and `attempt`.
    ///
    /// # Errors
    /// [`Error::Network`] if the server takes none for a minute.
    pub async fn answer(&self, id: &str, answer: &Value) -> Result<Answered> {
        let subject = self.subject(&format!("results.{id}"));
        let published = again("answer", || async {
            let message = PublishMessage::build().payload(answer.to_string().into()).message_id(id);
            let message = message.expected_last_subject_sequence(0);
            let sent = self.context.send_publish(subject.clone(), message).await;
            let taken = match sent {
                Ok(taken) => taken.await,
                Err(error) => Err(error),
            };
            match taken {
                Ok(taken) => Ok(!taken.duplicate),
                // There is one: this node's own, if the server has taken it and could not say so.
                Err(error) if is_refused(&error) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await?;
        if published {
            return Ok(Answered::Here);
        }
        let there = self.answer_of(id).await?.unwrap_or_default();
        let is_ours = ["node", "attempt"].iter().all(|field| there[field] == answer[field]);
        Ok(if is_ours { Answered::Here } else { Answered::Elsewhere })
    }

    /// A copy of the job for a person to look at, with why it was given up; once, however often it is told.
    pub async fn bury(&self, job: &Job, reason: &str) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert(ID, job.id.as_str());
        headers.insert("Schnell-Reason", reason);
        headers.insert("Schnell-Node", self.node.as_str());
        headers.insert("Schnell-Attempts", job.attempt.to_string().as_str());
        self.publish("dead", headers, &job.body).await
    }

    /// Takes it to a stream.
    pub async fn publish(&self, to: &str, headers: HeaderMap, body: &[u8]) -> Result<()> {
        let subject = self.subject(to);
        again("publish", || async {
            let body = body.to_vec().into();
            self.context.publish_with_headers(subject.clone(), headers.clone(), body).await?.await.map(|_| ())
        })
        .await
    }

    /// For whoever listens; nobody may.
    pub async fn tell(&self, id: &str, progress: &Value) {
        let subject = self.subject(&format!("progress.{id}"));
        let _ = self.context.client().publish(subject, progress.to_string().into()).await;
    }

    /// Puts a picture under a name that no other attempt has.
    pub async fn put(&self, name: &str, file: &[u8]) -> Result<()> {
        again("put a picture", || async {
            let mut reader = file;
            self.pictures.put(name, &mut reader).await.map(|_| ())
        })
        .await
    }

    /// What no answer names.
    pub async fn remove(&self, name: &str) {
        if let Err(error) = self.pictures.delete(name).await {
            tracing::warn!("a picture that nobody needs stays until it is old: {error}");
        }
    }

    /// It has been answered: it does not come again. Until the server has heard so.
    pub async fn done(&self, job: &Job) {
        let done = again("acknowledge", || async {
            job.acker.double_ack().await.map_err(|error| error.to_string())
        });
        if let Err(error) = done.await {
            // It comes again, and is found to be answered.
            tracing::warn!("job {}: {error}", job.id);
        }
    }

    /// Another worker shall have it.
    pub async fn give_back(&self, job: &Job) {
        if let Err(error) = job.acker.ack_with(AckKind::Nak(None)).await {
            tracing::warn!("job {} comes again when its time is over: {error}", job.id);
        }
        let _ = self.flush().await;
    }

    pub async fn flush(&self) -> Result<()> {
        self.context.client().flush().await.map_err(|error| failed("flush")(error.into()))
    }
}

/// Whether the stream does not take a second answer.
fn is_refused(error: &jetstream::context::PublishError) -> bool {
    matches!(error.kind(), PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId)
}

/// Calls until it works, for a minute.
async fn again<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut call: impl FnMut() -> F,
) -> Result<T> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        match call().await {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > PATIENCE => {
                return Err(Error::Network(format!("{what}: {error}")));
            }
            Err(error) => tracing::warn!("{what}: {error}; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Makes what is not there. What is there stays as its owner wants it, if it can do.
struct Streams<'a> {
    context: &'a Context,
    config: &'a Config,
}

impl Streams<'_> {
    fn name(&self, of: &str) -> String {
        format!("{}-{of}", self.config.prefix)
    }

    async fn stream(&self, of: &str, subject: &str, more: stream::Config) -> Result<Stream> {
        let retention = more.retention;
        let config = stream::Config {
            name: self.name(of),
            subjects: vec![format!("{}.{subject}", self.config.prefix)],
            num_replicas: self.config.replicas,
            ..more
        };
        let stream = self.context.get_or_create_stream(config).await;
        let stream = stream.map_err(|error| failed(format!("the stream {}", self.name(of)))(error.into()))?;
        match stream.cached_info().config.retention == retention {
            true => Ok(stream),
            false => Err(Error::Unsupported(format!(
                "the stream {} keeps messages otherwise than workers need it ({retention:?}); delete it, or choose another --prefix",
                self.name(of)
            ))),
        }
    }

    async fn jobs(&self) -> Result<Stream> {
        let config = stream::Config {
            retention: RetentionPolicy::WorkQueue,
            max_messages: self.config.queue,
            // Whoever sends is told that there is no room.
            discard: DiscardPolicy::New,
            duplicate_window: DUPLICATES,
            allow_message_ttl: true,
            ..Default::default()
        };
        self.stream("jobs", "jobs", config).await
    }

    async fn consumer(&self, jobs: &Stream) -> Result<Consumer<pull::Config>> {
        const NAME: &str = "workers";
        let there = jobs.consumer_info(NAME).await.ok();
        let ack_wait = match (self.config.ack_wait, &there) {
            (Some(wait), _) => wait,
            (None, Some(info)) => info.config.ack_wait,
            (None, None) => ACK_WAIT,
        };
        let config = pull::Config {
            durable_name: Some(NAME.to_string()),
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            // Workers count, and bury what has been tried too often.
            max_deliver: -1,
            max_ack_pending: -1,
            max_waiting: 100_000,
            ..Default::default()
        };
        let consumer = jobs.create_consumer(config).await;
        consumer.map_err(|error| failed("the consumer of jobs")(error.into()))
    }

    async fn results(&self) -> Result<Stream> {
        let config = stream::Config {
            max_age: self.config.keep_time,
            // No answer takes another's place.
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            duplicate_window: DUPLICATES.min(self.config.keep_time),
            ..Default::default()
        };
        self.stream("results", "results.*", config).await
    }

    async fn audits(&self) -> Result<Stream> {
        let config = stream::Config {
            retention: RetentionPolicy::WorkQueue,
            max_age: KEEP_AUDITS,
            max_messages: MOST_AUDITS,
            ..Default::default()
        };
        let audits = self.stream("audits", "audits.*", config).await?;
        let dead = stream::Config { max_age: KEEP_DEAD, duplicate_window: DUPLICATES, ..Default::default() };
        self.stream("dead", "dead", dead.clone()).await?;
        self.stream("disagreed", "disagreed", dead).await?;
        Ok(audits)
    }

    async fn pictures(&self) -> Result<ObjectStore> {
        let bucket = self.name("pictures");
        if let Ok(there) = self.context.get_object_store(&bucket).await {
            return Ok(there);
        }
        let config = object_store::Config {
            bucket,
            description: Some("pictures that workers have drawn".to_string()),
            max_age: self.config.keep_time,
            num_replicas: self.config.replicas,
            ..Default::default()
        };
        let made = self.context.create_object_store(config).await;
        made.map_err(|error| failed("the bucket of pictures")(error.into()))
    }

    async fn nodes(&self) -> Result<kv::Store> {
        let bucket = self.name("nodes");
        if let Ok(there) = self.context.get_key_value(&bucket).await {
            return Ok(there);
        }
        let config = kv::Config {
            bucket,
            description: "workers, and what they can".to_string(),
            history: 1,
            max_age: super::node::LOST,
            num_replicas: self.config.replicas,
            ..Default::default()
        };
        let made = self.context.create_key_value(config).await;
        made.map_err(|error| failed("the bucket of nodes")(error.into()))
    }
}
