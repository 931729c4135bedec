//! Ops and losses against PyTorch and TRL: `tests/fixtures/*.json`, made by `scripts/fixtures/make_*.py`.

use serde_json::Value;

use autograd::ops::{self, Attention, Distill, Divergence, Head, LowRank, Projection, QkRope, RopeTable, Sequences};
use autograd::{Device, Result, Tape, Tensor};

use super::support::assert_close;

const DEVICES: [Device; 2] = [Device::Cpu, Device::Reference];

fn fixture(name: &str) -> Value {
    let path = format!("{}/../tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).expect("a fixture is JSON")
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v} is no number"))
}

fn whole(v: &Value) -> usize {
    v.as_u64().unwrap_or_else(|| panic!("{v} is no count")) as usize
}

fn numbers(v: &Value) -> Vec<f32> {
    v.as_array().expect("a list").iter().map(|v| number(v) as f32).collect()
}

fn wholes(v: &Value) -> Vec<usize> {
    v.as_array().expect("a list").iter().map(whole).collect()
}

/// A `{"shape", "data"}` as rows; a vector is one row.
fn tensor(device: Device, v: &Value, weight: bool) -> Tensor {
    let shape = match wholes(&v["shape"])[..] {
        [cols] => [1, cols],
        [rows, cols] => [rows, cols],
        ref other => panic!("{} dimensions", other.len()),
    };
    let make = if weight { Tensor::weight } else { Tensor::new };
    make(device, numbers(&v["data"]), shape).expect("the data fills the shape")
}

/// The columns of several `{"shape", "data"}` side by side; `keys` are separated by `|`.
fn columns(entries: &Value, keys: &str) -> Value {
    let parts: Vec<&Value> = keys.split('|').map(|key| &entries[key]).collect();
    let [part] = parts[..] else {
        let rows = whole(&parts[0]["shape"][0]);
        let width = |v: &Value| whole(&v["shape"][1]);
        let row = |r: usize| parts.iter().flat_map(move |v| numbers(&v["data"])[r * width(v)..][..width(v)].to_vec());
        let data: Vec<f32> = (0..rows).flat_map(row).collect();
        return serde_json::json!({ "shape": [rows, data.len() / rows], "data": data });
    };
    part.clone()
}

/// Runs the op of entry `name` with its inputs in the given order and compares output and gradients. An input may be
/// several of the entry's, side by side.
fn check(
    name: &str,
    inputs: &[(&str, bool)],
    output: &str,
    run: impl Fn(&mut Tape, &[&Tensor], &Value) -> Result<Tensor>,
) {
    let entry = &fixture("ops")[name];
    for device in DEVICES {
        let x: Vec<Tensor> =
            inputs.iter().map(|&(key, w)| tensor(device, &columns(&entry["inputs"], key), w)).collect();
        let mut tape = Tape::recording();
        x.iter().for_each(|t| tape.require_grad(t));
        let y = run(&mut tape, &x.iter().collect::<Vec<_>>(), &entry["attrs"]).expect("a valid call");
        let what = format!("{device} {name}");
        assert_close(&format!("{what}: {output}"), &y.to_vec(), &numbers(&entry["outputs"][output]["data"]), 2e-6);
        let seed = tensor(device, &entry["upstream"][output], false);
        let grads = tape.backward(&y, seed).expect("watched");
        for (t, &(key, _)) in x.iter().zip(inputs) {
            let got = grads.get(t).expect("the output depends on it").to_vec();
            assert_close(&format!("{what}: d {key}"), &got, &numbers(&columns(&entry["grads"], key)["data"]), 5e-6);
        }
    }
}

#[test]
fn norm_activation_and_lookup() {
    check("rms_norm", &[("x", false), ("weight", false)], "y", |tape, x, attrs| {
        ops::rms_norm(tape, x[0], x[1], number(&attrs["eps"]) as f32)
    });
    check("swiglu", &[("gate|up", false)], "y", |tape, x, _| ops::swiglu(tape, x[0]));
    check("embedding", &[("weight", true)], "y", |tape, x, attrs| {
        let ids = wholes(&attrs["ids"]).iter().map(|&i| i as u32).collect();
        ops::embedding(tape, x[0], &ids)
    });
}

#[test]
fn rope() {
    for name in ["q", "k"] {
        check_rope(name);
    }
}

