//! Teachers whose rows come from elsewhere, against the same teachers here and against the definitions.

use std::sync::Arc;

use autograd::ops::{self, Distill, Divergence, LogitRows, Precision, Rows, Teacher, TeacherRows, TopRows};
use autograd::{Device, Error, Result, Tape, Tensor};

use super::support::{Operand, assert_close, random};
use super::table::{Case, divergences, head, targets, weights};

/// Teachers that are no operand: whole rows of logits, and the likeliest tokens of rows.
pub(crate) fn cases() -> Vec<Case> {
    let case = |dims @ [t, vocab, _]: [usize; 3], name: &str, given: TeacherRows, divergence, temperature| {
        let (weights, targets, given) = (weights(t), targets(t, vocab), Arc::new(given));
        let name = format!("{dims:?} {divergence:?} temperature {temperature}, {name} given");
        let case = Case::loss("distill", name, head(dims, 20), move |tape, x| {
            let distill = Distill { divergence, temperature };
            ops::linear_distill(tape, [x[0], x[1]], Teacher::Given(&given), &targets, &weights, &distill)
        });
        let chooses = matches!(divergence, Divergence::TopK { k, .. } if k < vocab);
        let step = if chooses { (t < 100).then_some(5e-4) } else { case.step };
        Case { step, ..case }
    };
    let mut cases = vec![];
    for dims @ [t, vocab, _] in [[5, 23, 12], [270, 40, 8]] {
        let z: Vec<f32> = random(t * vocab, 26).iter().map(|v| 4.0 * v).collect();
        let kinds = if t < 100 { divergences(vocab) } else { vec![Divergence::Jsd { beta: 0.5 }] };
        for divergence in kinds {
            let rows = logit_rows(&z, vocab, Precision::F32);
            cases.push(case(dims, "all logits", TeacherRows::Logits(rows), divergence, 0.9));
            for k in [1, 4, vocab] {
                if !matches!(divergence, Divergence::TopK { .. }) {
                    let top = TeacherRows::Top(top_rows(&z, vocab, k, 0.9));
                    cases.push(case(dims, &format!("{k} tokens"), top, divergence, 0.9));
                }
            }
        }
    }
    cases
}

/// Logits as a teacher elsewhere sends them.
pub(crate) fn logit_rows(z: &[f32], vocab: usize, precision: Precision) -> LogitRows {
    let mut bytes = vec![];
    precision.encode(z, &mut bytes);
    LogitRows { bytes, precision, vocab }
}

/// The k likeliest tokens of rows of logits.
pub(crate) fn top_rows(z: &[f32], vocab: usize, k: usize, temperature: f64) -> TopRows {
    let mut top = TopRows { k, ids: vec![], logprobs: vec![], tail_logprobs: vec![], temperature };
    for row in z.chunks(vocab) {
        let sum = row.iter().map(|&v| (f64::from(v) / temperature).exp()).sum::<f64>().ln();
        let log = |&id: &u32| f64::from(row[id as usize]) / temperature - sum;
        let mut ids: Vec<u32> = (0..vocab as u32).collect();
        ids.sort_by(|a, b| log(b).total_cmp(&log(a)));
        let (listed, others) = ids.split_at(k);
        top.logprobs.extend(listed.iter().map(|id| log(id) as f32));
        top.tail_logprobs.push(others.iter().map(|id| log(id).exp()).sum::<f64>().ln() as f32);
        top.ids.extend(listed);
    }
    top
}

/// The same for a GPU, with the operands of its other losses.
pub(crate) fn card_cases(
    dims @ [t, vocab, _]: [usize; 3],
    operands: Vec<Operand>,
    targets: &[u32],
    weights: &[f32],
) -> Vec<Case> {
    let z: Vec<f32> = random(t * vocab, 27).iter().map(|v| 4.0 * v).collect();
    let [bf16, f32] = [Precision::Bf16, Precision::F32].map(|p| TeacherRows::Logits(logit_rows(&z, vocab, p)));
    let top = [1, 20].map(|k| TeacherRows::Top(top_rows(&z, vocab, k, 0.7)));
    let mut cases = vec![];
    for (number, given) in [bf16, f32].into_iter().chain(top).enumerate() {
        let given = Arc::new(given);
        for divergence in [0.0, 0.5, 1.0].map(|beta| Divergence::Jsd { beta }) {
            let (y, w, given) = (targets.to_vec(), weights.to_vec(), given.clone());
            let name = format!("{dims:?} {divergence:?}, given rows {number}");
            cases.push(Case::loss("distill", name, operands.clone(), move |tape, x| {
                let distill = Distill { divergence, temperature: 0.7 };
                ops::linear_distill(tape, [x[0], x[1]], Teacher::Given(&given), &y, &w, &distill)
            }));
        }
    }
    cases
}

const T: usize = 6;
const V: usize = 50;

fn logits(key: u64) -> Vec<f32> {
    random(T * V, key).iter().map(|v| 4.0 * v).collect()
}

