//! [`Questions`]: a question to somebody's HTTP server, and its answer.
//!
//! Nothing is kept, and nothing is sent twice (but over another connection where a kept one was closed before anything was written): a question that gets no answer
//! in time is over.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode, header};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::pool::Pool;
use super::target::Target;
use crate::secret::Secret;
use crate::tls::TlsOptions;

/// How long any question may take; who asks has less patience.
const MOST: Duration = Duration::from_secs(60);

/// Asks a server by POST.
#[derive(Debug)]
pub struct Questions {
    target: Target,
    token: Option<Secret>,
    tls: TlsOptions,
    pool: OnceCell<Pool>,
}

impl Questions {
    /// Nothing happens before the first question. The token goes along as `Authorization: Bearer`.
    ///
    /// # Errors
    /// When the URL is none; it isn't repeated.
    pub fn new(url: &str, token: Option<Secret>, tls: TlsOptions) -> Result<Self, String> {
        Ok(Questions { target: Target::new(url)?, token, tls, pool: OnceCell::new() })
    }

    /// Who is asked, without what may be secret.
    pub fn place(&self) -> String {
        self.target.origin.to_string()
    }

    /// Asks; answers the body of 200.
    ///
    /// # Errors
    /// When there is no such answer within `patience`; says why.
    pub async fn ask(&self, content_type: &str, question: Bytes, patience: Duration) -> Result<Bytes, String> {
        match timeout(patience, self.ask_patiently(content_type, question)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{} has not answered in time", self.place())),
        }
    }

    async fn ask_patiently(&self, content_type: &str, question: Bytes) -> Result<Bytes, String> {
        let pool = self.pool.get_or_try_init(|| self.pool()).await?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.target.path)
            .header(header::HOST, &self.target.origin.authority)
            .header(header::CONTENT_TYPE, content_type);
        if let Some(token) = self.token.clone() {
            let read = tokio::task::spawn_blocking(move || token.read()).await.map_err(|e| e.to_string())?;
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", read.map_err(|e| e.to_string())?));
        }
        let request = request.body(Full::new(question)).map_err(|e| format!("{} can't be asked: {e}", self.place()))?;
        let answer = pool.ask(request).await.map_err(|fault| fault.reason)?;
        match answer.status {
            StatusCode::OK => Ok(answer.body),
            status => Err(format!("{} has answered {status}", self.place())),
        }
    }

    async fn pool(&self) -> Result<Pool, String> {
        let tls = match self.target.origin.is_https {
            true => Some(Arc::new(self.tls.load().await.map_err(|error| error.to_string())?)),
            false => None,
        };
        Ok(Pool::new(self.target.origin.clone(), tls, MOST))
    }
}