fn check_rope(name: &str) {
    check("rope", &[(name, false)], name, |tape, x, attrs| {
        let (d, theta) = (whole(&attrs["head_dim"]), number(&attrs["theta"]));
        let frequencies: Vec<f32> = (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64) as f32).collect();
        let positions = wholes(&attrs["positions"]).iter().map(|&p| p as u32).collect();
        let table = RopeTable::new(&frequencies, 1001, 1.0).into();
        ops::qk_rope(tape, QkRope { table, positions, heads: [x[0].cols() / d, 0], eps: 1e-5 }, x[0], None)
    });
}

#[test]
fn attention() {
    for name in ["attention", "attention_window"] {
        check(name, &[("q|k|v", false)], "y", |tape, x, attrs| {
            let lengths: Vec<usize> = wholes(&attrs["cu_seqlens"]).windows(2).map(|w| w[1] - w[0]).collect();
            let op = Attention {
                sequences: Sequences::from_lengths(&lengths),
                heads: whole(&attrs["heads"]),
                kv_heads: whole(&attrs["kv_heads"]),
                scale: number(&attrs["scale"]) as f32,
                window: attrs["window"].as_u64().map(|w| w as usize),
            };
            ops::attention(tape, op, x[0])
        });
    }
}

#[test]
fn linear() {
    check("linear", &[("x", false), ("weight", true), ("bias", false)], "y", |tape, x, _| {
        ops::linear(tape, x[0], x[1], Some(x[2]))
    });
    check("linear_lora", &[("x", false), ("weight", true), ("a", true), ("b", true)], "y", |tape, x, attrs| {
        let scale = number(&attrs["scaling"]) as f32;
        let low_rank = Some(LowRank { a: x[2], b: x[3], scale, dropout: None });
        ops::project(tape, x[0], &[Projection { weight: x[1], bias: None, low_rank }], None)
    });
}

/// A loss fixture: its rows against `loss`, and the gradients of the sum weighted with `upstream`.
fn check_loss(name: &str, run: impl Fn(&mut Tape, [&Tensor; 2], &[f32], &Value) -> Result<(Tensor, ops::Rows)>) {
    let entry = &fixture("ops")[name];
    for device in DEVICES {
        let [hidden, head] = [("hidden", false), ("weight", true)].map(|(k, w)| tensor(device, &entry["inputs"][k], w));
        let mut tape = Tape::recording();
        tape.require_grad(&hidden);
        tape.require_grad(&head);
        let mut weights = numbers(&entry["upstream"]["loss"]["data"]);
        for (weight, target) in weights.iter_mut().zip(entry["attrs"]["targets"].as_array().unwrap_or(&vec![])) {
            if target.as_i64() == Some(-100) {
                *weight = 0.0;
            }
        }
        let (loss, rows) = run(&mut tape, [&hidden, &head], &weights, &entry["attrs"]).expect("a valid call");
        let want = numbers(&entry["outputs"]["loss"]["data"]);
        for ((got, want), weight) in rows["loss"].iter().zip(want).zip(&weights) {
            assert!(*weight == 0.0 || (got - want).abs() < 2e-6, "{device} {name}: {got}, not {want}");
        }
        let one = Tensor::new(device, vec![1.0], [1, 1]).expect("one value");
        let grads = tape.backward(&loss, one).expect("watched");
        for (t, key) in [(&hidden, "hidden"), (&head, "weight")] {
            let got = grads.get(t).expect("the loss depends on it").to_vec();
            assert_close(&format!("{device} {name}: d {key}"), &got, &numbers(&entry["grads"][key]["data"]), 5e-6);
        }
    }
}

#[test]
fn losses_from_hidden_states() {
    check_loss("linear_cross_entropy", |tape, pair, weights, attrs| {
        let targets = attrs["targets"].as_array().expect("a list").iter();
        let targets: Vec<u32> = targets.map(|t| t.as_u64().unwrap_or(0) as u32).collect();
        ops::linear_cross_entropy(tape, pair, &targets, weights)
    });
    for name in ["linear_jsd", "linear_forward_kl", "linear_reverse_kl"] {
        check_loss(name, |tape, pair, weights, attrs| {
            let device = pair[0].device();
            let [hidden, head] =
                [("teacher_hidden", false), ("teacher_weight", true)].map(|(k, w)| tensor(device, &attrs[k], w));
            let divergence = Divergence::Jsd { beta: number(&attrs["beta"]) };
            let d = Distill { divergence, temperature: number(&attrs["temperature"]) };
            ops::linear_distill(tape, pair, [&hidden, &head], &vec![0; weights.len()], weights, &d)
        });
    }
}

