//! What a client is told instead of a picture: OpenAI's error object, with a status that says who can act.

use std::time::Duration;

use http::StatusCode;
use schnell::Error;
use serde_json::{Value, json};

/// One status, one code, one sentence that says what to do.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: StatusCode,
    /// For programs, and the label of the metric; docs/serve.md lists all.
    pub code: &'static str,
    message: String,
    /// Which field of the request.
    param: Option<String>,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// A field of the request with a value that cannot be.
    pub fn value(param: &str, message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message).param(param)
    }

    pub fn param(self, param: &str) -> Refusal {
        Refusal { param: Some(param.to_string()), ..self }
    }

    /// When it may be otherwise.
    pub fn retry_after(self, after: Duration) -> Refusal {
        Refusal { retry_after: Some(after), ..self }
    }

    /// What the library said of a picture.
    pub fn of(error: &Error) -> Refusal {
        let text = error.to_string();
        let (status, code) = match error {
            Error::Input(_) => (StatusCode::BAD_REQUEST, "invalid_value"),
            Error::Capacity { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "image_too_large"),
            Error::Deadline { .. } => (StatusCode::SERVICE_UNAVAILABLE, "deadline_exceeded"),
            Error::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
            Error::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, "unsupported"),
            Error::Weights { .. } | Error::NotFinite { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "model_failed")
            }
            Error::Device { .. } | Error::Poisoned { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "device_failed")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        let refusal = Refusal::new(status, code, text);
        match error {
            Error::Deadline { needed, deadline, .. } => {
                refusal.param("deadline_ms").retry_after(needed.saturating_sub(*deadline))
            }
            _ => refusal,
        }
    }

    /// By OpenAI's words.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// `{"error": {"message": .., "type": .., "param": .., "code": ..}}`
    pub fn body(&self) -> Value {
        let Refusal { message, param, code, .. } = self;
        json!({ "error": { "message": message, "type": self.kind(), "param": param, "code": code } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_picture_says_which_field_and_when() {
        let (needed, deadline) = (Duration::from_secs(5), Duration::from_secs(2));
        let refusal = Refusal::of(&Error::Deadline { when: "before step 3".to_string(), needed, deadline });
        assert_eq!((refusal.status.as_u16(), refusal.code), (503, "deadline_exceeded"));
        assert_eq!(refusal.body()["error"]["param"], "deadline_ms");
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(3)));
    }
}
