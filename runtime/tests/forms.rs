//! Conversations whose values templates take in different forms, against transformers.

use std::path::Path;

use runtime::text::{ChatTemplate, Ending, Message};
use serde_json::{Map, Value, json};

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/text/forms.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn render(
    source: &str,
    given: &Value,
    ending: Ending,
    tools: Option<&Value>,
    variables: &Map<String, Value>,
) -> Result<String, String> {
    let messages: Vec<Message> = serde_json::from_value(given.clone()).unwrap();
    let template = ChatTemplate::new(source, None).map_err(|e| e.to_string())?;
    template.render(&messages, ending, tools, variables).map_err(|e| e.to_string())
}

#[test]
fn values_have_the_form_that_a_template_asks_for() {
    let fixture = fixture();
    let tokens = fixture["tokens"].as_object().unwrap();
    let (mut refused, cases) = (0, fixture["cases"].as_array().unwrap());
    for case in cases {
        let source = fixture["templates"][case["template"].as_str().unwrap()].as_str().unwrap();
        let given = case.get("messages").unwrap_or(&fixture["conversations"][case["conversation"].as_str().unwrap()]);
        let calls = given.as_array().unwrap().iter().any(|message| message["tool_calls"].is_array());
        let ending = if case["ending"] == "continue" { Ending::Continue } else { Ending::Answer };
        let got = render(source, given, ending, Some(&fixture["tools"]).filter(|_| calls), tokens);
        match case["expected"].as_str() {
            Some(wanted) => assert_eq!(got.as_deref(), Ok(wanted), "{} / {}", case["template"], case["conversation"]),
            None => refused += usize::from(got.is_err()),
        }
    }
    assert!(cases.len() > 150 && refused < cases.len() / 4, "{refused} of {}", cases.len());
}

fn one(source: &str, given: &Value) -> Result<String, String> {
    render(source, given, Ending::Closed, None, &Map::new())
}

#[test]
fn arguments_are_what_was_sent() {
    let sent = r#"{"b":1,"a":[1.0,1e5,"é"]}"#;
    let calls = |arguments: Value| json!([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]);
    let call = |source: &str, arguments: Value| {
        one(&format!("{{% set c = messages[0].tool_calls[0].function %}}{{{{ c.name }}}} {source}"), &calls(arguments))
    };
    let written = r#"f {"b": 1, "a": [1.0, 100000.0, "é"]}"#;
    let verbatim = format!("f {sent}");
    for (source, wanted) in [
        ("{{ c.arguments | tojson }}", written),
        ("{{ c.arguments }}", &verbatim),
        ("{{ '' + c.arguments }}", &verbatim),
        ("{{ '' ~ c.arguments }}", &verbatim),
        ("{{ c.arguments | string }}", &verbatim),
        ("{% if c.arguments is string %}{{ c.arguments }}{% else %}{{ c.arguments | tojson }}{% endif %}", &verbatim),
        ("{% if c.arguments is mapping %}{{ c.arguments | tojson }}{% else %}{{ c.arguments }}{% endif %}", written),
        ("{% for k, v in c.arguments.items() %}{{ k }}{% endfor %}", "f ba"),
        ("{{ c.arguments['b'] }}{{ c.arguments.get('z', 2) }}", "f 12"),
        (
            "{% if c.arguments is string %}{{ raise_exception('an object, please') }}{% endif %}{{ c.arguments | tojson }}",
            written,
        ),
    ] {
        assert_eq!(call(source, json!(sent)).as_deref(), Ok(wanted), "{source}");
    }
    assert_eq!(call("{{ '' + c.arguments }}", json!({"x": "é"})).as_deref(), Ok(r#"f {"x": "é"}"#));
    assert_eq!(call("{{ c.arguments | tojson }}", json!("")).as_deref(), Ok("f {}"));
    assert_eq!(call("{{ c.arguments }}", json!("{\"x\": ")).as_deref(), Ok("f {\"x\": "));
    let refused = call("{{ c.arguments | tojson }}", json!("{\"x\": ")).unwrap_err();
    assert!(refused.contains("arguments of a call are no JSON object"), "{refused}");
}

#[test]
fn nothing_is_left_out_that_another_form_shows() {
    let absent = "{% for m in messages %}{% if m.content is none %}[{{ m.tool_calls[0].function.name }}]{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let call = |content: Value| json!([{"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "fun", "arguments": "{}"}}]}]);
    for content in [Value::Null, json!("")] {
        assert_eq!(one(absent, &call(content)).as_deref(), Ok("[fun]"));
    }
    let empty = json!([{"role": "assistant", "content": "said", "tool_calls": []}]);
    let defined =
        "{% for m in messages %}{% if m.tool_calls is defined %}calls{% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert_eq!(one(defined, &empty).as_deref(), Ok("said"));
    // A list that the template does not know, and a text where it knows only lists.
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    for source in [
        "{{ messages[0].content }}",
        "{{ messages[0].content | trim }}",
        "{{ messages[0].content.strip() }}",
        "{{ '' + messages[0].content }}",
        "{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}",
    ] {
        assert_eq!(one(source, &parts).as_deref(), Ok("a\nb"), "{source}");
    }
    let only_lists = "{% for p in messages[0].content %}{% if p.type == 'text' %}<{{ p.text }}>{% endif %}{% endfor %}";
    assert_eq!(one(only_lists, &parts).as_deref(), Ok("<a><b>"));
    assert_eq!(one(only_lists, &json!([{"role": "user", "content": "ab"}])).as_deref(), Ok("<ab>"));
    // What no form shows the template leaves out on purpose.
    assert_eq!(one("{{ messages[0].role }}", &json!([{"role": "user", "content": "ab"}])).as_deref(), Ok("user"));
}

