//! One row per way of calling an op. [`super::gradients`] walks it.

use std::collections::BTreeSet;
use std::sync::Arc;

use autograd::ops::{
    self, Attention, Distill, Divergence, Dropout, Epilogue, Head, LowRank, Projection, QkRope, RopeTable, Rows,
    Sequences, Teacher,
};
use autograd::{Index, Result, Tape, Tensor};

use super::support::{Operand, random};

/// The op's output, and the rows' values of a loss.
pub(crate) type Output = (Tensor, Rows);
type Run = Box<dyn Fn(&mut Tape, &[&Tensor]) -> Result<Output>>;

/// One way of calling one op.
pub(crate) struct Case {
    /// File name of the op in `src/ops`, without its extension.
    pub(crate) module: &'static str,
    pub(crate) name: String,
    /// Distinct tensors.
    pub(crate) operands: Vec<Operand>,
    /// For every input of the op, which operand it is; a repeated number is one tensor in two places.
    pub(crate) slots: Vec<usize>,
    /// Inputs that the op treats as constants.
    pub(crate) constants: Vec<usize>,
    /// Step of finite differences; `None` where any would change a choice among tokens.
    pub(crate) step: Option<f32>,
    /// False for an op that is only ever evaluated.
    pub(crate) differentiable: bool,
    pub(crate) run: Run,
}

impl Case {
    pub(crate) fn new(
        module: &'static str,
        name: impl Into<String>,
        operands: Vec<Operand>,
        run: impl Fn(&mut Tape, &[&Tensor]) -> Result<Tensor> + 'static,
    ) -> Self {
        Self::loss(module, name, operands, move |tape, x| Ok((run(tape, x)?, Rows::new())))
    }

    pub(crate) fn loss(
        module: &'static str,
        name: impl Into<String>,
        operands: Vec<Operand>,
        run: impl Fn(&mut Tape, &[&Tensor]) -> Result<Output> + 'static,
    ) -> Self {
        let (name, slots) = (format!("{module} {}", name.into()), (0..operands.len()).collect());
        Self {
            module,
            name,
            operands,
            slots,
            constants: vec![],
            step: Some(1e-2),
            differentiable: true,
            run: Box::new(run),
        }
    }

    /// Uses operand `slots[i]` as input i.
    fn reusing(mut self, slots: &[usize]) -> Self {
        self.slots = slots.to_vec();
        self.name += &format!(" re-used as {slots:?}");
        self
    }
}

