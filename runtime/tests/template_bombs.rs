//! Templates that have no end, or make too much: each is refused or answered, and the process goes on.

use minijinja::Environment;
use runtime::text::{ChatTemplate, Ending, Message, TemplateError, Templates};
use serde_json::{Map, Value, json};

fn render(source: &str, extra: &Map<String, Value>) -> Result<String, String> {
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "Why?"),
        serde_json::from_value(json!({"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{\"a\": [1, {\"b\": null}]}"}}]}))
        .unwrap(),
        serde_json::from_value(json!({"role": "tool", "content": [{"type": "text", "text": "3"}]})).unwrap(),
    ];
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let template = ChatTemplate::new(source, None).map_err(|e| e.to_string())?;
    template.render(&messages, Ending::Answer, Some(&tools), extra).map_err(|e| e.to_string())
}

/// `times` repetitions of a piece, between two others.
fn repeated(before: &str, piece: &str, times: usize, after: &str) -> String {
    [before, &piece.repeat(times), after].concat()
}

/// A value nested `depth` deep by a loop over a namespace.
fn nested(make: &str, depth: usize, then: &str) -> String {
    let loops =
        "{% for i in range(1000) %}".repeat(depth.div_ceil(1000).min(1)) + &"{% for j in range(100) %}".repeat(2);
    let ends = "{% endfor %}".repeat(3);
    format!("{{% set ns = namespace(x=0) %}}{loops}{{% set ns.x = {make} %}}{ends}{then}")
}

/// What uses a value `x` as a whole.
const USES: [&str; 14] = [
    "{{ x }}",
    "{{ x ~ '' }}",
    "{{ '' ~ x }}",
    "{{ x | tojson }}",
    "{{ x == x }}",
    "{{ x == [x] }}",
    "{{ x | string }}",
    "{{ x | length }}",
    "{{ x in [x] }}",
    "{{ [x, x] | unique | list }}",
    "{{ [x, x] | sort }}",
    "{{ x | pprint }}",
    "{{ '%s' | format(x) }}",
    "{{ [x] | join(',') }}",
];

