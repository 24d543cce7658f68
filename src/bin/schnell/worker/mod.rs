//! `schnell worker`: draws for whoever asks a NATS server, beside as many other workers as there are.
//!
//! One thread, the main one, owns the pipeline: it fetches a job when it has nothing to draw, and draws it (`draw.rs`). What is said to
//! the server meanwhile (`bus.rs`), the files of pictures and the answer (`answer.rs`) are tasks on a runtime of its own. Reading
//! order: `config.rs`, `job.rs` (what a message asks for), `bus.rs`, `draw.rs`, `answer.rs`, `audit.rs` (nodes look at each other's pictures),
//! `node.rs` (what a node says of itself). docs/scale.md has the protocol, and what happens when what fails.

mod answer;
mod audit;
mod bus;
mod config;
mod draw;
mod job;
mod node;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::Message;
use schnell::{Error, Pipeline, Result};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::options::parse_time;
use crate::service::asked::Asked;
use crate::service::limits::Limits;
use crate::service::refusal::Refusal;
use crate::service::{DrawingOptions, hear, runtime};
use crate::terminal::say;
use audit::Audit;
use bus::{Bus, Next};
use config::{Config, parse_share};
use job::Job;
use node::Node;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    drawing: DrawingOptions,
    /// The NATS server, or several of a cluster with commas between; its password, too: nats://user:password@host:4222, tls://host
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    nats: String,
    /// A file of credentials for the server (.creds)
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// A file of root certificates for the server, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What names of subjects, streams and buckets begin with. Workers of one prefix draw the same jobs, and have to be able to
    #[arg(long, value_name = "NAME", default_value = "schnell")]
    prefix: String,
    /// What this worker is called, unlike any other [default: the host's name and the process's number]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// How long a job may stand still before another worker gets it: more than thrice the longest stage of a picture [default: as it
    /// is, and 30s at first]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    ack_wait: Option<Duration>,
    /// How often a job is begun, when workers are lost over it, before it is given up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    tries: u16,
    /// The share of pictures that another worker draws again, and compares
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = parse_share)]
    audit: f64,
    /// Jobs that may wait; of streams and buckets that are not there yet
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    queue: u32,
    /// How long answers and pictures are kept; of streams and buckets that are not there yet
    #[arg(long, value_name = "TIME", default_value = "86400s", value_parser = parse_time)]
    keep_time: Duration,
    /// On how many servers of a cluster all is kept; of streams and buckets that are not there yet
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: u8,
}

pub fn run(args: &Args) -> Result<()> {
    // All that can be refused is refused before any work.
    let config = Config::new(args)?;
    let (opened, limits) = args.drawing.open(false, Ok)?;
    let runtime = runtime("nats")?;
    let draining = watch::Sender::new(false);
    let (asked, told) = (draining.clone(), draining.clone());
    runtime.spawn(hear(move || *asked.borrow(), move || _ = told.send_replace(true)));
    let mut bus = runtime.block_on(Bus::connect(&config))?;
    say(format_args!("node {} takes jobs from {}", config.node, bus.subject("jobs")));
    let node = Arc::new(Node::new(&config, &opened));
    let keeping = runtime.spawn(node.clone().keep(bus.nodes.clone()));

    let mut begun = Instant::now();
    let mut class = None;
    let mut longest = (String::new(), 0.0);
    let loaded = opened.load(
        || *draining.borrow(),
        |pipeline, shape, output| {
            node.drawn(pipeline, shape, begun.elapsed());
            begun = Instant::now();
            class.get_or_insert_with(|| audit::class(&output.receipt));
            for stage in output.timings.stages.iter() {
                if stage.ms > longest.1 {
                    longest = (stage.stage.clone(), stage.ms);
                }
            }
        },
    );
    let mut pipeline = match loaded {
        // It was told to end.
        Err(Error::Stopped) => return Ok(()),
        loaded => loaded?,
    };
    check_ack_wait(bus.ack_wait, (&longest.0, longest.1))?;
    runtime.block_on(bus.take_audits(&class.unwrap_or_default()))?;
    node.set_state("ready");
    say("ready");
    let worker =
        Worker { runtime: &runtime, bus: Arc::new(bus), node: &node, limits: &limits, config: &config };
    let worked = worker.work(&mut pipeline, &draining);
    keeping.abort();
    // Nothing says any more that it is there.
    let _ = runtime.block_on(keeping);
    runtime.block_on(node.leave(&worker.bus.nodes));
    // What was said last is on its way.
    let _ = runtime.block_on(worker.bus.flush());
    worked?;
    say("drained: all that was taken has been answered");
    Ok(())
}

