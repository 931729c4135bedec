//! One step of a model's continuous batch: it is launched, and later its results are processed.
//!
//! With asynchronous scheduling the device is one step ahead of the host: step n + 1 is planned and launched, its tokens fed
//! on the device, before the host reads the samples of step n and turns them into text and events. Without, the results of a
//! step are processed before the next one is planned.

use super::BatchPlanner;
use super::generation::Progress;
use super::score::ScorePlaces;
use crate::engine::executor::StepOutcome;
use crate::engine::order::{BeginSequence, StepOrder};
use crate::engine::ranks::Ranks;
use crate::ids::RequestId;
use crate::memory::Entry;
use crate::request::FinishReason;
use crate::sampler::{Sampled, SamplingError};
use crate::scheduler::SchedulerOutput;
use crate::{Error, Result};

/// A launched step whose results are not processed.
pub(super) struct InFlightStep {
    /// Every request in it.
    seqs: Vec<RequestId>,
    /// Those for which it samples a token, in the order of the samples.
    sampled: Vec<RequestId>,
    /// Those whose scores are complete with it.
    scored: Vec<RequestId>,
    /// Where the results of its score tasks go.
    places: Vec<ScorePlaces>,
    outcome: Result<StepOutcome>,
}

impl BatchPlanner {
    /// Launches the next step and processes the results of the one before; without asynchronous scheduling, or when there is
    /// nothing to launch, all results. The step takes at most `prefill` tokens of prompts; how many it took is returned.
    pub(in crate::engine) fn step(&mut self, prefill: usize, ranks: &mut Ranks) -> usize {
        self.feed_scores();
        let plan = self.scheduler.plan_with_prefill(prefill);
        let prompts = plan.seqs.iter().map(|seq| seq.tokens.len()).filter(|&tokens| tokens > 1).sum();
        let mut stay = 0;
        if !plan.is_empty() {
            self.launch(plan, ranks);
            stay = usize::from(self.async_scheduling);
        }
        while self.in_flight.len() > stay {
            self.process_results();
        }
        prompts
    }

    /// Processes the results of all steps in flight.
    pub(in crate::engine) fn drain(&mut self) {
        while !self.in_flight.is_empty() {
            self.process_results();
        }
    }

    fn launch(&mut self, plan: SchedulerOutput, ranks: &mut Ranks) {
        let seqs = plan.seqs.iter().map(|seq| seq.id).collect();
        let sampled = plan.seqs.iter().filter(|seq| seq.sample).map(|seq| seq.id).collect();
        let scored = self.completes(&plan);
        let (begins, masks) = self.start_generations(&plan);
        let (scores, places) = self.score_tasks(&plan);
        let ends = std::mem::take(&mut self.ended);
        let outcome = ranks.step(StepOrder { base: self.base, ends, begins, plan, masks, scores });
        self.steps.launched += 1;
        self.steps.graphs += outcome.as_ref().map_or(0, |outcome| outcome.graphs);
        self.steps.mixed += outcome.as_ref().map_or(0, |outcome| outcome.mixed);
        if let Some(before) = self.in_flight.back() {
            self.steps.ahead += 1;
            self.steps.late += u64::from(before.outcome.as_ref().map_or(true, StepOutcome::is_done));
        }
        self.in_flight.push_back(InFlightStep { seqs, sampled, scored, places, outcome });
    }

    /// What the first step of a generation needs, and the masks of the tokens that are possible next.
    fn start_generations(&mut self, plan: &SchedulerOutput) -> (Vec<BeginSequence>, Vec<(RequestId, Vec<u32>)>) {
        let (mut begins, mut masks) = (vec![], vec![]);
        for seq in plan.seqs.iter().filter(|seq| !self.scores.has(seq.id)) {
            let generation = self.running.get_mut(&seq.id).expect("a planned request is running");
            if let Some(bits) = seq.sample.then(|| generation.mask(self.config.vocab_size)).flatten() {
                masks.push((seq.id, bits));
            }
            if !generation.has_started() {
                let prompt = self.scheduler.tokens(seq.id).expect("a planned request is in the scheduler");
                begins.push(generation.start(seq.id, seq.tokens.start, prompt));
            }
        }
        (begins, masks)
    }

    /// Waits for the results of the oldest step in flight and processes them.
    fn process_results(&mut self) {
        let Some(InFlightStep { seqs, sampled, scored, places, outcome }) = self.in_flight.pop_front() else { return };
        let results = outcome.and_then(|mut outcome| {
            let scores = std::mem::take(&mut outcome.scores);
            let (samples, seconds) = outcome.wait()?;
            Ok((scores, samples, seconds))
        });
        match results {
            Ok((scores, samples, seconds)) => {
                self.steps.waited_seconds += seconds;
                self.add_scores(places, scores);
                self.deliver(sampled.into_iter().zip(samples).collect());
                self.answer_scored(&scored);
            }
            Err(e) => self.fail(&seqs, e.while_allocating(Entry::Activations)),
        }
    }

