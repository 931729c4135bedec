//! HTTP with patience: what may pass is asked again, what will not is an error at once.

use std::time::Duration;

use runtime::read;
use serde_json::Value;

use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::recipe::Remote;
use crate::{Error, Result};

/// The first pause before a request is repeated; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer, whatever the server asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Of a refusal's text, so much is shown.
const SHOWN: usize = 500;

/// One server.
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    retries: u32,
    interrupt: Interrupt,
    progress: Progress,
}

/// An answer with status 200.
pub(super) struct Answer {
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

/// Why a try gave no answer.
struct Failure {
    what: String,
    /// Whether another try may end otherwise, and after which pause the server wants it.
    again: Option<Option<Duration>>,
}

impl Answer {
    /// A header, by its name in small letters.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    /// # Errors
    /// A key file that cannot be read, or has no key.
    pub(super) fn new(remote: &Remote, interrupt: Interrupt, progress: Progress) -> Result<Self> {
        let key = match &remote.api_key_file {
            None => None,
            Some(path) => {
                let text = read::text(path, read::KEYS)?;
                let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
                let first = lines.next().filter(|key| key.bytes().all(|b| b.is_ascii_graphic())).map(str::to_owned);
                let wrong = || Error::value("teacher.api_key_file", path.display(), "a file whose first line is a key");
                Some(first.ok_or_else(wrong)?)
            }
        };
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(remote.timeout_s)))
            .http_status_as_error(false)
            .max_idle_connections_per_host(remote.concurrency)
            .build()
            .into();
        Ok(Self { agent, url: remote.url.clone(), key, retries: remote.retries, interrupt, progress })
    }

    /// An error of this server's.
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        Error::Teacher { url: self.url.clone(), what: what.into() }
    }

    pub(super) fn get(&self, path: &str, query: Option<(&str, &str)>) -> Result<Answer> {
        self.ask(path, || {
            let request =
                query.into_iter().fold(self.agent.get(format!("{}{path}", self.url)), |request, (name, value)| {
                    request.query(name, value)
                });
            self.authorized(request).call()
        })
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        self.ask(path, || {
            let request = self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
            self.authorized(request).send(body.as_bytes())
        })
    }

    /// The JSON of an answer.
    pub(super) fn json(&self, path: &str, answer: &Answer) -> Result<Value> {
        serde_json::from_slice(&answer.body).map_err(|e| self.error(format!("{path} did not answer JSON: {e}")))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn ask(
        &self,
        path: &str,
        send: impl Fn() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer> {
        let mut pause = FIRST_PAUSE;
        for tried in 1.. {
            let failure = match take(send()) {
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
                "teacher    {path}: {}; again in {seconds:.1} s ({tried} of {})",
                failure.what, self.retries
            ));
            if !self.interrupt.wait(wait) {
                return Err(Error::WaitInterrupted { url: self.url.clone() });
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("the loop ends by itself")
    }
}

/// What the server asks for, else the usual pause; never longer than [`LONGEST_PAUSE`].
pub(super) fn pause_before_next(wanted: Option<Duration>, usual: Duration) -> Duration {
    wanted.unwrap_or(usual).min(LONGEST_PAUSE)
}

/// The whole answer, or why there is none.
fn take(sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, Failure> {
    // A connection that fails now may not fail again.
    let lost = |error: ureq::Error| Failure { what: error.to_string(), again: Some(None) };
    let response = sent.map_err(lost)?;
    let (head, body) = response.into_parts();
    let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let body = body.into_with_config().limit(u64::MAX).read_to_vec().map_err(lost)?;
    if head.status.is_success() {
        let headers = head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
        return Ok(Answer { headers: headers.collect(), body });
    }
    let after = head.headers.get(ureq::http::header::RETRY_AFTER).and_then(|value| text(value).parse().ok());
    let passing = matches!(head.status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
    let again = passing.then_some(after.map(Duration::from_secs));
    Err(Failure { what: format!("{}: {}", head.status, message(&body)), again })
}

/// What a refusal says: the message of OpenAI's envelope, or its beginning as it is.
fn message(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let said = parsed.as_ref().and_then(|body| body["error"]["message"].as_str()).map(str::to_owned);
    said.unwrap_or_else(|| String::from_utf8_lossy(body).trim().chars().take(SHOWN).collect())
}
