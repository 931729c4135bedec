//! What is refused, and that the message names what was given.

use std::sync::Arc;

use autograd::kv::{KvPool, KvShape, PagedBatch, PagedRows};
use autograd::ops::{self, Attention, Distill, Divergence, Dropout, LowRank, Projection, QkRope, RopeTable, Sequences};
use autograd::{Device, Error, Result, Tape, Tensor};

use super::support::write;

fn rows(shape: [usize; 2]) -> Tensor {
    Tensor::zeros(Device::Cpu, shape).expect("memory")
}

fn weight(shape: [usize; 2]) -> Tensor {
    Tensor::weight(Device::Cpu, vec![0.0; shape[0] * shape[1]], shape).expect("the values fill the shape")
}

/// The message of a refusal, which must hold all of `parts`.
fn refused<T>(result: Result<T>, parts: &[&str]) -> Error {
    let error = result.err().unwrap_or_else(|| panic!("not refused: {parts:?}"));
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    }
    error
}

macro_rules! assert_refused {
    ($result:expr, $variant:pat, $($part:expr),+) => {
        let error = refused($result, &[$($part),+]);
        assert!(matches!(error, $variant), "another kind: {error:?}");
    };
}

#[test]
fn shapes() {
    let tape = &mut Tape::off();
    assert_refused!(ops::add(tape, &rows([2, 3]), &rows([3, 2])), Error::Shape { .. }, "add", "[2, 3]", "[3, 2]");
    assert_refused!(ops::swiglu(tape, &rows([2, 3])), Error::Shape { .. }, "swiglu", "[2, 3]");
    assert_refused!(ops::rms_norm(tape, &rows([2, 6]), &rows([1, 4]), 1e-5), Error::Shape { .. }, "rms_norm", "[1, 4]");
    assert_refused!(
        ops::linear(tape, &rows([2, 6]), &weight([3, 5]), None),
        Error::Shape { .. },
        "linear",
        "[2, 6]",
        "[3, 5]"
    );
    let bias = rows([1, 4]);
    assert_refused!(ops::linear(tape, &rows([2, 6]), &weight([3, 6]), Some(&bias)), Error::Shape { .. }, "[1, 4]");
    let (w, a, b) = (weight([3, 6]), weight([2, 6]), weight([3, 4]));
    let low_rank = Some(LowRank { a: &a, b: &b, scale: 1.0, dropout: None });
    let maps = [Projection { low_rank, ..Projection::new(&w) }];
    assert_refused!(ops::project(tape, &rows([2, 6]), &maps, None), Error::Shape { .. }, "linear", "[3, 4]");
    let maps = [Projection::new(&w), Projection::new(&w)];
    let residual = rows([2, 3]);
    assert_refused!(
        ops::project(tape, &rows([2, 6]), &maps, Some(&residual)),
        Error::Shape { .. },
        "residual",
        "[2, 3]"
    );
}

#[test]
fn attention_shapes_and_window() {
    let tape = &mut Tape::off();
    let op = |heads, kv_heads, window| Attention {
        sequences: Sequences::from_lengths(&[2, 3]),
        heads,
        kv_heads,
        scale: 1.0,
        window,
    };
    let qkv = rows([5, 40]);
    assert!(ops::attention(tape, op(3, 1, None), &qkv).is_ok());
    assert_refused!(ops::attention(tape, op(3, 2, None), &qkv), Error::Shape { .. }, "attention", "[5, 40]");
    assert_refused!(ops::attention(tape, op(3, 0, None), &qkv), Error::Shape { .. }, "attention");
    assert_refused!(ops::attention(tape, op(0, 1, None), &qkv), Error::Shape { .. }, "attention");
    let short = rows([4, 40]);
    assert_refused!(ops::attention(tape, op(3, 1, None), &short), Error::Shape { .. }, "[4, 40]", "tokens");
    assert_refused!(ops::attention(tape, op(3, 1, Some(0)), &qkv), Error::Domain { .. }, "window", "0");
}

