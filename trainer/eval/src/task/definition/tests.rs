use serde_json::json;

use super::*;

const MINIMAL: &str = r#"
name = "capitals"
version = "1"
about = "capitals"
kind = "generate_until"
data = { test = "capitals.jsonl" }

[prompt]
question = "Capital of {{country}}?"
answer = "{{capital}}"
"#;

fn doc() -> Doc {
    json!({"country": "Spain", "capital": "Madrid"}).as_object().expect("an object").clone()
}

fn refusal(text: &str) -> String {
    Definition::parse(text, "capitals.toml").err().expect("refused").to_string()
}

#[test]
fn a_minimal_definition_is_a_task() {
    let task = Definition::parse(MINIMAL, "capitals.toml").expect("a task");
    assert_eq!(task.example(&doc()), ("Capital of Spain?".to_owned(), "Madrid".to_owned()));
    assert_eq!(task.info().few_shot, FewShot::RandomOthers);
    let text = |text: &str| EvalResponse::Text {
        text: text.to_owned(),
        finish_reason: "stop".to_owned(),
        prompt_tokens: 1,
        token_ids: Vec::new(),
        logprobs: Vec::new(),
    };
    let score =
        |answer: &str| task.grade(&doc(), &[text(answer)]).expect("graded").metrics["exact_match,none"].number();
    assert_eq!([score("Madrid"), score("madrid"), score(" Madrid")], [1.0, 0.0, 0.0]);
}

#[test]
fn keys_are_checked() {
    assert!(refusal(&format!("{MINIMAL}\n[generate]\nunti = []")).contains("unti"));
    assert!(refusal(&MINIMAL.replace("generate_until", "multiple_choice")).contains("prompt.choices"));
    assert!(refusal(&MINIMAL.replace("}}?", "?")).contains("capitals.toml"));
    assert!(refusal(&format!("{MINIMAL}\n[few_shot]\ncount = 2\nrule = \"first\"")).contains("data.few_shot"));
    let choices = MINIMAL.replace("answer =", "choices = [\"a\"]\nanswer =");
    assert!(refusal(&choices).contains("multiple_choice"));
}