fn rows(z: &[f32]) -> Tensor {
    Tensor::new(Device::Cpu, z.to_vec(), [z.len() / V, V]).expect("whole rows")
}

fn identity() -> Tensor {
    let values = (0..V * V).map(|i| if i / V == i % V { 1.0 } else { 0.0 }).collect();
    Tensor::weight(Device::Cpu, values, [V, V]).expect("square")
}

/// Loss, rows and gradient of the student's logits.
struct Graded {
    loss: f32,
    rows: Rows,
    dz: Vec<f32>,
}

fn grade(student: &[f32], teacher: Teacher<'_>, divergence: Divergence, temperature: f64) -> Result<Graded> {
    let (z, mut tape, n) = (rows(student), Tape::recording(), student.len() / V);
    tape.require_grad(&z);
    let distill = Distill { divergence, temperature };
    let (loss, rows) =
        ops::linear_distill(&mut tape, [&z, &identity()], teacher, &vec![3; n], &vec![1.0; n], &distill)?;
    let one = Tensor::new(Device::Cpu, vec![1.0], [1, 1])?;
    let dz = tape.backward(&loss, one)?.remove(&z).expect("the loss depends on z");
    Ok(Graded { loss: loss.to_vec()[0], rows, dz: dz.to_vec() })
}

fn given(given: TeacherRows) -> Arc<TeacherRows> {
    Arc::new(given)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn whole_rows_are_the_teacher_itself() {
    let [student, teacher] = [logits(1), logits(2)];
    let mut rounded = vec![];
    Precision::Bf16.encode(&teacher, &mut rounded);
    let rounded: Vec<f32> = rounded.chunks(2).map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]]))).collect();
    assert!(teacher.iter().zip(&rounded).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0) && teacher != rounded);
    for (precision, z) in [(Precision::F32, &teacher), (Precision::Bf16, &rounded)] {
        let (here, elsewhere) = (rows(z), given(TeacherRows::Logits(logit_rows(&teacher, V, precision))));
        for divergence in divergences(V) {
            for temperature in [1.0, 0.7] {
                let head = identity();
                let want = grade(&student, [&here, &head].into(), divergence, temperature).expect("valid");
                let got = grade(&student, Teacher::Given(&elsewhere), divergence, temperature).expect("valid");
                assert_eq!(got.loss.to_bits(), want.loss.to_bits(), "{divergence:?}");
                assert_eq!(bits(&got.dz), bits(&want.dz), "{divergence:?}");
                assert_eq!(got.rows, want.rows, "{divergence:?}");
            }
        }
        let targets: Vec<u32> = (0..T as u32).collect();
        let logprobs = elsewhere.log_probs(&targets, 0.7).expect("fits").expect("whole rows");
        let here = ops::linear_log_prob([&here, &identity()], &targets, 0.7).expect("fits");
        assert_eq!(bits(&logprobs), bits(&here));
    }
}

#[test]
fn all_tokens_of_a_row_are_the_whole_row() {
    let [student, teacher] = [logits(1), logits(2)];
    let head = identity();
    for divergence in divergences(V).into_iter().filter(|d| !matches!(d, Divergence::TopK { .. })) {
        for temperature in [1.0, 0.7] {
            let want = grade(&student, [&rows(&teacher), &head].into(), divergence, temperature).expect("valid");
            let top = given(TeacherRows::Top(top_rows(&teacher, V, V, temperature)));
            let got = grade(&student, Teacher::Given(&top), divergence, temperature).expect("valid");
            assert_close("gradient", &got.dz, &want.dz, 1e-5);
            for (name, values) in &want.rows {
                assert_close(name, &got.rows[name], values, 1e-5);
            }
        }
    }
}

/// The divergence of one row's distributions over the listed tokens and one bucket, by its definition.
fn bucketed(z: &[f64], top: &TopRows, row: usize, divergence: Divergence) -> f64 {
    let listed = row * top.k..(row + 1) * top.k;
    let exp: Vec<f64> = z.iter().map(|v| (v / top.temperature).exp()).collect();
    let sum: f64 = exp.iter().sum();
    let mut q: Vec<f64> = top.ids[listed.clone()].iter().map(|&id| exp[id as usize] / sum).collect();
    q.push(1.0 - q.iter().sum::<f64>());
    let p = top.logprobs[listed].iter().chain([&top.tail_logprobs[row]]).map(|&l| f64::from(l).exp());
    let p: Vec<f64> = p.collect();
    let kl = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * (a / b).ln()).sum::<f64>();
    let mix = |a: f64, x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| a * x + (1.0 - a) * y).collect::<Vec<_>>();
    match divergence {
        Divergence::Jsd { beta: 0.0 } => kl(&p, &q),
        Divergence::Jsd { beta: 1.0 } => kl(&q, &p),
        Divergence::Jsd { beta } => {
            let m = mix(beta, &p, &q);
            beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)
        }
        Divergence::SkewedForward { alpha } => kl(&p, &mix(alpha, &p, &q)),
        Divergence::SkewedReverse { alpha } => kl(&q, &mix(alpha, &q, &p)),
        Divergence::TopK { .. } => unreachable!("it chooses the tokens itself"),
    }
}

