//! `[optim]` and `[schedule]`.

use super::{idle, learning_rate, missing, positive, within};
use crate::recipe::raw::RawRecipe;
use crate::recipe::{Length, Optim};
use crate::schedule::{Schedule, ScheduleShape};
use crate::{Error, Result};

pub(super) fn optim(raw: &mut RawRecipe) -> Result<Optim> {
    let optim = &mut raw.optim;
    let default = if raw.lora.is_some() { 1e-4 } else { 1e-5 };
    let lr = learning_rate("optim.lr", *optim.lr.get_or_insert(default))?;
    for beta in optim.betas {
        if !(0.0..1.0).contains(&beta) {
            return Err(Error::value(
                "optim.betas",
                format!("{:?}", optim.betas),
                "two numbers, each at least 0 and below 1",
            ));
        }
    }
    positive("optim.eps", optim.eps)?;
    within("optim.weight_decay", optim.weight_decay, 0.0, f64::INFINITY)?;
    if optim.max_grad_norm.is_nan() || optim.max_grad_norm <= 0.0 {
        return Err(Error::value(
            "optim.max_grad_norm",
            optim.max_grad_norm,
            "greater than 0; `inf` leaves gradients as they are",
        ));
    }
    let adamw = autograd::adamw::AdamW {
        beta1: optim.betas[0],
        beta2: optim.betas[1],
        eps: optim.eps,
        weight_decay: optim.weight_decay,
    };
    Ok(Optim { lr, adamw, max_grad_norm: optim.max_grad_norm.is_finite().then_some(optim.max_grad_norm) })
}

pub(super) fn schedule(raw: &mut RawRecipe, lr: f64) -> Result<(Schedule, Length)> {
    let schedule = &mut raw.schedule;
    let shape = match schedule.kind.as_str() {
        "constant" => {
            idle("schedule.min_lr_ratio", schedule.min_lr_ratio, "with `schedule.kind = \"constant\"`")?;
            ScheduleShape::Constant
        }
        kind @ ("linear" | "cosine") => {
            let min_ratio = within("schedule.min_lr_ratio", *schedule.min_lr_ratio.get_or_insert(0.0), 0.0, 1.0)?;
            if kind == "linear" { ScheduleShape::Linear { min_ratio } } else { ScheduleShape::Cosine { min_ratio } }
        }
        other => return Err(Error::value("schedule.kind", format!("{other:?}"), "one of constant, linear, cosine")),
    };
    if let Some(seconds) = schedule.max_seconds {
        positive("schedule.max_seconds", seconds)?;
        if shape != ScheduleShape::Constant {
            let rule = "absent unless `schedule.kind` is constant: a rate that follows the clock cannot be repeated";
            return Err(Error::value("schedule.max_seconds", seconds, rule));
        }
    }
    let length = match (schedule.max_steps, schedule.epochs) {
        (Some(_), Some(_)) => {
            return Err(Error::from(command::Error::NoEffect {
                key: "schedule.epochs".to_owned(),
                because: "with `schedule.max_steps`".to_owned(),
            }));
        }
        (None, None) => {
            return Err(missing(
                "schedule.max_steps",
                "a run needs a length: `schedule.max_steps` or `schedule.epochs`",
            ));
        }
        (Some(0), None) => return Err(Error::value("schedule.max_steps", 0, "at least 1")),
        (None, Some(0)) => return Err(Error::value("schedule.epochs", 0, "at least 1")),
        (Some(steps), None) => Length::Steps(steps),
        (None, Some(epochs)) => Length::Epochs(epochs),
    };
    if let Length::Steps(steps) = length
        && schedule.warmup_steps > steps
    {
        return Err(Error::value(
            "schedule.warmup_steps",
            schedule.warmup_steps,
            format!("at most `schedule.max_steps` ({steps})"),
        ));
    }
    Ok((Schedule { lr, shape, warmup_steps: schedule.warmup_steps }, length))
}
