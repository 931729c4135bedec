//! What is changed in a template's text before it is compiled.

use super::environment::STORABLE;

/// `{% generation %}` marks what the model wrote and prints nothing itself: such a block becomes `if true`, which keeps its
/// white space control. What `{% set namespace.name = value %}` stores goes through [`STORABLE`], because a namespace that
/// contains itself has no end when it is compared or printed.
pub(super) fn prepare(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|at| at + 2),
            Some(b'{') => end_of(&tag[2..], "}}").map(|at| at + 4),
            Some(b'%') => end_of(&tag[2..], "%}").map(|at| at + 4),
            _ => Some(1),
        };
        // What has no end is the compiler's to refuse.
        let Some(end) = end else { return out + tag };
        let (whole, after) = tag.split_at(end);
        rest = after;
        if !whole.starts_with("{%") {
            out.push_str(whole);
            continue;
        }
        let inner = &whole[2..whole.len() - 2];
        if words(inner) == "raw" {
            let raw = end_of_raw(rest);
            out.push_str(whole);
            out.push_str(&rest[..raw]);
            rest = &rest[raw..];
        } else {
            out.extend(["{%", &statement(inner), "%}"]);
        }
    }
    out + rest
}

/// A statement without its marks for white space.
fn words(inner: &str) -> &str {
    inner.trim_matches(['-', '+']).trim()
}

/// Where `close` stands, outside of strings and of braces that were opened.
fn end_of(text: &str, close: &str) -> Option<usize> {
    let mut open = 0_usize;
    for (at, c) in outside_strings(text) {
        match c {
            _ if open == 0 && text[at..].starts_with(close) => return Some(at),
            '{' => open += 1,
            '}' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Where what follows `{% raw %}` ends.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(start) = text[from..].find("{%").map(|at| from + at) {
        let Some(end) = text[start..].find("%}").map(|at| start + at) else { break };
        if words(text.get(start + 2..end).unwrap_or_default()) == "endraw" {
            return start;
        }
        from = start + 2;
    }
    text.len()
}

/// Characters that stand in no string, with their places.
fn outside_strings(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut quote, mut escaped) = (None, false);
    text.char_indices().filter(move |&(_, c)| match quote {
        Some(_) if escaped => {
            escaped = false;
            false
        }
        Some(mark) => {
            escaped = c == '\\';
            quote = Some(mark).filter(|&mark| c != mark);
            false
        }
        None => {
            quote = matches!(c, '"' | '\'').then_some(c);
            quote.is_none()
        }
    })
}

fn statement(inner: &str) -> String {
    match words(inner) {
        "generation" => return inner.replacen("generation", "if true", 1),
        "endgeneration" => return inner.replacen("endgeneration", "endif", 1),
        words if !words.starts_with("set") => return inner.to_owned(),
        _ => {}
    }
    let (body, mark) = match inner.strip_suffix(['-', '+']) {
        Some(body) => (body, &inner[body.len()..]),
        None => (inner, ""),
    };
    let find = |mark: char| outside_strings(body).find(|&(_, c)| c == mark).map(|(at, _)| at);
    let is_dotted = |target: &str| target.contains('.');
    match (find('='), find('|')) {
        (Some(equals), _) if is_dotted(&body[..equals]) => {
            format!("{}=({})|{STORABLE} {mark}", &body[..equals], &body[equals + 1..])
        }
        (None, Some(filters)) if is_dotted(&body[..filters]) => format!("{body}|{STORABLE} {mark}"),
        _ => inner.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::prepare;

    #[test]
    fn only_such_statements_are_changed() {
        for (source, wanted) in [
            ("a{%- generation -%}b{% endgeneration +%}", "a{%- if true -%}b{% endif +%}"),
            ("{% set ns.x = a -%}", "{% set ns.x =( a )|_storable -%}"),
            ("{% set ns.a, ns.b = 1, 2 %}", "{% set ns.a, ns.b =( 1, 2 )|_storable %}"),
            ("{% set ns.x | default(ns) %}", "{% set ns.x | default(ns) |_storable %}"),
            ("{% set x = ns.x == 1 %}", "{% set x = ns.x == 1 %}"),
            ("{% set ns.x %}", "{% set ns.x %}"),
            ("{% set ns.x = '%}{%' %}", "{% set ns.x =( '%}{%' )|_storable %}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{{ {'a': {'b': 1}} }}{{ '{% generation %}' }}", "{{ {'a': {'b': 1}} }}{{ '{% generation %}' }}"),
            ("{% raw %}{% set ns.x = 1 %}{%- endraw %}", "{% raw %}{% set ns.x = 1 %}{%- endraw %}"),
        ] {
            assert_eq!(prepare(source), wanted);
        }
    }

    #[test]
    fn any_text_is_taken() {
        for source in
            ["", "{", "{%", "{%}", "{{}", "{#}", "{%%}", "{%-%}", "{% raw %}{%", "{% set", "%}{{'", "{%'%}", "é{%é%}é"]
        {
            prepare(source);
        }
    }
}
