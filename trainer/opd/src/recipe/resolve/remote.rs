//! `[teacher] url`: a teacher that another process serves.

use autograd::ops::{Divergence, Precision};

use super::{at_least_one, idle, missing};
use crate::recipe::raw::RawTeacher;
use crate::recipe::{Api, LossKind, Objective, Remote, RemoteRows};
use crate::{Error, Result};
use command::endpoint::TEACHER;

/// Refuses the keys of a remote teacher where there is none.
pub(super) fn none(raw: &RawTeacher, because: &str) -> Result<()> {
    idle("teacher.url", raw.url.as_ref(), because)?;
    idle("teacher.api", raw.api.as_ref(), because)?;
    idle("teacher.served_model", raw.served_model.as_ref(), because)?;
    idle("teacher.api_key_file", raw.api_key_file.as_ref(), because)?;
    idle("teacher.ca_file", raw.ca_file.as_ref(), because)?;
    idle("teacher.timeout_s", raw.timeout_s, because)?;
    idle("teacher.retries", raw.retries, because)?;
    idle("teacher.concurrency", raw.concurrency, because)?;
    idle("teacher.rows", raw.rows.as_ref(), because)?;
    idle("teacher.top_k", raw.top_k, because)
}

/// The server, and how it is asked.
pub(super) fn remote(raw: &mut RawTeacher, objective: &Objective, sampling_temperature: f64) -> Result<Remote> {
    idle("teacher.offload", raw.offload, "with `teacher.kind = \"remote\"`")?;
    let url = raw.url.clone().ok_or_else(|| missing("teacher.url", "`teacher.kind = \"remote\"` needs it"))?;
    let url = TEACHER.root(&url)?;
    if !url.starts_with("https:") {
        idle("teacher.ca_file", raw.ca_file.as_ref(), "with an address that is not https")?;
    }
    let api = match raw.api.get_or_insert_with(|| "arle".to_owned()).as_str() {
        "arle" => Api::Arle,
        "openai" => Api::OpenAi,
        other => return Err(Error::value("teacher.api", format!("{other:?}"), "arle or openai")),
    };
    let rows = match api {
        Api::Arle => Some(rows(raw, objective)?),
        Api::OpenAi => {
            check_openai(raw, objective, sampling_temperature)?;
            None
        }
    };
    let timeout_s = *raw.timeout_s.get_or_insert(300);
    if timeout_s == 0 {
        return Err(Error::value("teacher.timeout_s", 0, "at least 1"));
    }
    Ok(Remote {
        url,
        api,
        served_model: raw.served_model.clone(),
        api_key_file: raw.api_key_file.clone(),
        ca_file: raw.ca_file.clone(),
        timeout_s,
        retries: *raw.retries.get_or_insert(8),
        concurrency: at_least_one("teacher.concurrency", *raw.concurrency.get_or_insert(4))?,
        rows,
    })
}

/// How distributions travel.
fn rows(raw: &mut RawTeacher, objective: &Objective) -> Result<RemoteRows> {
    if let Some(k) = raw.top_k {
        idle("teacher.rows", raw.rows.as_ref(), "with `teacher.top_k`")?;
        if let LossKind::Divergence { divergence: Divergence::TopK { .. }, .. } = objective.loss {
            let rule = "absent with `loss.kind = \"top_k\"`, which chooses its tokens from whole rows; with `teacher.top_k` \
                        choose forward_kl, reverse_kl, jsd or a skewed one, which then have a bucket as well";
            return Err(Error::value("teacher.top_k", k, rule));
        }
        return Ok(RemoteRows::Top(at_least_one("teacher.top_k", k)?));
    }
    let name = raw.rows.get_or_insert_with(|| Precision::Bf16.name().to_owned());
    let unknown = || Error::value("teacher.rows", format!("{name:?}"), "bf16 or f32");
    Precision::from_name(name).map(RemoteRows::Logits).ok_or_else(unknown)
}

/// Such a server returns log-probabilities of given tokens, at temperature 1, and nothing else.
fn check_openai(raw: &RawTeacher, objective: &Objective, sampling_temperature: f64) -> Result<()> {
    let because = "with `teacher.api = \"openai\"` (such a server gives log-probabilities of given tokens only)";
    idle("teacher.rows", raw.rows.as_ref(), because)?;
    idle("teacher.top_k", raw.top_k, because)?;
    if !matches!(objective.loss, LossKind::PolicyGradient { .. }) {
        let rule = format!("policy_gradient {because}; for the others serve the teacher with `arle serve`");
        return Err(Error::value("loss.kind", "a comparison of distributions", rule));
    }
    if sampling_temperature != 1.0 {
        let rule = "1 with `teacher.api = \"openai\"` (such a server gives log-probabilities at temperature 1)";
        return Err(Error::value("rollout.sampling.temperature", sampling_temperature, rule));
    }
    if objective.off_policy.from_teacher {
        let rule = "false with `teacher.api = \"openai\"` (its completions have no token ids)";
        return Err(Error::value("loss.seq_kd", true, rule));
    }
    Ok(())
}
