//! How large and how deep a grammar may be, checked before `llguidance` sees it: it goes through schemas and rules by recursion, so
//! each level takes stack, and what it makes of a text takes many times the text's memory.

use llguidance::api::GrammarWithLexer;
use serde_json::Value;

/// Objects of a schema: no chain of references is longer, so no more levels are on the stack at a time.
const MAX_SUBSCHEMAS: usize = 10_000;
/// Rules and terminals of a Lark grammar, which may follow one another in the same way.
const MAX_RULES: usize = 10_000;
/// Parentheses, brackets and braces within one another in a Lark grammar.
const MAX_NESTING: usize = 128;
/// Bytes of a schema's strings, and of a Lark grammar.
const MAX_TEXT: usize = 512 << 10;
/// Bytes of all regular expressions of a form.
const MAX_REGEX: usize = 16 << 10;

/// Sum of all `multipleOf` of a form, each without its decimal point. A number's remainder is a state of its automaton: 99,991 took
/// 0.6 s and 80 MB, 999,983 took 7.6 s and 600 MB (llguidance 1.9).
const MAX_MULTIPLES: usize = 100_000;

/// Refuses what is too large or too deep, and says which limit that is.
pub(crate) fn check(grammars: &[GrammarWithLexer]) -> Result<(), String> {
    let mut size = Size::default();
    for grammar in grammars {
        if let Some(schema) = &grammar.json_schema {
            size.schema(schema)?;
        }
        if let Some(lark) = &grammar.lark_grammar {
            size.lark(lark)?;
        }
    }
    Ok(())
}

/// What was counted so far.
#[derive(Debug, Default)]
struct Size {
    subschemas: usize,
    rules: usize,
    text: usize,
    regex: usize,
    multiples: usize,
}

/// Adds to a count that has a limit.
fn add(count: &mut usize, more: usize, limit: usize, what: &str) -> Result<(), String> {
    *count = count.saturating_add(more);
    if *count > limit { Err(format!("the form has more than {limit} {what}; send a smaller one")) } else { Ok(()) }
}

impl Size {
    fn text(&mut self, bytes: usize) -> Result<(), String> {
        add(&mut self.text, bytes, MAX_TEXT, "bytes of text")
    }

    fn regex(&mut self, bytes: usize) -> Result<(), String> {
        add(&mut self.regex, bytes, MAX_REGEX, "bytes of regular expressions")
    }

    /// Whatever is an object may be a schema.
    fn schema(&mut self, schema: &Value) -> Result<(), String> {
        let mut open = vec![schema];
        while let Some(value) = open.pop() {
            match value {
                Value::Object(members) => {
                    add(&mut self.subschemas, 1, MAX_SUBSCHEMAS, "subschemas")?;
                    for (name, value) in members {
                        self.text(name.len())?;
                        match (name.as_str(), value) {
                            ("pattern", Value::String(regex)) => self.regex(regex.len())?,
                            ("multipleOf", Value::Number(number)) => {
                                let states = digits(&number.to_string());
                                add(&mut self.multiples, states, MAX_MULTIPLES, "as the sum of `multipleOf`")?;
                            }
                            ("patternProperties", Value::Object(patterns)) => {
                                self.regex(patterns.keys().map(String::len).sum())?;
                            }
                            _ => {}
                        }
                        open.push(value);
                    }
                }
                Value::Array(elements) => {
                    self.text(elements.len())?;
                    open.extend(elements);
                }
                Value::String(text) => self.text(text.len())?,
                _ => {}
            }
        }
        Ok(())
    }

    fn lark(&mut self, lark: &str) -> Result<(), String> {
        self.text(lark.len())?;
        let (mut rest, mut depth) = (lark, 0_usize);
        while let Some(next) = rest.chars().next() {
            let length = match next {
                '"' => literal(rest, '"'),
                '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
                '/' => {
                    let length = literal(rest, '/');
                    self.regex(length)?;
                    length
                }
                '%' => match embedded(rest) {
                    Some((schema, length)) => {
                        self.schema(&schema)?;
                        length
                    }
                    None => 1,
                },
                '(' | '[' | '{' => {
                    depth += 1;
                    if depth > MAX_NESTING {
                        let what = "parentheses, brackets and braces";
                        return Err(format!("the grammar has more than {MAX_NESTING} {what} within one another"));
                    }
                    1
                }
                ')' | ']' | '}' => {
                    depth = depth.saturating_sub(1);
                    1
                }
                ':' => {
                    add(&mut self.rules, 1, MAX_RULES, "rules")?;
                    1
                }
                other => other.len_utf8(),
            };
            rest = &rest[length..];
        }
        Ok(())
    }
}

