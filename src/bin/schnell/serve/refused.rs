//! Refusals over HTTP.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::service::refusal::Refusal;

/// After these the connection ends: what else of the request comes is not read.
const CLOSING: [&str; 9] = [
    "body_too_large",
    "draining",
    "invalid_api_key",
    "invalid_body",
    "invalid_idempotency_key",
    "request_timeout",
    "unknown_host",
    "unsupported_encoding",
    "unsupported_media_type",
];

/// The server takes no more, as it is about to end.
pub fn draining() -> Refusal {
    let text =
        "the server is ending and takes no new requests; send it to another, or again once it has started";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "draining", text).retry_after(Duration::from_secs(10))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            // Whole seconds, and none is no wait.
            let seconds = after.as_secs_f64().ceil().clamp(1.0, 86_400.0) as u32;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if CLOSING.contains(&self.code) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Code(self.code));
        response
    }
}

/// Of a response that is a refusal: what is counted.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub &'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_told_in_whole_seconds() {
        let told = |ms| {
            let refusal = Refusal::value("n", "x").retry_after(Duration::from_millis(ms));
            refusal.into_response().headers()[header::RETRY_AFTER].to_str().unwrap().to_string()
        };
        assert_eq!([told(0), told(1000), told(1001), told(u64::MAX)], ["1", "1", "2", "86400"]);
    }
}
