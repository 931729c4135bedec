//! One step of a model's continuous batch: it is launched, and later its results are processed.
//!
//! With asynchronous scheduling the device is one step ahead of the host: step n + 1 is planned and launched, its tokens fed
//! on the device, before the host reads the samples of step n and turns them into text and events. Without, the results of a
//! step are processed before the next one is planned.

use std::sync::Arc;
use std::time::Instant;

use autograd::kv::{PagedBatch, PagedRows};
use autograd::ops::{PendingDraws, Token};
use autograd::{Index, Tape, Tensor, ops};
use rayon::prelude::*;

use super::generation::{GenerationState, Progress};
use super::graph_runner::GraphRunners;
use super::runner::ModelRunner;
use crate::ids::{ModelId, RequestId};
use crate::memory::Entry;
use crate::model::Paged;
use crate::request::FinishReason;
use crate::sampler::{Sampled, SamplingError};
use crate::scheduler::{ModelGroup, SchedulerOutput};
use crate::{Error, Result};

/// A launched step whose results are not processed.
pub(super) struct InFlightStep {
    /// Every request in it.
    seqs: Vec<RequestId>,
    /// Those for which it samples a token, in the order of the samples.
    sampled: Vec<RequestId>,
    /// Those whose scores are complete with it.
    scored: Vec<RequestId>,
    /// The models in it, each with the place of its first sample.
    first_samples: Vec<(ModelId, u32)>,
    /// The samples of each model.
    outcome: Result<Vec<StepSamples>>,
}

/// The sampled tokens.
type Samples = Vec<Result<Sampled, SamplingError>>;

enum StepSamples {
    Host(Samples),
    Gpu(PendingDraws),
}

impl InFlightStep {
    /// The tokens that were sampled on the host; 0 stands for one that could not be sampled, whose request will fail.
    fn tokens(&self) -> Vec<u32> {
        let on_host = |samples| match samples {
            &StepSamples::Host(ref samples) => samples,
            &StepSamples::Gpu(_) => unreachable!("tokens are sampled where the logits are"),
        };
        match &self.outcome {
            Ok(all) => all.iter().flat_map(on_host).map(|s| s.as_ref().map_or(0, |s| s.token)).collect(),
            Err(_) => vec![0; self.sampled.len()],
        }
    }

    /// Place of a model's first sample.
    fn first_sample(&self, model: ModelId) -> u32 {
        self.first_samples.iter().find(|(id, _)| *id == model).map_or(0, |&(_, first)| first)
    }

    /// Whether the device has done it.
    fn is_done(&self) -> bool {
        let ready = |samples: &StepSamples| match samples {
            // An error shows when the results are processed.
            StepSamples::Gpu(pending) => pending.is_ready().unwrap_or(true),
            StepSamples::Host(_) => true,
        };
        self.outcome.as_ref().map_or(true, |all| all.iter().all(ready))
    }
}

impl ModelRunner {
    /// Launches the next step and processes the results of the one before; without asynchronous scheduling, or when there is
    /// nothing to launch, all results. The step takes at most `prefill` tokens of prompts; how many it took is returned.
    pub(super) fn step(&mut self, prefill: usize) -> usize {
        self.feed_scores();
        let plan = self.scheduler.plan_with_prefill(prefill);
        let mut stay = 0;
        if !plan.is_empty() {
            self.launch(&plan);
            stay = usize::from(self.async_scheduling);
        }
        while self.in_flight.len() > stay {
            self.process_results();
        }
        plan.seqs.iter().map(|seq| seq.tokens.len()).filter(|&tokens| tokens > 1).sum()
    }

    /// Processes the results of all steps in flight.
    pub(super) fn drain(&mut self) {
        while !self.in_flight.is_empty() {
            self.process_results();
        }
    }

