//! `schnell serve`: pictures over HTTP, as OpenAI's images API asks for them, and a page that shows it.
//!
//! One thread, the main one, owns the pipeline and draws (`engine.rs`); a bounded queue stands before it (`queue.rs`), with the times
//! that pictures are expected to take (`times.rs`), and a thread behind it that makes files of pictures. HTTP is on a runtime of its own
//! (`http.rs`), which never waits for the device. Reading order: `config.rs`, `refusal.rs`, `queue.rs`, `times.rs`, `engine.rs`,
//! `asked.rs` (bodies of requests), `images.rs` (answers), `events.rs` (answers bit by bit), `kept.rs` (what can be asked for again),
//! `metrics.rs`, `http.rs`, `page.rs`.

mod asked;
mod config;
mod engine;
mod events;
mod http;
mod images;
mod kept;
mod metrics;
mod page;
mod queue;
mod refusal;
mod times;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schnell::{Error, Pipeline, PipelineConfig, Plan, Result, Shape};

use crate::options::{DeviceOption, PlanOptions, check_disk, parse_bytes, parse_time};
use crate::terminal::say;
use config::{Config, Size, parse_size};
use http::Server;

/// Signals that drain the server rather than end the process.
pub const HEARD: [i32; 2] = [libc::SIGTERM, libc::SIGINT];

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanOptions,
    /// A further size that pictures may have, planned and made ready; as often as there are sizes. Any smaller one is drawn, too, bound when it
    /// first comes
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_size)]
    size: Vec<Size>,
    /// Plan for negative prompts, too
    #[arg(long)]
    negative_prompts: bool,
    /// A folder for weights as the device holds them, as for `generate`
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// auto, cuda:N or emulator
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
    /// A file of the times that pictures take on this machine, by which deadlines are judged, as for `generate`. Without it they are learnt from
    /// the pictures that are drawn
    #[arg(long, value_name = "FILE.json")]
    calibrate: Option<PathBuf>,
    /// Launch kernel by kernel, and not CUDA graphs
    #[arg(long)]
    no_graphs: bool,
    /// Where to listen; port 0 takes any that is free, and says which
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: std::net::SocketAddr,
    /// A file with a key a line, one of which every request for /v1 must then bring (`Authorization: Bearer KEY`); or one key in the
    /// environment variable SCHNELL_API_KEY
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// A name that the server is asked by, beside addresses and localhost; as often as it has names. `any` takes all
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// What links to pictures begin with [default: http:// and the request's Host]
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// What the model is called; the first of several is what /v1/models says, the others are taken, too [default: by --model]
    #[arg(long, value_name = "NAME")]
    model_name: Vec<String>,
    /// Pictures that may wait
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue: u16,
    /// Pictures of one request
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    max_n: u16,
    /// Steps of one picture [default: 50, or those of --steps if more]
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
    /// Characters of a prompt
    #[arg(long, value_name = "N", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_prompt: u32,
    /// Bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value = "64KiB", value_parser = parse_bytes)]
    max_body: u64,
    /// Connections at once; more wait to be taken
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connections: u32,
    /// How long a client may take for a request's headers, for its body, and for taking what it is sent
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    timeout: Duration,
    /// Memory for pictures that were answered by a link; and as much once more for those of requests with an idempotency key
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = parse_bytes)]
    keep: u64,
    /// How long these are kept
    #[arg(long, value_name = "TIME", default_value = "3600s", value_parser = parse_time)]
    keep_time: Duration,
}

pub fn run(args: &Args) -> Result<()> {
    // All that can be refused is refused before any work.
    let folder = args.plan.model.folder()?;
    let model_config = args.plan.model.config(&folder)?;
    let (plan, shapes) = plan(args, &model_config)?;
    let config = Config::new(args, &model_config, &shapes)?;
    let (device, note) = args.device.open(&plan, 1)?;
    let plan = plan.on(device.capability())?;
    let model = args.plan.model.model(&folder)?;
    for warning in model.warnings() {
        say(format_args!("warning: {warning}"));
    }
    note.into_iter().for_each(say);
    let (listener, address) = listen(args)?;
    if !address.ip().is_loopback() && config.keys.is_empty() {
        say(format_args!("warning: whoever reaches {address} can draw: there is no API key"));
    }
    let server = Arc::new(Server::new(config, &plan, address));
    let runtime = http::runtime()?;
    let serving = runtime.spawn(http::serve(listener, server.clone()));
    say(format_args!("listening on http://{address}"));

    let mut builder = Pipeline::builder(&model).with_plan(plan).device(&device).graphs(!args.no_graphs);
    if let Some(cache) = &args.cache {
        builder = builder.cache(cache);
    }
    if let Some(file) = &args.calibrate {
        builder = builder.calibrate(file);
    }
    let drawn = engine::run(builder, &shapes, &server);
    server.finish();
    let served = runtime.block_on(serving);
    // What a connection still does concerns nobody.
    runtime.shutdown_background();
    drawn?;
    served.map_err(|error| Error::Internal(format!("the server's task: {error}")))?;
    say("drained: all that was accepted has been answered");
    Ok(())
}

/// For all sizes, and for the largest in as many steps as may be; and what is made ready before the first request.
fn plan(args: &Args, config: &PipelineConfig) -> Result<(Plan, Vec<Shape>)> {
    let first = args.plan.shape(config, false);
    let mut shapes = vec![first];
    for Size { width, height } in &args.size {
        shapes.push(Shape::new(*width, *height).steps(first.steps).t5_length(first.t5_length));
    }
    if args.negative_prompts {
        let with: Vec<Shape> = shapes.iter().map(|shape| shape.true_cfg()).collect();
        shapes.extend(with);
    }
    let mut plan = args.plan.plan_for(config, first)?;
    let most = Config::most_steps(args, first.steps)?;
    let largest = shapes.iter().max_by_key(|shape| (shape.width * shape.height, shape.true_cfg)).copied();
    let with_most = largest.map(|shape| shape.steps(most));
    for shape in shapes.iter().skip(1).chain(&with_most) {
        shape.check(config)?;
        plan = plan.with_shape(*shape)?;
    }
    let plan = args.plan.budgets.within_budget(plan)?;
    check_disk(&plan, args.cache.as_deref())?;
    Ok((plan, shapes))
}

fn listen(args: &Args) -> Result<(TcpListener, std::net::SocketAddr)> {
    let bound = TcpListener::bind(args.listen).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(Error::io("listen on", args.listen.to_string()))
}
