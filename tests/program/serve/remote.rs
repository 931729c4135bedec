//! A served teacher: the run is the one with the teacher in it, whatever becomes of the server meanwhile.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::{Map, Value};

use super::client::{Server, free_port, wait_until};
use crate::support::{Model, TRAIN, Workshop, command};

type Line = Map<String, Value>;

/// What the teacher wrote is drawn with other random numbers elsewhere, so it is another measurement.
const OTHER_SAMPLES: [&str; 4] =
    ["eval/kl_teacher_samples", "eval/agreement_teacher_samples", "eval/perplexity", "eval/teacher_perplexity"];

fn set<'a>(pairs: &[&'a str]) -> Vec<&'a str> {
    pairs.iter().flat_map(|pair| ["--set", pair]).collect()
}

fn metrics(workshop: &Workshop, run: &str) -> Vec<Line> {
    let mut lines = workshop.metrics(run);
    lines.iter_mut().for_each(|line| line.retain(|name, _| !OTHER_SAMPLES.contains(&name.as_str())));
    lines
}

fn value(line: &Line, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("{name} is not in {line:?}"))
}

/// The largest difference of what is measured before the first step, and of that step: later ones sample other tokens.
fn apart(a: &[Line], b: &[Line]) -> f64 {
    let measured = ["eval/kl", "eval/kl_forward", "eval/entropy", "eval/teacher_nll"].map(|name| (0, name));
    let trained = ["loss", "teacher_kl", "forward_kl", "entropy", "optim/grad_norm"].map(|name| (1, name));
    let gap = |(line, name): (usize, &str)| (value(&a[line], name) - value(&b[line], name)).abs();
    measured.into_iter().chain(trained).map(gap).fold(0.0, f64::max)
}

/// The recipe with a teacher elsewhere.
fn recipe_for(address: &str) -> Workshop {
    let workshop = Workshop::new();
    workshop.replace("kind = \"self\"", &format!("url = \"http://{address}\""));
    workshop
}

/// Every loss, in micro-batches of a few sequences, on rows of f32: the same bits as with the teacher in the run.
#[test]
fn losses_are_those_of_a_teacher_in_the_run() {
    let server = Server::tiny(&[]);
    let (own, elsewhere) = (Workshop::new(), recipe_for(&server.address));
    let losses: [&[&str]; 7] = [
        &["loss.kind=reverse_kl"],
        &["loss.kind=forward_kl", "loss.temperature=0.7"],
        &["loss.kind=jsd"],
        &["loss.kind=skewed_forward_kl"],
        &["loss.kind=skewed_reverse_kl", "loss.temperature=2"],
        &["loss.kind=top_k", "loss.top_k=5", "loss.beta=0.5"],
        &["loss.kind=policy_gradient", "rollout.sampling.temperature=0.9"],
    ];
    for (number, loss) in losses.into_iter().enumerate() {
        let run = format!("run{number}");
        let more = [loss, &["schedule.max_steps=2", "runtime.tokens_per_microbatch=120"]].concat();
        own.train(&run, &set(&more)).ok();
        elsewhere.train(&run, &set(&[&more[..], &["teacher.rows=f32"]].concat())).ok();
        assert_eq!(metrics(&elsewhere, &run), metrics(&own, &run), "{loss:?}");
    }
}

