//! One step of a runner's models: the forward pass of each batch, the results of scored rows, and the samples.

use std::time::Instant;

use autograd::kv::PagedBatch;
use autograd::ops::{LoraSegments, PendingSamples, Token};
use autograd::{Index, Tape, Tensor, ops};
use rayon::prelude::*;

use super::batch::{self, Batch};
use super::graph_runner::GraphRunners;
use super::runner::ModelRunner;
use super::score::TaskScores;
use super::sequence::SequenceState;
use crate::Result;
use crate::engine::order::{ScoreTask, StepOrder};
use crate::ids::RequestId;
use crate::model::{PagedKv, RowAdapters};
use crate::sampler::{Sampled, SamplingError, from_device};
use crate::scheduler::SchedulerOutput;

/// The sampled tokens, in the order of the plan.
pub(in crate::engine) type Samples = Vec<Result<Sampled, SamplingError>>;

/// What a launched step gives.
pub(in crate::engine) struct StepOutcome {
    /// The samples of each batch, with their places among those of the step.
    samples: Vec<(Vec<u32>, BatchSamples)>,
    /// The results of each score task.
    pub(in crate::engine) scores: Vec<TaskScores>,
    /// Parts that were captured graphs.
    pub(in crate::engine) graphs: u64,
    /// Batches whose rows had different adapters.
    pub(in crate::engine) mixed: u64,
}

enum BatchSamples {
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
        self.samples.iter().all(|(_, samples)| match samples {
            // An error shows when the samples are waited for.
            BatchSamples::Gpu { pending, .. } => pending.is_ready().unwrap_or(true),
            BatchSamples::Host(_) => true,
        })
    }

    /// Waits for the samples; also how many seconds that took.
    pub(in crate::engine) fn wait(self) -> Result<(Samples, f64)> {
        let (mut all, mut seconds) = (vec![], 0.0);
        for (places, samples) in self.samples {
            let samples = match samples {
                BatchSamples::Host(samples) => samples,
                BatchSamples::Gpu { pending, masked, vocab_size } => {
                    let start = Instant::now();
                    let results = pending.wait()?;
                    seconds += start.elapsed().as_secs_f64();
                    let rows = results.into_iter().zip(masked);
                    rows.map(|(result, masked)| from_device(result, vocab_size, masked)).collect()
                }
            };
            all.extend(places.into_iter().zip(samples));
        }
        all.sort_by_key(|(place, _)| *place);
        Ok((all.into_iter().map(|(_, sample)| sample).collect(), seconds))
    }
}

/// Where the samples of the newest step are, for the tokens of the next one.
#[derive(Default)]
pub(super) struct LastSamples {
    /// The tokens, where they were sampled on the host; 0 stands for one that could not be sampled, whose request fails.
    tokens: Vec<u32>,
    /// The rows of the samples in the buffers of their batches, on a GPU.
    rows: Vec<u32>,
}

impl ModelRunner {
    /// Launches a step.
    pub(super) fn step(&mut self, order: StepOrder) -> Result<StepOutcome> {
        let plan = &order.plan;
        let batches = self.batches(plan);
        let rows = batch::rows_in_batches(&batches);
        let mut tokens = vec![0; rows.len()];
        let outcome = self.compute(order.ends, order.begins, order.masks, (plan, batches), &order.scores);
        for (places, samples) in outcome.iter().flat_map(|outcome| &outcome.samples) {
            let BatchSamples::Host(samples) = samples else { continue };
            for (&place, sample) in places.iter().zip(samples) {
                tokens[place as usize] = sample.as_ref().map_or(0, |sampled| sampled.token);
            }
        }
        self.last = LastSamples { tokens, rows };
        outcome
    }

