//! The forward passes of a step: one for all models that have the same weights, whatever their adapters.

use autograd::kv::PagedRows;
use autograd::ops::{LoraSegment, LoraSegments, Token};

use super::runner::ModelRunner;
use super::score::{BatchTask, TaskScores};
use crate::engine::order::ScoreTask;
use crate::ids::ModelId;
use crate::scheduler::{ModelGroup, ScheduledSeq, SchedulerOutput};

/// The sequences of one forward pass, model by model. The models have the same weights, tensor by tensor.
pub(super) struct Batch<'a> {
    groups: Vec<ModelGroup<'a>>,
}

impl<'a> Batch<'a> {
    /// A model of the batch; the others differ from it in the adapter alone.
    pub(super) fn model(&self) -> ModelId {
        self.groups[0].model
    }

    /// Whether its rows have different adapters.
    pub(super) fn is_mixed(&self) -> bool {
        self.groups.len() > 1
    }

    pub(super) fn seqs(&self) -> impl Iterator<Item = &'a ScheduledSeq> + use<'_, 'a> {
        self.groups.iter().flat_map(|group| group.seqs)
    }

    /// The sequences that a token is sampled for.
    pub(super) fn sampled(&self) -> impl Iterator<Item = &'a ScheduledSeq> + use<'_, 'a> {
        self.seqs().filter(|seq| seq.sample)
    }

    /// Places of their samples among those of the step.
    pub(super) fn sample_places(&self) -> impl Iterator<Item = u32> + use<'_, 'a> {
        self.groups.iter().flat_map(|group| (group.first_sample..).take(group.seqs.iter().filter(|s| s.sample).count()))
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = Token> + use<'_, 'a> {
        self.groups.iter().flat_map(|group| group.tokens).copied()
    }

    /// The rows of each sequence and its pages.
    pub(super) fn rows(&self, plan: &'a SchedulerOutput) -> Vec<PagedRows<'a>> {
        let mut next = 0;
        let rows = self.seqs().map(|seq| {
            let first = next;
            next += seq.tokens.len();
            PagedRows { rows: first..next, position: seq.tokens.start, pages: plan.pages(seq) }
        });
        rows.collect()
    }

    /// The tasks of its models, each with its place among `scores`.
    pub(super) fn tasks<'t>(&self, tasks: &'t [ScoreTask], scores: &'t mut [TaskScores]) -> Vec<BatchTask<'t>> {
        let mut first_row = 0;
        let first_rows = self.groups.iter().map(|group| {
            first_row += group.tokens.len() as u32;
            (group.model, first_row - group.tokens.len() as u32)
        });
        let first_rows: Vec<(ModelId, u32)> = first_rows.collect();
        let own = |(task, scores): (&'t ScoreTask, &'t mut TaskScores)| {
            let &(_, first_row) = first_rows.iter().find(|(model, _)| *model == task.model)?;
            Some(BatchTask::new(task, first_row, scores))
        };
        tasks.iter().zip(scores).filter_map(own).collect()
    }
}

impl ModelRunner {
    /// The forward passes of a step.
    pub(super) fn batches<'a>(&self, plan: &'a SchedulerOutput) -> Vec<Batch<'a>> {
        let mut batches: Vec<Batch<'a>> = vec![];
        for group in plan.groups() {
            let model = self.loaded(group.model);
            match batches.iter_mut().find(|batch| self.loaded(batch.model()).shares_weights_with(model)) {
                Some(batch) => batch.groups.push(group),
                None => batches.push(Batch { groups: vec![group] }),
            }
        }
        batches
    }

    /// The adapters of the rows of a batch of several.
    pub(super) fn lora_segments(&self, batch: &Batch<'_>) -> Option<LoraSegments> {
        let segment =
            |group: &ModelGroup<'_>| LoraSegment { rows: group.tokens.len(), adapter: self.loaded(group.model).lora() };
        batch.is_mixed().then(|| LoraSegments::new(batch.groups.iter().map(segment).collect()))
    }
}

/// For every sample of a step, its row among the samples of its batch.
pub(super) fn rows_in_batches(batches: &[Batch<'_>]) -> Vec<u32> {
    let places = batches.iter().flat_map(|batch| batch.sample_places().zip(0..));
    let places: Vec<(u32, u32)> = places.collect();
    let mut rows = vec![0; places.len()];
    for (place, row) in places {
        rows[place as usize] = row;
    }
    rows
}
