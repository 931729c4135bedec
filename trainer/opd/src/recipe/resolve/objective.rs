//! `[loss]`: which parameters a kind has, and what goes with what.

use autograd::ops::Divergence;

use super::{idle, positive, within};
use crate::recipe::raw::RawLoss;
use crate::recipe::{LossKind, Objective, OffPolicy};
use crate::{Error, Result};
use command::limits::{MOST_SEQUENCES, between};

/// The loss, with its own parameters filled in and the others refused.
pub(super) fn objective(raw: &mut RawLoss, sampling_temperature: f64) -> Result<Objective> {
    let because = format!("with `loss.kind = \"{}\"`", raw.kind);
    let (uses_beta, uses_alpha, uses_top_k) = match raw.kind.as_str() {
        "jsd" => (true, false, false),
        "top_k" => (true, false, true),
        "skewed_forward_kl" | "skewed_reverse_kl" => (false, true, false),
        _ => (false, false, false),
    };
    let divergence = !matches!(raw.kind.as_str(), "policy_gradient" | "cross_entropy");
    idle("loss.beta", raw.beta.filter(|_| !uses_beta), &because)?;
    idle("loss.alpha", raw.alpha.filter(|_| !uses_alpha), &because)?;
    idle("loss.top_k", raw.top_k.filter(|_| !uses_top_k), &because)?;
    idle("loss.temperature", raw.temperature.filter(|_| !divergence), &because)?;
    idle("loss.coef", raw.coef.filter(|_| raw.kind != "policy_gradient"), &because)?;

    let kind = raw.kind.clone();
    let mut beta = |default| within("loss.beta", *raw.beta.get_or_insert(default), 0.0, 1.0);
    let mut alpha = || match *raw.alpha.get_or_insert(0.1) {
        alpha if alpha > 0.0 && alpha < 1.0 => Ok(alpha),
        alpha => Err(Error::value("loss.alpha", alpha, "above 0 and below 1")),
    };
    let divergence = match kind.as_str() {
        "forward_kl" => Some(Divergence::Jsd { beta: 0.0 }),
        "reverse_kl" => Some(Divergence::Jsd { beta: 1.0 }),
        "jsd" => Some(Divergence::Jsd { beta: beta(0.5)? }),
        "skewed_forward_kl" => Some(Divergence::SkewedForward { alpha: alpha()? }),
        "skewed_reverse_kl" => Some(Divergence::SkewedReverse { alpha: alpha()? }),
        "top_k" => Some(Divergence::TopK {
            k: between("loss.top_k", *raw.top_k.get_or_insert(64), MOST_SEQUENCES)?,
            beta: beta(1.0)?,
        }),
        "policy_gradient" | "cross_entropy" => None,
        other => {
            let kinds = "one of reverse_kl, forward_kl, jsd, skewed_forward_kl, skewed_reverse_kl, top_k, policy_gradient, cross_entropy";
            return Err(Error::value("loss.kind", format!("{other:?}"), kinds));
        }
    };
    let loss = match divergence {
        Some(divergence) => LossKind::Divergence {
            divergence,
            temperature: positive("loss.temperature", *raw.temperature.get_or_insert(1.0))?,
        },
        None if kind == "cross_entropy" => LossKind::CrossEntropy,
        None => LossKind::PolicyGradient { coef: positive("loss.coef", *raw.coef.get_or_insert(1.0))? },
    };
    if matches!(loss, LossKind::PolicyGradient { .. }) && sampling_temperature == 0.0 {
        return Err(Error::value(
            "rollout.sampling.temperature",
            0,
            "above 0 with `loss.kind = \"policy_gradient\"` (greedy tokens have no sampling probability)",
        ));
    }
    mix(raw, loss)
}

/// How on-policy and other completions are mixed.
fn mix(raw: &mut RawLoss, loss: LossKind) -> Result<Objective> {
    let default = if loss == LossKind::CrossEntropy { 0.0 } else { 1.0 };
    let lmbda = within("loss.lmbda", *raw.lmbda.get_or_insert(default), 0.0, 1.0)?;
    if loss == LossKind::CrossEntropy && lmbda > 0.0 {
        let rule = "0 with `loss.kind = \"cross_entropy\"` (the student's own tokens teach it nothing); for a mix choose a divergence and `loss.off_policy = \"cross_entropy\"`";
        return Err(Error::value("loss.lmbda", lmbda, rule));
    }
    if lmbda >= 1.0 {
        let because = "with `loss.lmbda = 1` (every completion is the student's own)";
        idle("loss.seq_kd", raw.seq_kd.filter(|&on| on), because)?;
        idle("loss.off_policy", raw.off_policy.as_ref(), because)?;
        raw.seq_kd = None;
        return Ok(Objective { loss, lmbda, off_policy: OffPolicy { from_teacher: false, cross_entropy: false } });
    }
    if loss == LossKind::CrossEntropy {
        idle("loss.off_policy", raw.off_policy.as_ref(), "with `loss.kind = \"cross_entropy\"`")?;
    }
    let same = "same".to_owned();
    let cross_entropy = match raw.off_policy.as_ref().unwrap_or(&same).as_str() {
        "same" => false,
        "cross_entropy" => true,
        other => return Err(Error::value("loss.off_policy", format!("{other:?}"), "`same` or `cross_entropy`")),
    };
    if matches!(loss, LossKind::PolicyGradient { .. }) && !cross_entropy {
        let rule = "`cross_entropy` with `loss.kind = \"policy_gradient\"` and `loss.lmbda` below 1 (given completions were not sampled from the student)";
        return Err(Error::value("loss.off_policy", "same", rule));
    }
    let from_teacher = *raw.seq_kd.get_or_insert(false);
    Ok(Objective { loss, lmbda, off_policy: OffPolicy { from_teacher, cross_entropy } })
}
