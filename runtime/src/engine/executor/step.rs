//! One step of a runner's models: the forward pass of each, the results of scored rows, and the samples.

use std::time::Instant;

use autograd::kv::{PagedBatch, PagedRows};
use autograd::ops::{PendingSamples, Token};
use autograd::{Index, Tape, Tensor, ops};
use rayon::prelude::*;

use super::graph_runner::GraphRunners;
use super::runner::ModelRunner;
use super::score::TaskScores;
use super::sequence::SequenceState;
use crate::Result;
use crate::engine::order::{ScoreTask, StepOrder};
use crate::ids::{ModelId, RequestId};
use crate::model::PagedKv;
use crate::sampler::{Sampled, SamplingError, from_device};
use crate::scheduler::{ModelGroup, SchedulerOutput};

/// The sampled tokens, in the order of the plan.
pub(in crate::engine) type Samples = Vec<Result<Sampled, SamplingError>>;

/// What a launched step gives.
pub(in crate::engine) struct StepOutcome {
    /// The samples of each model.
    samples: Vec<GroupSamples>,
    /// The results of each score task.
    pub(in crate::engine) scores: Vec<TaskScores>,
    /// Parts that were captured graphs.
    pub(in crate::engine) graphs: u64,
}

enum GroupSamples {
    Host(Samples),
    /// On its way from a GPU, with the number of ids that were impossible for each row.
    Gpu {
        pending: PendingSamples,
        masked: Vec<usize>,
        vocab_size: usize,
    },
}

impl StepOutcome {
    /// Whether the device has done it.
    pub(in crate::engine) fn is_done(&self) -> bool {
        self.samples.iter().all(|samples| match samples {
            // An error shows when the samples are waited for.
            GroupSamples::Gpu { pending, .. } => pending.is_ready().unwrap_or(true),
            GroupSamples::Host(_) => true,
        })
    }

    /// Waits for the samples; also how many seconds that took.
    pub(in crate::engine) fn wait(self) -> Result<(Samples, f64)> {
        let (mut all, mut seconds) = (Samples::new(), 0.0);
        for samples in self.samples {
            match samples {
                GroupSamples::Host(samples) => all.extend(samples),
                GroupSamples::Gpu { pending, masked, vocab_size } => {
                    let start = Instant::now();
                    let results = pending.wait()?;
                    seconds += start.elapsed().as_secs_f64();
                    let rows = results.into_iter().zip(masked);
                    all.extend(rows.map(|(result, masked)| from_device(result, vocab_size, masked)));
                }
            }
        }
        Ok((all, seconds))
    }
}

/// Where the samples of the newest step are, for the tokens of the next one.
#[derive(Default)]
pub(super) struct LastSamples {
    /// The tokens, where they were sampled on the host; 0 stands for one that could not be sampled, whose request fails.
    tokens: Vec<u32>,
    /// The models in the step, each with the place of its first sample.
    first: Vec<(ModelId, u32)>,
}

impl LastSamples {
    /// Place of a model's first sample.
    fn first(&self, model: ModelId) -> u32 {
        self.first.iter().find(|(id, _)| *id == model).map_or(0, |&(_, first)| first)
    }
}

impl ModelRunner {
    /// Launches a step.
    pub(super) fn step(&mut self, order: StepOrder) -> Result<StepOutcome> {
        let plan = &order.plan;
        let first = plan.groups().map(|group| (group.model, group.first_sample)).collect();
        let count = plan.seqs.iter().filter(|seq| seq.sample).count();
        let outcome = self.compute(order.ends, order.begins, order.masks, plan, &order.scores);
        let token = |sample: &Result<Sampled, _>| sample.as_ref().map_or(0, |sampled| sampled.token);
        let tokens = match &outcome {
            Ok(outcome) => outcome.samples.iter().flat_map(|samples| match samples {
                GroupSamples::Host(samples) => &samples[..],
                GroupSamples::Gpu { .. } => &[],
            }),
            Err(_) => {
                self.last = LastSamples { tokens: vec![0; count], first };
                return outcome;
            }
        };
        self.last = LastSamples { tokens: tokens.map(token).collect(), first };
        outcome
    }

    fn compute(
        &mut self,
        ends: Vec<RequestId>,
        begins: Vec<crate::engine::order::BeginSequence>,
        masks: Vec<(RequestId, Vec<u32>)>,
        plan: &SchedulerOutput,
        tasks: &[ScoreTask],
    ) -> Result<StepOutcome> {
        for id in ends {
            self.sequences.remove(&id);
        }
        let (config, device) = (self.config().clone(), self.base().device());
        for begin in begins {
            self.sequences.insert(begin.id, SequenceState::new(begin, &config, device)?);
        }
        for (id, bits) in masks {
            self.sequences.get_mut(&id).expect("it has begun").allow(bits);
        }
        for copy in &plan.copies {
            self.pool.copy_page(copy.src.0, copy.dst.0)?;
        }
        let mut outcome =
            StepOutcome { samples: vec![], scores: tasks.iter().map(|_| TaskScores::default()).collect(), graphs: 0 };
        // Taken, so that a model and the pool can be borrowed beside them.
        let mut graph_runners = self.graph_runners.take();
        let computed = plan.groups().try_for_each(|group| match &mut graph_runners {
            Some(graph_runners) => self.launch_group(graph_runners, plan, &group, tasks, &mut outcome),
            None => self.compute_group(plan, &group, tasks, &mut outcome),
        });
        self.graph_runners = graph_runners;
        computed.map(|()| outcome)
    }

