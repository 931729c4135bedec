//! Other servers, over HTTP: a remote teacher, a model that is evaluated. A response is at most as long as its request can
//! make it; the user decides which certificates are trusted; a request that can only fail again is not repeated.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::read;
use serde_json::Value;
use ureq::http::{HeaderValue, Response, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::{Error, Result};

/// Bytes of a refusal's text that are read, and characters of it that are shown.
const REFUSAL: (u64, usize) = (64 << 10, 500);
/// Names the file of the authorities that are trusted, as OpenSSL, curl and Python read it.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// What the user calls the settings of a server.
#[derive(Debug, Clone, Copy)]
pub struct EndpointSettings {
    /// Its address.
    pub url: &'static str,
    /// The file with its key.
    pub key_file: &'static str,
    /// The file with the certificates of its authority.
    pub ca_file: &'static str,
}

/// A teacher's.
pub const TEACHER: EndpointSettings =
    EndpointSettings { url: "teacher.url", key_file: "teacher.api_key_file", ca_file: "teacher.ca_file" };
/// Those of a server that is evaluated.
pub const EVALUATED: EndpointSettings =
    EndpointSettings { url: "--url", key_file: "--api-key-file", ca_file: "--ca-file" };

/// An answer with a status of success.
#[derive(Debug)]
pub struct HttpResponse {
    headers: Vec<(String, String)>,
    /// What was answered.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// A header, by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Why a try gave no answer.
#[derive(Debug)]
pub struct HttpFailure {
    /// What happened, for the user.
    pub what: String,
    /// Whether another try may end otherwise, and after which pause, where the server names one.
    pub again: Option<Option<Duration>>,
}

impl EndpointSettings {
    /// The root of a server's routes: `url` without `/v1` and without a slash at its end.
    ///
    /// # Errors
    /// What is no such address. One with a password would be printed and kept in files: it is refused, and not repeated.
    pub fn root(&self, url: &str) -> Result<String> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        // A password may contain what ends an address elsewhere, so the last @ counts.
        let secret = |what: &str, shown: String| {
            let rule = format!(
                "an address without {what}: put the server's key into a file, and its name into {}",
                self.key_file
            );
            Err(Error::value(self.url, format!("{shown:?}"), rule))
        };
        if let Some((_, host)) = url.rsplit_once('@') {
            return secret("a user or a password", format!("{scheme}://...@{host}"));
        }
        if let Some((address, _)) = url.split_once(['?', '#']) {
            return secret("a query", format!("{address}?..."));
        }
        let root = url.trim_end_matches('/');
        let root = root.strip_suffix("/v1").unwrap_or(root).trim_end_matches('/');
        let plain = rest.bytes().all(|b| b.is_ascii_graphic());
        if !["http", "https"].contains(&scheme) || !plain || root.len() <= scheme.len() + "://".len() {
            return Err(Error::value(
                self.url,
                format!("{url:?}"),
                "http://HOST:PORT or https://HOST, with or without /v1",
            ));
        }
        Ok(root.to_owned())
    }

    /// The key in the first line of a file that is not empty and no comment.
    ///
    /// # Errors
    /// A file that cannot be read, or has no key.
    pub fn key(&self, path: &Path) -> Result<String> {
        let text = read::text(path, read::KEYS)?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let key = lines.next().filter(|key| key.bytes().all(|b| b.is_ascii_graphic())).map(str::to_owned);
        key.ok_or_else(|| Error::value(self.key_file, path.display(), "a file whose first line is a key"))
    }

    /// Whom `https` trusts: the authorities of `ca_file`, else those of the file that the environment names, else Mozilla's.
    ///
    /// # Errors
    /// A file that cannot be read, or has no certificates.
    pub fn tls(&self, ca_file: Option<&Path>) -> Result<TlsConfig> {
        let environment = std::env::var_os(AUTHORITIES).filter(|name| !name.is_empty()).map(PathBuf::from);
        let (name, path) = match (ca_file, &environment) {
            (Some(path), _) => (self.ca_file, path),
            (None, Some(path)) => (AUTHORITIES, path.as_path()),
            (None, None) => return Ok(TlsConfig::default()),
        };
        let pem = read::bytes(path, read::KEYS)?;
        let mut authorities = Vec::new();
        for item in parse_pem(&pem) {
            match item {
                Ok(PemItem::Certificate(certificate)) => authorities.push(certificate),
                Ok(_) => {}
                Err(e) => {
                    return Err(Error::value(name, path.display(), format!("a file of certificates in PEM form: {e}")));
                }
            }
        }
        if authorities.is_empty() {
            return Err(Error::value(name, path.display(), "a file of certificates in PEM form; it has none"));
        }
        Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&authorities)).build())
    }

    /// The whole answer, of at most `most` bytes, or why there is none.
    pub fn take(
        &self,
        sent: Result<Response<ureq::Body>, ureq::Error>,
        most: u64,
    ) -> Result<HttpResponse, HttpFailure> {
        let (head, body) = sent.map_err(|error| self.lost(&error))?.into_parts();
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        if head.status.is_success() {
            let body = read_at_most(body, most).map_err(|error| self.broken(&error))?.ok_or_else(|| HttpFailure {
                what: format!(
                    "the answer is longer than {most} bytes, the most that this request can be answered with"
                ),
                again: None,
            })?;
            let headers = head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
            return Ok(HttpResponse { headers: headers.collect(), body });
        }
        let mut refusal = Vec::new();
        // What came of a text that breaks off is shown.
        let _broken = body.into_reader().take(REFUSAL.0).read_to_end(&mut refusal);
        let after = head.headers.get(header::RETRY_AFTER).and_then(|value| text(value).parse().ok());
        let passing = matches!(head.status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
        let again = passing.then_some(after.map(Duration::from_secs));
        Err(HttpFailure { what: format!("{}: {}", head.status, message(&refusal)), again })
    }

    /// A request that got no answer.
    fn lost(&self, error: &ureq::Error) -> HttpFailure {
        match error {
            ureq::Error::Io(error) => self.broken(error),
            ureq::Error::Rustls(error) => self.untrusted(&error.to_string()),
            // A connection that fails now may not fail again.
            ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Protocol(_) => HttpFailure { what: error.to_string(), again: Some(None) },
            _ => HttpFailure { what: error.to_string(), again: None },
        }
    }

    fn broken(&self, error: &io::Error) -> HttpFailure {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => self.untrusted(&error.to_string()),
            None => HttpFailure { what: error.to_string(), again: Some(None) },
        }
    }

    /// A handshake that failed fails again.
    fn untrusted(&self, why: &str) -> HttpFailure {
        let what = format!(
            "no secure connection: {why}. Where a private authority has signed the server's certificate, name the file of its \
             certificates in {} or {AUTHORITIES}",
            self.ca_file
        );
        HttpFailure { what, again: None }
    }
}

