//! Scores of the ends of sequences, through the scheduler, against scores of whole sequences.

use std::sync::mpsc::channel;

use autograd::Device;
use runtime::request::{
    CompletionText, GenerateRequest, LogProbs, ModelId, ScoreOutput, ScoreRequest, ScoreResponse, ScoreSequence,
    SequenceScores,
};
use runtime::sampler::SamplingParams;
use runtime::{Result, RuntimeHandle};

use super::{engine, fixtures, scores, start};

fn ask(handle: &RuntimeHandle, requests: Vec<(Vec<u32>, usize)>) -> Vec<Result<SequenceScores>> {
    let answers: Vec<_> = requests
        .into_iter()
        .map(|(tokens, from)| {
            let (sender, answer) = channel();
            let request = ScoreRequest {
                model: ModelId::STUDENT,
                sequences: vec![ScoreSequence { positions: from..tokens.len(), tokens }],
                output: ScoreOutput::LogProbs(LogProbs { greedy: true, ..LogProbs::default() }),
                token_ids: None,
            };
            let guard = handle.score_into(request, sender.into()).expect("the device thread runs");
            (answer, guard)
        })
        .collect();
    let one = |response: ScoreResponse| response.sequences.into_iter().next().expect("one sequence");
    answers.into_iter().map(|(answer, _guard)| answer.recv().expect("an answer").map(one)).collect()
}

/// A question of `length` tokens with several ends.
fn choices(length: usize) -> Vec<(Vec<u32>, usize)> {
    let question: Vec<u32> = (0..length as u32).map(|i| (i * 7 + 3) % 60).collect();
    let ends: [&[u32]; 4] = [&[5], &[6, 7, 8], &[9; 20], &[5, 1]];
    ends.iter().map(|end| ([&question[..], end].concat(), length)).collect()
}

#[test]
fn the_end_of_a_sequence_scores_as_in_the_whole() {
    let dir = fixtures().join("models/llama-gqa-tied");
    // A budget that cuts prompts, and pages for about three sequences.
    let handle = start(&dir, None, Device::Cpu, engine(24, 12));
    let mut requests: Vec<(Vec<u32>, usize)> = [1, 17, 40].into_iter().flat_map(choices).collect();
    requests.push((vec![1, 2, 3], 1));
    let params = SamplingParams { max_tokens: 30, ignore_eos: true, ..SamplingParams::default() };
    let beside =
        GenerateRequest { model: ModelId::STUDENT, prompt: vec![4; 20], params, index: 0, text: CompletionText::None };
    let beside = handle.generate(beside).expect("it starts");
    let mut cached = 0;
    for ((tokens, from), got) in requests.iter().zip(ask(&handle, requests.clone())) {
        let got = got.expect("scored");
        let whole = scores(&handle, tokens, LogProbs { top: 1, ..LogProbs::default() });
        let rows = from - 1..;
        let logprobs = &whole.logprobs[rows.clone()];
        assert_eq!(got.logprobs, logprobs, "{tokens:?} from {from}");
        let top = whole.top[rows].iter().map(|top| top[0].1);
        let greedy: Vec<bool> = top.zip(logprobs).map(|(best, own)| best <= *own).collect();
        assert_eq!(got.greedy, greedy, "{tokens:?} from {from}");
        cached += got.cached_tokens;
    }
    assert!(cached >= 3 * 32, "ends of one question share it, {cached}");
    assert_eq!(beside.collect().expect("not disturbed").tokens.len(), 30);
    let stats = handle.stats().expect("counters").models[&ModelId::STUDENT].scheduler;
    assert_eq!((stats.running, stats.waiting), (0, 0));
}

#[test]
fn what_cannot_be_scored_is_refused_alone() {
    let dir = fixtures().join("models/llama-gqa-tied");
    let handle = start(&dir, None, Device::Cpu, engine(64, 8));
    let bad = [(vec![1, 2], 0), (vec![1, 2], 2), (vec![1, 1 << 20], 1), (vec![1; 5000], 1)];
    let answers = ask(&handle, bad.into_iter().chain([(vec![1, 2], 1)]).collect());
    for (answer, word) in answers.iter().zip(["0..2", "2..2", "1048576", "4999"]) {
        let error = answer.as_ref().expect_err("refused").to_string();
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(answers[4].as_ref().expect("scored").logprobs.len(), 1);
}
