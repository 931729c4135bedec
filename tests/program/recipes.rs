//! What `arle-train` says about recipes and data before anything is trained.

use std::fs;

use serde_json::json;

use crate::support::{Ended, Model, Workshop, arle_train, fixture};

/// A run of the usual recipe with these overrides.
fn with(set: &[&str]) -> Ended {
    let workshop = Workshop::new();
    let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    workshop.train("run", &args)
}

#[test]
fn an_unknown_key_names_the_nearest_one() {
    with(&["optim.learning_rate=1e-3"]).refused(2, &["unknown key `optim.learning_rate`", "did you mean `optim.lr`?"]);
    let workshop = Workshop::new();
    workshop.replace("max_new_tokens", "max_new_token");
    workshop.train("run", &[]).refused(2, &["`rollout.max_new_token`", "did you mean `rollout.max_new_tokens`?"]);
    assert!(!workshop.path("run").exists(), "a refused recipe leaves no folder");
}

#[test]
fn values_out_of_range_and_of_another_type_are_named() {
    with(&["optim.lr=-1"]).refused(2, &["`optim.lr` is -1", "greater than 0"]);
    with(&["rollout.sampling.top_p=2"]).refused(2, &["`rollout.sampling.top_p` is 2", "at most 1"]);
    with(&["schedule.max_steps=0"]).refused(2, &["`schedule.max_steps` is 0", "at least 1"]);
    with(&["loss.kind=kl"]).refused(2, &["`loss.kind` is \"kl\"", "reverse_kl"]);
    with(&["optim.lr=fast"]).refused(2, &["recipe.toml", "lr"]);
    with(&["lora.r=1.5"]).refused(2, &["recipe.toml", "r"]);
    with(&["lora.target_modules=[\"qq_proj\"]"]).refused(1, &["qq_proj"]);
    with(&["optim.lr"]).refused(2, &["--set optim.lr", "KEY=VALUE"]);
    with(&["eval.prompts=3"]).refused(2, &["`eval.prompts` is 3", "2 held-out rows"]);
    with(&["student.layers=[0, 2]"]).refused(1, &["layers", "2"]);
}

#[test]
fn fields_without_effect_are_refused() {
    with(&["loss.beta=0.5"]).refused(2, &["`loss.beta` has no effect", "reverse_kl"]);
    with(&["teacher.model=x"]).refused(2, &["`teacher.model` has no effect"]);
    with(&["schedule.epochs=1", "schedule.max_steps=4"]).refused(2, &["`schedule.epochs` has no effect"]);
    let workshop = Workshop::new();
    workshop.replace("eval_rows = 2", "");
    workshop.train("run", &[]).refused(2, &["`eval.every` has no effect", "held-out"]);
}

#[test]
fn a_recipe_that_is_no_recipe_is_refused() {
    arle_train(&["no-such-recipe.toml"]).refused(2, &["no-such-recipe.toml", "No such file"]);
    let workshop = Workshop::new();
    workshop.write("recipe.toml", "[student\n");
    workshop.train("run", &[]).refused(2, &["recipe.toml"]);
    workshop.write("recipe.toml", "");
    workshop.train("run", &[]).refused(2, &["student.model"]);
    arle_train(&[]).refused(2, &["RECIPE"]);
    arle_train(&["recipe.toml", "--resum"]).refused(2, &["--resum"]);
}

#[test]
fn data_that_cannot_be_used_is_named_with_its_line() {
    let good = "{\"prompt\": \"Why?\"}\n";
    let long = json!({ "prompt": "x y ".repeat(400) });
    let cases: [(String, &[&str]); 10] = [
        (String::new(), &["rows.jsonl", "no rows"]),
        ("\n\n".to_owned(), &["rows.jsonl", "no rows"]),
        (format!("{good}{good}{{\"prompt\": \n{good}"), &["rows.jsonl:3", "not JSON"]),
        (format!("{good}[1]\n"), &["rows.jsonl:2", "not a JSON object"]),
        (
            format!("{good}\n{{\"question\": \"Why?\"}}\n"),
            &["rows.jsonl:3", "neither `prompt` nor `messages`", "question"],
        ),
        (format!("{good}{{\"prompt\": \"\"}}\n"), &["rows.jsonl:2", "`prompt` is empty"]),
        (format!("{good}{{\"prompt\": 5}}\n"), &["rows.jsonl:2", "prompt"]),
        (format!("{good}{good}{good}{long}\n"), &["rows.jsonl:4", "`rollout.max_prompt_tokens` is 100"]),
        (format!("{good}{}\n", json!({ "messages": [{ "role": "user" }] })), &["rows.jsonl:2"]),
        (good.to_owned(), &["`data.eval_rows` is 2", "1 rows"]),
    ];
    for (rows, words) in cases {
        let workshop = Workshop::new();
        workshop.write("rows.jsonl", &rows);
        let code = if words[0].starts_with('`') { 2 } else { 1 };
        workshop.train("run", &[]).refused(code, words);
    }
    let workshop = Workshop::new();
    fs::write(workshop.path("rows.jsonl"), b"{\"prompt\": \"\xff\"}\n").expect("written");
    workshop.train("run", &[]).refused(1, &["rows.jsonl:1"]);
    fs::remove_file(workshop.path("rows.jsonl")).expect("removed");
    workshop.train("run", &[]).refused(1, &["rows.jsonl", "No such file"]);
}

