//! The scored rows of a step.

use autograd::{Tape, Tensor, ops};
use rayon::prelude::*;

use crate::Result;
use crate::engine::order::{ScoreRow, ScoreTask};
use crate::model::LoadedModel;
use crate::request::{ScoreOutput, SequenceScores};

/// Rows whose logits are held at a time.
const CHUNK: usize = 64;

/// The results of a task's rows, in their order.
#[derive(Default)]
pub(in crate::engine) struct TaskScores {
    /// One for each row; none where the hidden states themselves are wanted.
    pub(in crate::engine) rows: Vec<SequenceScores>,
    /// Hidden states of the rows that are pooled, `[rows, H]`.
    pub(in crate::engine) hidden: Vec<f32>,
}

/// A row whose logits are read, and where its results go: the task and the place in it.
type LogitRow<'a> = (&'a ScoreTask, ScoreRow, usize);

/// A task of a batch, and where its results go.
pub(super) struct BatchTask<'a> {
    task: &'a ScoreTask,
    /// Its rows, by their places in the batch.
    rows: Vec<ScoreRow>,
    scores: &'a mut TaskScores,
}

impl<'a> BatchTask<'a> {
    /// A task of a model whose rows begin at `first_row` of the batch.
    pub(super) fn new(task: &'a ScoreTask, first_row: u32, scores: &'a mut TaskScores) -> Self {
        let rows = task.rows.iter().map(|row| ScoreRow { row: first_row + row.row, ..*row }).collect();
        Self { task, rows, scores }
    }
}

/// Reads the results of a batch's tasks; `hidden` `[T, H]` are its final hidden states, `residual` the same before the last
/// norm. `model` is one of its models: they have the same head.
pub(super) fn read(
    model: &LoadedModel,
    mut tasks: Vec<BatchTask<'_>>,
    hidden: &Tensor,
    residual: Tensor,
) -> Result<()> {
    let mut with_logits: Vec<LogitRow<'_>> = Vec::new();
    for (number, BatchTask { task, rows, scores }) in tasks.iter_mut().enumerate() {
        match task.output {
            ScoreOutput::LogProbs(_) | ScoreOutput::Logits(_) => {
                with_logits.extend(rows.iter().map(|&row| (*task, row, number)));
            }
            ScoreOutput::TokenLogProbs { temperature } => {
                let targets: Vec<u32> = rows.iter().map(own_token).collect();
                let hidden = select(rows, hidden)?;
                let logprobs = ops::linear_log_prob(head(model, &hidden, task), &targets, temperature)?;
                let row = |logprob| SequenceScores { logprobs: vec![f64::from(logprob)], ..SequenceScores::default() };
                scores.rows = logprobs.into_iter().map(row).collect();
            }
            ScoreOutput::Hidden { normalized, precision } => {
                let values = select(rows, if normalized { hidden } else { &residual })?.read()?;
                let encode = |values: &[f32]| {
                    let mut rows = Vec::with_capacity(values.len() * precision.bytes());
                    precision.encode(values, &mut rows);
                    SequenceScores { rows, ..SequenceScores::default() }
                };
                scores.rows = values.chunks(hidden.cols()).map(encode).collect();
            }
            ScoreOutput::Pooled(_) => scores.hidden = select(rows, hidden)?.read()?,
        }
    }
    drop(residual);
    // Rows of distributions over other numbers of ids are other rows.
    for alike in with_logits.chunk_by(|(a, ..), (b, ..)| a.token_ids == b.token_ids) {
        for rows in alike.chunks(CHUNK) {
            for (&(.., number), scores) in rows.iter().zip(read_logits(model, rows, hidden)?) {
                tasks[number].scores.rows.push(scores);
            }
        }
    }
    Ok(())
}

/// The head of a task's rows.
fn head<'a>(model: &'a LoadedModel, hidden: &'a Tensor, task: &ScoreTask) -> ops::Head<'a> {
    let head = model.head(hidden);
    ops::Head { ids: task.token_ids.unwrap_or(head.ids), ..head }
}

/// The results of rows that are read from logits.
fn read_logits(model: &LoadedModel, rows: &[LogitRow<'_>], hidden: &Tensor) -> Result<Vec<SequenceScores>> {
    let places: Vec<ScoreRow> = rows.iter().map(|(_, row, _)| *row).collect();
    let (hidden, task) = (select(&places, hidden)?, rows[0].0);
    let logits = ops::logits(head(model, &hidden, task))?.read()?;
    let vocab_size = model.config().vocab_size;
    let columns = task.token_ids.unwrap_or(vocab_size);
    let score = |((task, row, _), z): (&LogitRow<'_>, &[f32])| match &task.output {
        ScoreOutput::LogProbs(log_probs) => log_probs.of_row(z, own_token(row)),
        ScoreOutput::Logits(precision) => {
            let mut rows = Vec::with_capacity(columns * precision.bytes());
            precision.encode(&z[..columns], &mut rows);
            SequenceScores { rows, ..SequenceScores::default() }
        }
        ScoreOutput::TokenLogProbs { .. } | ScoreOutput::Hidden { .. } | ScoreOutput::Pooled(_) => {
            unreachable!("these need no logits")
        }
    };
    Ok(rows.par_iter().zip(logits.par_chunks(vocab_size)).map(score).collect())
}

/// The token that a row predicts.
fn own_token(row: &ScoreRow) -> u32 {
    row.target.expect("positions whose own token is scored have one")
}

fn select(rows: &[ScoreRow], hidden: &Tensor) -> Result<Tensor> {
    Ok(ops::select_rows(&mut Tape::off(), hidden, &rows.iter().map(|row| row.row).collect())?)
}