    fn launch(&mut self, plan: &SchedulerOutput) {
        let outcome = self.start_generations(plan).and_then(|()| self.compute(plan));
        self.steps.launched += 1;
        if let Some(before) = self.in_flight.back() {
            self.steps.ahead += 1;
            self.steps.late += u64::from(before.is_done());
        }
        self.in_flight.push_back(InFlightStep {
            seqs: plan.seqs.iter().map(|seq| seq.id).collect(),
            sampled: plan.seqs.iter().filter(|seq| seq.sample).map(|seq| seq.id).collect(),
            scored: self.completes(plan),
            first_samples: plan.groups().map(|group| (group.model, group.first_sample)).collect(),
            outcome,
        });
    }

    /// Makes what the first step of a generation needs, and the masks of the tokens that are allowed next.
    fn start_generations(&mut self, plan: &SchedulerOutput) -> Result<()> {
        let config = Arc::clone(self.config());
        for seq in plan.seqs.iter().filter(|seq| !self.scores.has(seq.id)) {
            let generation = self.running.get_mut(&seq.id).expect("a planned request is running");
            if seq.sample {
                generation.compute_mask();
            }
            if generation.has_started() {
                continue;
            }
            let tokens = self.scheduler.tokens(seq.id).expect("a planned request is in the scheduler");
            generation.start(seq.tokens.start, tokens, &config)?;
        }
        Ok(())
    }

    /// Starts the planned tokens and samples the next ones.
    fn compute(&mut self, plan: &SchedulerOutput) -> Result<Vec<StepSamples>> {
        for copy in &plan.copies {
            self.pool.copy_page(copy.src.0, copy.dst.0)?;
        }
        if let Some(mut graph_runners) = self.graph_runners.take() {
            let launched = self.launch_groups(&mut graph_runners, plan);
            self.graph_runners = Some(graph_runners);
            return launched;
        }
        let before = self.in_flight.back().map_or(vec![], InFlightStep::tokens);
        let id = |token: &Token| match *token {
            Token::Known(id) => id,
            Token::Drawn(sample) => before[sample as usize],
        };
        let mut all = Vec::new();
        for group in plan.groups() {
            let ids: Index = group.tokens.iter().map(id).collect();
            let logits = self.logits(plan, &group, &ids)?;
            let samples = logits.map_or(Ok(vec![]), |logits| self.sample(&group, &logits))?;
            all.push(StepSamples::Host(samples));
        }
        Ok(all)
    }

    /// Launches the parts of all models on a GPU.
    fn launch_groups(&mut self, runners: &mut GraphRunners, plan: &SchedulerOutput) -> Result<Vec<StepSamples>> {
        let mut all = Vec::new();
        for group in plan.groups() {
            let first_sample = self.in_flight.back().map_or(0, |before| before.first_sample(group.model));
            let launched = self.launch_on(runners, plan, &group, first_sample)?;
            all.push(launched.map_or(StepSamples::Host(vec![]), StepSamples::Gpu));
        }
        Ok(all)
    }

    /// Logits `[B, V]` of a model's rows from which a token is sampled, `None` if there are none.
    pub(super) fn logits(
        &mut self,
        plan: &SchedulerOutput,
        group: &ModelGroup<'_>,
        ids: &Index,
    ) -> Result<Option<Tensor>> {
        let mut next = 0;
        let rows = group.seqs.iter().map(|seq| {
            let first = next;
            next += seq.tokens.len();
            PagedRows { rows: first..next, position: seq.tokens.start, pages: plan.pages(seq) }
        });
        let sequences: Vec<PagedRows<'_>> = rows.collect();
        let batch = PagedBatch::new(&sequences);
        let (model, pool) = self.model_and_pool(group.model);
        let (decoder, params) = (model.decoder(), model.serving());
        let residual = decoder.residual_paged(params, ids, &mut Paged { pool, batch: &batch })?;
        let hidden = decoder.normalize(params, &residual)?;
        let residual = self.wants_residual(group).then_some(residual);
        self.score_planned(group, &hidden, residual.as_ref())?;
        drop(residual);
        let sampled = group.seqs.iter().zip(&sequences).filter(|(seq, _)| seq.sample);
        let last_rows: Index = sampled.map(|(_, rows)| rows.rows.end as u32 - 1).collect();
        if last_rows.is_empty() {
            return Ok(None);
        }
        let hidden = ops::select_rows(&mut Tape::off(), &hidden, &last_rows)?;
        Ok(Some(ops::logits(self.model(group.model).head(&hidden))?))
    }

