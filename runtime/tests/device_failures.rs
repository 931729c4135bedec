//! Failures of a GPU while requests run: out of memory ends the requests concerned, a lost GPU ends everything.

use std::process::Command;
use std::sync::Arc;

use autograd::Device;
use autograd::cuda::{Gpu, compile};
use runtime::RuntimeHandle;
use runtime::request::{
    CompletionText, EngineConfig, GenerateEvent, GenerateRequest, LogProbs, ModelId, ModelSpec, RuntimeSpec,
    ScoreOutput, ScoreRequest, ScoreSequence,
};
use runtime::sampler::SamplingParams;
use runtime::source::ModelSource;

/// Set in the process that loses the GPU.
const LOSE: &str = "ARLE_TEST_LOSE_THE_CARD";

fn start(token_budget: usize, kv_bytes: usize) -> RuntimeHandle {
    // The GPU's machine may have nothing but this program.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, include_str!("../../configs/models/qwen3-0.6b.json")).expect("written");
    let source = ModelSource::parse(&format!("random:{}", path.display())).expect("a source");
    let files = Arc::new(source.open(&|_| ()).expect("opens"));
    let mut spec =
        RuntimeSpec::for_device(Device::Cuda(0), ModelSpec { files, layers: Some(vec![0, 1]), adapter: None });
    spec.engine = EngineConfig { token_budget, max_running: 4, max_waiting: 8, kv_bytes, ..spec.engine };
    RuntimeHandle::start(&spec, &|_, _| ()).expect("starts")
}

fn request(index: u64) -> GenerateRequest {
    let params = SamplingParams { max_tokens: 4000, ignore_eos: true, ..SamplingParams::default() };
    GenerateRequest { model: ModelId::STUDENT, prompt: vec![1, 2, 3], params, index, text: CompletionText::None }
}

/// Log-probabilities of all tokens but the first.
fn score(runtime: &RuntimeHandle, count: u32) -> runtime::Result<Vec<f64>> {
    let sequences = vec![ScoreSequence::every_token((0..count).collect())];
    let output = ScoreOutput::LogProbs(LogProbs::default());
    let request = ScoreRequest { model: ModelId::STUDENT, sequences, output, token_ids: None };
    Ok(runtime.score(request)?.sequences.remove(0).logprobs)
}

#[test]
#[ignore = "needs a GPU"]
fn a_step_that_finds_no_memory_says_what_it_was_for_and_later_ones_run() {
    let runtime = start(1 << 15, 512 << 20);
    let gpu = Gpu::get(0).expect("a GPU");
    score(&runtime, 20).expect("fits");
    // Two layers of 30,000 rows keep more than a gigabyte.
    gpu.set_memory_limit(Some(gpu.memory().reserved + (512 << 20)));
    let error = score(&runtime, 30_000).expect_err("no memory");
    let text = error.to_string();
    assert!(matches!(error, runtime::Error::OutOfMemory { .. }), "{text}");
    for word in ["bytes asked for", "limit", "activations", "fewer tokens"] {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    assert_eq!(score(&runtime, 20).expect("fits still").len(), 19);
    gpu.set_memory_limit(None);
}

#[test]
#[ignore = "needs a GPU"]
fn a_text_beyond_the_kv_memory_is_refused_and_the_others_go_on() {
    let runtime = start(64, 64 << 20);
    let running = runtime.generate(request(0)).expect("submitted");
    let text = score(&runtime, 30_000).expect_err("no pages").to_string();
    assert!(text.contains("1875 KV pages of 512"), "{text}");
    assert_eq!(score(&runtime, 20).expect("fits").len(), 19);
    assert_eq!(running.collect().expect("was not concerned").tokens.len(), 4000);
}

/// In a process of its own, since a GPU that is lost stays lost to its process.
#[test]
#[ignore = "needs a GPU"]
fn a_lost_card_ends_all_requests_and_refuses_later_ones() {
    if std::env::var_os(LOSE).is_none() {
        let name = "a_lost_card_ends_all_requests_and_refuses_later_ones";
        let program = std::env::current_exe().expect("this program");
        let output =
            Command::new(program).args(["--ignored", "--exact", name]).env(LOSE, "1").output().expect("starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let runtime = start(64, 64 << 20);
    let mut running: Vec<_> = (0..3).map(|index| runtime.generate(request(index)).expect("submitted")).collect();
    assert!(matches!(running[0].next_event(), Some(GenerateEvent::Started { .. })), "it runs");
    let gpu = Gpu::get(0).expect("a GPU");
    let trap =
        compile("trap.cu", "extern \"C\" __global__ void lose() { asm(\"trap;\"); }", gpu.arch()).expect("compiles");
    let trap = gpu.load(&trap).expect("loads").function("lose").expect("there");
    gpu.launch_function(&trap, [1, 1, 1], [1, 1, 1], 0, &[]).expect("launched");
    for generation in running {
        let error = generation.collect().expect_err("the GPU is lost");
        assert!(error.is_device_lost() && error.to_string().contains("--resume"), "{error}");
    }
    let later = runtime.generate(request(9)).expect("the thread lives").collect().expect_err("lost");
    assert!(later.is_device_lost(), "{later}");
    assert!(score(&runtime, 2).expect_err("lost").is_device_lost());
    assert!(runtime.stats().expect_err("lost").is_device_lost());
}
