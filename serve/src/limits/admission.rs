//! Places for sequences: a full server says so at once, and when to come back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api_error::ApiError;

/// Share of the newest request in the mean time that a place is taken.
const NEWEST: f64 = 0.2;
/// Nobody is told to come back later than this, in seconds.
pub(crate) const LONGEST_WAIT: u64 = 3600;

/// Counts the sequences that run or wait.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    total: usize,
    times: Arc<Mutex<Times>>,
}

/// How long places are taken.
#[derive(Debug)]
struct Times {
    start: Instant,
    /// Seconds that a place was taken, of late; `None` before any was given back.
    mean: Option<f64>,
    /// Places that are taken.
    taken: usize,
    /// Sum of the seconds since `start` at which these were taken.
    sum: f64,
}

/// Places that are given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Places {
    permit: OwnedSemaphorePermit,
    since: f64,
    times: Arc<Mutex<Times>>,
}

impl Admission {
    pub(crate) fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        let times = Times { start: Instant::now(), mean: None, taken: 0, sum: 0.0 };
        Self { places: Arc::new(Semaphore::new(total)), total, times: Arc::new(Mutex::new(times)) }
    }

    /// Takes all `count` places or none.
    pub(crate) fn enter(&self, count: usize) -> Result<Places, ApiError> {
        let total = self.total;
        let wanted = u32::try_from(count).ok().filter(|_| count <= total);
        let Some(wanted) = wanted else {
            let message =
                format!("{count} sequences in one request exceed the {total} that this server holds; ask for fewer");
            return Err(ApiError::invalid("n", message));
        };
        let mut times = lock(&self.times);
        match Arc::clone(&self.places).try_acquire_many_owned(wanted) {
            Ok(permit) => {
                let since = times.start.elapsed().as_secs_f64();
                times.taken += count;
                times.sum += since * count as f64;
                Ok(Places { permit, since, times: Arc::clone(&self.times) })
            }
            Err(_) => Err(ApiError::busy(
                format!("server is busy: all {total} places for sequences are taken; try again later"),
                times.wait(times.start.elapsed().as_secs_f64(), count, total),
            )),
        }
    }

    /// Sequences that run or wait.
    pub(crate) fn taken(&self) -> usize {
        self.total - self.places.available_permits()
    }
}

impl Times {
    /// Seconds after `now` until `count` of `total` places, all of which are taken, will have come free: places that are taken
    /// for W seconds come free every W / total seconds. Requests that take longer than those before them show in the age of
    /// the places.
    fn wait(&self, now: f64, count: usize, total: usize) -> u64 {
        let age = now - self.sum / self.taken.max(1) as f64;
        let seconds = self.mean.unwrap_or(0.0).max(age) * count as f64 / total.max(1) as f64;
        seconds.ceil().clamp(1.0, LONGEST_WAIT as f64) as u64
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let count = self.permit.num_permits();
        let mut times = lock(&self.times);
        let seconds = times.start.elapsed().as_secs_f64() - self.since;
        times.mean = Some(times.mean.map_or(seconds, |mean| mean + NEWEST * (seconds - mean)));
        times.taken -= count;
        times.sum -= self.since * count as f64;
    }
}

fn lock(times: &Mutex<Times>) -> std::sync::MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_together_and_given_back() {
        let admission = Admission::new(3);
        let two = admission.enter(2).expect("there is room");
        let full = admission.enter(2).expect_err("one place is left");
        assert_eq!((full.status.as_u16(), full.retry_after), (429, Some(1)));
        assert_eq!(admission.taken(), 2);
        drop(two);
        assert_eq!(admission.taken(), 0);
        let never = admission.enter(4).expect_err("more than there are");
        assert_eq!((never.status.as_u16(), never.param.as_deref()), (400, Some("n")));
    }

    #[test]
    fn the_wait_is_what_places_take() {
        let times = |mean, taken_at: f64| Times { start: Instant::now(), mean, taken: 10, sum: 10.0 * taken_at };
        // Ten places, each taken for 40 s: one comes free every 4 s.
        assert_eq!(times(Some(40.0), 980.0).wait(1000.0, 1, 10), 4);
        assert_eq!(times(Some(40.0), 980.0).wait(1000.0, 5, 10), 20);
        // None has come free yet, and all are 500 s old.
        assert_eq!(times(None, 500.0).wait(1000.0, 1, 10), 50);
        assert_eq!(times(Some(1e9), 0.0).wait(1.0, 1, 1), LONGEST_WAIT);
        assert_eq!(times(Some(0.1), 1.0).wait(1.0, 1, 10), 1);
    }
}