fn bombs() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut add = |text: String| all.push(text);
    // Values that hold themselves, and deep ones.
    for using in USES {
        let x = |make: &str| format!("{{% set ns = namespace(x=0) %}}{make}{{% set x = ns %}}{using}");
        add(x("{% set ns.x = ns %}"));
        add(x("{% set ns.x = [ns] %}"));
        add(x("{% set other = namespace(y=ns) %}{% set ns.x = other %}"));
        add(repeated("{% set x = 1 %}", "{% set x = [x] %}", 8_000, using));
        add(repeated("{% set x = 1 %}", "{% set x = {'a': x} %}", 8_000, using));
        add(nested("[ns.x]", 1000, &format!("{{% set x = ns.x %}}{using}")));
        add(nested("{'a': ns.x}", 1000, &format!("{{% set x = ns.x %}}{using}")));
    }
    add("{% set ns = namespace(x=1) %}{% set (ns.x) = ns %}{{ ns ~ '' }}".into());
    add("{% set ns = namespace(x=1) %}{% set ns . x = ns %}{{ ns ~ '' }}".into());
    add("{% set ns = namespace(x=1) %}{% set ns.x, ns.y = ns, ns %}{{ ns ~ '' }}".into());
    add("{% set ns = namespace(x=1) %}{% set ns.x | default(ns, true) %}{% endset %}{{ ns ~ '' }}".into());
    add("{% set ns = namespace() %}{% for m in [ns, ns] %}{% set ns.l = loop %}{% endfor %}{{ ns ~ '' }}".into());
    add("{% set ns = namespace() %}{% set ns.x = dict(a=ns) %}{{ ns | tojson }}".into());
    add("{% set ns = namespace() %}{% set ns.x = [ns] | map('list') %}{{ ns ~ '' }}".into());
    add("{% set ns = namespace() %}{% set ns.x = messages | groupby('role') %}{% set ns.y = ns.x + [ns] %}{{ ns }}"
        .into());
    // Loops without an end.
    let loops =
        |n: usize, body: &str| repeated("", "{% for i in range(100000) %}", n, body) + &"{% endfor %}".repeat(n);
    for body in [
        "",
        "x",
        "{{ i }}",
        "{{ messages }}",
        "{{ messages | tojson }}",
        "{% set y = i * i %}",
        "{% if i %}{% endif %}",
    ] {
        add(loops(2, body));
        add(loops(8, body));
        add(format!("{{% set out %}}{}{{% endset %}}{{{{ out | length }}}}", loops(3, body)));
    }
    add("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".into());
    add("{% macro f(n) %}{{ g(n) }}{% endmacro %}{% macro g(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}".into());
    add("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}".into());
    add("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".into());
    add("{% for x in [[1]] recursive %}{{ loop([x, x]) }}{{ loop([x, x]) }}{% endfor %}".into());
    add("{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}".to_owned()
        + &"{% call m() %}".repeat(60)
        + &"{% endcall %}".repeat(60));
    add("{% block a %}{{ self.a() }}{% endblock %}".into());
    add("{% include 'chat' %}".into());
    add("{% extends 'chat' %}".into());
    add("{% import 'chat' as c %}{{ c }}".into());
    // Text that doubles.
    for (start, double) in [
        ("'x' * 1000", "ns.x ~ ns.x"),
        ("'x' * 1000", "ns.x + ns.x"),
        ("'x' * 1000", "ns.x * 1000"),
        ("'x' * 1000", "[ns.x, ns.x] | join"),
        ("'x' * 1000", "ns.x | replace('x', 'xx')"),
        ("'x' * 1000", "ns.x.replace('x', 'xx')"),
        ("'x' * 1000", "'%s%s' | format(ns.x, ns.x)"),
        ("'x' * 1000", "ns.x.join(['', ns.x, ns.x])"),
        ("'x\\n' * 1000", "ns.x | indent(1000)"),
        ("'x' * 1000", "(ns.x ~ ns.x) | upper"),
        ("'x' * 1000", "(ns.x ~ ns.x).title()"),
        ("[1] * 1000", "ns.x + ns.x"),
        ("'x' * 1000", "[ns.x, ns.x] | tojson"),
        ("'x' * 1000", "(ns.x ~ ns.x) | urlencode"),
        ("'x' * 1000", "(ns.x ~ ns.x).split('x') | join('xx')"),
    ] {
        add(format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(100) %}}{{% set ns.x = {double} %}}{{% endfor %}}{{{{ ns.x }}}}"
        ));
    }
    add(repeated("{% set x = 'x' * 1000 %}", "{% set x = x ~ x %}", 100, "{{ x }}"));
    add(repeated("", "{% set x %}{{ x }}{{ x }}xxxxxxxx{% endset %}", 100, "{{ x }}"));
    // Huge numbers and widths.
    for text in [
        "{{ 10 ** 10 ** 10 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 1 // 0 }}{{ 1 % 0 }}",
        "{{ -9223372036854775808 // -1 }}",
        "{{ 'x' * 9999999999 }}",
        "{{ [0] * 9999999999 }}",
        "{{ ([0] * 99999999) | list | length }}",
        "{{ range(99999999999) | list }}",
        "{{ range(0, 10, 0) }}",
        "{{ 'x' | center(9999999999) }}",
        "{{ 'x' | indent(9999999999) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '%.9999999999f' | format(1.0) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ messages | tojson(indent=9999999999) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ messages | batch(0) | list }}",
        "{{ messages | slice(9999999999) | list }}",
        "{{ 'x'.zfill(9999999999) }}",
        "{{ '{:{w}}'.format(1, w=9999999999) }}",
        "{{ 1e308 * 10 }}",
        "{{ messages[99999999999999999999] }}",
        "{{ messages[::0] }}",
        "{{ 1 | round(9999999999) }}",
        "{{ debug() }}",
        "{{ lipsum(9999999) }}",
        "{{ strftime_now('%Y' * 1000000) }}",
        "{{ strftime_now('%') }}",
    ] {
        add(text.into());
    }
    // No templates at all, and deep ones.
    for text in [
        "{%}",
        "{%",
        "{{",
        "{#",
        "{{}}",
        "{%%}",
        "{%-%}",
        "{% raw %}",
        "{%'%}",
        "{% set %}",
        "{% set x. = 1 %}",
        "{% set ns.x = %}",
        "\u{0}{%\u{0}%}",
        "{% for %}",
        "{{ '",
        "{% generation",
        "{{ \"\\ud800\" }}",
    ] {
        add(text.into());
    }
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{'a':", "}"),
        ("not ", ""),
        ("-", ""),
        ("x[", "]"),
        ("x|f(", ")"),
        ("x.y(", ")"),
        ("1 + ", ""),
        ("1 if 1 else ", ""),
        ("2 ** ", ""),
        ("x ~ ", ""),
    ] {
        add(format!("{{{{ {}1{} }}}}", open.repeat(10_000), close.repeat(10_000)));
        add(format!("{{{{ {}1{} }}}}", open.repeat(100), close.repeat(100)));
    }
    for (open, close) in [
        ("{% if 1 %}", "{% endif %}"),
        ("{% for i in [1] %}", "{% endfor %}"),
        ("{% set x %}", "{% endset %}"),
        ("{% filter upper %}", "{% endfilter %}"),
        ("{% macro f() %}", "{% endmacro %}"),
        ("{% with x = 1 %}", "{% endwith %}"),
        ("{% call f() %}", "{% endcall %}"),
    ] {
        add(open.repeat(5_000) + &close.repeat(5_000));
        add(open.repeat(100) + &close.repeat(100));
    }
    add("{{ x.y".to_owned() + &".y".repeat(20_000) + " }}");
    add("{{ x".to_owned() + &"|upper".repeat(20_000) + " }}");
    add("{% if 0 %}".to_owned() + &"{% elif 0 %}".repeat(10_000) + "{% endif %}");
    add("x".repeat(2 << 20));
    all
}