/// `None` when there are more bytes.
fn read_at_most(body: ureq::Body, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    body.into_with_config().limit(u64::MAX).reader().take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// The text of a refusal: the message of OpenAI's envelope, or its beginning as it is.
fn message(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let said = parsed.as_ref().and_then(|body| body["error"]["message"].as_str()).map(str::to_owned);
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    said.chars().take(REFUSAL.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_root_without_a_secret() {
        for (url, root) in [
            ("http://h:8000", "http://h:8000"),
            ("https://h/v1/", "https://h"),
            ("http://h:1/teacher/v1", "http://h:1/teacher"),
            ("http://[::1]:8000/", "http://[::1]:8000"),
        ] {
            assert_eq!(TEACHER.root(url).expect(url), root);
        }
        for url in ["h:8000", "http://", "http:///v1", "ftp://h", "http://h h", "", "http://h\u{1b}[2J"] {
            let error = EVALUATED.root(url).expect_err(url).to_string();
            assert!(error.starts_with("`--url` is") && error.contains("http://HOST:PORT"), "{error}");
        }
        for url in [
            "https://user:sesame@h/v1",
            "http://sesame@h",
            "http://u:ses/ame@h",
            "user:sesame@h",
            "http://u:sesame@x@h",
            "http://h?key=sesame",
            "http://h/v1#sesame",
        ] {
            let error = TEACHER.root(url).expect_err(url).to_string();
            assert!(!error.contains("sesame") && !error.contains("ses/"), "{error}");
            assert!(error.contains("teacher.api_key_file"), "{error}");
        }
    }

    #[test]
    fn a_file_of_authorities_has_some() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tls/root.pem");
        TEACHER.tls(Some(Path::new(root))).expect("certificates");
        for (text, word) in [
            ("", "it has none"),
            ("nothing", "it has none"),
            ("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", "PEM form"),
        ] {
            std::fs::write(&path, text).expect("written");
            let error = TEACHER.tls(Some(&path)).expect_err("refused").to_string();
            assert!(error.contains(word) && error.contains("teacher.ca_file"), "{error}");
        }
        assert!(TEACHER.tls(Some(folder.path())).is_err(), "a folder");
        assert!(TEACHER.tls(Some(&folder.path().join("no"))).is_err());
    }
}
