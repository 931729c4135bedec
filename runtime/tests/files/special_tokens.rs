//! Special tokens from every file that transformers reads; the values are by transformers 5.24.

use std::fs;
use std::path::Path;

use runtime::text::{ChatTemplate, Ending, Message, TextFiles, Tokenizer};
use serde_json::{Map, Value, json};

use crate::fixtures;

/// A folder with the fixture's tokenizer.json and these other files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("tiny-chat/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    for (name, json) in files {
        fs::write(dir.path().join(name), json.to_string()).unwrap();
    }
    dir
}

fn open(files: &[(&str, Value)]) -> Tokenizer {
    Tokenizer::from_dir(folder(files).path()).unwrap()
}

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

#[test]
fn the_map_names_tokens_unless_the_configuration_lists_added_ones() {
    let map = (MAP, json!({"bos_token": "<|start|>", "eos_token": {"content": "<|end|>", "lstrip": false}}));
    let end = open(&[]).id("<|end|>");
    let tokenizer = open(std::slice::from_ref(&map));
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (tokenizer.id("<|start|>"), end));
    assert_eq!(Value::from(tokenizer.named_tokens()), json!({"bos_token": "<|start|>", "eos_token": "<|end|>"}));
    let tokenizer = open(&[(CONFIG, json!({"eos_token": "<|start|>"})), map.clone()]);
    assert_eq!(tokenizer.eos(), end, "the map comes after the configuration");
    let listed = json!({end.unwrap().to_string(): {"content": "<|end|>", "special": true}});
    let tokenizer = open(&[(CONFIG, json!({"added_tokens_decoder": listed})), map]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, None));
}

#[test]
fn named_tokens_that_the_vocabulary_does_not_have_are_added_in_order() {
    let size = open(&[]).vocab_size() as u32;
    let config = json!({"image_token": "<|img|>", "additional_special_tokens": ["<|x|>"], "pad_token": null});
    let tokenizer = open(&[(CONFIG, config), (MAP, json!({"pad_token": "<pad>"}))]);
    let ids = ["<pad>", "<|img|>", "<|x|>"].map(|token| tokenizer.id(token));
    assert_eq!(ids, [Some(size), Some(size + 1), Some(size + 2)]);
    assert!(tokenizer.is_special(size) && tokenizer.encode("a<|x|>", false).unwrap().contains(&(size + 2)));
    assert_eq!(tokenizer.named_tokens()["image_token"], "<|img|>");

    let tokenizer = open(&[(CONFIG, json!({"extra_special_tokens": {"audio_token": "<|a|>"}}))]);
    assert_eq!((tokenizer.id("<|a|>"), &tokenizer.named_tokens()["audio_token"]), (Some(size), &json!("<|a|>")));
}

#[test]
fn added_tokens_of_the_old_file_have_its_ids() {
    let size = open(&[]).vocab_size() as u32;
    let tokenizer = open(&[(MAP, json!({"pad_token": "<pad>"})), (ADDED, json!({"<|x|>": size + 1, "<pad>": size}))]);
    assert_eq!((tokenizer.id("<pad>"), tokenizer.id("<|x|>")), (Some(size), Some(size + 1)));
    assert!(tokenizer.is_special(size) && !tokenizer.is_special(size + 1));
    let gap = folder(&[(ADDED, json!({"<|x|>": size + 7}))]);
    let refused = Tokenizer::from_dir(gap.path()).err().unwrap().to_string();
    assert!(refused.contains(ADDED) && refused.contains("<|x|>"), "{refused}");
}

#[test]
fn a_class_has_tokens_of_its_own_where_no_file_names_them() {
    let class = (CONFIG, json!({"tokenizer_class": "Qwen2TokenizerFast"}));
    assert_eq!(open(std::slice::from_ref(&class)).eos(), None, "the fixture's vocabulary has no <|endoftext|>");
    let size = open(&[]).vocab_size() as u32;
    let added = (ADDED, json!({"<|endoftext|>": size}));
    let tokenizer = open(&[class, added.clone()]);
    assert_eq!((tokenizer.eos(), tokenizer.bos()), (Some(size), None));
    let null = json!({"tokenizer_class": "Qwen2Tokenizer", "eos_token": null});
    assert_eq!(open(&[(CONFIG, null), added]).eos(), None);
    let refused = folder(&[(CONFIG, json!({"split_special_tokens": true}))]);
    assert!(Tokenizer::from_dir(refused.path()).err().unwrap().to_string().contains("split_special_tokens"));
}

#[test]
fn templates_beside_the_default_are_found_and_kept() {
    let dir = folder(&[(CONFIG, json!({"chat_template": "config"}))]);
    fs::write(dir.path().join("chat_template.jinja"), "default").unwrap();
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    fs::write(dir.path().join("additional_chat_templates/tool_use.jinja"), "tools").unwrap();
    fs::write(dir.path().join("additional_chat_templates/rag.jinja"), "rag").unwrap();
    let render = |dir: &Path, tools: Option<&Value>| {
        let template = ChatTemplate::from_dir(dir, None).unwrap().unwrap();
        template.render(&[Message::new("user", "x")], Ending::Closed, tools, &Map::new()).unwrap()
    };
    assert_eq!((render(dir.path(), None), render(dir.path(), Some(&json!([{}])))), ("default".into(), "tools".into()));

    // A checkpoint carries all of them.
    let copy = tempfile::tempdir().unwrap();
    TextFiles::read(dir.path()).unwrap().write(copy.path()).unwrap();
    assert_eq!(fs::read_to_string(copy.path().join("additional_chat_templates/rag.jinja")).unwrap(), "rag");
    assert_eq!(render(copy.path(), Some(&json!([{}]))), "tools");
    // So does one of a source that is no folder.
    let template = ChatTemplate::from_dir(dir.path(), None).unwrap().unwrap();
    assert_eq!(template.to_json().as_array().unwrap().len(), 3);
    let named = folder(&[(CONFIG, json!({"chat_template": template.to_json()}))]);
    assert_eq!(render(named.path(), Some(&json!([{}]))), "tools");
}
