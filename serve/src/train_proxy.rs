//! The control plane of another process: `/v1/train/*` goes to a training run that serves elsewhere.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::api_error::ApiError;
use crate::{Error, Result};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for an answer to begin. The control plane answers at once, whatever the run does.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest body that is passed on; those of the control plane are small.
const MAX_BODY: usize = 64 << 10;

/// What is passed on of a request: who asks, and how to answer. The run checks the key itself.
const ASKED: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::ACCEPT,
    header::CONTENT_TYPE,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// What is passed on of an answer.
const ANSWERED: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    header::ALLOW,
    HeaderName::from_static("x-accel-buffering"),
];

/// Where the training run answers.
#[derive(Debug)]
pub(crate) struct TrainProxy {
    url: String,
    /// HOST:PORT.
    address: String,
    /// What comes before `/v1`.
    base: String,
}

impl TrainProxy {
    /// `http://HOST[:PORT][/BASE]`
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let wrong = |what: &str| Error::TrainUrl { url: url.to_owned(), what: what.to_owned() };
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong("https is not supported; give the run's address on this machine or a tunnel"));
            }
            _ => return Err(wrong("it does not begin with http://")),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| wrong("there is no host, or a user's name before it"))?;
        if uri.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        Ok(Self { url: url.to_owned(), address, base: uri.path().trim_end_matches('/').to_owned() })
    }

    async fn ask(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<http::Response<hyper::body::Incoming>, ApiError> {
        let unreachable = |what: &str| ApiError::no_answer(&self.url, what);
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, MAX_BODY).await.map_err(|_| ApiError::body_too_large(MAX_BODY))?;
        let stream = timeout(patience.min(CONNECT), TcpStream::connect(&self.address));
        let stream = stream.await.map_err(|_| ApiError::slow_answer(&self.url, patience.min(CONNECT)))?;
        let stream = stream.map_err(|error| unreachable(&error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error.to_string()))?;
        // It ends with the answer's body, also when that is dropped half-way.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to the training run ended: {error}");
            }
        });
        let path = head.uri.path_and_query().map_or("", |path| path.as_str());
        let mut request = http::Request::builder()
            .method(head.method)
            .uri(format!("{}{path}", self.base))
            .header(header::HOST, &self.address)
            .body(Body::from(body))
            .map_err(|error| ApiError::internal(error.to_string()))?;
        copy(&ASKED, &head.headers, request.headers_mut());
        let answer = timeout(patience, sender.send_request(request)).await;
        let answer = answer.map_err(|_| ApiError::slow_answer(&self.url, patience))?;
        answer.map_err(|error| unreachable(&error.to_string()))
    }

    /// The run's answer within `limit`; a stream of events ends with `draining`, when this server stops, even though the run goes on.
    pub(crate) async fn forward<F>(&self, request: Request, limit: Duration, draining: F) -> Result<Response, ApiError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let answer = self.ask(request, ANSWER.min(limit)).await?;
        let (head, body) = answer.into_parts();
        let body = Body::new(body).into_data_stream().take_until(draining);
        let mut response = Response::new(Body::from_stream(body));
        *response.status_mut() = head.status;
        copy(&ANSWERED, &head.headers, response.headers_mut());
        Ok(response)
    }
}

fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_plain_http() {
        for (url, address, base) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", ""),
            ("http://trainer/runs/a/", "trainer:80", "/runs/a"),
            ("http://[::1]:9", "[::1]:9", ""),
        ] {
            let proxy = TrainProxy::parse(url).expect("an address");
            assert_eq!((proxy.address.as_str(), proxy.base.as_str()), (address, base));
        }
        for (bad, word) in [
            ("https://trainer", "https"),
            ("127.0.0.1:8000", "http://"),
            ("http://", ""),
            ("http://a?b=c", "query"),
            ("http://me:secret@host", "user"),
            ("ftp://a", "http://"),
        ] {
            let error = TrainProxy::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(word) && error.contains("--train-control-url"), "{error}");
        }
    }
}
