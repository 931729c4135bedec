//! What `arle score`, `arle generate` and `arle kernels` refuse, and how.

use serde_json::json;

use crate::support::{arle, fixture};

#[test]
fn wrong_input_is_refused() {
    let bare = fixture("models/llama-gqa-tied");
    let chat = fixture("tiny-chat");
    let long = format!("[{}]", vec!["5"; 258].join(","));
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["score", "--model", "no/such/folder", "--tokens", "1,2"],
            1,
            &["no/such/folder", "no such file or directory"],
        ),
        (&["score", "--model", "ftp:x", "--tokens", "1,2"], 1, &["ftp:x"]),
        (&["score", "--model", &bare, "--tokens", "1,96"], 1, &["token id 96", "vocabulary of 96"]),
        (
            &["generate", "--model", &bare, "--tokens", "1,96", "--max-tokens", "4"],
            1,
            &["token id 96", "vocabulary of 96"],
        ),
        (&["score", "--model", &chat, "--text", ""], 1, &["no tokens"]),
        (&["score", "--model", &bare, "--tokens", &long], 1, &["257", "256"]),
        (&["generate", "--model", &bare, "--tokens", "1,2", "--max-tokens", "255"], 1, &["257", "256"]),
        (&["score", "--model", &bare, "--text", "Hi"], 1, &["tokenizer.json", "token ids"]),
        (&["generate", "--model", &bare, "--chat", "Hi"], 1, &["token"]),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--max-tokens", "4", "--temperature=-1"],
            2,
            &["`--temperature` is -1", "must be 0 (greedy) or a positive number"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--max-tokens", "4", "--temperature", "nan"],
            2,
            &["--temperature", "NaN"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--temperature", "-1"],
            2,
            &["`--temperature` is", "--temperature", "-1", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--top-p", "2"],
            2,
            &["`--top-p` is", "--top-p", "2", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--top-p", "-0.5"],
            2,
            &["`--top-p` is", "--top-p", "-0.5", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--top-k", "0"],
            2,
            &["`--top-k` is", "--top-k", "0", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--min-p", "1.5"],
            2,
            &["`--min-p` is", "--min-p", "1.5", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--repetition-penalty", "-1"],
            2,
            &["`--repetition-penalty` is", "--repetition-penalty", "-1", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--frequency-penalty", "2.5"],
            2,
            &["`--frequency-penalty` is", "--frequency-penalty", "2.5", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--presence-penalty", "-3"],
            2,
            &["`--presence-penalty` is", "--presence-penalty", "-3", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--min-tokens", "300"],
            2,
            &["`--min-tokens` is", "--min-tokens", "300", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--logit-bias", "96=1"],
            2,
            &["`--logit-bias` is", "--logit-bias", "96", "must be"],
        ),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--stop-token-ids", "96"],
            2,
            &["`--stop-token-ids` is", "--stop-token-ids", "96", "must be"],
        ),
        (&["generate", "--model", &bare, "--tokens", "1", "--stop", ""], 2, &["`--stop` is", "--stop", "must be"]),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--temperature", "0", "--top-k", "3"],
            2,
            &["--top-k", "greedy"],
        ),
        (&["generate", "--model", &bare, "--tokens", "1", "--logprobs", "2"], 2, &["--logprobs", "--json"]),
        (&["generate", "--model", &bare, "--tokens", "1", "--max-tokens", "0"], 2, &["`--max-tokens` is 0"]),
        (
            &["generate", "--model", &bare, "--tokens", "1", "--json", "--logprobs", "97"],
            2,
            &["--logprobs", "97", "96"],
        ),
        (&["generate", "--model", &bare, "--tokens", "1", "--n", "0"], 2, &["--n", "at least 1"]),
        (&["score", "--model", &bare, "--tokens", "1,x"], 2, &["--tokens", "\"x\""]),
        (&["score", "--model", &bare, "--tokens", ""], 2, &["--tokens"]),
        (&["score", "--model", &bare, "--tokens", "1,2", "--top", "97"], 1, &["97", "96"]),
        (&["score", "--model", &bare, "--tokens-file", "no-such-file"], 1, &["no-such-file"]),
        (&["score", "--model", &bare, "--tokens", "1,2", "--adapter", "no-such-folder"], 1, &["no-such-folder"]),
        (&["score", "--model", &bare, "--tokens", "1,2", "--layers", "0,2"], 1, &["layers", "2"]),
        (&["score", "--model", &bare, "--tokens", "1,2", "--device", "tpu"], 2, &["--device", "tpu"]),
        (&["score", "--tokens", "1,2"], 2, &["--model"]),
        (&["score", "--model", &bare], 2, &["--text", "--tokens"]),
        (&["score", "--model", &bare, "--text", "a", "--tokens", "1"], 2, &["cannot be used with"]),
        (&["generate", "--model", &bare], 2, &["--prompt", "--chat", "--tokens"]),
        (
            &["generate", "--model", &bare, "--prompt", "a", "--system", "b"],
            2,
            &["--prompt", "--system", "cannot be used with"],
        ),
        (&["generate", "--model", &bare, "--tokens", "1", "--seeed", "1"], 2, &["--seeed"]),
    ];
    for (args, code, words) in cases {
        let ended = arle(args);
        assert_eq!(ended.code, Some(*code), "{args:?}: {ended:#?}");
        ended.refused(*code, words);
    }
}

#[test]
fn kernels_are_built_for_known_architectures_only() {
    for arch in ["sm_42", "sm_90", "hopper", ""] {
        arle(&["kernels", "build", "--arch", arch]).refused(2, &["`--arch` is", arch, "sm_80", "sm_90a", "sm_100a"]);
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_and_auto_does_without() {
    let model = fixture("models/llama-gqa-tied");
    // No machine has that many; one without a driver says that instead.
    let args = |device| ["score", "--model", &model, "--tokens", "5,6", "--json", "--device", device];
    let ended = arle(&args("cuda:63"));
    ended.refused(1, &[]);
    assert!(ended.stderr.contains("NVIDIA's driver") || ended.stderr.contains("cuda:63"), "{}", ended.stderr);
    arle(&args("auto")).object();
    arle(&args("cuda:x")).refused(2, &["--device", "cuda:x", "cuda:0"]);

    let workshop = crate::support::Workshop::new();
    let ended = workshop.train("run", &["--set", "runtime.device=cuda:63"]);
    ended.refused(1, &[]);
    assert!(ended.stderr.contains("NVIDIA's driver") || ended.stderr.contains("cuda:63"), "{}", ended.stderr);
    assert!(!workshop.path("run").exists(), "a run that cannot start leaves nothing behind");
}

#[test]
fn auto_says_why_a_gpus_driver_is_not_used() {
    let (model, folder) = (fixture("models/llama-gqa-tied"), tempfile::tempdir().expect("a folder"));
    std::fs::write(folder.path().join("libcuda.so.1"), "no library").expect("written");
    let run = |device| {
        let args = ["score", "--model", &model, "--tokens", "5,6", "--device", device];
        let mut command = crate::support::command(crate::support::ARLE, &args);
        command.env("LD_LIBRARY_PATH", folder.path());
        crate::support::finish(command)
    };
    let ended = run("auto");
    // With a real driver elsewhere the loader goes on to that one.
    if ended.stderr.is_empty() {
        return;
    }
    let note = ended.stderr.lines().find(|line| line.starts_with("note: running on the CPU")).expect("a note");
    assert!(note.contains("libcuda.so.1") && note.contains("does not load"), "{note}");
    ended.ok();
    assert_eq!(run("cpu").stderr, "");
    run("cuda").refused(1, &["libcuda.so.1", "does not load"]);
}

#[test]
fn a_bad_sampling_value_of_the_model_is_not_the_callers() {
    let model = crate::support::Model::copy("tiny-chat");
    model.set("generation_config.json", "top_p", json!(2.0));
    let path = model.path();
    let args = ["generate", "--model", &path, "--prompt", "Why", "--max-tokens", "2", "--json"];
    arle(&args).refused(1, &["generation_config.json", "top_p = 2"]);
    arle(&[&args[..], &["--top-p", "0.9"]].concat()).object();
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let adapter = fixture("adapters/llama-all-linear");
    arle(&["score", "--model", &fixture("models/llama-head-dim"), "--tokens", "1,2", "--adapter", &adapter])
        .refused(1, &["llama-all-linear"]);
}