/// The digits of a number as an integer, without its sign, decimal point and negative exponent.
fn digits(number: &str) -> usize {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0') } else { mantissa };
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let zeros = exponent.trim_start_matches('+').parse().unwrap_or(0_i32).clamp(0, 20) as u32;
    digits.parse::<usize>().unwrap_or(usize::MAX).saturating_mul(10_usize.saturating_pow(zeros))
}

/// Bytes of a string or a regular expression up to its end.
fn literal(text: &str, end: char) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((place, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '\n' => return place,
            character if character == end => return place + end.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// The schema behind `%json`, and where it ends.
fn embedded(text: &str) -> Option<(Value, usize)> {
    const JSON: &str = "%json";
    let mut values = serde_json::Deserializer::from_str(text.strip_prefix(JSON)?).into_iter::<Value>();
    let schema = values.next()?.ok()?;
    Some((schema, JSON.len() + values.byte_offset()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(schema: Value) -> Result<(), String> {
        check(&[GrammarWithLexer::from_json_schema(schema)])
    }

    fn lark(lark: &str) -> Result<(), String> {
        check(&[GrammarWithLexer::from_lark(lark.to_owned())])
    }

    #[track_caller]
    fn refused(checked: Result<(), String>, word: &str) {
        let why = checked.expect_err("beyond the limit");
        assert!(why.contains(word), "{why}");
    }

    fn chain(links: usize) -> Value {
        let link =
            |n: usize| (format!("d{n}"), json!({"anyOf": [{"$ref": format!("#/$defs/d{}", n + 1)}, {"type": "null"}]}));
        let definitions: serde_json::Map<_, _> = (0..links).map(link).collect();
        json!({"$defs": definitions, "$ref": "#/$defs/d0"})
    }

    #[test]
    fn a_schema_has_so_many_subschemas_and_so_much_text() {
        schema(chain(3000)).expect("9,002 objects");
        refused(schema(chain(3400)), "10000 subschemas");
        refused(schema(json!({"enum": ["a".repeat(MAX_TEXT)]})), "bytes of text");
        refused(schema(json!({"enum": vec![0; MAX_TEXT + 1]})), "bytes of text");
        schema(json!({"pattern": "a".repeat(MAX_REGEX)})).expect("as long as is allowed");
        refused(schema(json!({"items": {"pattern": "a".repeat(MAX_REGEX + 1)}})), "regular expressions");
        refused(schema(json!({"patternProperties": {"a".repeat(MAX_REGEX + 1): {}}})), "regular expressions");
    }

    #[test]
    fn the_multiples_of_a_schema_have_so_many_remainders() {
        for number in [json!(100_000), json!(0.01), json!(99.999), json!(1e-7), json!(1e5)] {
            schema(json!({"type": "number", "multipleOf": number})).expect("few remainders");
        }
        for number in [json!(100_001), json!(99_999_989), json!(3.000_000_1), json!(1e19), json!(u64::MAX)] {
            refused(schema(json!({"items": {"multipleOf": number}})), "100000 as the sum of `multipleOf`");
        }
        let many: Vec<Value> = (0..12).map(|n| json!({"multipleOf": 9000 + n})).collect();
        refused(schema(json!({"allOf": many})), "multipleOf");
    }

    #[test]
    fn a_lark_grammar_has_so_many_rules_and_levels() {
        let rules = |count: usize| (0..count).map(|n| format!("r{n}: \"(:/\" r{}\n", n + 1)).collect::<String>();
        lark(&rules(MAX_RULES)).expect("as many as are allowed");
        refused(lark(&rules(MAX_RULES + 1)), "rules");
        let nested = |depth: usize| format!("start: {}\"a\"{}", "(".repeat(depth), ")".repeat(depth));
        lark(&nested(MAX_NESTING)).expect("as deep as is allowed");
        refused(lark(&nested(MAX_NESTING + 1)), "within one another");
        lark(&format!("start: /{}/ // {}", "(".repeat(1000), "(".repeat(1000))).expect("no levels of the grammar");
        refused(lark(&format!("start: /{}/", "a".repeat(MAX_REGEX))), "regular expressions");
    }

    #[test]
    fn a_schema_in_a_grammar_is_a_schema() {
        lark(&format!("start: a\na: %json {} \"b\"", chain(100))).expect("small");
        refused(lark(&format!("start: %json {}", chain(3400))), "subschemas");
        // What llguidance cannot read either.
        lark("start: %json {\"a\":").expect("small");
        lark("start: %json").expect("small");
        lark("%").expect("small");
    }

    #[test]
    fn all_grammars_of_an_answer_count() {
        let half = || GrammarWithLexer::from_json_schema(chain(2000));
        check(&[half()]).expect("one is small enough");
        refused(check(&[half(), half()]), "subschemas");
    }
}