    fn compute(
        &mut self,
        ends: Vec<RequestId>,
        begins: Vec<crate::engine::order::BeginSequence>,
        masks: Vec<(RequestId, Vec<u32>)>,
        (plan, batches): (&SchedulerOutput, Vec<Batch<'_>>),
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
        let mut outcome = StepOutcome {
            samples: vec![],
            scores: tasks.iter().map(|_| TaskScores::default()).collect(),
            graphs: 0,
            mixed: batches.iter().filter(|batch| batch.is_mixed()).count() as u64,
        };
        // Taken, so that a model and the pool can be borrowed beside them.
        let mut graph_runners = self.graph_runners.take();
        let computed = batches.iter().try_for_each(|batch| match &mut graph_runners {
            Some(graph_runners) => self.launch_batch(graph_runners, plan, batch, tasks, &mut outcome),
            None => self.compute_batch(plan, batch, tasks, &mut outcome),
        });
        self.graph_runners = graph_runners;
        computed.map(|()| outcome)
    }

    /// Computes a batch on the host.
    fn compute_batch(
        &mut self,
        plan: &SchedulerOutput,
        batch: &Batch<'_>,
        tasks: &[ScoreTask],
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let id = |token| match token {
            Token::Known(id) => id,
            Token::Sampled(sample) => self.last.tokens[sample as usize],
        };
        let ids: Index = batch.tokens().map(id).collect();
        let lora = self.lora_segments(batch);
        let logits = self.logits(plan, (batch, lora), &ids, tasks, &mut outcome.scores)?;
        let samples = logits.map_or(Ok(vec![]), |logits| self.sample(batch, &logits))?;
        outcome.samples.push((batch.sample_places().collect(), BatchSamples::Host(samples)));
        Ok(())
    }

    /// Launches a batch on a GPU.
    fn launch_batch(
        &mut self,
        graph_runners: &mut GraphRunners,
        plan: &SchedulerOutput,
        batch: &Batch<'_>,
        tasks: &[ScoreTask],
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        // The samples of a batch are in a buffer of their own.
        let own = |token| match token {
            Token::Sampled(sample) => Token::Sampled(self.last.rows[sample as usize]),
            known @ Token::Known(_) => known,
        };
        let tokens: Vec<Token> = batch.tokens().map(own).collect();
        let weights = &self.loaded(batch.model()).serving().weights;
        let lora = self.lora_segments(batch);
        // A graph would read offloaded layers where they passed through when it was captured.
        let fixed = !weights.is_offloaded() && graph_runners.fit(lora.as_ref())?;
        let pending = if fixed && batch.seqs().all(|seq| seq.sample && seq.tokens.len() == 1) {
            outcome.graphs += 1;
            Some(self.launch_graph(graph_runners, plan, batch, &tokens, lora.as_ref())?)
        } else {
            let samples = graph_runners.samples(weights)?;
            let ids = samples.feed(&tokens)?;
            let logits = self.logits(plan, (batch, lora), &ids, tasks, &mut outcome.scores)?;
            let sampled = batch.sampled();
            let rows = sampled.map(|seq| self.sequences[&seq.id].sample_args(seq.tokens.end)).collect::<Vec<_>>();
            logits.map(|logits| samples.sample(&logits, &rows)).transpose()?
        };
        let Some(pending) = pending else { return Ok(()) };
        let config = self.config();
        let masked = batch.sampled().map(|seq| self.sequences[&seq.id].masked(seq.tokens.end, config)).collect();
        let samples = BatchSamples::Gpu { pending, masked, vocab_size: config.vocab_size };
        outcome.samples.push((batch.sample_places().collect(), samples));
        Ok(())
    }

    /// Logits `[B, V]` of a batch's rows from which a token is sampled, `None` if there are none; reads the results of the
    /// tasks' rows meanwhile. `lora` are the adapters of a batch of several.
    fn logits(
        &mut self,
        plan: &SchedulerOutput,
        (batch, lora): (&Batch<'_>, Option<LoraSegments>),
        ids: &Index,
        tasks: &[ScoreTask],
        scores: &mut [TaskScores],
    ) -> Result<Option<Tensor>> {
        let rows = batch.rows(plan);
        let (model, pool) = self.model_and_pool(batch.model());
        let (decoder, params) = (model.decoder(), model.serving());
        let adapters = lora.as_ref().map_or_else(|| params.row_adapters(), RowAdapters::Segments);
        let mut memory = PagedKv { pool, batch: &PagedBatch::new(&rows) };
        let residual = decoder.residual_paged(&params.weights, adapters, ids, &mut memory)?;
        let hidden = decoder.normalize(&params.weights, &residual)?;
        super::score::read(model, batch.tasks(tasks, scores), &hidden, residual)?;
        let sampled = batch.seqs().zip(&rows).filter(|(seq, _)| seq.sample);
        let last_rows: Index = sampled.map(|(_, rows)| rows.rows.end as u32 - 1).collect();
        if last_rows.is_empty() {
            return Ok(None);
        }
        let hidden = ops::select_rows(&mut Tape::off(), &hidden, &last_rows)?;
        Ok(Some(ops::logits(model.head(&hidden))?))
    }

    /// Samples a token for every row on the host.
    fn sample(&mut self, batch: &Batch<'_>, logits: &Tensor) -> Result<Samples> {
        let sampled: Vec<_> = batch.sampled().collect();
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
