//! HTTP with retries: a request that may pass is repeated, one that will not is an error at once.

use std::time::Duration;

use serde_json::Value;

use crate::recipe::Remote;
use crate::{Error, Result};
use command::endpoint::{HttpResponse, TEACHER};
use command::interrupt::Interrupt;
use command::progress::Progress;

/// The first pause before a request is repeated; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer, whatever the server requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One server.
pub(super) struct TeacherClient {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    retries: u32,
    interrupt: Interrupt,
    progress: Progress,
}

impl TeacherClient {
    /// # Errors
    /// A key file that cannot be read, or has no key; the same of one with certificates.
    pub(super) fn new(remote: &Remote, interrupt: Interrupt, progress: Progress) -> Result<Self> {
        let key = remote.api_key_file.as_deref().map(|path| TEACHER.key(path)).transpose()?;
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(remote.timeout_s)))
            .http_status_as_error(false)
            .max_idle_connections_per_host(remote.concurrency)
            .tls_config(TEACHER.tls(remote.ca_file.as_deref())?)
            .build()
            .into();
        Ok(Self { agent, url: remote.url.clone(), key, retries: remote.retries, interrupt, progress })
    }

    /// An error of this server's.
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        Error::Teacher { url: self.url.clone(), what: what.into() }
    }

    /// `most`: bytes of the answer; the same below.
    pub(super) fn get(&self, path: &str, query: Option<(&str, &str)>, most: u64) -> Result<HttpResponse> {
        self.send_with_retries(path, most, || {
            let request =
                query.into_iter().fold(self.agent.get(format!("{}{path}", self.url)), |request, (name, value)| {
                    request.query(name, value)
                });
            self.authorized(request).call()
        })
    }

    pub(super) fn post(&self, path: &str, body: &Value, most: u64) -> Result<HttpResponse> {
        let body = body.to_string();
        self.send_with_retries(path, most, || {
            let request = self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
            self.authorized(request).send(body.as_bytes())
        })
    }

    /// The JSON of an answer.
    pub(super) fn json(&self, path: &str, answer: &HttpResponse) -> Result<Value> {
        serde_json::from_slice(&answer.body).map_err(|e| self.error(format!("{path} did not answer JSON: {e}")))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn send_with_retries(
        &self,
        path: &str,
        most: u64,
        send: impl Fn() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<HttpResponse> {
        let mut pause = FIRST_PAUSE;
        for tried in 1.. {
            let failure = match TEACHER.take(send(), most) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let Some(wanted) = failure.again else {
                return Err(self.error(format!("{path}: {}", failure.what)));
            };
            if tried > self.retries {
                let (url, what) = (format!("{}{path}", self.url), failure.what);
                return Err(Error::TeacherLost { url, what, tries: tried });
            }
            let wait = pause_before_next(wanted, pause);
            let seconds = wait.as_secs_f64();
            self.progress.line(&format!(
                "teacher    {}{path}: {}; again in {seconds:.1} s ({tried} of {})",
                self.url, failure.what, self.retries
            ));
            if !self.interrupt.wait(wait) {
                return Err(Error::WaitInterrupted { url: self.url.clone() });
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("the loop ends by itself")
    }
}

/// What the server asks for, else the default pause; never longer than [`LONGEST_PAUSE`].
pub(super) fn pause_before_next(wanted: Option<Duration>, default: Duration) -> Duration {
    wanted.unwrap_or(default).min(LONGEST_PAUSE)
}
