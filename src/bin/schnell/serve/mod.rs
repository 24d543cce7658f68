//! `schnell serve`: pictures over HTTP, as OpenAI's images API asks for them, and a page that shows it.
//!
//! One thread, the main one, owns the pipeline and draws (`engine.rs`); a bounded queue stands before it (`queue.rs`), with the times
//! that pictures are expected to take (`times.rs`), and a thread behind it that makes files of pictures. HTTP is on a runtime of its own
//! (`http.rs`), which never waits for the device. What a worker does, too, is in `service`. Reading order: `config.rs`, `refused.rs`,
//! `queue.rs`, `times.rs`, `engine.rs`, `images.rs` (requests and answers), `events.rs` (answers bit by bit), `kept.rs` (what can be asked for again),
//! `metrics.rs`, `http.rs`, `page.rs`.

mod config;
mod engine;
mod events;
mod http;
mod images;
mod kept;
mod metrics;
mod page;
mod queue;
mod refused;
mod times;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schnell::{Error, Result};

use crate::options::{parse_bytes, parse_time};
use crate::service::{DrawingOptions, runtime};
use crate::terminal::say;
use config::Config;
use http::Server;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    drawing: DrawingOptions,
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
    /// Pictures that may wait
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    queue: u16,
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
    let (opened, config) = args.drawing.open(true, |limits| Config::new(args, limits))?;
    let (listener, address) = listen(args)?;
    if !address.ip().is_loopback() && config.keys.is_empty() {
        say(format_args!("warning: whoever reaches {address} can draw: there is no API key"));
    }
    let server = Arc::new(Server::new(config, &opened.plan, address));
    let runtime = runtime("http")?;
    let serving = runtime.spawn(http::serve(listener, server.clone()));
    say(format_args!("listening on http://{address}"));

    let drawn = engine::run(&opened, &server);
    server.finish();
    let served = runtime.block_on(serving);
    // What a connection still does concerns nobody.
    runtime.shutdown_background();
    drawn?;
    served.map_err(|error| Error::Internal(format!("the server's task: {error}")))?;
    say("drained: all that was accepted has been answered");
    Ok(())
}

fn listen(args: &Args) -> Result<(TcpListener, std::net::SocketAddr)> {
    let bound = TcpListener::bind(args.listen).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(Error::io("listen on", args.listen.to_string()))
}
