//! Where answers go.

use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Nobody listens any more.
#[derive(Debug)]
pub struct Closed;

/// Takes answers on the device thread. A sink must return at once: while it runs, nothing is computed for anybody. So it hands
/// values over (to a channel without a limit, to a waker), and never waits for the one who reads them. What it holds is
/// bounded by what its request may produce.
pub struct Sink<T>(Arc<dyn Fn(T) -> Result<(), Closed> + Send + Sync>);

impl<T> Sink<T> {
    /// From a function that says whether somebody still listens.
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