/// Half the bytes, and all tokens as a list, cost a rounding; a few tokens and a bucket are a lower bound.
#[test]
fn rounded_and_truncated_rows_are_near() {
    let server = Server::tiny(&["--max-score-bytes", "20000"]);
    let (own, elsewhere) = (Workshop::new(), recipe_for(&server.address));
    let steps = ["schedule.max_steps=1", "loss.temperature=0.9"];
    own.train("run", &set(&steps)).ok();
    let exact = metrics(&own, "run");
    let run = |name: &str, more: &str| {
        elsewhere.train(name, &set(&[&steps[..], &[more]].concat())).ok();
        metrics(&elsewhere, name)
    };
    let (bf16, all, few) =
        (run("bf16", "teacher.rows=bf16"), run("all", "teacher.top_k=300"), run("few", "teacher.top_k=200"));
    assert!(apart(&bf16, &exact) > 0.0 && apart(&bf16, &exact) < 5e-3, "{}", apart(&bf16, &exact));
    assert!(apart(&all, &exact) < 2e-4, "{}", apart(&all, &exact));
    // Before anything is trained both see the same student.
    let kl = |lines: &[Line]| [value(&lines[0], "eval/kl"), value(&lines[0], "eval/kl_forward")];
    for (bound, whole) in kl(&few).into_iter().zip(kl(&exact)) {
        assert!(bound < whole && bound > 0.3 * whole, "{bound} of {whole}");
    }
    assert_eq!(value(&few[0], "eval/agreement"), value(&exact[0], "eval/agreement"));
    assert!((value(&few[0], "eval/teacher_nll") - value(&exact[0], "eval/teacher_nll")).abs() < 1e-5);
}

/// Completions of the teacher come from its server too.
#[test]
fn a_teacher_elsewhere_writes() {
    let server = Server::tiny(&[]);
    let workshop = recipe_for(&server.address);
    let more = ["loss.lmbda=0.5", "loss.seq_kd=true", "eval.sample_prompts=[\"Why?\"]", "schedule.max_steps=2"];
    workshop.train("run", &set(&more)).ok();
    let lines = workshop.metrics("run");
    assert!(value(&lines[0], "eval/kl_teacher_samples") > 0.0 && value(&lines[0], "eval/teacher_perplexity") > 1.0);
    let shared: f64 = lines[1..].iter().map(|line| value(line, "completions/on_policy_fraction")).sum();
    assert!(shared < 2.0, "no completion was the teacher's");
    let text = std::fs::read_to_string(workshop.path("run/samples.jsonl")).expect("samples");
    let sample: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert!(sample["teacher"].is_string(), "{sample}");
}

/// Any server that echoes log-probabilities: here our own, asked as if it were another.
#[test]
fn an_openai_server_teaches_by_the_policy_gradient() {
    let own = Workshop::new();
    own.write("key.txt", "# the server's\nsecret\n");
    let server = Server::tiny(&["--api-key-file", &own.name("key.txt")]);
    let elsewhere = recipe_for(&server.address);
    let loss = ["loss.kind=policy_gradient", "schedule.max_steps=2"];
    own.train("run", &set(&loss)).ok();
    let key = format!("teacher.api_key_file={}", own.name("key.txt"));
    let openai = [&loss[..], &["teacher.api=openai", &key]].concat();
    elsewhere.train("run", &set(&openai)).ok();
    let (exact, got) = (metrics(&own, "run"), metrics(&elsewhere, "run"));
    for (exact, got) in exact.iter().zip(&got).skip(1) {
        for name in ["loss", "teacher_kl", "optim/grad_norm"] {
            assert!((value(exact, name) - value(got, name)).abs() < 1e-5, "{name}: {exact:?} {got:?}");
        }
    }
    assert!(value(&got[0], "eval/kl").is_finite() && !got[0].contains_key("eval/kl_forward"), "{:?}", got[0]);
    assert!((value(&got[0], "eval/teacher_nll") - value(&exact[0], "eval/teacher_nll")).abs() < 1e-5);
    let refused = |more: &[&str]| elsewhere.train("no", &set(&[&["teacher.api=openai"], more].concat()));
    refused(&["loss.kind=jsd"])
        .refused(2, &["`loss.kind`", "policy_gradient", "log-probabilities of given tokens only"]);
    refused(&["loss.kind=policy_gradient"]).refused(1, &["401", "needs an API key", &server.address]);
}