    /// Computes a model's part on the host.
    fn compute_group(
        &mut self,
        plan: &SchedulerOutput,
        group: &ModelGroup<'_>,
        tasks: &[ScoreTask],
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let id = |token: &Token| match *token {
            Token::Known(id) => id,
            Token::Sampled(sample) => self.last.tokens[sample as usize],
        };
        let ids: Index = group.tokens.iter().map(id).collect();
        let logits = self.logits(plan, group, &ids, tasks, &mut outcome.scores)?;
        let samples = logits.map_or(Ok(vec![]), |logits| self.sample(group, &logits))?;
        outcome.samples.push(GroupSamples::Host(samples));
        Ok(())
    }

    /// Launches a model's part on a GPU.
    fn launch_group(
        &mut self,
        graph_runners: &mut GraphRunners,
        plan: &SchedulerOutput,
        group: &ModelGroup<'_>,
        tasks: &[ScoreTask],
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        // The model's samples lie in a buffer of its own.
        let first = self.last.first(group.model);
        let own = |&token: &Token| match token {
            Token::Sampled(sample) => Token::Sampled(sample - first),
            known @ Token::Known(_) => known,
        };
        let tokens: Vec<Token> = group.tokens.iter().map(own).collect();
        // A graph would read offloaded layers where they passed through when it was captured.
        let fixed = !self.loaded(group.model).serving().weights.is_offloaded();
        let pending = if fixed && group.seqs.iter().all(|seq| seq.sample && seq.tokens.len() == 1) {
            outcome.graphs += 1;
            Some(self.launch_graph(graph_runners, plan, group, &tokens)?)
        } else {
            let samples = graph_runners.samples(group.model)?;
            let ids = samples.feed(&tokens)?;
            let logits = self.logits(plan, group, &ids, tasks, &mut outcome.scores)?;
            let sampled = group.seqs.iter().filter(|seq| seq.sample);
            let rows = sampled.map(|seq| self.sequences[&seq.id].sample_args(seq.tokens.end)).collect::<Vec<_>>();
            logits.map(|logits| samples.sample(&logits, &rows)).transpose()?
        };
        let Some(pending) = pending else { return Ok(()) };
        let config = self.config();
        let sampled = group.seqs.iter().filter(|seq| seq.sample);
        let masked = sampled.map(|seq| self.sequences[&seq.id].masked(seq.tokens.end, config)).collect();
        outcome.samples.push(GroupSamples::Gpu { pending, masked, vocab_size: config.vocab_size });
        Ok(())
    }

    /// Logits `[B, V]` of a model's rows from which a token is sampled, `None` if there are none; reads the results of the
    /// tasks' rows meanwhile.
    fn logits(
        &mut self,
        plan: &SchedulerOutput,
        group: &ModelGroup<'_>,
        ids: &Index,
        tasks: &[ScoreTask],
        scores: &mut [TaskScores],
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
        let residual = decoder.residual_paged(params, ids, &mut PagedKv { pool, batch: &batch })?;
        let hidden = decoder.normalize(params, &residual)?;
        let own = tasks.iter().zip(scores).filter(|(task, _)| task.model == group.model);
        super::score::read(model, own.collect(), &hidden, residual)?;
        let sampled = group.seqs.iter().zip(&sequences).filter(|(seq, _)| seq.sample);
        let last_rows: Index = sampled.map(|(_, rows)| rows.rows.end as u32 - 1).collect();
        if last_rows.is_empty() {
            return Ok(None);
        }
        let hidden = ops::select_rows(&mut Tape::off(), &hidden, &last_rows)?;
        Ok(Some(ops::logits(model.head(&hidden))?))
    }

    /// Samples a token for every row on the host.
    fn sample(&mut self, group: &ModelGroup<'_>, logits: &Tensor) -> Result<Samples> {
        let sampled: Vec<_> = group.seqs.iter().filter(|seq| seq.sample).collect();
        let (logits, config) = (logits.read()?, self.config());
        let (eos, rows) = (&config.eos_token_ids, sampled.par_iter().zip(logits.par_chunks(config.vocab_size)));
        let samples: Samples =
            rows.map(|(seq, logits)| self.sequences[&seq.id].sample(logits, seq.tokens.end, eos)).collect();
        for (seq, sampled) in sampled.iter().zip(&samples) {
            if let (Some(sequence), Ok(sampled)) = (self.sequences.get_mut(&seq.id), sampled) {
                sequence.record_sampled(sampled.token);
            }
        }
        Ok(samples)
    }
}
