//! Listening, answering, and stopping without losing what runs.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use runtime::RuntimeHandle;
use runtime::request::{CompletionText, GenerateRequest};
use runtime::sampler::SamplingParams;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::app::{App, Phase};
use crate::credentials::tls::TlsFiles;
use crate::limits::blocking_pool;
use crate::limits::memory;
use crate::models::{Models, ServedModel};
use crate::router::{router, stopping};
use crate::train::TrainControl;
use crate::train_proxy::TrainProxy;
use crate::transport::connections::Connections;
use crate::{Error, Result, ServeConfig};

/// Threads of the event loop: it parses and writes, the device thread computes.
const LOOP_THREADS: usize = 2;
/// Pause after a connection that could not be accepted (no file descriptor is free).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound socket and everything behind it.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    app: App,
}

/// Asks a running server to stop; from any thread, a signal's too.
#[derive(Clone)]
pub struct Stop(watch::Sender<bool>);

impl Default for Stop {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Stop {
    /// The server takes nothing new, ends what runs, and returns.
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was asked.
    #[must_use]
    pub fn asked(&self) -> bool {
        *self.0.borrow()
    }
}

impl Server {
    /// Binds the address and checks the settings; nothing is answered before [`Server::run`].
    ///
    /// # Errors
    /// An address that is taken or open to everybody, a certificate that cannot be used, settings that contradict each other.
    pub fn bind(runtime: RuntimeHandle, models: Vec<ServedModel>, config: ServeConfig) -> Result<Self> {
        let listen = |source| Error::Listen { address: format!("{}:{}", config.host, config.port), source };
        let addresses: Vec<SocketAddr> =
            (config.host.as_str(), config.port).to_socket_addrs().map_err(listen)?.collect();
        let listener = TcpListener::bind(&addresses[..]).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        if config.api_keys.is_none() && !address.ip().is_loopback() {
            return Err(Error::Open { address });
        }
        if config.tls.is_none() && !address.ip().is_loopback() {
            tracing::warn!("keys and texts reach {address} as plain text (--tls-cert); put a proxy with TLS before it");
        }
        listener.set_nonblocking(true)?;
        let tls = config.tls.as_ref().map(TlsFiles::acceptor).transpose()?;
        let train_proxy = config.train_control_url.as_deref().map(TrainProxy::parse).transpose()?;
        let mut app = App::new(runtime, Models::new(models)?, config);
        app.train_proxy = train_proxy;
        Ok(Self { listener, address, tls, app })
    }

    /// Shows and steers this training run under `/v1/train`.
    #[must_use]
    pub fn with_training(mut self, run: Arc<dyn TrainControl>) -> Self {
        self.app.training = Some(run);
        self
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// Answers until `stop` is asked for and what runs has ended, or the time for that is over.
    ///
    /// # Errors
    /// A model that cannot answer, threads or sockets that the system refuses.
    pub fn run(self, stop: &Stop) -> Result<()> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let builder =
            builder.worker_threads(LOOP_THREADS).max_blocking_threads(blocking_pool::THREADS).thread_name("http");
        let event_loop = builder.enable_io().enable_time().build()?;
        let result = event_loop.block_on(self.serve(stop.0.subscribe()));
        // A text in the middle of its tokenizer is not waited for.
        event_loop.shutdown_background();
        result
    }

    async fn serve(self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let app = Arc::new(self.app);
        let routes = router(&app)?;
        let cold = Arc::clone(&app);
        let mut warm_up = pin!(tokio::task::spawn_blocking(move || warm_up(&cold)));
        let mut warm = false;
        let housekeeping = tokio::spawn(memory::release(Arc::clone(&app.budget), app.config.release_memory));
        let connections = Connections::new(Arc::clone(&app), routes.clone(), self.tls.clone());
        loop {
            tokio::select! {
                _ = stop.wait_for(|asked| *asked) => break,
                warmed = &mut warm_up, if !warm => {
                    warmed.map_err(std::io::Error::other)??;
                    warm = true;
                    app.enter(Phase::Ready);
                    tracing::info!("ready");
                }
                accepted = listener.accept() => answer(&connections, accepted.map(|(stream, _)| stream)).await,
            }
        }
        housekeeping.abort();
        app.enter(Phase::Draining);
        let limit = app.config.drain_timeout;
        tracing::info!(sequences = app.admission.taken(), "stopping; what runs may go on for {} s", limit.as_secs());
        // Who asks meanwhile learns that the server stops.
        let late = Connections::late(Arc::clone(&app), stopping(routes), self.tls);
        let mut ended = pin!(tokio::time::timeout(limit, connections.end()));
        loop {
            tokio::select! {
                biased;
                outcome = &mut ended => {
                    if outcome.is_err() {
                        let sequences = app.admission.taken();
                        tracing::warn!(sequences, "the time to stop is over; what still runs is cancelled");
                    }
                    return Ok(());
                }
                accepted = listener.accept() => answer(&late, accepted.map(|(stream, _)| stream)).await,
            }
        }
    }
}

/// Answers a connection; one that cannot be accepted is logged.
async fn answer(connections: &Connections, accepted: std::io::Result<tokio::net::TcpStream>) {
    match accepted {
        Ok(stream) => connections.answer(stream),
        Err(error) => {
            tracing::warn!("a connection could not be accepted: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// One short generation by every model: weights are touched, kernels compiled, memory taken.
fn warm_up(app: &App) -> Result<()> {
    for model in app.models.list() {
        let params = SamplingParams { temperature: 0.0, max_tokens: 2, ignore_eos: true, ..SamplingParams::default() };
        let request =
            GenerateRequest { model: model.id(), prompt: vec![0], params, index: 0, text: CompletionText::None };
        let generated = app.runtime.generate(request).and_then(runtime::Generation::collect);
        generated.map_err(|error| Error::WarmUp { model: model.name().to_owned(), source: Box::new(error) })?;
    }
    Ok(())
}
