use serde_json::json;

use super::*;

fn defaults(config: Value) -> Result<GenerationDefaults> {
    GenerationDefaults::from_hf(Path::new("generation_config.json"), Some(&config))
}

/// Ids below 8 that may follow.
fn allowed(config: Value, prompt: &[u32], then: &[u32]) -> Vec<u32> {
    let rules = defaults(config).expect("a configuration").rules;
    let Some(mut mask) = rules.mask(prompt, &[7], 4) else { return (0..8).collect() };
    then.iter().for_each(|&token| mask.accept(token));
    let mut bits = [0];
    mask.allowed(&mut bits);
    (0..8).filter(|id| bits[0] >> id & 1 == 1).collect()
}

/// The processors of transformers 5.24, one token at a time.
#[test]
fn the_rules_are_those_of_transformers() {
    let all = [0, 1, 2, 3, 4, 5, 6, 7];
    assert_eq!(allowed(json!({ "temperature": 0.5, "max_new_tokens": 3 }), &[1], &[]), all);
    let twice = || json!({ "no_repeat_ngram_size": 2 });
    assert_eq!(allowed(twice(), &[1, 2, 3, 1], &[]), [0, 1, 3, 4, 5, 6, 7]);
    assert_eq!(allowed(twice(), &[1, 2, 3, 1], &[3, 1]), [0, 1, 4, 5, 6, 7]);
    assert_eq!(allowed(json!({ "no_repeat_ngram_size": 1 }), &[1, 2], &[3]), [0, 4, 5, 6, 7]);
    assert_eq!(allowed(json!({ "no_repeat_ngram_size": 5 }), &[1, 2, 1], &[]), all);
    assert_eq!(allowed(json!({ "encoder_no_repeat_ngram_size": 2 }), &[1, 2], &[3, 1, 4, 1]), [0, 1, 3, 4, 5, 6, 7]);
    let words = || json!({ "bad_words_ids": [[5], [1, 2], [7]] });
    assert_eq!(allowed(words(), &[0, 1], &[]), [0, 1, 3, 4, 6, 7]);
    assert_eq!(allowed(words(), &[0, 1], &[3]), [0, 1, 2, 3, 4, 6, 7]);
    let suppressed = || json!({ "suppress_tokens": [0], "begin_suppress_tokens": [1, 90] });
    assert_eq!(allowed(suppressed(), &[1, 2], &[]), [2, 3, 4, 5, 6, 7]);
    assert_eq!(allowed(suppressed(), &[1, 2], &[2]), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(allowed(json!({ "min_new_tokens": 2 }), &[1, 2, 3], &[1]), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(allowed(json!({ "min_length": 4 }), &[1, 2, 3], &[1]), all);
    let forced = || json!({ "forced_bos_token_id": 3, "forced_eos_token_id": [6, 7] });
    assert_eq!(allowed(forced(), &[1], &[]), [3]);
    assert_eq!(allowed(forced(), &[1, 2], &[]), all);
    assert_eq!(allowed(forced(), &[1, 2], &[1, 2, 3]), [6]);
}

#[test]
fn what_is_not_implemented_is_named_where_it_matters() {
    let beams = defaults(json!({ "num_beams": 4 })).expect("a configuration");
    let refusal = beams.check(false).expect_err("beams").to_string();
    assert!(refusal.contains("\"num_beams\" is 4") && refusal.contains("--ignore-generation-config"), "{refusal}");
    let neutral =
        json!({ "num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "guidance_scale": null, "use_cache": true });
    assert!(defaults(neutral).expect("a configuration").check(true).is_ok());
    for key in ["typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"] {
        let sampled = defaults(json!({ key: 0.5 })).expect("a configuration");
        assert!(sampled.check(false).is_ok(), "greedy generations are the same without {key}");
        assert!(sampled.check(true).expect_err("sampled").to_string().contains(key));
    }
    let all = json!({ "repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "num_beams": 2, "temperature": 0.5 });
    let named = defaults(all).expect("a configuration").changes();
    assert_eq!(named, ["repetition_penalty = 1.5", "no_repeat_ngram_size = 3", "num_beams = 2"]);
    let refusal = defaults(json!({ "suppress_tokens": "x" })).expect_err("no list").to_string();
    assert!(refusal.contains("suppress_tokens") && refusal.contains("a list of token ids"), "{refusal}");
}