/// Every op, in every shape that takes another path.
pub(crate) fn table() -> Vec<Case> {
    [
        elementwise(),
        lookups(),
        linear(),
        lora(),
        joined(),
        within(),
        norms(),
        rotary(),
        attention(),
        token_losses(),
        distillation(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn elementwise() -> Vec<Case> {
    let pair = |shape| vec![Operand::rows(shape, 1), Operand::rows(shape, 2).times(3.0)];
    let add = |tape: &mut Tape, x: &[&Tensor]| ops::add(tape, x[0], x[1]);
    let swiglu = |tape: &mut Tape, x: &[&Tensor]| ops::swiglu(tape, x[0]);
    let gated = |shape| vec![Operand::rows(shape, 3).times(4.0)];
    vec![
        Case::new("add", "[7, 33]", pair([7, 33]), add),
        Case::new("add", "on threads", pair([70, 301]), add),
        Case::new("add", "[3, 5]", vec![Operand::rows([3, 5], 3)], add).reusing(&[0, 0]),
        Case::new("swiglu", "[7, 66]", gated([7, 66]), swiglu),
        Case::new("swiglu", "on threads", gated([70, 602]), swiglu),
        Case::new("swiglu", "[1, 6]", gated([1, 6]), swiglu),
    ]
}

fn lookups() -> Vec<Case> {
    let select =
        |rows: &'static [u32]| move |tape: &mut Tape, x: &[&Tensor]| ops::select_rows(tape, x[0], &rows.into());
    let embed = |ids: &'static [u32]| move |tape: &mut Tape, x: &[&Tensor]| ops::embedding(tape, x[0], &ids.into());
    vec![
        Case::new("rows", "picked out of order, one twice", vec![Operand::rows([5, 9], 4)], select(&[4, 0, 2, 4])),
        Case::new("embedding", "ids of three panels, one often", vec![Operand::weight([37, 10], 5)], {
            embed(&[3, 36, 3, 15, 16, 3, 0])
        }),
    ]
}

fn linear() -> Vec<Case> {
    let run = |tape: &mut Tape, x: &[&Tensor]| ops::linear(tape, x[0], x[1], x.get(2).copied());
    let plain = |[t, n, k]: [usize; 3]| vec![Operand::rows([t, k], 6), Operand::weight([n, k], 7)];
    let biased = |dims: [usize; 3]| [plain(dims), vec![Operand::rows([1, dims[1]], 8)]].concat();
    let mut cases = vec![
        Case::new("linear", "bias", biased([6, 20, 12]), run),
        Case::new("linear", "x is the bias", plain([1, 24, 24]), run).reusing(&[0, 1, 0]),
    ];
    for dims in [[1, 1, 1], [5, 17, 33], [14, 64, 40], [50, 100, 24], [130, 70, 65]] {
        cases.push(Case::new("linear", format!("{dims:?}"), plain(dims), run));
    }
    cases
}

/// A map with a branch: `[x, w, a, b, bias?]`.
fn lora() -> Vec<Case> {
    let run = |dropout| {
        move |tape: &mut Tape, x: &[&Tensor]| {
            let low_rank = Some(LowRank { a: x[2], b: x[3], scale: 1.7, dropout });
            ops::project(tape, x[0], &[Projection { weight: x[1], bias: x.get(4).copied(), low_rank }], None)
        }
    };
    let dropout = Some(Dropout { probability: 0.3, key: 11 });
    let operands = |[t, n, k, r]: [usize; 4]| {
        vec![
            Operand::rows([t, k], 6),
            Operand::weight([n, k], 7),
            Operand::weight([r, k], 9),
            Operand::weight([n, r], 10),
        ]
    };
    let biased = |dims: [usize; 4]| [operands(dims), vec![Operand::rows([1, dims[1]], 8)]].concat();
    let square = || vec![Operand::rows([4, 9], 6), Operand::weight([9, 9], 7)];
    vec![
        Case::new("linear", "rank 4", operands([6, 20, 12, 4]), run(None)),
        Case::new("linear", "rank 17, bias", biased([5, 40, 33, 17]), run(None)),
        Case::new("linear", "dropout", operands([6, 20, 13, 4]), run(dropout)),
        Case::new("linear", "dropout, bias", biased([19, 24, 12, 8]), run(dropout)),
        Case::new("linear", "w is a is b", square(), run(dropout)).reusing(&[0, 1, 1, 1]),
        Case::new("linear", "x is the bias and has a branch", operands([1, 12, 12, 4]), run(None))
            .reusing(&[0, 1, 2, 3, 0]),
    ]
}

/// Three maps side by side onto a residual: `[x, residual, w1, bias1, w2, a2, b2, w3]`.
fn joined() -> Vec<Case> {
    let run = |dropout| {
        move |tape: &mut Tape, x: &[&Tensor]| {
            let maps = [
                Projection { bias: Some(x[3]), ..Projection::new(x[2]) },
                Projection {
                    low_rank: Some(LowRank { a: x[5], b: x[6], scale: 0.6, dropout }),
                    ..Projection::new(x[4])
                },
                Projection::new(x[7]),
            ];
            ops::project(tape, x[0], &maps, Some(x[1]))
        }
    };
    let operands = |t, k, [n1, n2, n3]: [usize; 3], r| {
        vec![
            Operand::rows([t, k], 6),
            Operand::rows([t, n1 + n2 + n3], 5),
            Operand::weight([n1, k], 7),
            Operand::rows([1, n1], 8),
            Operand::weight([n2, k], 9),
            Operand::weight([r, k], 10),
            Operand::weight([n2, r], 11),
            Operand::weight([n3, k], 12),
        ]
    };
    let dropout = Some(Dropout { probability: 0.2, key: 5 });
    vec![
        Case::new("linear", "three maps, residual", operands(7, 12, [20, 33, 5], 4), run(None)),
        Case::new("linear", "three maps, residual, dropout", operands(3, 9, [16, 16, 32], 2), run(dropout)),
        Case::new("linear", "three maps on threads", operands(40, 96, [96, 48, 50], 8), run(None)),
    ]
}

/// Gate and up of the normed x, and a map onto a residual: `[x, norm, w1, w2, residual]`.
fn within() -> Vec<Case> {
    let run = |tape: &mut Tape, x: &[&Tensor]| {
        let norm = Some((x[1], 1e-5));
        let gated = Epilogue { norm, swiglu: true, ..Epilogue::default() };
        let inner = ops::project_within(tape, x[0], &[Projection::new(x[2]), Projection::new(x[3])], gated)?;
        let around = Epilogue { residual: Some(x[4]), ..Epilogue::default() };
        ops::project_within(tape, &inner, &[Projection::new(x[3])], around)
    };
    let operands = vec![
        Operand::rows([6, 20], 6),
        Operand::rows([1, 20], 7),
        Operand::weight([20, 20], 8),
        Operand::weight([20, 20], 9),
        Operand::rows([6, 20], 10),
    ];
    vec![Case::new("linear", "between a norm, SwiGLU and a residual", operands, run)]
}

fn norms() -> Vec<Case> {
    let run = |tape: &mut Tape, x: &[&Tensor]| ops::rms_norm(tape, x[0], x[1], 1e-5);
    let operands = |t, h, d| vec![Operand::rows([t, h], 12), Operand::rows([1, d], 13)];
    vec![
        Case::new("rms_norm", "full width", operands(6, 40, 40), run),
        Case::new("rms_norm", "on threads", operands(40, 576, 576), run),
        Case::new("rms_norm", "per head", operands(5, 48, 16), run),
        Case::new("rms_norm", "width 5", operands(3, 15, 5), run),
        Case::new("rms_norm", "x is w", vec![Operand::rows([1, 20], 14)], run).reusing(&[0, 0]),
    ]
}

fn rotary() -> Vec<Case> {
    let case = |name: &str, heads: [usize; 2], half: usize, t: usize, magnitude: f32, normed: bool| {
        let frequencies: Vec<f32> = (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect();
        let table = Arc::new(RopeTable::new(&frequencies, 60, magnitude));
        let positions: Index = (0..t as u32).map(|i| i * 7 % 60).collect();
        let mut operands = vec![Operand::rows([t, (heads[0] + 2 * heads[1]) * 2 * half], 15)];
        if normed {
            operands.extend([16, 17].map(|key| Operand::rows([1, 2 * half], key)));
        }
        Case::new("rope", name, operands, move |tape, x| {
            let op = QkRope { table: table.clone(), positions: positions.clone(), heads, eps: 1e-5 };
            ops::qk_rope(tape, op, x[0], x.get(1).map(|q| [*q, x[2]]))
        })
    };
    vec![
        case("3 heads of 8", [2, 1], 4, 11, 1.0, false),
        case("on threads", [9, 3], 32, 40, 1.0, false),
        case("magnitude", [2, 2], 10, 5, 1.3, false),
        case("normed heads", [4, 2], 8, 7, 1.0, true),
        case("normed heads on threads", [6, 1], 32, 50, 1.2, true),
    ]
}

fn attention() -> Vec<Case> {
    let case = |lengths: &[usize], heads: usize, kv_heads: usize, d: usize, window: Option<usize>| {
        let sequences = Sequences::from_lengths(lengths);
        let t = sequences.tokens();
        let operands = vec![Operand::rows([t, (heads + 2 * kv_heads) * d], 16).times(2.0)];
        let name = format!("{lengths:?} heads {heads}/{kv_heads} of {d} window {window:?}");
        Case::new("attention", name, operands, move |tape, x| {
            let scale = 1.0 / (d as f32).sqrt();
            let op = Attention { sequences: sequences.clone(), heads, kv_heads, scale, window };
            ops::attention(tape, op, x[0])
        })
    };
    let mut cases = vec![case(&[9, 1, 20], 2, 2, 8, None), case(&[21, 3], 4, 2, 8, None), case(&[70], 9, 3, 64, None)];
    for (heads, kv_heads, d) in [(2, 1, 8), (4, 4, 16), (6, 2, 64), (4, 1, 80), (3, 3, 20)] {
        cases.push(case(&[1, 5, 16, 17, 33], heads, kv_heads, d, None));
    }
    for window in [2, 3, 16, 17, 40] {
        cases.push(case(&[35, 1, 18], 4, 2, 16, Some(window)));
    }
    cases
}

/// Weights of the rows of a loss: different, one of them zero.
pub(crate) fn weights(t: usize) -> Vec<f32> {
    random(t, 30).iter().enumerate().map(|(i, w)| if i == 1 { 0.0 } else { w + 1.5 }).collect()
}

/// Tokens over the whole vocabulary.
pub(crate) fn targets(t: usize, vocab: usize) -> Vec<u32> {
    (0..t).map(|i| (i * 17 % vocab) as u32).collect()
}

/// Hidden states `[t, h]` and a head `[vocab, h]`, so that logits have a spread of a few units.
pub(crate) fn head([t, vocab, h]: [usize; 3], key: u64) -> Vec<Operand> {
    vec![Operand::rows([t, h], key).times(2.0), Operand::weight([vocab, h], key + 1)]
}

/// More rows than a chunk holds, and few.
const LOSS_SHAPES: [[usize; 3]; 3] = [[5, 23, 12], [4, 300, 9], [270, 40, 8]];

fn token_losses() -> Vec<Case> {
    let mut cases = vec![];
    for dims @ [t, vocab, _] in LOSS_SHAPES {
        let fewer = targets(t, vocab - 3);
        let (targets, weights) = (targets(t, vocab), weights(t));
        let [sampled, advantages] = [random(t, 31).iter().map(|v| v - 2.0).collect::<Vec<_>>(), random(t, 32)];
        let (y, w) = (targets.clone(), weights.clone());
        cases.push(Case::loss("cross_entropy", format!("{dims:?}"), head(dims, 20), move |tape, x| {
            ops::linear_cross_entropy(tape, [x[0], x[1]], &y, &w)
        }));
        let (y, w) = (fewer.clone(), weights.clone());
        cases.push(Case::loss("cross_entropy", format!("{dims:?} padded"), head(dims, 20), move |tape, x| {
            ops::linear_cross_entropy(tape, Head { hidden: x[0], weight: x[1], ids: vocab - 3 }, &y, &w)
        }));
        let (y, w, s, a) = (fewer.clone(), weights.clone(), sampled.clone(), advantages.clone());
        cases.push(Case::loss("policy_gradient", format!("{dims:?} padded"), head(dims, 20), move |tape, x| {
            let head = Head { hidden: x[0], weight: x[1], ids: vocab - 3 };
            ops::linear_policy_gradient(tape, head, &y, [&s, &a], &w, 0.7)
        }));
        let y = fewer;
        let log_prob = Case::new("log_prob", format!("{dims:?} padded"), head(dims, 20), move |_, x| {
            let values = ops::linear_log_prob(Head { hidden: x[0], weight: x[1], ids: vocab - 3 }, &y, 0.7)?;
            Tensor::new(x[0].device(), values, [y.len(), 1])
        });
        cases.push(Case { differentiable: false, ..log_prob });
        for temperature in [1.0, 0.7] {
            let (y, w, s, a) = (targets.clone(), weights.clone(), sampled.clone(), advantages.clone());
            let name = format!("{dims:?} temperature {temperature}");
            cases.push(Case::loss("policy_gradient", name.clone(), head(dims, 20), move |tape, x| {
                ops::linear_policy_gradient(tape, [x[0], x[1]], &y, [&s, &a], &w, temperature)
            }));
            let y = targets.clone();
            let log_prob = Case::new("log_prob", name, head(dims, 20), move |_, x| {
                let values = ops::linear_log_prob([x[0], x[1]], &y, temperature)?;
                Tensor::new(x[0].device(), values, [y.len(), 1])
            });
            cases.push(Case { differentiable: false, ..log_prob });
        }
    }
    cases
}

/// Every divergence, at and between the ends of its range.
pub(crate) fn divergences(vocab: usize) -> Vec<Divergence> {
    let betas = [0.0, 0.1, 0.5, 0.9, 1.0];
    let alphas = [0.0, 0.1, 0.6];
    let top_k = [1, 3, vocab].into_iter().flat_map(|k| [0.0, 0.5, 1.0].map(|beta| Divergence::TopK { k, beta }));
    let skewed =
        alphas.into_iter().flat_map(|alpha| [Divergence::SkewedForward { alpha }, Divergence::SkewedReverse { alpha }]);
    betas.map(|beta| Divergence::Jsd { beta }).into_iter().chain(skewed).chain(top_k).collect()
}

fn distillation() -> Vec<Case> {
    let case = |dims @ [t, vocab, _]: [usize; 3], teacher_width: usize, divergence, temperature| {
        let (weights, targets) = (weights(t), targets(t, vocab));
        let operands = [head(dims, 20), head([t, vocab, teacher_width], 24)].concat();
        let name = format!("{dims:?} {divergence:?} temperature {temperature}");
        let case = Case::loss("distill", name, operands, move |tape, x| {
            let distill = Distill { divergence, temperature };
            ops::linear_distill(tape, [x[0], x[1]], [x[2], x[3]], &targets, &weights, &distill)
        });
        let chooses = matches!(divergence, Divergence::TopK { k, .. } if k < vocab);
        let step = if chooses { (t < 100).then_some(5e-4) } else { case.step };
        Case { constants: vec![2, 3], step, ..case }
    };
    let mut cases = vec![];
    for divergence in divergences(23) {
        for temperature in [1.0, 0.9, 2.0] {
            cases.push(case([5, 23, 12], 7, divergence, temperature));
        }
        cases.push(case([270, 40, 8], 9, divergence, 1.0));
    }
    cases.extend(padded());
    let jsd = Divergence::Jsd { beta: 0.5 };
    cases.push(case([5, 23, 12], 12, jsd, 1.0).reusing(&[0, 1, 2, 1]));
    cases.push(case([5, 23, 12], 12, jsd, 1.0).reusing(&[0, 1, 0, 3]));
    cases.extend(super::teacher_rows::cases());
    cases
}

/// Heads of 23 and 40 rows, of which 21 belong to tokens: 21 is no multiple of the width of a vector.
fn padded() -> Vec<Case> {
    const IDS: usize = 21;
    let (t, hidden) = (5, 12);
    let mut cases = vec![];
    for [own, other] in [[23, 40], [40, 23], [21, 23]] {
        for divergence in divergences(IDS) {
            let operands = [head([t, own, hidden], 20), head([t, other, 7], 24)].concat();
            let name = format!("{IDS} ids of heads {own} and {other}, {divergence:?}");
            let (weights, targets) = (weights(t), targets(t, IDS));
            let case = Case::loss("distill", name, operands, move |tape, x| {
                let distill = Distill { divergence, temperature: 0.9 };
                let head = Head { hidden: x[0], weight: x[1], ids: IDS };
                let teacher = Head { hidden: x[2], weight: x[3], ids: IDS };
                ops::linear_distill(tape, head, Teacher::Hidden(teacher), &targets, &weights, &distill)
            });
            let chooses = matches!(divergence, Divergence::TopK { k, .. } if k < IDS);
            let step = if chooses { Some(5e-4) } else { case.step };
            cases.push(Case { constants: vec![2, 3], step, ..case });
        }
    }
    cases
}

#[test]
fn every_op_has_a_row() {
    let rows: BTreeSet<&str> = table().iter().map(|case| case.module).collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).expect("the ops are beside their tests") {
        let mut path = entry.expect("a folder entry").path();
        let module = path.file_stem().and_then(|s| s.to_str()).expect("a file name").to_owned();
        if path.is_dir() {
            path.push("mod.rs");
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        if text.contains("\nimpl Op for ") || text.contains("\nimpl RowLoss for ") {
            assert!(rows.contains(&*module), "src/ops/{module} has no row in the op table (tests/suite/table.rs)");
            found += 1;
        }
    }
    assert_eq!(found, rows.len(), "a row names a module that is no op");
}

#[test]
fn names_are_distinct() {
    let cases = table();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
}