#[test]
fn indices() {
    let tape = &mut Tape::off();
    assert_refused!(
        ops::select_rows(tape, &rows([3, 2]), &[0, 3].into()),
        Error::Index { .. },
        "select_rows",
        "3",
        "0..3"
    );
    assert_refused!(
        ops::embedding(tape, &weight([7, 2]), &[1, 9].into()),
        Error::Index { .. },
        "embedding",
        "9",
        "0..7"
    );
    let table = Arc::new(RopeTable::new(&[1.0], 4, 1.0));
    let op = |last| QkRope { table: table.clone(), positions: [0, last].into(), heads: [1, 1], eps: 1e-5 };
    assert_refused!(
        ops::qk_rope(tape, op(4), &rows([2, 6]), None),
        Error::Index { .. },
        "qk_rope",
        "position 4",
        "0..4"
    );
    assert_refused!(ops::qk_rope(tape, op(1), &rows([2, 3]), None), Error::Shape { .. }, "qk_rope", "[2, 3]");
    let norm = rows([1, 3]);
    assert_refused!(
        ops::qk_rope(tape, op(1), &rows([2, 6]), Some([&norm, &norm])),
        Error::Shape { .. },
        "norms",
        "[1, 3]"
    );
    let (x, head) = (rows([2, 3]), weight([5, 3]));
    assert_refused!(
        ops::linear_cross_entropy(tape, [&x, &head], &[0, 5], &[1.0; 2]),
        Error::Index { .. },
        "linear_cross_entropy",
        "5"
    );
    assert_refused!(ops::linear_log_prob([&x, &head], &[0, 7], 1.0), Error::Index { .. }, "linear_log_prob", "7");
}

#[test]
fn constants_of_losses() {
    let tape = &mut Tape::off();
    let (x, head) = (rows([2, 3]), weight([5, 3]));
    let mut distill = |divergence, temperature| {
        let d = Distill { divergence, temperature };
        ops::linear_distill(tape, [&x, &head], [&x, &head], &[0; 2], &[1.0; 2], &d)
    };
    let jsd = |beta| Divergence::Jsd { beta };
    assert_refused!(distill(jsd(1.5), 1.0), Error::Domain { .. }, "beta", "1.5", "[0, 1]");
    assert_refused!(distill(jsd(f64::NAN), 1.0), Error::Domain { .. }, "beta", "NaN");
    assert_refused!(distill(Divergence::SkewedForward { alpha: 1.0 }, 1.0), Error::Domain { .. }, "alpha", "[0, 1)");
    assert_refused!(distill(Divergence::TopK { k: 0, beta: 0.5 }, 1.0), Error::Domain { .. }, "top k", "0");
    assert_refused!(distill(Divergence::TopK { k: 6, beta: 0.5 }, 1.0), Error::Domain { .. }, "top k", "6");
    assert_refused!(distill(Divergence::TopK { k: 2, beta: -0.5 }, 1.0), Error::Domain { .. }, "beta", "-0.5");
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_refused!(distill(jsd(0.5), temperature), Error::Domain { .. }, "temperature", "positive");
    }
    let wrong = [&[0.0][..], &[0.0; 2][..]];
    assert_refused!(
        ops::linear_policy_gradient(tape, [&x, &head], &[0; 2], wrong, &[1.0; 2], 1.0),
        Error::Shape { .. },
        "linear_policy_gradient"
    );
    assert_refused!(
        ops::linear_cross_entropy(tape, [&x, &head], &[0; 2], &[1.0; 3]),
        Error::Shape { .. },
        "linear_cross_entropy",
        "[2, 3]"
    );
    let other = weight([6, 3]);
    assert_refused!(
        ops::linear_distill(
            tape,
            [&x, &head],
            [&x, &other],
            &[0; 2],
            &[1.0; 2],
            &Distill { divergence: jsd(0.5), temperature: 1.0 }
        ),
        Error::Shape { .. },
        "vocabular",
        "[6, 3]"
    );
}

#[test]
fn dropout() {
    let (x, w) = (rows([2, 3]), weight([3, 3]));
    for probability in [1.0, -0.1, f64::NAN] {
        let dropout = Some(Dropout { probability, key: 1 });
        let low_rank = Some(LowRank { a: &w, b: &w, scale: 1.0, dropout });
        assert_refused!(
            ops::project(&mut Tape::off(), &x, &[Projection { low_rank, ..Projection::new(&w) }], None),
            Error::Domain { .. },
            "dropout",
            &probability.to_string()
        );
    }
}

