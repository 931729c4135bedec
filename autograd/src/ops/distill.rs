//! Distillation from hidden states.

use super::divergence::{Divergence, reference_divergence};
use super::ensure;
use super::head::{Head, HeadLoss, LogitChunk, RowLoss, Rows, Teacher, check_targets, check_temperature, head_loss};
use super::log_prob::{log_prob, reference_row};
use crate::cpu::rows::first_max;
use crate::cuda::Arg;
use crate::{Error, Result, Tape, Tensor, reference};

/// What is minimized between student and teacher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distill {
    /// The divergence.
    pub divergence: Divergence,
    /// Both sides' logits are divided by it; there is no factor of its square.
    pub temperature: f64,
}

/// `sum_t weights[t] D(teacher_t, student_t)` as `[1, 1]`, and per row `loss`, `forward_kl`, `reverse_kl`, `entropy`,
/// `teacher_entropy` (nats, at the temperature), `agreement` (1 when both prefer the same token) and `plain_logprob`
/// (of `targets[t]` under the student at temperature 1, whatever the loss's temperature is).
///
/// Hidden states are `[N, H]` and may differ in width, heads in their padding: the student's `ids` are those of both. The teacher is a constant. Where only
/// its most likely tokens are given, all values but the student's own are those of the bucketed distributions (see
/// [`super::TopRows`]), and `teacher_entropy` that of its estimate.
///
/// # Errors
/// Shapes that do not fit, constants outside their range; a top-k divergence, or another temperature than theirs, with
/// given most likely tokens.
pub fn linear_distill<'a>(
    tape: &mut Tape,
    student: impl Into<Head<'a>>,
    teacher: impl Into<Teacher<'a>>,
    targets: &[u32],
    weights: &[f32],
    distill: &Distill,
) -> Result<(Tensor, Rows)> {
    let Head { hidden, weight, ids } = student.into();
    let mut loss = Rowwise { distill: *distill, targets: targets.to_vec(), best: None };
    match teacher.into() {
        Teacher::Hidden(teacher) => {
            let inputs = [hidden, weight, teacher.hidden, teacher.weight];
            ensure(ids == teacher.ids, Rowwise::NAME, "equal vocabularies of student and teacher", &inputs)?;
            head_loss(tape, HeadLoss::new(loss, weights, ids), &inputs)
        }
        Teacher::Given(given) => {
            if let Some(value) = given.temperature() {
                let refuse = |what, value, expected| Err(Error::Domain { op: Rowwise::NAME, what, value, expected });
                if value != distill.temperature {
                    return refuse("temperature of the given tokens", value, "the loss's");
                }
                if let Divergence::TopK { k, .. } = distill.divergence {
                    return refuse(
                        "top k of the divergence",
                        k as f64,
                        "absent where the teacher's tokens are chosen already",
                    );
                }
            }
            loss.best = given.best();
            head_loss(
                tape,
                HeadLoss { given: Some(given.clone()), ..HeadLoss::new(loss, weights, ids) },
                &[hidden, weight],
            )
        }
    }
}

/// [`Distill`] with the token of every row.
struct Rowwise {
    distill: Distill,
    targets: Vec<u32>,
    /// The teacher's likeliest token of every row, where its logits do not say so.
    best: Option<Vec<u32>>,
}

impl RowLoss for Rowwise {
    const NAME: &'static str = "linear_distill";
    const VALUES: &'static [&'static str] =
        &["loss", "forward_kl", "reverse_kl", "entropy", "teacher_entropy", "agreement", "plain_logprob"];

    fn rows(&self) -> Option<usize> {
        Some(self.targets.len())
    }

    fn check(&self, vocab: usize) -> Result<()> {
        check_temperature(Self::NAME, self.distill.temperature)?;
        check_targets(Self::NAME, &self.targets, vocab)?;
        self.distill.divergence.check(vocab)
    }

    fn row(&self, row: usize, student: &mut [f32], teacher: &mut [f32], gradient: bool, values: &mut [f32]) {
        let plain = log_prob(student, self.targets[row], 1.0);
        let agrees = self.best.as_ref().map(|best| f32::from(first_max(student) == best[row] as usize));
        let Distill { divergence, temperature } = self.distill;
        let mut t = divergence.row(student, teacher, temperature as f32, gradient);
        t.agreement = agrees.unwrap_or(t.agreement);
        values.copy_from_slice(&[t.loss, t.forward_kl, t.reverse_kl, t.entropy, t.teacher_entropy, t.agreement, plain]);
    }

    fn launch(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        let targets = chunk.upload(&self.targets)?;
        let (kind, constant, top) = self.distill.divergence.code();
        let top_k = top.map(|k| Arg::I32(k as i32));
        let constants = [Arg::I32(kind), Arg::F32(constant)].into_iter().chain(top_k);
        let rest = [Arg::F32(self.distill.temperature as f32), Arg::from(&targets)];
        let mut args: Vec<Arg> =
            chunk.logits().into_iter().chain(constants).chain(rest).chain(chunk.results()).collect();
        if top.is_some() {
            return chunk.launch("distill_top_k_rows", &args);
        }
        let best = self.best.as_ref().map(|best| chunk.upload(best)).transpose()?;
        args.push(best.as_ref().map_or(Arg::Ptr(0), Arg::from));
        chunk.launch("distill_rows", &args)
    }

    fn reference(&self, student: burn::Tensor<2>, teacher: Option<burn::Tensor<2>>) -> burn::Tensor<2> {
        use burn::tensor::activation::log_softmax;
        let teacher = teacher.expect("distillation has a teacher").detach();
        let Distill { divergence, temperature } = self.distill;
        let [plain, _] = reference_row(student.clone(), &self.targets, 1.0);
        let best = match &self.best {
            Some(best) => reference::indices(best.iter().map(|&id| id as usize)).reshape([best.len(), 1]),
            None => teacher.clone().argmax(1),
        };
        let equal = student.clone().argmax(1).equal(best).float();
        let lq = log_softmax(student.div_scalar(temperature), 1);
        let lp = log_softmax(teacher.div_scalar(temperature), 1);
        let kl = |a: &burn::Tensor<2>, b: &burn::Tensor<2>| (a.clone().exp() * (a.clone() - b.clone())).sum_dim(1);
        let entropy = |l: &burn::Tensor<2>| (l.clone().exp() * l.clone()).sum_dim(1).neg();
        let loss = reference_divergence(divergence, lq.clone(), lp.clone());
        burn::Tensor::cat(vec![loss, kl(&lp, &lq), kl(&lq, &lp), entropy(&lq), entropy(&lp), equal, plain], 1)
    }
}
