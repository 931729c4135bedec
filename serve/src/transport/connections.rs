//! Connections: HTTP/1.1, encrypted or not, each on a task of its own.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::app::Shared;
use crate::transport::client_stream::ClientStream;
use crate::transport::write_timeout::WriteTimeout;

/// A handshake or a request's head that takes longer is not waited for; also how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that takes nothing of its answer for so long is not waited for.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest head of a request, and what is read or written at a time.
const BUFFER: usize = 64 << 10;

/// All connections of a server.
pub(crate) struct Connections {
    app: Shared,
    http: http1::Builder,
    service: TowerToHyperService<Router>,
    tls: Option<TlsAcceptor>,
    open: GracefulShutdown,
    /// They came after the server was told to stop.
    late: bool,
}

impl Connections {
    pub(crate) fn new(app: Shared, routes: Router, tls: Option<TlsAcceptor>) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER);
        Self { app, http, service: TowerToHyperService::new(routes), tls, open: GracefulShutdown::new(), late: false }
    }

    /// Those of a server that stops: each is answered once.
    pub(crate) fn late(app: Shared, routes: Router, tls: Option<TlsAcceptor>) -> Self {
        let mut late = Self::new(app, routes, tls);
        late.http.keep_alive(false);
        Self { late: true, ..late }
    }

    /// Answers what comes over this connection.
    pub(crate) fn answer(&self, stream: TcpStream) {
        // Small chunks must not wait for an acknowledgement; a socket that refuses is closed already.
        let _closed = stream.set_nodelay(true);
        let (http, service, open) = (self.http.clone(), self.service.clone(), self.open.watcher());
        match self.tls.clone() {
            None => drop(tokio::spawn(serve_plain(http, service, open, ClientStream::new(stream)))),
            Some(tls) => {
                let (app, late) = (self.app.clone(), self.late);
                tokio::spawn(async move {
                    tokio::select! {
                        // A handshake has asked for nothing yet, so a server that stops does not wait for it.
                        () = app.draining(), if !late => {}
                        shaken = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)) => match shaken {
                            Ok(Ok(stream)) => serve(http, service, open, stream).await,
                            Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
                            Err(_) => tracing::debug!("a TLS handshake took longer than {} s", HEAD_TIMEOUT.as_secs()),
                        },
                    }
                });
            }
        }
    }

    /// Takes no further request, and waits for those that run.
    pub(crate) async fn end(self) {
        self.open.shutdown().await;
    }
}

/// Without encryption it shows whether a client that says no more still listens.
async fn serve_plain(
    mut http: http1::Builder,
    service: TowerToHyperService<Router>,
    open: Watcher,
    peer: ClientStream,
) {
    http.half_close(true);
    tokio::select! {
        biased;
        ended = open.watch(http.serve_connection(TokioIo::new(WriteTimeout::new(peer.clone(), READ_TIMEOUT)), service)) => match ended {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!("a connection ended: {error}");
                if error.is_timeout() {
                    peer.too_slow(HEAD_TIMEOUT.as_secs());
                }
            }
        },
        () = peer.left() => tracing::debug!("a client left"),
    }
}

async fn serve<S>(http: http1::Builder, service: TowerToHyperService<Router>, open: Watcher, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Err(error) =
        open.watch(http.serve_connection(TokioIo::new(WriteTimeout::new(stream, READ_TIMEOUT)), service)).await
    {
        tracing::debug!("a connection ended: {error}");
    }
}
