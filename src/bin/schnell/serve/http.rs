//! HTTP/1.1: connections and their bounds, who may ask, which path is what, and how all of it ends.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use schnell::{Plan, Result};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::config::Config;
use super::kept::{Kept, Repeats};
use super::metrics::Metrics;
use super::queue::{Phase, Queue};
use super::refused::Code;
use super::times::Times;
use super::{images, page};
use crate::service::refusal::Refusal;
use crate::service::{hear, now};
use crate::terminal::say;

/// Bytes of a request's line and headers together.
const MOST_HEADERS: usize = 32 << 10;

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    pub config: Config,
    pub queue: Queue,
    pub times: Times,
    pub metrics: Metrics,
    pub kept: Kept,
    pub repeats: Repeats,
    /// Seconds since 1970.
    pub started: u64,
    address: SocketAddr,
    /// Whether all that was accepted has been drawn.
    finished: watch::Sender<bool>,
}

impl Server {
    pub fn new(config: Config, plan: &Plan, address: SocketAddr) -> Server {
        Server {
            queue: Queue::new(config.queue),
            times: Times::default(),
            metrics: Metrics::new(plan, config.queue),
            kept: Kept::new(config.keep, config.keep_time),
            repeats: Repeats::new(config.keep, config.keep_time),
            started: now(),
            address,
            finished: watch::Sender::new(false),
            config,
        }
    }

    /// Nothing more will be drawn.
    pub fn finish(&self) {
        self.queue.drain();
        self.finished.send_replace(true);
    }

    /// What links to this server begin with.
    pub fn base(&self, headers: &HeaderMap) -> String {
        let host = || headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_string);
        match &self.config.public_url {
            Some(url) => url.clone(),
            None => format!("http://{}", host().unwrap_or_else(|| self.address.to_string())),
        }
    }

    /// Whether the request is meant for this server. Under a name that is not its own a page of somebody else, whose name leads to this
    /// machine, could ask in its visitors' name.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if !self.address.ip().is_loopback() && self.config.hosts.is_empty() {
            return Ok(());
        }
        // No browser leaves it out.
        let Some(given) = headers.get(header::HOST) else { return Ok(()) };
        let authority = given.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        let name = authority.as_ref().map(|authority| authority.host().to_ascii_lowercase());
        let is_ours = name.is_some_and(|name| {
            let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            let known = self.config.hosts.iter().any(|host| *host == name || host == "any");
            known || name == "localhost" || address.is_ok()
        });
        match is_ours {
            true => Ok(()),
            false => {
                let text = "this server does not go by that name; ask it by its address, or start it with --host NAME";
                Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", text))
            }
        }
    }

    /// Whether one of the keys came with it.
    fn check_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let keys = &self.config.keys;
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given.and_then(|value| value.split_once(' '));
        let key = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
        if keys.is_empty() || key.is_some_and(|key| keys.has(key)) {
            return Ok(());
        }
        let text = "this server wants an API key: Authorization: Bearer KEY";
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", text))
    }
}

/// The whole body, which may neither be longer than allowed nor take longer to come.
pub async fn read_body(config: &Config, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let most = config.most_body;
    let too_large = || {
        let text =
            format!("a body of more than {most} bytes; shorten it, or start the server with --max-body");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text)
    };
    // What says beforehand that it is too long is not read at all.
    let is_announced = body.size_hint().lower() > most as u64;
    let encoding = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity");
    if encoding.is_some() {
        let text = "a body in a Content-Encoding; send it as it is";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", text));
    }
    if is_announced {
        return Err(too_large());
    }
    let read = tokio::time::timeout(config.timeout, Limited::new(body, most).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => {
            let text = "the body could not be read: it is shorter than was said, or no chunks";
            Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_body", text))
        }
        Err(_) => {
            let text = format!("the body took longer than {} s to come", config.timeout.as_secs_f64());
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", text))
        }
    }
}

fn router(server: &Arc<Server>) -> Router {
    let with_key = Router::new()
        .route("/v1/images/generations", post(images::generations))
        .route("/v1/models", get(images::models))
        .route("/v1/models/{name}", get(images::model_named))
        .route_layer(from_fn_with_state(server.clone(), check_key));
    Router::new()
        .merge(with_key)
        // Whoever has the name has the picture.
        .route("/v1/images/{file}", get(images::file))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(page::router())
        .fallback(|| async {
            let text = "there is nothing here; docs/serve.md lists the paths";
            Refusal::new(StatusCode::NOT_FOUND, "unknown_path", text)
        })
        .method_not_allowed_fallback(|method: Method| async move {
            let text =
                format!("this path does not take {}", method.as_str().chars().take(32).collect::<String>());
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
        })
        .layer(from_fn_with_state(server.clone(), around))
        .with_state(server.clone())
}

async fn readyz(State(server): State<Arc<Server>>) -> (StatusCode, &'static str) {
    match server.queue.phase() {
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], server.metrics.text(&server))
}

async fn check_key(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    match server.check_key(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Around all that is answered: whose name was asked for, what browsers may make of it, and the count.
async fn around(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_string());
    let begun = Instant::now();
    let endpoint = path.unwrap_or_else(|| "none".to_string());
    let mut response = match server.check_host(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let status = response.status().as_u16();
    server.metrics.answered_http(&endpoint, status);
    if let Some(code) = response.extensions().get::<Code>() {
        server.metrics.refused(*code);
        tracing::info!(endpoint, status, code = code.0, ms = begun.elapsed().as_millis() as u64, "refused");
    } else {
        tracing::info!(endpoint, status, ms = begun.elapsed().as_millis() as u64, "answered");
    }
    response
}

/// Takes connections until all that was accepted has been answered.
pub async fn serve(listener: TcpListener, server: Arc<Server>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            say(format_args!("error: cannot listen: {error}"));
            return server.queue.drain();
        }
    };
    let (asked, told) = (server.clone(), server.clone());
    tokio::spawn(hear(move || asked.queue.phase() == Phase::Draining, move || told.queue.drain()));
    let app = router(&server);
    let permits = Arc::new(Semaphore::new(server.config.connections));
    let mut finished = server.finished.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let taken = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let taken = tokio::select! {
            _ = finished.wait_for(|finished| *finished) => break,
            taken = taken => taken,
        };
        match taken {
            Some((permit, Ok((stream, _)))) => {
                _ = connections.spawn(connection(stream, app.clone(), server.clone(), permit));
            }
            // As where there are no file descriptors left: some will be.
            Some((_, Err(_))) => tokio::time::sleep(Duration::from_millis(50)).await,
            None => break,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    // Whoever does not take an answer by then does not want it.
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(server.config.timeout, all).await;
}

async fn connection(stream: TcpStream, app: Router, server: Arc<Server>, permit: OwnedSemaphorePermit) {
    server.metrics.connections.inc();
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    // Reads wait as long as pictures take; how long headers and bodies may is watched elsewhere.
    stream.set_write_timeout(Some(server.config.timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(server.config.timeout)
        .max_buf_size(MOST_HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(app));
    let mut connection = pin!(connection);
    let mut finished = server.finished.subscribe();
    // What went wrong with a connection its client knows.
    let is_done = tokio::select! {
        _ = connection.as_mut() => true,
        _ = finished.wait_for(|finished| *finished) => false,
    };
    if !is_done {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
    server.metrics.connections.dec();
    drop(permit);
}
