//! What bad usage ends with.

use crate::support::{arle, fixture};

/// Code 2, as the help says: an option has a value that it cannot have, whoever finds that out.
#[test]
fn bad_usage_has_a_code_of_its_own() {
    let model = fixture("tiny-chat");
    let on_reference = ["--model", &model, "--deterministic", "--device", "reference"];
    for command in [
        &["generate", "--prompt", "a"][..],
        &["score", "--text", "ab"],
        &["serve", "--port", "0"],
        &["bench"],
        &["bench", "--opd", "--teacher", &model],
        &["eval", "--data", &fixture("config"), "--tasks", "gsm8k"],
    ] {
        arle(&[command, &on_reference].concat()).refused(2, &["deterministic", "reference"]);
    }
    for (more, word) in [
        (&["--host", "0.0.0.0"][..], "--api-key-file"),
        (&["--cors-origin", "x"], "https://example.org"),
        (&["--served-model-name", "a", "--served-model-name", "a"], "\"a\""),
        (&["--max-running", "0"], "from 1 to"),
        (&["--token-budget", "0"], "from 1 to"),
        (&["--max-adapters", "1", "--adapter", "a=x", "--adapter", "b=x"], "--max-adapters"),
    ] {
        let serve = ["serve", "--model", &model, "--device", "cpu", "--port", "0"];
        let ended = arle(&[&serve, more].concat());
        // Some is found out behind the memory plan.
        assert!(ended.code == Some(2) && ended.stderr.contains(word), "{ended:#?}");
    }
}
