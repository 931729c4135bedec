//! A client's plain connection, which two look at: who speaks HTTP over it, and who watches whether the client is still there.
//!
//! A client that closes its half of the connection before its answer begins has said all and listens; once the answer has begun,
//! closing means leaving. Whether the other half is open shows only when something is sent: an interim `100 Continue`, which
//! clients skip, comes back as a reset from who has left.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::api_error::ApiError;

const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How often a probed connection is looked at.
const PROBED: Duration = Duration::from_millis(100);
/// How often one is looked at whose bytes HTTP has not read yet.
const UNREAD: Duration = Duration::from_secs(1);

/// The connection; it closes with its last copy.
#[derive(Clone)]
pub(crate) struct ClientStream(Arc<Shared>);

struct Shared {
    stream: TcpStream,
    /// Something was read, and nothing written since.
    owed: AtomicBool,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Shared { stream, owed: AtomicBool::new(false) }))
    }

    fn owes(&self) -> bool {
        self.0.owed.load(Ordering::Relaxed)
    }

    /// Ends when the client has left.
    pub(crate) async fn left(&self) {
        let stream = &self.0.stream;
        loop {
            match stream.peek(&mut [0]).await {
                Ok(0) => break,
                Ok(_) => sleep(UNREAD).await,
                Err(_) => return,
            }
        }
        if !self.owes() || stream.try_write(PROBE).is_err() {
            return;
        }
        while matches!(stream.take_error(), Ok(None)) {
            sleep(PROBED).await;
        }
    }

    /// Tells a client that was too slow, unless it has said nothing at all.
    pub(crate) fn too_slow(&self, seconds: u64) {
        if !self.owes() {
            return;
        }
        let body = ApiError::slow_head(seconds).body().to_string();
        let head =
            "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length";
        // Who does not read this either is closed all the same.
        let answer = format!("{head}: {}\r\n\r\n{body}", body.len());
        let _sent = self.0.stream.try_write(answer.as_bytes()).and_then(|_| self.end());
    }

    /// Nothing more is sent. Without it a client whose body was not read would find a reset behind its answer, not an end.
    fn end(&self) -> io::Result<()> {
        let socket = std::net::TcpStream::from(self.0.stream.as_fd().try_clone_to_owned()?);
        match socket.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes as soon as the socket takes something.
    fn write(&self, cx: &mut Context<'_>, write: impl Fn(&TcpStream) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.0.owed.store(false, Ordering::Relaxed);
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    if read > 0 {
                        self.0.owed.store(true, Ordering::Relaxed);
                    }
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }
}
