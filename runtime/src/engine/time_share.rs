//! How jobs and requests share the device: requests advance in steps, everything else (a micro-batch, an optimizer step, an adapter) is a job that
//! runs between two steps. While both want the device each gets half of its time, at the borders of steps and jobs.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Jobs come one by one from a caller that waits for each. While the device owes them time, so long after one it waits
/// for the next instead of beginning a step, where one of that kind is usually followed so soon: after new weights the
/// caller may well wait for completions instead.
const SOON: Duration = Duration::from_millis(5);
/// A kind of job that was not followed soon is waited for again after so many.
const TRY_AGAIN: u32 = 64;
/// Neither side is owed more.
const MOST: Duration = Duration::from_secs(10);

/// How much time each side has had; `K` is the kind of a job.
#[derive(Debug)]
pub(super) struct TimeShare<K> {
    /// Seconds that steps have had beyond what jobs had, of the time that both wanted.
    steps_ahead: f64,
    last_job: Option<(Instant, K)>,
    /// Jobs of a kind since one was found not to be followed soon.
    alone: HashMap<K, u32>,
}

/// What the device does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextAction {
    Job,
    Step,
    /// Nothing before this moment, unless work comes.
    Wait(Instant),
}

/// What waits for the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingWork {
    /// A job, and whether it can run now.
    pub(super) job: Option<bool>,
    /// Requests.
    pub(super) steps: bool,
}

impl<K: Copy + Eq + Hash> TimeShare<K> {
    pub(super) fn new() -> Self {
        Self { steps_ahead: 0.0, last_job: None, alone: HashMap::new() }
    }

    /// Something waits.
    pub(super) fn next(&self, now: Instant, waiting: PendingWork) -> NextAction {
        match waiting {
            PendingWork { job: Some(true), steps } if !steps || self.steps_ahead >= 0.0 => NextAction::Job,
            PendingWork { job: None, .. } if self.steps_ahead > 0.0 => match self.soon(now) {
                Some(until) => NextAction::Wait(until),
                None => NextAction::Step,
            },
            _ => NextAction::Step,
        }
    }

    /// Until when the next job is expected.
    fn soon(&self, now: Instant) -> Option<Instant> {
        let (last, kind) = self.last_job?;
        let hopes = self.alone.get(&kind).is_none_or(|jobs| jobs % TRY_AGAIN == 0);
        (hopes && now < last + SOON).then_some(last + SOON)
    }

    /// The next job came while it was waited for, or did not.
    pub(super) fn waited(&mut self, came: bool) {
        if let Some((_, kind)) = self.last_job {
            if came {
                self.alone.remove(&kind);
            } else {
                self.alone.insert(kind, 1);
            }
        }
    }

    /// A job took this long; requests may have waited meanwhile.
    pub(super) fn job_took(&mut self, kind: K, now: Instant, time: Duration, requests_waited: bool) {
        self.last_job = Some((now, kind));
        self.alone.entry(kind).and_modify(|jobs| *jobs += 1);
        if requests_waited {
            self.add(-time.as_secs_f64());
        }
    }

    /// A step took this long; a job may have waited meanwhile.
    pub(super) fn step_took(&mut self, now: Instant, time: Duration, job_waited: bool) {
        let time = time.as_secs_f64();
        if job_waited || self.soon(now - Duration::from_secs_f64(time)).is_some() {
            self.add(time);
        } else {
            // No job wanted it; what steps are owed is paid all the same.
            self.steps_ahead = self.steps_ahead.max((self.steps_ahead + time).min(0.0));
        }
    }

    fn add(&mut self, seconds: f64) {
        let most = MOST.as_secs_f64();
        self.steps_ahead = (self.steps_ahead + seconds).clamp(-most, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs jobs of `job` and steps of `step` that are always wanted; the next job comes `gap` after the last.
    fn shares(job: Duration, step: Duration, gap: Duration) -> [f64; 2] {
        let (mut time_share, mut now, mut had) = (TimeShare::new(), Instant::now(), [0.0; 2]);
        let (end, mut comes) = (now + 500 * (job + step), now);
        while now < end {
            let job_waits = now >= comes;
            match time_share.next(now, PendingWork { job: job_waits.then_some(true), steps: true }) {
                NextAction::Job => {
                    now += job;
                    had[0] += job.as_secs_f64();
                    time_share.job_took((), now, job, true);
                    comes = now + gap;
                }
                NextAction::Step => {
                    now += step;
                    had[1] += step.as_secs_f64();
                    time_share.step_took(now, step, job_waits || now >= comes);
                }
                NextAction::Wait(until) => {
                    time_share.waited(comes <= until);
                    now = until.min(comes);
                }
            }
        }
        had
    }

    #[test]
    fn jobs_and_steps_share_the_device_whatever_their_lengths() {
        let ms = Duration::from_micros;
        for (job, step, gap) in
            [(1_000, 50_000, 100), (300_000, 2_000, 100), (1_000, 1_000, 3_000), (500, 900_000, 4_000)]
        {
            let [jobs, steps] = shares(ms(job), ms(step), ms(gap));
            // The time until the next job comes counts for neither.
            let least = 0.5 * job as f64 / (job + gap) as f64;
            let all = jobs + steps;
            assert!(jobs / all > 0.9 * least, "jobs of {job} us had {jobs:.2} s of {all:.2}");
            assert!(steps / all > 0.4, "steps of {step} us had {steps:.2} s of {all:.2}");
        }
    }

    /// Steps that the caller of the jobs waits for itself are not held up, but once in a while.
    #[test]
    fn a_job_that_is_not_followed_soon_is_not_waited_after() {
        let (mut time_share, mut now, mut waits) = (TimeShare::new(), Instant::now(), 0);
        let ms = Duration::from_millis(1);
        for round in 0..640 {
            time_share.job_took(7, now, ms, true);
            time_share.step_took(now + 2 * ms, 2 * ms, true);
            assert!(round > 0 || time_share.steps_ahead > 0.0);
            if let NextAction::Wait(until) = time_share.next(now + ms, PendingWork { job: None, steps: true }) {
                time_share.waited(false);
                now = until;
                waits += 1;
            }
            now += 20 * ms;
        }
        assert!((2..20).contains(&waits), "{waits} waits");
    }

    #[test]
    fn a_job_that_cannot_run_yet_lets_steps_go_on() {
        let time_share = TimeShare::<()>::new();
        let now = Instant::now();
        assert_eq!(time_share.next(now, PendingWork { job: Some(false), steps: true }), NextAction::Step);
        assert_eq!(time_share.next(now, PendingWork { job: Some(true), steps: false }), NextAction::Job);
    }
}