/// Values by transformers 5.24's `apply_chat_template`.
#[test]
fn a_text_that_the_template_changes_stays_a_text() {
    let messages = json!([
        {"role": "user", "content": "one\n\ntwo Three"},
        {"role": "assistant", "content": "Ans <think>thought"},
        {"role": "user", "content": "more"},
    ]);
    let parts = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}";
    for (shown, wanted) in [
        ("{{ m.content | capitalize }}", "<One\n\ntwo three><Ans <think>thought><More>"),
        ("{{ m.content[:4] }}", "<one\n><Ans ><more>"),
        ("{{ m.content | replace('\n\n', '\n') }}", "<one\ntwo Three><Ans <think>thought><more>"),
        ("{{ m.content.split('<think>')[0] }}", "<one\n\ntwo Three><Ans ><more>"),
        (
            &format!("{{% if m.content is string %}}{{{{ m.content | upper }}}}{{% else %}}{parts}{{% endif %}}"),
            "<ONE\n\nTWO THREE><ANS <THINK>THOUGHT><MORE>",
        ),
        (parts, "<one\n\ntwo Three><Ans <think>thought><more>"),
    ] {
        let source = format!("{{% for m in messages %}}<{shown}>{{% endfor %}}");
        assert_eq!(one(&source, &messages).as_deref(), Ok(wanted), "{source}");
    }
    // A list is never printed as one, whatever else is lost.
    assert_eq!(one("{{ messages[2].content }}", &messages).as_deref(), Ok("more"));
}

#[test]
fn a_last_message_goes_on() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let given = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]);
    let go_on = |source: &str, given: &Value| render(source, given, Ending::Continue, None, &Map::new());
    assert_eq!(go_on(source, &given).as_deref(), Ok("<user>a</s><assistant>b "));
    assert_eq!(
        go_on(&source.replace("m.content", "m.content | trim"), &given).as_deref(),
        Ok("<user>a</s><assistant>b")
    );
    assert!(go_on("{{ messages[0].content }}", &given).unwrap_err().contains("leaves out the last message"));
    assert!(go_on(source, &json!([])).unwrap_err().contains("no message"));
    let silent = json!([{"role": "assistant", "tool_calls": [{"name": "f"}]}]);
    assert!(go_on(source, &silent).unwrap_err().contains("(assistant)"));
}