#[test]
fn layouts_and_devices() {
    let tape = &mut Tape::off();
    assert_refused!(
        ops::linear(tape, &rows([2, 3]), &rows([4, 3]), None),
        Error::Layout { .. },
        "linear",
        "operand 1",
        "weight"
    );
    assert_refused!(
        ops::linear(tape, &weight([2, 3]), &weight([4, 3]), None),
        Error::Layout { .. },
        "operand 0",
        "rows"
    );
    assert_refused!(ops::embedding(tape, &rows([4, 3]), &[0].into()), Error::Layout { .. }, "embedding", "weight");
    assert_refused!(ops::add(tape, &weight([2, 3]), &rows([2, 3])), Error::Layout { .. }, "add", "operand 0", "rows");
    let far = Tensor::zeros(Device::Reference, [2, 3]).expect("memory");
    assert_refused!(ops::add(tape, &rows([2, 3]), &far), Error::DeviceMismatch { .. }, "add", "cpu", "reference");
}

#[test]
fn lengths_and_device_names() {
    assert_refused!(Tensor::new(Device::Cpu, vec![0.0; 5], [2, 3]), Error::Length { .. }, "[2, 3]", "6", "5");
    assert_refused!(Tensor::weight(Device::Reference, vec![0.0; 7], [2, 3]), Error::Length { .. }, "7");
    assert_refused!("tpu".parse::<Device>(), Error::Device { .. }, "tpu", "cpu", "reference");
    assert_eq!("auto".parse::<Device>().expect("a device"), Device::Cpu);
    assert_eq!(Device::Reference.to_string().parse::<Device>().expect("a device"), Device::Reference);
}

#[test]
fn pages() {
    let shape = KvShape { heads: 2, kv_heads: 1, head_dim: 8 };
    let mut pool = KvPool::new(Device::Cpu, shape, 1, 3).expect("memory");
    let qkv = rows([4, 32]);
    let sequence = |rows, position, pages| PagedBatch::new(&[PagedRows { rows, position, pages }]);
    let good = sequence(0..4, 0, &[1]);
    assert!(write(&mut pool, shape, 0, &qkv, &good).is_ok() && pool.attend(0, &qkv, &good, 1.0, None).is_ok());
    let wide = rows([4, 33]);
    assert_refused!(write(&mut pool, shape, 0, &wide, &good), Error::Shape { .. }, "kv write", "[4, 33]");
    assert_refused!(pool.attend(0, &wide, &good, 1.0, None), Error::Shape { .. }, "paged attention", "[4, 33]");
    assert_refused!(
        write(&mut pool, shape, 0, &qkv, &sequence(0..4, 0, &[3])),
        Error::Index { .. },
        "kv write",
        "page 3",
        "0..3"
    );
    assert_refused!(pool.attend(0, &qkv, &sequence(0..4, 14, &[1]), 1.0, None), Error::Index { .. }, "paged attention");
    assert_refused!(pool.attend(0, &qkv, &sequence(0..3, 0, &[1]), 1.0, None), Error::Shape { .. }, "rows", "[4, 32]");
    assert_refused!(write(&mut pool, shape, 0, &qkv, &sequence(1..5, 0, &[1])), Error::Shape { .. }, "rows", "[4, 32]");
    assert_refused!(write(&mut pool, shape, 1, &qkv, &good), Error::Index { .. }, "kv write", "layer 1", "0..1");
    assert_refused!(pool.attend(0, &qkv, &good, 1.0, Some(0)), Error::Domain { .. }, "window", "0");
    let far = Tensor::zeros(Device::Reference, [4, 32]).expect("memory");
    assert_refused!(write(&mut pool, shape, 0, &far, &good), Error::DeviceMismatch { .. }, "kv write", "reference");
    assert_refused!(pool.attend(0, &far, &good, 1.0, None), Error::DeviceMismatch { .. }, "paged attention", "cpu");
}
