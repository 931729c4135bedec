//! The memory plan: what is printed, what is refused, and that it changes no result.

use std::fs;

use crate::support::{Workshop, arle, fixture};

#[test]
fn a_plan_larger_than_the_machine_is_refused_before_anything_is_loaded() {
    let model = fixture("tiny-chat");
    let generate = ["generate", "--model", &model, "--tokens", "5,6,7", "--max-tokens", "4", "--device", "cpu"];
    let with = |size: &str| arle(&[&generate[..], &["--kv-bytes", size]].concat());
    with("900TiB").refused(1, &["available on cpu", "is kv", "--kv-bytes"]);
    with("1KiB").refused(1, &["1 KiB", "one sequence of 7 tokens"]);
    with("60").refused(1, &["60 bytes", "one sequence of 7 tokens"]);
    let lots = with("lots");
    assert_eq!(lots.code, Some(2), "{lots:#?}");
    assert!(lots.stderr.contains("60%") && lots.stderr.contains("8GiB"), "{}", lots.stderr);

    let score = ["score", "--model", &model, "--tokens", "5,6,7", "--device", "cpu", "--kv-bytes", "8MiB"];
    arle(&score).refused(2, &["`--kv-bytes` has no effect", "nothing is generated"]);

    let workshop = Workshop::new();
    let refused = workshop.train("run", &["--set", "runtime.kv_bytes=900TiB"]);
    refused.refused(1, &["available on cpu", "is kv", "`runtime.kv_bytes`"]);
    assert!(!workshop.path("run").exists(), "a run that cannot start leaves nothing behind");
}

#[test]
fn the_size_of_the_kv_memory_changes_no_token() {
    let model = fixture("tiny-chat");
    let generate = |more: &[&str]| {
        let args =
            ["generate", "--model", &model, "--tokens", "5,6,7", "--max-tokens", "24", "--seed", "3", "--n", "3"];
        let lines = arle(&[&args[..], &["--json", "--device", "cpu", "--ignore-eos"], more].concat()).lines();
        // What comes from the prefix cache depends on when the requests arrive.
        lines.into_iter().map(|line| (line["tokens"].clone(), line["logprobs"].clone())).collect::<Vec<_>>()
    };
    let usual = generate(&[]);
    for size in ["1%", "8MiB", "16777216"] {
        assert_eq!(generate(&["--kv-bytes", size]), usual, "{size}");
    }
}

#[test]
fn the_plan_is_printed_when_asked_for_and_in_reports() {
    let model = fixture("tiny-chat");
    let args = ["generate", "--model", &model, "--tokens", "5,6,7", "--max-tokens", "2", "--device", "cpu"];
    assert!(!arle(&args).stderr.contains("weights"));
    let verbose = arle(&[&args[..], &["--verbose"]].concat());
    for word in ["memory     cpu: ", "weights ", "kv ", "available"] {
        assert!(verbose.stderr.contains(word), "{word:?} is not in {}", verbose.stderr);
    }
    let bench = ["bench", "--model", &model, "--prompt-len", "4", "--new", "2", "--sequences", "2", "--device", "cpu"];
    let report = arle(&[&bench[..], &["--json"]].concat()).object();
    let plan = report["memory_plan"].as_object().expect("a plan");
    let entries = ["weights", "kv", "activations", "logits"].map(|name| plan[name].as_u64().expect(name));
    assert_eq!(plan["total"].as_u64(), Some(entries.iter().sum()), "{plan:?}");
    assert!(plan["available"].as_u64() > plan["total"].as_u64());
}

#[test]
fn layers_that_run_twice_change_no_bit() {
    let workshop = Workshop::new();
    let weights = |run: &str, set: &[&str]| {
        let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        workshop.train(run, &args).ok();
        let kept: Vec<f64> = workshop.metrics_with_times(run)[1..]
            .iter()
            .map(|line| line["perf/activation_bytes"].as_f64().expect("bytes"))
            .collect();
        let adapter = workshop.path(run).join("checkpoints/latest/adapter_model.safetensors");
        (fs::read(adapter).expect("an adapter"), kept)
    };
    let (none, most) = weights("none", &["runtime.gradient_checkpointing=false"]);
    let (all, least) = weights("all", &["runtime.gradient_checkpointing=true"]);
    let (auto, chosen) = weights("auto", &[]);
    assert!(none == all && none == auto);
    assert_eq!(most, chosen, "there is memory enough for all layers");
    assert!(least.iter().zip(&most).all(|(least, most)| least < most), "{least:?} and {most:?}");
}

#[test]
fn a_run_that_fails_names_its_checkpoint_and_goes_on_from_it() {
    let workshop = Workshop::new();
    // The first step is saved; then the rate is so large that nothing is finite any more.
    let wild = ["--set", "optim.lr=1e30", "--set", "schedule.max_steps=9", "--set", "eval.every=0"];
    let ended = workshop.train("run", &wild);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    for word in ["not a number", "checkpoints/step_", "--resume"] {
        assert!(ended.stderr.contains(word), "{word:?} is not in {}", ended.stderr);
    }
    let saved = workshop.names("run/checkpoints");
    assert!(saved.iter().any(|name| name.starts_with("step_")), "{saved:?}");
    // The same folder is taken up again; with the same rate it ends in the same way, and says so again.
    let again = workshop.train("run", &[&wild[..], &["--resume"]].concat());
    assert_eq!(again.code, Some(1), "{again:#?}");
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
}
