//! Places for sequences: a full server says so at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api_error::ApiError;

/// Counts the sequences that run or wait.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    total: usize,
}

/// Places that are given back when it is dropped.
pub(crate) type Places = OwnedSemaphorePermit;

impl Admission {
    pub(crate) fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(total)), total }
    }

    /// Takes all `count` places or none. `wait` is about how long a request takes, in seconds, for `Retry-After`.
    pub(crate) fn enter(&self, count: usize, wait: f64) -> Result<Places, ApiError> {
        let total = self.total;
        let wanted = u32::try_from(count).ok().filter(|_| count <= total);
        let Some(wanted) = wanted else {
            let message =
                format!("{count} sequences in one request exceed the {total} that this server holds; ask for fewer");
            return Err(ApiError::invalid("n", message));
        };
        Arc::clone(&self.places).try_acquire_many_owned(wanted).map_err(|_| {
            let seconds = wait.ceil().clamp(1.0, 60.0) as u64;
            ApiError::busy(
                format!("server is busy: all {total} places for sequences are taken; try again later"),
                seconds,
            )
        })
    }

    /// Sequences that run or wait.
    pub(crate) fn taken(&self) -> usize {
        self.total - self.places.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_together_and_given_back() {
        let admission = Admission::new(3);
        let two = admission.enter(2, 0.2).expect("there is room");
        let full = admission.enter(2, 2.5).expect_err("one place is left");
        assert_eq!((full.status.as_u16(), full.retry_after), (429, Some(3)));
        assert_eq!(admission.taken(), 2);
        drop(two);
        assert_eq!(admission.taken(), 0);
        let never = admission.enter(4, 0.0).expect_err("more than there are");
        assert_eq!((never.status.as_u16(), never.param.as_deref()), (400, Some("n")));
    }
}