#[test]
fn a_prompt_longer_than_the_context_names_the_row() {
    let workshop = Workshop::new();
    let rows = [
        json!({ "prompt": "Why?" }),
        json!({ "prompt": "x y ".repeat(100) }),
        json!({ "prompt": "Why?" }),
        json!({ "prompt": "Why?" }),
    ];
    workshop.write("rows.jsonl", &rows.map(|row| format!("{row}\n")).concat());
    workshop.replace("max_prompt_tokens = 100", "max_prompt_tokens = 2000");
    workshop.train("run", &[]).refused(1, &["rows.jsonl:2", "context of 256"]);
    // The student's prompt fits; with what only the teacher sees it does not.
    let workshop = Workshop::new();
    workshop.replace("You are a helpful assistant.", &"x y ".repeat(100));
    workshop.train("run", &[]).refused(1, &["rows.jsonl:1", "context of 256"]);
}

#[test]
fn models_that_cannot_be_compared_are_refused() {
    let teacher = |change: &dyn Fn(&Model)| {
        let model = Model::copy("tiny-chat");
        change(&model);
        let workshop = Workshop::new();
        workshop.replace("kind = \"self\"", &format!("model = \"{}\"", model.path()));
        workshop.train("run", &["--set", "schedule.max_steps=1", "--set", "eval.every=0"])
    };
    teacher(&|_| {}).ok();
    let swap = |model: &Model| {
        let path = model.file("tokenizer.json");
        let text = fs::read_to_string(&path).expect("a tokenizer");
        let swapped = text.replacen("\"a\": 67", "\"a\": \u{0}", 1);
        let swapped = if swapped == text { text } else { swapped };
        let mut object: serde_json::Value = serde_json::from_str(&swapped.replace('\u{0}', "68")).expect("JSON");
        let vocab = object["model"]["vocab"].as_object_mut().expect("a vocabulary");
        let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
        (vocab["a"], vocab["b"]) = (b, a);
        fs::write(path, object.to_string()).expect("written");
    };
    teacher(&swap).refused(1, &["token ids of", "differ", "student:", "teacher:"]);
    teacher(&|model| model.set("generation_config.json", "eos_token_id", json!([0, 1])))
        .refused(1, &["end-of-sequence ids differ"]);
    teacher(&|model| fs::write(model.file("chat_template.jinja"), "{{ messages[0].content }}").expect("written"))
        .refused(1, &["chat templates differ"]);
    teacher(&|model| fs::remove_file(model.file("tokenizer.json")).expect("removed")).refused(1, &["tokenizer.json"]);
    let workshop = Workshop::new();
    workshop.replace(&fixture("tiny-chat"), &fixture("models/llama-gqa-tied"));
    workshop.train("run", &[]).refused(1, &["no tokenizer.json"]);
}

#[test]
fn a_dry_run_prints_the_whole_recipe_and_trains_nothing() {
    let workshop = Workshop::new();
    let printed = workshop.train("run", &["--dry-run", "--set", "optim.lr=5e-3", "--set", "log.name=other"]).ok();
    assert!(!workshop.path("run").exists());
    let recipe: toml::Table = printed.parse().expect("TOML");
    assert_eq!(recipe["optim"]["lr"].as_float(), Some(5e-3));
    assert_eq!(recipe["log"]["name"].as_str(), Some("other"));
    assert_eq!(recipe["rollout"]["sampling"]["temperature"].as_float(), Some(1.0), "defaults are filled in");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let path = elsewhere.path().join("printed.toml");
    fs::write(&path, &printed).expect("written");
    let again = arle_train(&[&path.display().to_string(), "--dry-run"]).ok();
    assert_eq!(again, printed, "what was printed is the same recipe from any folder");
}

#[test]
fn a_dry_run_checks_the_data() {
    let workshop = Workshop::new();
    workshop.write("rows.jsonl", "nonsense\n");
    workshop.train("run", &["--dry-run"]).refused(1, &["rows.jsonl:1", "not JSON"]);
}
