//! Errors as problem objects (RFC 9457), so that a script can read them and a person, too.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An answer that says what went wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    /// Further members of the object.
    more: serde_json::Map<String, serde_json::Value>,
    retry_after_seconds: Option<u32>,
}

impl Problem {
    /// With this status; `detail` says what was wrong, where, and what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem { status, detail: detail.into(), more: serde_json::Map::new(), retry_after_seconds: None }
    }

    /// 400: it can't be read.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 401: it isn't known who asks. The answer says that a token is wanted.
    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// 403: the caller may not do that.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::FORBIDDEN, detail)
    }

    /// 503: not now; the client may try again after so many seconds.
    pub fn unavailable(detail: impl Into<String>, retry_after_seconds: u32) -> Self {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        Problem { retry_after_seconds: Some(retry_after_seconds), ..problem }
    }

    /// Adds a member to the object.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.more.insert(name.into(), value.into());
        self
    }

    /// Replaces the detail.
    #[must_use]
    pub(crate) fn with_detail(mut self, detail: String) -> Self {
        self.detail = detail;
        self
    }

    /// What is wrong, where, and what to do.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut object = json!({
            "title": self.status.canonical_reason().unwrap_or("error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(self.more);
        }
        let mut response = (self.status, format!("{object}\n")).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"hookbus\""));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