/// Values and gradients of a truncated teacher are those of the definition: differences of it in double precision.
#[test]
fn a_truncated_teacher_has_a_bucket_for_the_rest() {
    let [student, teacher] = [logits(1), logits(2)];
    for divergence in divergences(V).into_iter().filter(|d| !matches!(d, Divergence::TopK { .. })) {
        for (k, temperature) in [(1, 1.0), (5, 1.0), (5, 0.7), (V - 1, 2.0)] {
            let top = top_rows(&teacher, V, k, temperature);
            let got = grade(&student, Teacher::Given(&given(TeacherRows::Top(top.clone()))), divergence, temperature)
                .expect("valid");
            let mut want = (vec![], vec![]);
            for (row, z) in student.chunks(V).enumerate() {
                let z: Vec<f64> = z.iter().map(|&v| f64::from(v)).collect();
                let at = |i: usize, step: f64| {
                    let mut z = z.clone();
                    z[i] += step;
                    bucketed(&z, &top, row, divergence)
                };
                want.0.push(bucketed(&z, &top, row, divergence) as f32);
                want.1.extend((0..V).map(|i| ((at(i, 1e-5) - at(i, -1e-5)) / 2e-5) as f32));
            }
            assert_close(&format!("{divergence:?}, {k} tokens"), &got.rows["loss"], &want.0, 1e-5);
            assert_close(&format!("{divergence:?}, {k} tokens, gradient"), &got.dz, &want.1, 5e-5);
        }
    }
}

/// The published values of the teacher's top k with a tail bucket.
#[test]
fn golden_values_of_a_truncated_teacher() {
    let pad = |z: [f32; 4]| [&z[..], &[-1e4; V - 4]].concat();
    let (student, teacher) = (pad([1.0, -0.5, 0.25, 2.0]), pad([0.5, 1.5, -1.0, 0.0]));
    for (k, want) in [(1, 1.130892963), (2, 1.218572923)] {
        let top = given(TeacherRows::Top(top_rows(&teacher, V, k, 1.0)));
        let got = grade(&student, Teacher::Given(&top), Divergence::Jsd { beta: 0.0 }, 1.0).expect("valid");
        assert!((f64::from(got.loss) - want).abs() < 1e-6, "{k}: {} is not {want}", got.loss);
    }
}

/// A tail that the student is sure of does not pass for the teacher's favourite.
#[test]
fn agreement_is_that_of_the_likeliest_tokens() {
    let (mut student, mut teacher) = (vec![0.0; V], vec![0.0; V]);
    (student[7], teacher[3]) = (9.0, 2.0);
    let top = given(TeacherRows::Top(top_rows(&teacher, V, 1, 1.0)));
    let agreement = |student: &[f32]| {
        let graded = grade(student, Teacher::Given(&top), Divergence::Jsd { beta: 1.0 }, 1.0).expect("valid");
        graded.rows["agreement"][0]
    };
    assert_eq!(agreement(&student), 0.0);
    student[3] = 10.0;
    assert_eq!(agreement(&student), 1.0);
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let [student, teacher] = [logits(1), logits(2)];
    let refusal = |rows: TeacherRows, divergence, temperature| {
        let refused = grade(&student, Teacher::Given(&given(rows)), divergence, temperature).err().expect("refused");
        assert!(matches!(refused, Error::Domain { .. } | Error::Index { .. }), "{refused}");
        refused.to_string()
    };
    let jsd = Divergence::Jsd { beta: 0.5 };
    let top = |k| top_rows(&teacher, V, k, 1.0);
    assert!(refusal(TeacherRows::Top(top(2)), jsd, 0.5).contains("temperature"));
    assert!(refusal(TeacherRows::Top(top(2)), Divergence::TopK { k: 2, beta: 0.0 }, 1.0).contains("top k"));
    let few = TeacherRows::Logits(logit_rows(&teacher[V..], V, Precision::F32));
    assert!(refusal(few, jsd, 1.0).contains("number of given rows is 5"));
    let narrow = TeacherRows::Logits(logit_rows(&teacher[..T * (V - 1)], V - 1, Precision::F32));
    assert!(refusal(narrow, jsd, 1.0).contains("vocabulary of the given rows is 49"));
    let torn = TeacherRows::Logits(logit_rows(&teacher[1..], V, Precision::Bf16));
    assert!(refusal(torn, jsd, 1.0).contains("number of given rows"));
    let mut foreign = top(2);
    foreign.ids[3] = V as u32;
    assert!(refusal(TeacherRows::Top(foreign), jsd, 1.0).contains("target 50"));
}
