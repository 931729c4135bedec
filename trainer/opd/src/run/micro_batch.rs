//! Completions into training sequences, and those into micro-batches by a budget of tokens.

use runtime::request::{FinishReason, Generated, TrainSequence};

use crate::prompt::Example;
use crate::teacher::RemoteCompletion;

/// Where a completion came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CompletionSource {
    /// The student sampled it.
    Student,
    /// The teacher sampled it, or the data gave it.
    Other,
}

/// A completion ready to be trained on.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Its tokens, with the prompts of both models.
    pub(super) sequence: TrainSequence,
    /// Which model generated it.
    pub(super) source: CompletionSource,
    /// Whether it was cut off by the limit of new tokens.
    pub(super) truncated: bool,
}

impl Completion {
    /// A sampled completion. Its last token, an end of sequence or a cut, is trained like any other.
    #[must_use]
    pub(super) fn sampled(example: &Example, generated: &Generated, source: CompletionSource) -> Self {
        let tokens: Vec<u32> = generated.tokens.iter().map(|event| event.token).collect();
        let mut completion = Self::after(&example.prompt, example, &tokens);
        if source == CompletionSource::Student {
            let events = &generated.tokens;
            completion.sequence.sampled_logprobs = events.iter().map(|e| e.sampling_logprob as f32).collect();
            completion.sequence.raw_logprobs = events.iter().map(|e| e.logprob as f32).collect();
        }
        Self { source, truncated: generated.reason == FinishReason::Length, ..completion }
    }

    /// A completion that the data gave.
    #[must_use]
    pub(super) fn given(example: &Example, tokens: &[u32]) -> Self {
        Self::after(example.given_prompt.as_ref().unwrap_or(&example.prompt), example, tokens)
    }

    fn after(prompt: &[u32], example: &Example, tokens: &[u32]) -> Self {
        let sequence = TrainSequence {
            tokens: [prompt, tokens].concat(),
            prompt_len: prompt.len(),
            teacher_prompt: example.teacher_prompt.clone(),
            sampled_logprobs: Vec::new(),
            raw_logprobs: Vec::new(),
            weights: vec![1.0; tokens.len()],
        };
        Self { sequence, source: CompletionSource::Other, truncated: false }
    }

    /// A completion that a remote teacher generated.
    #[must_use]
    pub(super) fn remote(example: &Example, generated: &RemoteCompletion) -> Self {
        Self { truncated: generated.truncated, ..Self::after(&example.prompt, example, &generated.tokens) }
    }

    /// Tokens of the completion.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.sequence.weights.len()
    }

    /// Tokens that the larger of the two forward passes sees.
    #[must_use]
    pub(super) fn cost(&self) -> usize {
        let teacher = self.sequence.teacher_prompt.as_ref().map_or(0, |prompt| prompt.len() + self.len());
        self.sequence.tokens.len().max(teacher)
    }
}

/// Cuts `completions` into runs of one source that cost at most `budget` tokens each, in order. A completion that
/// costs more than the budget gets a run of its own; the recipe's limits exclude it.
#[must_use]
pub(super) fn split(completions: Vec<Completion>, budget: usize) -> Vec<(CompletionSource, Vec<TrainSequence>)> {
    let mut batches: Vec<(CompletionSource, Vec<TrainSequence>)> = Vec::new();
    for source in [CompletionSource::Student, CompletionSource::Other] {
        let mut used = usize::MAX;
        for completion in completions.iter().filter(|completion| completion.source == source) {
            let cost = completion.cost();
            match batches.last_mut() {
                Some((_, batch)) if used.saturating_add(cost) <= budget => {
                    batch.push(completion.sequence.clone());
                    used += cost;
                }
                _ => {
                    batches.push((source, vec![completion.sequence.clone()]));
                    used = cost;
                }
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(prompt: usize, teacher: Option<usize>, tokens: usize, source: CompletionSource) -> Completion {
        let example = Example {
            prompt: vec![1; prompt],
            teacher_prompt: teacher.map(|len| vec![2; len]),
            completion: None,
            given_prompt: None,
            shown: String::new(),
        };
        Completion { source, ..Completion::given(&example, &vec![3; tokens]) }
    }

    fn costs(batches: &[(CompletionSource, Vec<TrainSequence>)]) -> Vec<Vec<usize>> {
        batches.iter().map(|(_, batch)| batch.iter().map(|sequence| sequence.tokens.len()).collect()).collect()
    }

    #[test]
    fn batches_keep_the_order_and_the_budget() {
        let all = [4, 3, 3, 9, 1, 1].map(|len| completion(len, None, 1, CompletionSource::Student));
        assert_eq!(costs(&split(all.to_vec(), 10)), [vec![5, 4], vec![4], vec![10], vec![2, 2]]);
        assert!(split(Vec::new(), 10).is_empty());
    }

    #[test]
    fn the_teachers_longer_prompt_counts() {
        let long = completion(2, Some(8), 2, CompletionSource::Student);
        assert_eq!(long.cost(), 10);
        assert_eq!(split(vec![long.clone(), long.clone()], 19).len(), 2);
        assert_eq!(split(vec![long.clone(), long], 20).len(), 1);
    }

    #[test]
    fn sources_are_not_mixed() {
        let all = vec![
            completion(1, None, 1, CompletionSource::Other),
            completion(2, None, 1, CompletionSource::Student),
            completion(3, None, 1, CompletionSource::Other),
        ];
        let batches = split(all, 100);
        assert_eq!(
            batches.iter().map(|(source, _)| *source).collect::<Vec<_>>(),
            [CompletionSource::Student, CompletionSource::Other]
        );
        assert_eq!(costs(&batches), [vec![3], vec![2, 4]]);
    }
}
