//! Every output of a score request, computed by the scheduler in pieces beside generations, against one forward pass over
//! the whole sequence: the same bits.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use autograd::ops::{self, Sequences};
use autograd::{Device, Tape, Tensor};
use runtime::files::ModelFiles;
use runtime::model::{Decoder, ModelParams, ModelWeights};
use runtime::request::{
    CompletionText, GenerateRequest, LogProbs, ModelId, Pooling, Precision, ScoreOutput, ScoreRequest, ScoreResponse,
    ScoreSequence,
};
use runtime::sampler::SamplingParams;
use runtime::{RequestGuard, Result, RuntimeHandle};

use super::{engine, fixtures, start};

/// One forward pass over a sequence.
struct Whole {
    pass: ModelParams,
    residual: Tensor,
    hidden: Tensor,
    token_ids: usize,
}

fn whole(dir: &Path, tokens: &[u32]) -> Whole {
    let files = ModelFiles::open(dir).expect("it opens");
    let layers: Vec<usize> = (0..files.config.num_layers).collect();
    let kept = (&layers[..], layers.len());
    let weights = ModelWeights::load(&files.config, &*files.weights, kept, Device::Cpu, &|_, _| {}).expect("it loads");
    let pass = ModelParams::inference(Arc::new(weights), None);
    let decoder = Decoder::new(files.config.clone(), files.config.max_position_embeddings);
    let (ids, sequences) = (tokens.into(), Sequences::from_lengths(&[tokens.len()]));
    let residual = decoder.residual_packed(&mut Tape::off(), &pass, &ids, &sequences).expect("it runs");
    let hidden = decoder.forward_packed(&mut Tape::off(), &pass, &ids, &sequences).expect("it runs");
    Whole { pass, residual, hidden, token_ids: files.config.token_ids }
}

impl Whole {
    fn head<'a>(&'a self, hidden: &'a Tensor) -> ops::Head<'a> {
        ops::Head { hidden, weight: self.pass.weights.output_head(), ids: self.token_ids }
    }

    fn logits(&self) -> Vec<f32> {
        ops::logits(self.head(&self.hidden)).expect("it runs").read().expect("values")
    }

    /// ln p of tokens 1.. as a loss computes them.
    fn own(&self, tokens: &[u32], temperature: f64) -> Vec<f64> {
        let rows = (0..tokens.len() as u32 - 1).collect();
        let hidden = ops::select_rows(&mut Tape::off(), &self.hidden, &rows).expect("rows");
        let own = ops::linear_log_prob(self.head(&hidden), &tokens[1..], temperature).expect("it runs");
        own.into_iter().map(f64::from).collect()
    }
}

fn rows(tensor: &Tensor) -> Vec<f32> {
    tensor.read().expect("values")
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn sequence(length: usize, salt: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * i + 7 * i + salt) % 60).collect()
}

/// A request in flight: its response comes while the guard lives.
type Pending = (Receiver<Result<ScoreResponse>>, RequestGuard);

fn submit(handle: &RuntimeHandle, sequences: Vec<ScoreSequence>, output: ScoreOutput) -> Pending {
    let (sender, response) = channel();
    let request = ScoreRequest { model: ModelId::STUDENT, sequences, token_ids: None, output };
    let guard = handle.score_into(request, sender.into()).expect("the device thread runs");
    (response, guard)
}

fn wait((response, _guard): Pending) -> ScoreResponse {
    response.recv().expect("a response").expect("scored")
}

fn embed(handle: &RuntimeHandle, tokens: &[u32], pooling: Pooling) -> Vec<f32> {
    let sequences = vec![ScoreSequence::pooled(tokens.to_vec(), pooling)];
    let response = wait(submit(handle, sequences, ScoreOutput::Pooled(pooling)));
    response.sequences[0].vector.iter().map(|&value| value as f32).collect()
}

fn generate(handle: &RuntimeHandle, tokens: usize) -> runtime::Generation {
    let params = SamplingParams { max_tokens: tokens, ignore_eos: true, ..SamplingParams::default() };
    let request =
        GenerateRequest { model: ModelId::STUDENT, prompt: vec![4; 20], params, index: 0, text: CompletionText::None };
    handle.generate(request).expect("it starts")
}

