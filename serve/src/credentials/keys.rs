//! API keys and admin keys.

use std::path::Path;

use http::{HeaderMap, HeaderName, header};
use runtime::read;

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

    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
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

/// The key of an `Authorization: Bearer` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

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
