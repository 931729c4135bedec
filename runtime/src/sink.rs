//! Where results go.

use std::sync::Arc;
use std::sync::mpsc::Sender;

/// The receiver was dropped.
#[derive(Debug)]
pub struct Closed;

/// Takes results on the device thread. A sink must return at once: while it runs, nothing is computed. So it hands values over
/// (to a channel without a limit, to a waker), and never waits for their reader. What it holds is
/// bounded by what its request may produce.
pub struct Sink<T>(Arc<dyn Fn(T) -> Result<(), Closed> + Send + Sync>);

impl<T> Sink<T> {
    /// From a function that returns [`Closed`] once the receiver was dropped.
    pub fn new(take: impl Fn(T) -> Result<(), Closed> + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Hands a value over.
    pub(crate) fn send(&self, value: T) -> Result<(), Closed> {
        (self.0)(value)
    }
}

impl<T> Clone for Sink<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + 'static> From<Sender<T>> for Sink<T> {
    fn from(sender: Sender<T>) -> Self {
        Self::new(move |value| sender.send(value).map_err(|_| Closed))
    }
}