/// A job that is being drawn says so at each stage.
fn check_ack_wait(ack_wait: Duration, (stage, ms): (&str, f64)) -> Result<()> {
    match ack_wait.as_secs_f64() * 1e3 > 3.0 * ms {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "--ack-wait of {} s is less than three times what `{stage}` took, {ms:.0} ms: jobs would be taken away from whoever draws them; \
             allow more",
            ack_wait.as_secs_f64()
        ))),
    }
}

/// Whether the next picture would meet it, too.
fn is_lasting(error: &Error) -> bool {
    matches!(error, Error::Device { .. } | Error::Poisoned { .. } | Error::Internal(_))
}

struct Worker<'a> {
    runtime: &'a Runtime,
    bus: Arc<Bus>,
    node: &'a Arc<Node>,
    limits: &'a Limits,
    config: &'a Config,
}

impl Worker<'_> {
    /// Draws job after job, until told to drain.
    ///
    /// # Errors
    /// Those of drawing that would come again for every picture, as of the device.
    fn work(&self, pipeline: &mut Pipeline, draining: &watch::Sender<bool>) -> Result<()> {
        // Files and answers of one job may wait while another is drawn.
        let mut behind: Option<JoinHandle<()>> = None;
        let heard = draining.subscribe();
        let mut is_audit_due = true;
        let worked = loop {
            let next = self.runtime.block_on(self.bus.next(&heard, is_audit_due));
            // One at a time, so that jobs go on.
            is_audit_due = !matches!(next, Next::Audit(_));
            match next {
                Next::Drained => break Ok(()),
                Next::Nothing => {}
                Next::Audit(message) => {
                    if let Err(error) = self.audit(pipeline, &message) {
                        break Err(error);
                    }
                }
                Next::Job(job) => {
                    if let Err(error) = self.take(pipeline, job, &mut behind) {
                        break Err(error);
                    }
                }
            }
        };
        if *draining.borrow() {
            self.node.set_state("draining");
        }
        self.wait_for(&mut behind, std::future::pending());
        worked
    }

    /// Until what is behind is answered; `meanwhile` never ends.
    fn wait_for(&self, behind: &mut Option<JoinHandle<()>>, meanwhile: impl Future<Output = ()>) {
        if let Some(task) = behind.take() {
            self.runtime.block_on(async {
                tokio::select! {
                    // Nothing panics in it; if it did, the job comes again.
                    _ = task => {}
                    () = meanwhile => {}
                }
            });
        }
    }

    /// Draws what another node has drawn.
    fn audit(&self, pipeline: &mut Pipeline, message: &Message) -> Result<()> {
        let audit = match Audit::of(message, self.limits) {
            Ok(audit) => audit,
            Err(why) => {
                self.runtime.block_on(audit::drop_it(message, &why));
                return Ok(());
            }
        };
        if audit.is_of(&self.node.name) {
            self.runtime.block_on(audit::leave_to_others(message));
            return Ok(());
        }
        match pipeline.generate(&audit.request) {
            Ok(output) => {
                self.runtime.block_on(audit.end(&self.bus, self.node, message, &output));
                Ok(())
            }
            Err(error) => {
                self.runtime.block_on(audit::drop_it(message, &error.to_string()));
                if is_lasting(&error) { Err(error) } else { Ok(()) }
            }
        }
    }

    fn take(&self, pipeline: &mut Pipeline, job: Job, behind: &mut Option<JoinHandle<()>>) -> Result<()> {
        let job = Arc::new(job);
        if self.runtime.block_on(self.bus.is_answered(&job)) {
            self.runtime.block_on(self.bus.done(&job));
            return Ok(());
        }
        if job.attempt > u64::from(self.config.tries) {
            self.node.count("given_up");
            self.runtime.block_on(answer::give_up(&self.bus, &job, self.config.tries));
            return Ok(());
        }
        let begun = Instant::now();
        let drawn = match Asked::of(&job.body, self.limits, || job.seed()) {
            Err(refusal) => Err(refusal),
            Ok(asked) => match draw::draw(pipeline, &asked, &job, &self.bus, self.runtime) {
                Ok(outputs) => {
                    if let [_] = outputs[..] {
                        self.node.drawn(pipeline, &asked.shape, begun.elapsed());
                    }
                    Ok((asked, outputs))
                }
                Err(error) if is_lasting(&error) => {
                    // The next picture would meet it, too; another worker may draw this one.
                    self.runtime.block_on(self.bus.give_back(&job));
                    return Err(error);
                }
                Err(error) => Err(Refusal::of(&error)),
            },
        };
        self.wait_for(behind, answer::extend(&self.bus, &job));
        let (bus, node, share) = (self.bus.clone(), self.node.clone(), self.config.audit);
        *behind = Some(self.runtime.spawn(answer::answer(bus, node, job, drawn, share)));
        Ok(())
    }
}
