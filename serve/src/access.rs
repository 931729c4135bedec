//! Who may call which route.

use std::net::IpAddr;
use std::path::Path;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use runtime::read;

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::{Error, Result};

/// Where Anthropic's clients put their key.
pub(crate) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Bearer keys, one a line of a file.
#[derive(Clone)]
pub struct Keys(Vec<String>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// Reads a file with one key a line; empty lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// A file that cannot be read, has no key, or has one with characters that no header carries.
    pub fn read(path: &Path) -> Result<Self> {
        let error = |what: String| Error::Keys { path: path.to_owned(), what };
        let text = read::text(path, read::KEYS)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<String> = lines.map(str::to_owned).collect();
        if keys.is_empty() {
            return Err(error("there is no key in it; write one a line".to_owned()));
        }
        match keys.iter().position(|key| !key.bytes().all(|b| b.is_ascii_graphic())) {
            Some(index) => Err(error(format!("key {} has characters besides printable ASCII", index + 1))),
            None => Ok(Self(keys)),
        }
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = [bearer(headers), headers.get(X_API_KEY).and_then(|key| key.to_str().ok())];
        let given = given.map(Option::unwrap_or_default);
        // All keys are compared, whatever the first ones gave.
        let pairs = self.0.iter().flat_map(|key| given.map(|given| (key, given)));
        pairs.fold(false, |found, (key, given)| found | equal(key.as_bytes(), given.as_bytes()))
    }
}

/// Compares in a time that depends on the lengths alone.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Lets a request with an API key pass; an admin key is one, too.
pub(crate) async fn require_key(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let config = &app.config;
    let admitted = match &config.api_keys {
        None => true,
        Some(keys) => {
            [Some(keys), config.admin_keys.as_ref()].into_iter().flatten().any(|k| k.admits(request.headers()))
        }
    };
    if admitted { next.run(request).await } else { unauthorized(request.headers(), "an API key") }
}

/// Lets a request with an admin key pass. Where there are no keys at all, one from this machine passes, unless a page of an
/// origin that was not admitted sent it: a browser sends such a request without asking. The server's own page is admitted.
pub(crate) async fn require_admin_key(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let config = &app.config;
    let headers = request.headers();
    let refused = match (&config.admin_keys, &config.api_keys) {
        (Some(keys), _) if keys.admits(headers) => None,
        (Some(_), _) => Some(unauthorized(headers, "an admin key")),
        (None, Some(_)) => Some(
            ApiError::forbidden("this route needs an admin key, and the server has none (--admin-key-file)")
                .into_response(),
        ),
        (None, None) => headers.get(header::ORIGIN).and_then(|origin| {
            let known = config.cors_origins.iter().any(|known| known == "*" || known.as_bytes() == origin.as_bytes());
            (!known && !is_own_page(origin, headers))
                .then(|| ApiError::forbidden("pages of this origin may not change the server's state").into_response())
        }),
    };
    match refused {
        Some(refused) => refused,
        None => next.run(request).await,
    }
}

/// Whether a page comes from the host that it asks, by a name that stands for no other machine: a foreign page can have its
/// own name lead here, but not `localhost` or a number.
fn is_own_page(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    let Some(authority) = host.filter(|host| origin == Some(host)).and_then(|host| host.parse::<Authority>().ok())
    else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

fn unauthorized(headers: &HeaderMap, needed: &str) -> Response {
    let sent = bearer(headers).or_else(|| headers.get(X_API_KEY).and_then(|key| key.to_str().ok()));
    let how = "send \"Authorization: Bearer KEY\" or \"x-api-key: KEY\"";
    let message = match (sent, headers.contains_key(header::AUTHORIZATION)) {
        (Some(key), _) if !key.is_empty() => format!("the key that was sent is not {needed} of this server"),
        (_, true) => format!("this route needs {needed}, and the header \"Authorization\" has none: {how}"),
        (_, false) => format!("this route needs {needed}: {how}"),
    };
    let mut response = ApiError::unauthorized(message).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"arle\""));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_page_of_the_server_itself_is_known_by_its_address() {
        let own = |origin: &'static str, host: &'static str| {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
            is_own_page(&HeaderValue::from_static(origin), &headers)
        };
        for host in ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"] {
            assert!(own(["http://", host].concat().leak(), host), "{host}");
        }
        assert!(!own("http://127.0.0.1:9000", "127.0.0.1:8000"), "another server's page");
        assert!(!own("http://evil.example", "evil.example"), "a name that leads here");
        assert!(!own("null", "127.0.0.1:8000"));
    }

    #[test]
    fn only_a_whole_key_admits() {
        let keys = Keys(vec!["alpha".into(), "beta".into()]);
        for good in ["Bearer alpha", "bearer beta", "Bearer  beta"] {
            assert!(keys.admits(&headers(good)), "{good}");
        }
        for bad in ["Bearer alph", "Bearer alphaa", "Basic alpha", "alpha", "Bearer ", "Bearer"] {
            assert!(!keys.admits(&headers(bad)), "{bad}");
        }
        assert!(!keys.admits(&HeaderMap::new()));
        let other = |key: &'static str| HeaderMap::from_iter([(X_API_KEY, HeaderValue::from_static(key))]);
        assert!(keys.admits(&other("beta")) && !keys.admits(&other("bet")) && !keys.admits(&other("")));
    }
}