#[test]
fn every_kind_of_answer_has_the_bits_of_a_whole_forward() {
    let dir = fixtures().join("models/llama-gqa-tied");
    // A budget that cuts every sequence, and pages for one of them beside a generation that grows into them.
    let handle = start(&dir, None, Device::Cpu, engine(11, 9));
    let tokens = sequence(70, 3);
    let reference = whole(&dir, &tokens);
    let beside = generate(&handle, 60);
    let all = || vec![ScoreSequence { tokens: tokens.clone(), positions: 1..tokens.len() + 1 }];
    let kinds = [
        (ScoreOutput::Logits(Precision::F32), reference.logits()),
        (ScoreOutput::Hidden { normalized: true, precision: Precision::F32 }, rows(&reference.hidden)),
        (ScoreOutput::Hidden { normalized: false, precision: Precision::F32 }, rows(&reference.residual)),
    ];
    let pending: Vec<_> = kinds.iter().map(|(output, _)| submit(&handle, all(), output.clone())).collect();
    for (pending, (output, want)) in pending.into_iter().zip(&kinds) {
        let response = wait(pending);
        let columns = response.columns;
        assert_eq!((&numbers(&response.into_rows()), columns), (want, want.len() / tokens.len()), "{output:?}");
    }
    for temperature in [1.0, 0.7] {
        let sequences = vec![ScoreSequence::every_token(tokens.clone())];
        let output = LogProbs { temperature, ..LogProbs::default() };
        let own = wait(submit(&handle, sequences.clone(), output.into())).sequences;
        assert_eq!(own[0].logprobs, reference.own(&tokens, temperature));
        // Top log-probabilities come from the same logits in double precision.
        let output = LogProbs { top: 3, ids: vec![5, 6], temperature, ranks: true, greedy: false };
        let listed = wait(submit(&handle, sequences, output.into())).sequences;
        let (listed, logits) = (&listed[0], reference.logits());
        let vocab = logits.len() / tokens.len();
        assert_eq!((listed.top.len(), listed.ids.len(), listed.tail_logprobs.len()), (69, 69, 69));
        for (row, z) in logits.chunks(vocab).take(69).enumerate() {
            let best = z.iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(z[listed.top[row][0].0 as usize], best, "row {row}");
            assert!((listed.logprobs[row] - own[0].logprobs[row]).abs() < 1e-5);
            let apart = listed.ids[row][0] - listed.ids[row][1];
            assert!((apart - (f64::from(z[5]) - f64::from(z[6])) / temperature).abs() < 1e-9, "row {row}");
        }
    }
    assert_eq!(embed(&handle, &tokens, Pooling::Last), rows(&reference.hidden)[69 * reference.hidden.cols()..]);
    let width = reference.hidden.cols();
    let mut mean = vec![0f64; width];
    rows(&reference.hidden)
        .chunks(width)
        .for_each(|row| mean.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v)));
    let mean: Vec<f32> = mean.into_iter().map(|sum| (sum / 70.0) as f32).collect();
    assert_eq!(embed(&handle, &tokens, Pooling::Mean), mean);
    assert_eq!(beside.collect().expect("not disturbed").tokens.len(), 60);
}

#[test]
fn many_requests_of_many_sequences_are_answered_each_in_its_order() {
    let dir = fixtures().join("models/llama-gqa-tied");
    let handle = start(&dir, None, Device::Cpu, engine(16, 14));
    let sequences = |salt: u32| -> Vec<ScoreSequence> {
        let one = |n: u32| {
            let tokens = sequence(3 + 9 * n as usize % 40, salt + n);
            ScoreSequence { positions: 1 + n as usize % 2..tokens.len(), tokens }
        };
        (0..7).map(one).collect()
    };
    let output = ScoreOutput::TokenLogProbs { temperature: 1.0 };
    let pending: Vec<_> = (0..6).map(|salt| (salt, submit(&handle, sequences(salt), output.clone()))).collect();
    // One whose guard is dropped ends without a response.
    let dropped = vec![ScoreSequence { tokens: sequence(90, 9), positions: 1..90 }];
    let (response, guard) = submit(&handle, dropped, output.clone());
    drop(guard);
    for (salt, pending) in pending {
        for (scores, one) in wait(pending).sequences.iter().zip(sequences(salt)) {
            let want = whole(&dir, &one.tokens).own(&one.tokens, 1.0);
            assert_eq!(scores.logprobs, want[one.positions.start - 1..], "{one:?}");
        }
    }
    assert!(response.recv().is_err(), "a request whose guard was dropped has no response");
    let alone = wait(submit(&handle, vec![ScoreSequence::every_token(vec![7])], output));
    assert!(alone.sequences[0].logprobs.is_empty());
    let stats = handle.stats().expect("counters").models[&ModelId::STUDENT].scheduler;
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert_eq!(stats.free_pages + stats.cached_pages, stats.total_pages);
}