    /// Samples a token for every row on the host.
    fn sample(&mut self, group: &ModelGroup<'_>, logits: &Tensor) -> Result<Samples> {
        let ids: Vec<RequestId> = group.seqs.iter().filter(|seq| seq.sample).map(|seq| seq.id).collect();
        let (logits, config) = (logits.read()?, self.config());
        let (eos, rows) = (&config.eos_token_ids, ids.par_iter().zip(logits.par_chunks(config.vocab_size)));
        let samples: Samples = rows.map(|(id, logits)| self.running[id].draw(logits, eos)).collect();
        for (id, sampled) in ids.iter().zip(&samples) {
            if let (Some(generation), Ok(sampled)) = (self.running.get_mut(id), sampled) {
                generation.record_sampled(sampled.token);
            }
        }
        Ok(samples)
    }

    /// Waits for the results of the oldest step in flight and processes them.
    fn process_results(&mut self) {
        let Some(step) = self.in_flight.pop_front() else { return };
        match step.outcome.and_then(|samples| self.wait(samples, &step.sampled)) {
            Ok(samples) => {
                self.deliver(step.sampled.into_iter().zip(samples).collect());
                self.answer_scored(&step.scored);
            }
            Err(e) => self.fail(&step.seqs, e.while_allocating(Entry::Activations)),
        }
    }

    /// Waits for the samples of all models, which are those of `ids` one after another.
    fn wait(&mut self, all: Vec<StepSamples>, ids: &[RequestId]) -> Result<Samples> {
        let mut samples = Samples::with_capacity(ids.len());
        for part in all {
            let pending = match part {
                StepSamples::Host(part) => {
                    samples.extend(part);
                    continue;
                }
                StepSamples::Gpu(pending) => pending,
            };
            let start = Instant::now();
            let drawn = pending.wait()?;
            self.steps.waited_seconds += start.elapsed().as_secs_f64();
            let config = self.config();
            let sampled = |(id, drawn)| match self.running.get(id) {
                Some(generation) => generation.sampled(drawn, config),
                // It has ended meanwhile: its result is dropped.
                None => crate::sampler::from_device(drawn, config.vocab_size, 0),
            };
            samples.extend(ids[samples.len()..].iter().zip(drawn).map(sampled));
        }
        Ok(samples)
    }

    /// Hands out sampled tokens and ends what has ended. Requests that ended while the step ran get nothing.
    fn deliver(&mut self, samples: Vec<(RequestId, Result<Sampled, SamplingError>)>) {
        for (id, _) in samples.iter().filter(|(_, s)| s.is_err()) {
            self.scheduler.cancel(*id);
        }
        let token = |(id, s): &(RequestId, Result<Sampled, _>)| s.as_ref().ok().map(|s| (*id, s.token));
        let tokens: Vec<(RequestId, u32)> = samples.iter().filter_map(token).collect();
        self.scheduler.commit(&tokens);
        let config = Arc::clone(self.config());
        for (id, sampled) in samples {
            let Some(model) = self.running.get(&id).map(GenerationState::model) else { continue };
            let version = self.model(model).version();
            let Some(generation) = self.running.get_mut(&id) else { continue };
            let progress = match sampled {
                Ok(sampled) => generation.push(sampled, &config.eos_token_ids, version),
                Err(e) => generation.fail(e.into()),
            };
            match progress {
                Progress::Continues => {}
                Progress::Ended(FinishReason::Cancelled) => self.cancel(id),
                Progress::Ended(_) => {
                    self.scheduler.finish(id);
                    self.running.remove(&id);
                }
            }
        }
    }