#[test]
fn every_bomb_ends_in_an_error_or_an_answer() {
    let bombs = bombs();
    assert!(bombs.len() > 200, "{}", bombs.len());
    let mut refused = 0;
    for bomb in &bombs {
        let begun = std::time::Instant::now();
        let answer = render(bomb, &Map::new());
        let seconds = begun.elapsed().as_secs();
        assert!(seconds < 60, "{seconds} s: {}", bomb.chars().take(200).collect::<String>());
        refused += usize::from(answer.is_err());
        if let Err(what) = answer {
            assert!(!what.contains("engine failed"), "{what}: {}", bomb.chars().take(200).collect::<String>());
        }
    }
    assert!(refused > bombs.len() / 2, "{refused} of {}", bombs.len());
    assert_eq!(render("{{ messages[1].content }}", &Map::new()).unwrap(), "Why?");
}

#[test]
fn what_is_too_much_is_named() {
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let error = render(endless, &Map::new()).unwrap_err();
    assert!(error.contains("too much work") && error.contains("steps"), "{error}");
    let error = ChatTemplate::new(&"x".repeat(2 << 20), None).err().unwrap().to_string();
    assert!(error.contains("2097152 bytes") && error.contains("262144"), "{error}");
    let error = render("{% set ns = namespace() %}{% set ns.x = ns %}", &Map::new()).unwrap_err();
    assert!(error.contains("namespace cannot hold a namespace"), "{error}");
}

#[test]
fn templates_of_other_environments_are_bounded_too() {
    let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}";
    let templates = Templates::new(Environment::new(), vec![("question", endless.to_owned())]).unwrap();
    let error = templates.render("question", 0, || ().into()).unwrap_err();
    assert!(matches!(error, TemplateError::Excess(_)), "{error}");
}

/// A long conversation is no bomb.
#[test]
fn a_long_conversation_renders() {
    let source =
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{% if loop.last %}!{% endif %}\n{% endfor %}";
    let messages: Vec<Message> =
        (0..5000).map(|i| Message::new("user", &format!("{i} {}", "word ".repeat(200)))).collect();
    let text = ChatTemplate::new(source, None).unwrap().render(&messages, Ending::Answer, None, &Map::new()).unwrap();
    assert!(text.len() > 4_000_000 && text.ends_with('!'));
}
