//! Tokenizers, incremental decoding and chat templates against transformers and llama.cpp.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use runtime::text::{ChatTemplate, Detokenizer, Ending, Message, Tokenizer};
use runtime::weights::gguf::GgufFile;
use serde_json::{Map, Value};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn qwen3() -> Tokenizer {
    Tokenizer::from_dir(&fixture("text/qwen3-small")).unwrap()
}

fn from_gguf(name: &str) -> Tokenizer {
    Tokenizer::from_gguf(&GgufFile::open(&fixture("gguf").join(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn ids_and_texts_equal_transformers() {
    let (expected, tokenizer) = (json("text/tokenizer.json"), qwen3());
    for (i, text) in expected["strings"].as_array().unwrap().iter().enumerate() {
        let got = tokenizer.encode(text.as_str().unwrap(), true).unwrap();
        assert_eq!(got, ids(&expected["ids"][i]), "{text}");
        assert_eq!(tokenizer.decode(&got, false).unwrap(), expected["decoded"][i].as_str().unwrap());
        assert_eq!(tokenizer.decode(&got, true).unwrap(), expected["decoded_without_special"][i].as_str().unwrap());
    }
    assert_eq!(tokenizer.vocab_size() as u64, expected["size"].as_u64().unwrap());
    assert_eq!(u64::from(tokenizer.eos().unwrap()), expected["eos"].as_u64().unwrap());
    assert_eq!((tokenizer.bos(), tokenizer.token(tokenizer.eos().unwrap()).as_deref()), (None, Some("<|im_end|>")));
}

#[test]
fn tokenizers_of_gguf_files_equal_llama_cpp() {
    let expected = json("gguf/token_ids.json");
    for (name, rows) in expected["ids"].as_object().unwrap() {
        let tokenizer = from_gguf(name);
        for (text, row) in expected["strings"].as_array().unwrap().iter().zip(rows.as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let got = tokenizer.encode(text, true).unwrap();
            assert_eq!(got, ids(row), "{name}: {text:?}");
            let decoded = tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false).unwrap();
            assert_eq!(decoded, text, "{name}");
        }
    }
}

#[test]
fn an_unknown_pre_tokenizer_is_named() {
    let mut bytes = std::fs::read(fixture("gguf/bpe-smollm.gguf")).unwrap();
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 12;
    bytes[at] = b'S';
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = Tokenizer::from_gguf(&GgufFile::open(&path).unwrap()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.pre \"Smollm\"") && error.contains("qwen2"), "{error}");
}

#[test]
fn saved_files_give_the_same_tokenizer() {
    for tokenizer in [qwen3(), from_gguf("spm.gguf"), from_gguf("bpe-llama-bpe.gguf")] {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save_files(dir.path(), Some(&Value::from("{{ eos_token }}"))).unwrap();
        let again = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(again.fingerprint(), tokenizer.fingerprint());
        let text = "Hello 123 é <|im_end|></s>";
        assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
        let template = ChatTemplate::from_dir(dir.path(), Some(&again)).unwrap().unwrap();
        let eos = tokenizer.token(tokenizer.eos().unwrap()).unwrap();
        assert_eq!(template.render(&[], Ending::Closed, None, &Map::new()).unwrap(), eos);
    }
}

#[test]
fn fingerprints_differ_with_anything_that_counts() {
    let source = json("text/qwen3-small/tokenizer.json");
    let fingerprint = |change: &dyn Fn(&mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        let mut changed = source.clone();
        change(&mut changed);
        std::fs::write(dir.path().join("tokenizer.json"), changed.to_string()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap().fingerprint().to_owned()
    };
    let same = fingerprint(&|_| ());
    assert_eq!(same.len(), 64);
    assert_eq!(same, fingerprint(&|t| t["post_processor"] = Value::Null));
    let swap_merges: &dyn Fn(&mut Value) = &|t| t["model"]["merges"].as_array_mut().unwrap().swap(0, 2);
    let swap_ids: &dyn Fn(&mut Value) = &|t| {
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
        vocab.insert("a".into(), b);
        vocab.insert("b".into(), a);
    };
    let no_normalizer: &dyn Fn(&mut Value) = &|t| t["normalizer"] = Value::Null;
    let special: &dyn Fn(&mut Value) = &|t| t["added_tokens"][0]["special"] = Value::Bool(false);
    for change in [swap_merges, swap_ids, no_normalizer, special] {
        assert_ne!(same, fingerprint(change));
    }
}

#[test]
fn a_configured_token_that_contradicts_the_tokenizer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("text/qwen3-small");
    std::fs::copy(source.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let config = r#"{"added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": true}}}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let error = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
    assert!(error.contains("<|im_end|>") && error.contains("tokenizer_config.json"), "{error}");
}

/// Pushes all ids one by one.
fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip_special);
    let mut pieces: Vec<_> = ids.iter().filter_map(|&id| detokenizer.push(id).unwrap()).collect();
    pieces.extend(detokenizer.flush().unwrap());
    pieces
}

/// What follows a text is decoded with it: where each piece begins with a space, the first space is one.
#[test]
fn text_goes_on_after_other_text() {
    let spm = Arc::new(from_gguf("spm.gguf"));
    let after = |tokenizer: &Arc<Tokenizer>, before: &[u32], ids: &[u32]| -> String {
        let mut text = Detokenizer::after(tokenizer.clone(), true, before).unwrap();
        let mut pieces: Vec<_> = ids.iter().filter_map(|&id| text.push(id).unwrap()).collect();
        pieces.extend(text.flush().unwrap());
        pieces.concat()
    };
    let whole = spm.encode("the cat and the", true).unwrap();
    for cut in 2..whole.len() {
        let (before, ids) = whole.split_at(cut);
        let wanted = spm.decode(&whole, true).unwrap()[spm.decode(before, true).unwrap().len()..].to_owned();
        assert_eq!(after(&spm, before, ids), wanted, "{cut}");
    }
    let (space, alone) = (spm.encode("the", false).unwrap(), spm.encode_inside("the").unwrap());
    assert_eq!(after(&spm, &whole, &space), " the");
    assert_eq!(after(&spm, &whole, &alone), "the");
    // Only tokens that are no text come before: the text begins here.
    assert_eq!(after(&spm, &whole[..1], &space), "the");
    // A character whose bytes are in both.
    for tokenizer in [Arc::new(qwen3()), spm] {
        let ids = tokenizer.encode("x\u{1F600}y", false).unwrap();
        for cut in 1..ids.len() {
            let text = after(&tokenizer, &ids[..cut], &ids[cut..]);
            assert!(!text.contains('\u{FFFD}') && text.ends_with('y'), "{cut}: {text:?}");
        }
    }
}

#[test]
fn tokens_around_a_text_are_not_its_own() {
    let spm = from_gguf("spm.gguf");
    let ids = spm.encode("the cat", true).unwrap();
    assert_eq!(spm.own_tokens("the cat", &ids).unwrap(), 1..ids.len());
    assert_eq!(spm.own_tokens("", &ids).unwrap(), 0..0);
}

#[test]
fn characters_are_emitted_whole_and_at_once() {
    let tokenizer = Arc::new(qwen3());
    let text = "héllo 😀 世界";
    let ids = tokenizer.encode(text, false).unwrap();
    let pieces = stream(&tokenizer, &ids, false);
    assert_eq!(pieces.concat(), text);
    assert!(pieces.len() > 6 && pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), false);
    for id in tokenizer.encode("ab", false).unwrap() {
        assert!(detokenizer.push(id).unwrap().is_some(), "plain text must not wait");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_equal_the_whole(
        seeds in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..40), 4),
        skip_special: bool,
    ) {
        let sources = [qwen3(), from_gguf("spm.gguf"), from_gguf("bpe-gpt-2.gguf"), from_gguf("bpe-llama-bpe.gguf")];
        for (tokenizer, seeds) in sources.into_iter().zip(seeds) {
            let tokenizer = Arc::new(tokenizer);
            // Also ids beyond the vocabulary; half of the ids come from the bytes, where characters are cut.
            let size = tokenizer.vocab_size() as u32 + 2;
            let ids: Vec<u32> = seeds.iter().map(|s| if s % 2 == 0 { s / 2 % size } else { s / 2 % 260 }).collect();
            let whole = tokenizer.decode(&ids, skip_special).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids, skip_special).concat(), whole, "{:?}", ids);
        }
    }

    #[test]
    fn text_survives(text in "[ -~\\n\\t]{0,20}\\PC{0,20}") {
        for name in ["bpe-smollm.gguf", "spm.gguf"] {
            let tokenizer = Arc::new(from_gguf(name));
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids, false).concat(), text.clone());
        }
    }
}