    /// Hands out sampled tokens and ends what has ended. Requests that ended while the step ran get nothing.
    fn deliver(&mut self, samples: Vec<(RequestId, Result<Sampled, SamplingError>)>) {
        for (id, _) in samples.iter().filter(|(_, s)| s.is_err()) {
            self.scheduler.cancel(*id);
        }
        let token = |(id, s): &(RequestId, Result<Sampled, _>)| s.as_ref().ok().map(|s| (*id, s.token));
        let tokens: Vec<(RequestId, u32)> = samples.iter().filter_map(token).collect();
        self.scheduler.commit(&tokens);
        for (id, sampled) in samples {
            let Some(generation) = self.running.get_mut(&id) else { continue };
            let version = self.versions[&generation.model()];
            let progress = match sampled {
                Ok(sampled) => generation.push(sampled, &self.config.eos_token_ids, version),
                Err(e) => generation.fail(e.into()),
            };
            match progress {
                Progress::Continues => {}
                Progress::Ended(FinishReason::Cancelled) => self.cancel(id),
                Progress::Ended(_) => {
                    self.scheduler.finish(id);
                    self.forget(id);
                }
            }
        }
    }

    /// A forward pass that failed fails every request in it; the others go on.
    fn fail(&mut self, seqs: &[RequestId], error: Error) {
        for id in seqs {
            if let Some(mut generation) = self.forget(*id) {
                generation.fail(error.duplicate());
            }
            self.scheduler.cancel(*id);
        }
        self.fail_scored(seqs, &error);
        self.scheduler.commit(&[]);
        self.error = Some(error);
    }

    /// Ends every generation early, with what it has so far.
    pub(in crate::engine) fn abort_all(&mut self) {
        self.drain();
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.forget(id).expect("it runs").abort();
            self.scheduler.cancel(id);
        }
    }

    /// Ends every request with an error.
    pub(in crate::engine) fn fail_all(&mut self, error: &Error) {
        self.drain();
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.forget(id).expect("it runs").fail(error.duplicate());
            self.scheduler.cancel(id);
        }
        self.fail_scores(error);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    use autograd::Device;

    use super::*;
    use crate::engine::executor::Executor;
    use crate::files::ModelFiles;
    use crate::ids::ModelId;
    use crate::request::{CompletionText, EngineConfig, GenerateEvent, GenerateRequest, ModelSpec, RuntimeSpec};
    use crate::sampler::SamplingParams;

    fn submit(planner: &mut BatchPlanner, id: u64) -> Receiver<GenerateEvent> {
        let (sender, events) = channel();
        let params = SamplingParams { max_tokens: 3, ignore_eos: true, ..SamplingParams::default() };
        let request = GenerateRequest {
            model: ModelId::STUDENT,
            prompt: vec![1, 2, 3],
            params,
            index: id,
            text: CompletionText::None,
        };
        planner.submit(RequestId(id), request, None, sender.into());
        events
    }

    #[test]
    fn a_step_that_fails_takes_its_requests_and_no_others() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-chat");
        let files = Arc::new(ModelFiles::open(&dir).expect("the fixture opens"));
        let mut spec = RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files));
        spec.engine = EngineConfig {
            token_budget: 8,
            max_running: 1,
            max_waiting: 2,
            kv_bytes: 1 << 16,
            prefix_cache: false,
            async_scheduling: true,
            ..spec.engine
        };
        let executor = Executor::new(&spec, &|_, _| {}).expect("it loads");
        let (config, pages) = executor.bases().next().expect("a model");
        let mut planner = BatchPlanner::new(ModelId::STUDENT, config.clone(), Device::Cpu, None, pages, &spec.engine)
            .expect("limits");
        let mut ranks = Ranks::new(executor, false);
        let (unlucky, lucky) = (submit(&mut planner, 1), submit(&mut planner, 2));
        planner.step(usize::MAX, &mut ranks);
        // One step is in flight; the next one fails when it is launched.
        let seqs: Vec<RequestId> = planner.scheduler.plan().seqs.iter().map(|seq| seq.id).collect();
        assert_eq!(seqs, [RequestId(1)]);
        let outcome = Err(Error::Step("no memory".to_owned()));
        let failed = InFlightStep { sampled: seqs.clone(), seqs, scored: vec![], places: vec![], outcome };
        planner.in_flight.push_back(failed);
        planner.drain();
        while !planner.is_idle() {
            planner.step(usize::MAX, &mut ranks);
        }
        let unlucky: Vec<GenerateEvent> = unlucky.iter().collect();
        assert!(
            matches!(&unlucky[..], [GenerateEvent::Started { .. }, GenerateEvent::Token(_), GenerateEvent::Failed(e)]
            if e.to_string() == "no memory"),
            "{unlucky:?}"
        );
        let lucky: Vec<GenerateEvent> = lucky.iter().collect();
        assert!(matches!(&lucky[..], [.., GenerateEvent::Done { reason: FinishReason::Length, .. }]), "{lucky:?}");
        let stats = planner.scheduler.stats();
        assert_eq!((lucky.len(), stats.free_pages), (5, stats.total_pages));
    }
}
