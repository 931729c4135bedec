//! What a model thinks of given tokens, by one packed forward: log-probabilities, or one vector.

use autograd::ops::{self, Sequences};
use autograd::{Tape, Tensor};
use rayon::prelude::*;

use super::grade::{Asked, Row};
use super::slot::{SlotEngine, check_ids};
use crate::request::{EmbedRequest, Pooling, Score, ScoreRequest};
use crate::{Error, Result};

/// Rows whose logits are held at a time.
pub(super) const CHUNK: usize = 64;

impl SlotEngine {
    /// ln p of every token given those before it.
    pub(super) fn score(&self, request: &ScoreRequest) -> Result<Score> {
        let (tokens, config) = (&request.tokens, self.config());
        self.check_given(tokens)?;
        if request.top > config.vocab_size {
            return Err(Error::Request(format!("top {} exceeds the vocabulary of {}", request.top, config.vocab_size)));
        }
        let mut score = Score { logprobs: vec![None], top: vec![vec![]] };
        let inputs = &tokens[..tokens.len() - 1];
        if inputs.is_empty() {
            return Ok(score);
        }
        let sequences = Sequences::from_lengths(&[inputs.len()]);
        let hidden = self.decoder.forward_packed(&mut Tape::off(), &self.serving, &inputs.into(), &sequences)?;
        for first in (0..inputs.len()).step_by(CHUNK) {
            let rows: Vec<usize> = (first..(first + CHUNK).min(inputs.len())).collect();
            self.score_rows(&hidden, &rows, tokens, request.top, &mut score)?;
        }
        Ok(score)
    }

    /// The final hidden states as one vector.
    pub(super) fn embed(&self, request: &EmbedRequest) -> Result<Vec<f32>> {
        let tokens = &request.tokens;
        self.check_given(tokens)?;
        let sequences = Sequences::from_lengths(&[tokens.len()]);
        let ids = (&tokens[..]).into();
        let hidden = self.decoder.forward_packed(&mut Tape::off(), &self.serving, &ids, &sequences)?;
        match request.pooling {
            Pooling::Last => {
                let last = vec![tokens.len() as u32 - 1].into();
                Ok(ops::select_rows(&mut Tape::off(), &hidden, &last)?.read()?)
            }
            Pooling::Mean => {
                let mut sum = vec![0f64; hidden.cols()];
                for row in hidden.read()?.chunks(sum.len()) {
                    sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
                }
                Ok(sum.into_iter().map(|sum| (sum / tokens.len() as f64) as f32).collect())
            }
        }
    }

    /// Tokens that the model knows, and can see at once.
    fn check_given(&self, tokens: &[u32]) -> Result<()> {
        check_ids(tokens, self.config())?;
        let (got, max) = (tokens.len(), self.config().max_position_embeddings);
        match got {
            0 => Err(Error::Request("there are no tokens".to_owned())),
            _ if got > max => {
                Err(Error::Request(format!("{got} tokens exceed the model's context of {max}; send shorter pieces")))
            }
            _ => Ok(()),
        }
    }

    fn score_rows(&self, hidden: &Tensor, rows: &[usize], tokens: &[u32], top: usize, score: &mut Score) -> Result<()> {
        let places = rows.iter().map(|&row| row as u32).collect();
        let hidden = ops::select_rows(&mut Tape::off(), hidden, &places)?;
        let logits = ops::logits(self.head(&hidden))?.read()?;
        let asked = Asked { top, ..Asked::plain() };
        let scored: Vec<Row> = rows
            .par_iter()
            .zip(logits.par_chunks(self.config().vocab_size))
            .map(|(row, z)| asked.row(z, tokens[row + 1]))
            .collect();
        if let Some(i) = scored.iter().position(|row| row.logprob.is_nan()) {
            return Err(Error::Request(format!("the logits at position {} are not numbers", rows[i])));
        }
        for row in scored {
            score.logprobs.push(Some(row.logprob));
            score.top.push(row.top);
        }
        Ok(())
    }
}