/// A run whose server goes away and comes back goes on as if nothing had been.
#[test]
fn a_server_that_comes_back_is_waited_for() {
    let port = free_port();
    let server = Server::tiny(&["--port", &port]);
    let workshop = recipe_for(&server.address);
    let steps = ["schedule.max_steps=120", "eval.every=0", "checkpoint.every=0"];
    workshop.train("whole", &set(&steps)).ok();
    let mut run = start(&workshop, "cut", &steps);
    wait_until("training", || lines(&workshop, "cut") >= 5);
    drop(server);
    let before = lines(&workshop, "cut");
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(run.try_wait().expect("asked").is_none() && before < 120, "it waits for its teacher");
    let _again = Server::tiny(&["--port", &port]);
    assert_eq!(run.wait().expect("it ends").code(), Some(0));
    assert_eq!(workshop.metrics("cut"), workshop.metrics("whole"));
}

/// A server that stays away ends the run with what was learned until then, and a resume makes the same of it.
#[test]
fn a_server_that_stays_away_costs_one_step() {
    let port = free_port();
    let server = Server::tiny(&["--port", &port]);
    let workshop = recipe_for(&server.address);
    let steps = ["schedule.max_steps=120", "eval.every=0", "checkpoint.every=50", "teacher.retries=1"];
    workshop.train("whole", &set(&steps)).ok();
    let run = start(&workshop, "cut", &steps);
    wait_until("training", || lines(&workshop, "cut") >= 5);
    drop(server);
    let ended = run.wait_with_output().expect("it ends");
    let (said, step) = (String::from_utf8(ended.stderr).expect("text"), lines(&workshop, "cut") - 1);
    assert_eq!(ended.status.code(), Some(4), "{said}");
    let checkpoint = format!("step_{step:06}");
    for word in [&format!("teacher http://127.0.0.1:{port}/v1/score"), "2 tries", "--resume", &checkpoint] {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    let _again = Server::tiny(&["--port", &port]);
    workshop.train("cut", &[&["--resume"], &set(&steps)[..]].concat()).ok();
    assert_eq!(workshop.metrics("cut"), workshop.metrics("whole"));
}

/// Ctrl-C ends the wait for a server that stays away, with all steps before it; the pauses of 40 tries would take an hour.
#[test]
fn ctrl_c_ends_the_wait_for_a_server() {
    let port = free_port();
    let server = Server::tiny(&["--port", &port]);
    let workshop = recipe_for(&server.address);
    let steps = ["schedule.max_steps=120", "eval.every=0", "checkpoint.every=0", "teacher.retries=40"];
    workshop.train("whole", &set(&steps)).ok();
    // Not `--json`, which says nothing on stderr.
    let (recipe, out) = (workshop.name("recipe.toml"), workshop.name("cut"));
    let mut command = command(TRAIN, &[&[recipe.as_str(), "--out", &out], &set(&steps)[..]].concat());
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    wait_until("training", || lines(&workshop, "cut") >= 5);
    drop(server);
    // By the fifth failure a pause is 8 seconds long.
    let mut said = BufReader::new(run.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("(5 of 40)") {
        line.clear();
        assert!(said.read_line(&mut line).expect("text") > 0, "it ended");
    }
    let id = run.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("kill runs").success());
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    let step = lines(&workshop, "cut") - 1;
    assert_eq!(run.wait().expect("it ends").code(), Some(130), "{rest}");
    assert!(!rest.contains("(6 of 40)"), "the pause was not waited for: {rest}");
    assert!(rest.contains(&format!("interrupted after step {step}; continue with --resume")), "{rest}");
    let _again = Server::tiny(&["--port", &port]);
    workshop.train("cut", &[&["--resume"], &set(&steps)[..]].concat()).ok();
    assert_eq!(workshop.metrics("cut"), workshop.metrics("whole"));
}

#[test]
fn a_teacher_that_cannot_be_compared_is_refused() {
    let model = Model::copy("tiny-chat");
    let text = std::fs::read_to_string(model.file("tokenizer.json")).expect("a tokenizer");
    let mut object: Value = serde_json::from_str(&text).expect("JSON");
    let vocab = object["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
    (vocab["a"], vocab["b"]) = (b, a);
    std::fs::write(model.file("tokenizer.json"), object.to_string()).expect("written");
    let other = Server::start(&model.path(), &[]);
    let words = ["cannot be compared token by token", "token ids of", "student:", "teacher:"];
    recipe_for(&other.address).train("run", &[]).refused(1, &words);
    let gradient = ["loss.kind=policy_gradient", "teacher.api=openai"];
    recipe_for(&other.address).train("run", &set(&gradient)).refused(1, &["cannot be compared token by token"]);

    let server = Server::tiny(&[]);
    let workshop = recipe_for(&server.address);
    workshop.train("run", &set(&["teacher.served_model=none"])).refused(1, &["404", "`none` does not exist"]);
    let nowhere = recipe_for(&format!("127.0.0.1:{}", free_port()));
    nowhere.train("run", &set(&["teacher.retries=0"])).refused(4, &["/tokenizer_info", "1 tries"]);
    assert!(!workshop.path("run").exists() && !nowhere.path("run").exists(), "a refused run leaves no folder");
    // The loss was chosen when the recipe was read; the server is not even asked.
    let refused = |more: &[&str], words: &[&str]| workshop.train("run", &set(more)).refused(2, words);
    refused(&["teacher.top_k=5", "loss.kind=top_k"], &["`teacher.top_k` is 5", "bucket"]);
    refused(&["teacher.top_k=5", "teacher.rows=f32"], &["`teacher.rows` has no effect"]);
    refused(&["teacher.url=127.0.0.1"], &["`teacher.url`", "http://HOST:PORT"]);
    refused(&["teacher.kind=self"], &["`teacher.url` has no effect"]);
    refused(&["teacher.offload=true"], &["`teacher.offload` has no effect"]);
}

fn start(workshop: &Workshop, run: &str, more: &[&str]) -> Child {
    let mut command = workshop.command(run, &set(more));
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Whole lines of a run's metrics so far.
fn lines(workshop: &Workshop, run: &str) -> usize {
    let text = std::fs::read_to_string(workshop.path(run).join("metrics.jsonl")).unwrap_or_default();
    text.matches('\n').count()
}

/// `https` trusts whom the user names, by the recipe or by the environment; another certificate is an error at once.
#[test]
fn a_teacher_behind_a_private_authority_is_trusted_by_name() {
    let tls = |name: &str| crate::support::fixture(&format!("tls/{name}"));
    let (cert, key, root) = (tls("chain.pem"), tls("key.pem"), tls("root.pem"));
    let server = Server::launch(Server::command(
        &crate::support::fixture("tiny-chat"),
        &["--tls-cert", &cert, "--tls-key", &key],
    ));
    // The certificate is of the name.
    let address = format!("localhost:{}", server.address.rsplit(':').next().expect("a port"));
    let workshop = Workshop::new();
    workshop.replace("kind = \"self\"", &format!("url = \"https://{address}/v1\""));
    let steps = ["schedule.max_steps=1"];
    workshop.train("unknown", &set(&steps)).refused(1, &["certificate", "teacher.ca_file", "SSL_CERT_FILE", &address]);
    workshop.train("named", &set(&[steps[0], &format!("teacher.ca_file={root}")])).ok();
    let mut command = workshop.command("environment", &set(&steps));
    command.env("SSL_CERT_FILE", &root);
    crate::support::finish(command).ok();
    assert_eq!(workshop.metrics("environment"), workshop.metrics("named"));
    let secret = format!("teacher.url=https://me:sesame@{address}");
    let refused = workshop.train("secret", &set(&[steps[0], &secret]));
    assert!(!refused.stderr.contains("sesame"), "{refused:?}");
    refused.refused(2, &["teacher.url", "teacher.api_key_file"]);
    assert!(!workshop.path("secret").exists(), "nothing was written");
}
