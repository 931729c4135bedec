use serde_json::json;

use crate::report::calibration::answers;
use crate::report::page::{escape, page, table};
use crate::report::sections::histogram;
use crate::run::sample::Sample;

#[test]
fn text_cannot_become_markup() {
    assert_eq!(
        escape("<script>a && \"b\"'</script>\u{1}"),
        "&lt;script&gt;a &amp;&amp; &quot;b&quot;&#39;&lt;/script&gt;\u{fffd}"
    );
    let html = page("<i>", &table(&["<b>"], &[vec!["<u>".to_owned(), "0.5".to_owned()]]));
    assert!(!html.contains("<i>") && !html.contains("<b>") && !html.contains("<u>"), "{html}");
    assert!(html.contains("<td class=\"number\">0.5</td>"));
}

#[test]
fn every_length_is_in_one_column() {
    assert_eq!(
        histogram([0, 3, 3, 5].into_iter(), 5),
        [[0.0, 1.0, 1.0], [1.0, 2.0, 0.0], [2.0, 3.0, 0.0], [3.0, 4.0, 2.0], [4.0, 5.0, 0.0], [5.0, 6.0, 1.0]]
    );
    let wide = histogram([0, 41, 255, 256].into_iter(), 256);
    assert_eq!((wide.len(), wide[0], wide[3]), (20, [0.0, 13.0, 1.0], [39.0, 52.0, 1.0]));
    assert_eq!(wide[19], [247.0, 260.0, 2.0]);
}

#[test]
fn a_choice_is_as_sure_as_its_likeliest_and_a_text_as_its_tokens() {
    let sample = |responses| -> Sample {
        let sample = json!({"doc_id": 0, "doc_hash": "", "prompt": "", "responses": responses, "extracted": {}, "gold": "", "correct": true, "metrics": {}});
        serde_json::from_value(sample).expect("a sample")
    };
    let choice = |p: f64| json!({"kind": "log_likelihood", "logprob": p.ln() - 7.0, "greedy": false, "token_ids": [], "logprobs": []});
    let text = json!({"kind": "text", "text": "", "finish_reason": "stop", "prompt_tokens": 1, "token_ids": [1, 2], "logprobs": [(0.9f64).ln(), (0.4f64).ln()]});
    let samples =
        [sample(json!([choice(0.3), choice(0.5), choice(0.2)])), sample(json!([text])), sample(json!([choice(0.4)]))];
    let found = answers(&samples);
    assert_eq!(found.len(), 2, "one log-likelihood alone is no choice");
    assert!((found[0].0 - 0.5).abs() < 1e-12 && (found[1].0 - 0.6).abs() < 1e-12, "{found:?}");
}
