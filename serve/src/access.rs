//! Who may call which route.

use std::path::Path;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
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

/// Lets a request with an admin key pass. Where there are no keys at all, whoever `origin` admits passes: this machine, and
/// the server's own page.
pub(crate) async fn require_admin_key(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let config = &app.config;
    let refused = match (&config.admin_keys, &config.api_keys) {
        (Some(keys), _) if keys.admits(request.headers()) => None,
        (Some(_), _) => Some(unauthorized(request.headers(), "an admin key")),
        (None, Some(_)) => Some(
            ApiError::forbidden("this route needs an admin key, and the server has none (--admin-key-file)")
                .into_response(),
        ),
        (None, None) => None,
    };
    match refused {
        Some(refused) => refused,
        None => next.run(request).await,
    }
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
