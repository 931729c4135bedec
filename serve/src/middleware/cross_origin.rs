//! Which host a request names and which page it comes from, so that a web page cannot use a server that has no keys.
//!
//! A page of a stranger reaches a loopback address in two ways: it sends requests there (a browser then says from which origin,
//! and asks first unless the body is plain text), or it leads a name of its own to the address (DNS rebinding), so that the browser
//! takes both for one origin; the name is then in `Host`. Keys stop both, as no page of a stranger knows one.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri, Version, header};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::config::ServeConfig;

/// Whom a server answers.
struct Rules<'a> {
    /// There are keys, which no page of a stranger knows.
    keyed: bool,
    /// Names of the server besides those that stand for no other machine.
    names: Vec<&'a str>,
    /// Names were given, so others are refused even where there are keys.
    named: bool,
    /// Origins besides the server's own.
    origins: &'a [String],
}

impl<'a> Rules<'a> {
    fn new(config: &'a ServeConfig) -> Self {
        let names = config.allowed_hosts.iter().chain([&config.host]).map(String::as_str).collect();
        let (keyed, named) = (config.api_keys.is_some(), !config.allowed_hosts.is_empty());
        Self { keyed, names, named, origins: &config.cors_origins }
    }
}

/// Refuses a request that names no host, or several; and, of a server without keys, another host than it has, and pages of
/// other origins.
pub(crate) async fn check(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match admit(&Rules::new(&app.config), request.version(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn admit(rules: &Rules, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = named_host(version, uri, headers)?;
    if let Some(host) = &host
        && (rules.named || !rules.keyed)
        && !is_own_name(rules, host.host())
    {
        return Err(foreign_host(host));
    }
    if rules.keyed {
        return Ok(());
    }
    let stranger = headers.get_all(header::ORIGIN).iter().find(|origin| !may_ask(rules, origin, host.as_ref()));
    stranger.map_or(Ok(()), |origin| Err(foreign_page(origin)))
}

/// The host that a request names, exactly one; only HTTP/1.0 may leave it out.
fn named_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, ApiError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host,
        (None, _) if version == Version::HTTP_10 => return Ok(uri.authority().cloned()),
        (None, _) => return Err(ApiError::invalid_host("the request has no header Host; send one")),
        (Some(_), Some(_)) => return Err(ApiError::invalid_host("the request has several headers Host; send one")),
    };
    let named = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    let named = named.filter(|named| !named.as_str().contains('@'));
    let wrong = || ApiError::invalid_host(format!("the header Host is {host:?}; HOST or HOST:PORT is needed"));
    let named = named.ok_or_else(wrong)?;
    match uri.authority() {
        // A proxy's form of a request: both say where it goes.
        Some(target) if !target.as_str().eq_ignore_ascii_case(named.as_str()) => {
            let message = format!("the request is for {target} and its header Host names {named}; they must agree");
            Err(ApiError::invalid_host(message))
        }
        _ => Ok(Some(named)),
    }
}

/// Whether a name cannot stand for another machine, or was given as this one's.
fn is_own_name(rules: &Rules, name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let given = |known: &str| known == "*" || known.trim_end_matches('.').eq_ignore_ascii_case(&name);
    // 0.0.0.0 leads to this machine, too; clients of other servers have it as their default.
    let here = |address: IpAddr| address.is_loopback() || address.is_unspecified();
    address.is_ok_and(|address| here(address.to_canonical()))
        || name == "localhost"
        || name.ends_with(".localhost")
        || rules.names.iter().any(|known| given(known))
}

/// Whether pages of this origin may ask: the server's own, and those of `--cors-origin`.
fn may_ask(rules: &Rules, origin: &HeaderValue, host: Option<&Authority>) -> bool {
    let origin = origin.as_bytes();
    let own = |host: &Authority| {
        let page = std::str::from_utf8(origin).ok().and_then(|origin| Some(origin.split_once("://")?.1));
        page.is_some_and(|page| page.eq_ignore_ascii_case(host.as_str()))
    };
    rules.origins.iter().any(|known| known == "*" || known.as_bytes() == origin) || host.is_some_and(own)
}

fn foreign_host(host: &Authority) -> ApiError {
    let name = host.host();
    ApiError::forbidden(format!(
        "{name} is no name of this server; use 127.0.0.1 or localhost, or start it with --allowed-host {name}"
    ))
}

fn foreign_page(origin: &HeaderValue) -> ApiError {
    let origin = String::from_utf8_lossy(origin.as_bytes());
    ApiError::forbidden(format!(
        "this server has no keys, and a page of {origin} is not its own; start it with --cors-origin {origin}, or with keys \
         (--api-key-file)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server without keys under these names, for pages of these origins.
    fn rules<'a>(names: &[&'a str], origins: &'a [String]) -> Rules<'a> {
        let named = !names.is_empty();
        Rules { keyed: false, names: [names, &["127.0.0.1"]].concat(), named, origins }
    }

    /// The status with these values of `Host` and `Origin`; 200 where the request passes.
    fn status(rules: &Rules, hosts: &[&str], origins: &[&str]) -> u16 {
        let mut headers = HeaderMap::new();
        let value = |text: &&str| HeaderValue::from_str(text).expect("a header");
        for host in hosts {
            headers.append(header::HOST, value(host));
        }
        for origin in origins {
            headers.append(header::ORIGIN, value(origin));
        }
        let admitted = admit(rules, Version::HTTP_11, &Uri::from_static("/v1/models"), &headers);
        admitted.map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn a_request_names_one_host() {
        let config = rules(&[], &[]);
        assert_eq!(status(&config, &["localhost"], &[]), 200);
        for hosts in
            [&[][..], &["localhost", "localhost"], &["localhost", "evil.example"], &[""], &["a b"], &["u@localhost"]]
        {
            assert_eq!(status(&config, hosts, &[]), 400, "{hosts:?}");
        }
        let old = admit(&config, Version::HTTP_10, &Uri::from_static("/"), &HeaderMap::new());
        assert!(old.is_ok(), "HTTP/1.0 knows no Host");
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost"))]);
        let other = admit(&config, Version::HTTP_11, &Uri::from_static("http://evil.example/"), &headers);
        assert_eq!(other.expect_err("two hosts").status.as_u16(), 400);
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let plain = rules(&[], &[]);
        for host in [
            "127.0.0.1:8000",
            "localhost",
            "LOCALHOST:1",
            "localhost.",
            "[::1]:8000",
            "127.9.9.9",
            "a.localhost",
            "[::ffff:127.0.0.1]",
            "0.0.0.0:8000",
        ] {
            assert_eq!(status(&plain, &[host], &[]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "notlocalhost",
            "192.0.2.1",
            "[2001:db8::1]",
            "127.0.0.1.evil.example",
        ] {
            assert_eq!(status(&plain, &[host], &[]), 403, "{host}");
        }
        let wide = rules(&["llm.example"], &[]);
        assert_eq!(status(&wide, &["LLM.example:80"], &[]), 200);
        assert_eq!(status(&wide, &["sub.llm.example"], &[]), 403);
        assert_eq!(status(&rules(&["*"], &[]), &["evil.example"], &[]), 200);
    }

    #[test]
    fn only_pages_of_the_server_itself_may_ask() {
        let host = ["127.0.0.1:8000"];
        let plain = rules(&[], &[]);
        assert_eq!(status(&plain, &host, &["http://127.0.0.1:8000"]), 200);
        for origin in ["http://evil.example", "http://127.0.0.1:9000", "http://localhost:8000", "null", "", "file://"] {
            assert_eq!(status(&plain, &host, &[origin]), 403, "{origin}");
        }
        assert_eq!(status(&plain, &host, &["http://127.0.0.1:8000", "http://evil.example"]), 403, "two origins");
        let origins = ["https://app.example".to_owned()];
        let wide = rules(&[], &origins);
        assert_eq!(status(&wide, &host, &["https://app.example"]), 200);
        assert_eq!(status(&wide, &host, &["https://app.example.org"]), 403);
        assert_eq!(status(&rules(&[], &["*".to_owned()]), &host, &["null"]), 200);
    }
}