    /// A forward pass that failed fails every request in it; the others go on.
    fn fail(&mut self, seqs: &[RequestId], error: Error) {
        for id in seqs {
            if let Some(mut generation) = self.running.remove(id) {
                generation.fail(error.duplicate());
            }
            self.scheduler.cancel(*id);
        }
        self.fail_scored(seqs, &error);
        self.scheduler.commit(&[]);
        self.error = Some(error);
    }

    /// Ends every generation early, with what it has so far.
    pub(super) fn abort_all(&mut self) {
        self.drain();
        for (id, mut generation) in std::mem::take(&mut self.running) {
            generation.abort();
            self.scheduler.cancel(id);
        }
    }

    /// Ends every request with an error.
    pub(super) fn fail_all(&mut self, error: &Error) {
        self.drain();
        for (id, mut generation) in std::mem::take(&mut self.running) {
            generation.fail(error.duplicate());
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
    use crate::files::ModelFiles;
    use crate::request::{
        CompletionText, EngineConfig, GenerateEvent, GenerateRequest, ModelId, ModelSpec, RuntimeSpec,
    };
    use crate::sampler::SamplingParams;

    fn submit(runner: &mut ModelRunner, id: u64) -> Receiver<GenerateEvent> {
        let (sender, events) = channel();
        let params = SamplingParams { max_tokens: 3, ignore_eos: true, ..SamplingParams::default() };
        let request = GenerateRequest {
            model: ModelId::STUDENT,
            prompt: vec![1, 2, 3],
            params,
            index: id,
            text: CompletionText::None,
        };
        runner.submit(RequestId(id), request, None, sender.into());
        events
    }

    #[test]
    fn a_step_that_fails_takes_its_requests_and_no_others() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-chat");
        let files = Arc::new(ModelFiles::open(&dir).expect("the fixture opens"));
        let student = ModelSpec::new(files);
        let engine = EngineConfig {
            token_budget: 8,
            max_running: 1,
            max_waiting: 2,
            kv_bytes: 1 << 16,
            prefix_cache: false,
            async_scheduling: true,
            short_steps: false,
        };
        let spec =
            RuntimeSpec { device: Device::Cpu, deterministic: false, models: vec![student], training: None, engine };
        let mut runner = ModelRunner::load(ModelId::STUDENT, &spec, None, &|_, _| {}).expect("it loads");
        let (unlucky, lucky) = (submit(&mut runner, 1), submit(&mut runner, 2));
        runner.step(usize::MAX);
        // One step is in flight; the next one fails when it is launched.
        let ids: Vec<RequestId> = runner.scheduler.plan().seqs.iter().map(|seq| seq.id).collect();
        assert_eq!(ids, [RequestId(1)]);
        let outcome = Err(Error::Step("no memory".to_owned()));
        runner.in_flight.push_back(InFlightStep {
            seqs: ids.clone(),
            sampled: ids,
            scored: vec![],
            first_samples: vec![],
            outcome,
        });
        runner.drain();
        while !runner.is_idle() {
            runner.step(usize::MAX);
        }
        let unlucky: Vec<GenerateEvent> = unlucky.iter().collect();
        assert!(
            matches!(&unlucky[..], [GenerateEvent::Started { .. }, GenerateEvent::Token(_), GenerateEvent::Failed(e)]
            if e.to_string() == "no memory"),
            "{unlucky:?}"
        );
        let lucky: Vec<GenerateEvent> = lucky.iter().collect();
        assert!(matches!(&lucky[..], [.., GenerateEvent::Done { reason: FinishReason::Length, .. }]), "{lucky:?}");
        let stats = runner.scheduler.stats();
        assert_eq!((lucky.len(), stats.free_pages), (5, stats.total_pages));
    }
}