/// An identity head with `padding` rows more, whose logits would be far above the others.
fn identity(device: Device, vocab: usize, padding: usize) -> Tensor {
    let unit = (0..vocab * vocab).map(|i| if i / vocab == i % vocab { 1.0 } else { 0.0 });
    let more = (0..padding * vocab).map(|i| if i % 3 == 0 { 20.0 } else { -20.0 });
    Tensor::weight(device, unit.chain(more).collect(), [vocab + padding, vocab]).expect("the data fills the shape")
}

/// Values and gradients of every entry of `losses.json`, through an identity head, to 1e-6; with and without padding of the
/// student's head and of the teacher's, which those who wrote the entries did not have.
fn check_rows(what: &str, entry: &Value, run: impl Fn(&mut Tape, Head<'_>, Head<'_>) -> Result<(Tensor, ops::Rows)>) {
    let fixture = fixture("losses");
    let [rows, vocab] = wholes(&fixture["shape"])[..] else { panic!("two dimensions") };
    let paddings = [[0, 0], [7, 3], [0, 24]];
    for (device, [own, other]) in DEVICES.into_iter().flat_map(|device| paddings.map(|padding| (device, padding))) {
        let [student, teacher] = ["student", "teacher"]
            .map(|key| Tensor::new(device, numbers(&fixture[key]), [rows, vocab]).expect("the data fills the shape"));
        let heads = [own, other].map(|padding| identity(device, vocab, padding));
        let mut tape = Tape::recording();
        tape.require_grad(&student);
        let head = Head { hidden: &student, weight: &heads[0], ids: vocab };
        let teacher = Head { hidden: &teacher, weight: &heads[1], ids: vocab };
        let (loss, values) = run(&mut tape, head, teacher).expect("a valid call");
        let one = Tensor::new(device, vec![1.0], [1, 1]).expect("one value");
        let grad = tape.backward(&loss, one).expect("watched").remove(&student).expect("the loss depends on it");
        for (key, got) in [("value", &values["loss"]), ("grad", &grad.to_vec())] {
            for (i, (got, want)) in got.iter().zip(numbers(&entry[key])).enumerate() {
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs().max(1.0),
                    "{device} {what} {key}[{i}], padding {own} and {other}: {got}, not {want}"
                );
            }
        }
    }
}

fn check_divergence(entry: &Value, divergence: Divergence) {
    let temperature = entry["temperature"].as_f64().unwrap_or(1.0);
    let d = Distill { divergence, temperature };
    check_rows(&format!("{d:?}"), entry, |tape, head, teacher| {
        let rows = head.hidden.rows();
        ops::linear_distill(tape, head, ops::Teacher::Hidden(teacher), &vec![0; rows], &vec![1.0; rows], &d)
    });
}

#[test]
fn divergences() {
    let fixture = fixture("losses");
    let list = |key: &str| fixture[key].as_array().expect("a list").clone();
    assert!(list("jsd").len() >= 15 && list("skew").len() == 2 && list("top_k").len() >= 7);
    for entry in list("jsd") {
        check_divergence(&entry, Divergence::Jsd { beta: number(&entry["beta"]) });
    }
    for entry in list("skew") {
        let alpha = number(&entry["alpha"]);
        check_divergence(
            &entry,
            match entry["direction"].as_str() {
                Some("forward") => Divergence::SkewedForward { alpha },
                Some("reverse") => Divergence::SkewedReverse { alpha },
                other => panic!("direction {other:?}"),
            },
        );
    }
    for entry in list("top_k") {
        check_divergence(&entry, Divergence::TopK { k: whole(&entry["k"]), beta: number(&entry["beta"]) });
    }
}

#[test]
fn policy_gradient() {
    let fixture = fixture("losses");
    for entry in fixture["policy"].as_array().expect("a list") {
        let tokens: Vec<u32> = wholes(&entry["tokens"]).iter().map(|&t| t as u32).collect();
        let (sampled, teacher) = (numbers(&entry["sampled"]), numbers(&entry["teacher"]));
        let advantages: Vec<f32> = sampled.iter().zip(&teacher).map(|(s, t)| t - s).collect();
        check_rows("policy", entry, |tape, head, _| {
            let weights = vec![1.0; tokens.len()];
            ops::linear_policy_gradient(tape, head, &tokens, [&sampled, &advantages], &weights, 1.0)
        });
    }
}