#[test]
fn conversations_render_as_in_transformers() {
    let fixture_json = json("text/chat.json");
    let tokenizer = qwen3();
    let cases = fixture_json["cases"].as_array().unwrap();
    for case in cases {
        let source = fixture_json["templates"][case["template"].as_str().unwrap()].as_str().unwrap();
        let template = ChatTemplate::new(source, Some(&tokenizer)).unwrap();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
        let ending = if case["add_generation_prompt"] == true { Ending::Answer } else { Ending::Closed };
        let got = template.render(&messages, ending, tools, case["extra"].as_object().unwrap());
        assert_eq!(got.unwrap(), case["expected"].as_str().unwrap(), "{} {}", case["template"], case["conversation"]);
    }
    assert!(cases.len() > 50);
}

#[test]
fn templates_are_found_where_transformers_looks() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let render = |tools: Option<&Value>| {
        let template = ChatTemplate::from_dir(dir.path(), None).unwrap()?;
        Some(template.render(&[Message::new("user", "x")], Ending::Closed, tools, &Map::new()).unwrap())
    };
    assert_eq!(render(None), None);
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(render(None).as_deref(), Some("json"));
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#,
    );
    assert_eq!(render(None).as_deref(), Some("d"));
    assert_eq!(render(Some(&serde_json::json!([{}]))).as_deref(), Some("t"));
    write("chat_template.jinja", "{{ messages[0].content }}!");
    assert_eq!(render(None).as_deref(), Some("x!"));
    write("chat_template.jinja", "{% if %}");
    assert!(ChatTemplate::from_dir(dir.path(), None).is_err());
}
