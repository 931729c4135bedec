//! `[eval]`: held-out rows, and tasks of `arle eval`.

use std::path::Path;

use super::{at_least_one, idle};
use crate::recipe::raw::RawRecipe;
use crate::recipe::{Benchmark, Eval};
use crate::{Error, Result};
use command::limits::{MOST_TOKENS, between};
use eval::data::HUB;

pub(super) fn resolve(raw: &mut RawRecipe, held_out: bool) -> Result<Option<Eval>> {
    let has_teacher = raw.teacher.is_some();
    if !has_teacher {
        // Held-out rows are measured against a teacher.
        idle("data.held_out", raw.data.held_out.as_ref(), "without [teacher]")?;
        idle("data.eval_rows", raw.data.eval_rows, "without [teacher]")?;
    }
    let benchmark = benchmark(raw)?;
    let eval = &mut raw.eval;
    if !held_out || !has_teacher {
        let because =
            if held_out { "without [teacher]" } else { "without held-out rows (`data.held_out` or `data.eval_rows`)" };
        idle("eval.prompts", eval.prompts, because)?;
        idle("eval.max_new_tokens", eval.max_new_tokens, because)?;
        idle("eval.sample_prompts", eval.sample_prompts.first(), because)?;
        if benchmark.is_none() {
            idle("eval.every", eval.every, because)?;
            idle("eval.at_start", eval.at_start, because)?;
            idle("eval.at_end", eval.at_end, because)?;
            return Ok(None);
        }
    }
    if let Some(prompts) = eval.prompts {
        at_least_one("eval.prompts", prompts)?;
    }
    let max_new_tokens = eval.max_new_tokens.unwrap_or(raw.rollout.max_new_tokens);
    if held_out {
        eval.max_new_tokens = Some(between("eval.max_new_tokens", max_new_tokens, MOST_TOKENS)?);
    }
    Ok(Some(Eval {
        every: *eval.every.get_or_insert(0),
        prompts: eval.prompts,
        max_new_tokens,
        at_start: *eval.at_start.get_or_insert(true),
        at_end: *eval.at_end.get_or_insert(true),
        sample_prompts: eval.sample_prompts.clone(),
        benchmark,
    }))
}

/// Tasks are named here and looked for when the run starts; without them the other keys are idle.
fn benchmark(raw: &mut RawRecipe) -> Result<Option<Benchmark>> {
    let eval = &mut raw.eval;
    if eval.tasks.is_empty() {
        let because = "without `eval.tasks`";
        idle("eval.data", eval.data.as_ref(), because)?;
        idle("eval.any_data", eval.any_data, because)?;
        idle("eval.limit", eval.limit, because)?;
        idle("eval.num_fewshot", eval.num_fewshot, because)?;
        idle("eval.max_gen_toks", eval.max_gen_toks, because)?;
        idle("eval.max_length", eval.max_length, because)?;
        idle("eval.apply_chat_template", eval.apply_chat_template, because)?;
        return Ok(None);
    }
    let Some(data) = eval.data.clone() else {
        let why = "`eval.tasks` need the folder with their data".to_owned();
        return Err(Error::from(command::Error::Missing { key: "eval.data".to_owned(), why }));
    };
    let any = eval.any_data.filter(|any| *any && data == Path::new(HUB));
    idle(
        "eval.any_data",
        any,
        "with `eval.data = \"hf:\"`, whose data sets are taken as they are and named in the results",
    )?;
    let counts = [
        ("eval.limit", eval.limit, usize::MAX),
        ("eval.max_gen_toks", eval.max_gen_toks, MOST_TOKENS),
        ("eval.max_length", eval.max_length, MOST_TOKENS),
    ];
    for (key, value, most) in counts {
        value.map_or(Ok(0), |value| between(key, value, most))?;
    }
    Ok(Some(Benchmark {
        tasks: eval.tasks.clone(),
        data,
        any_data: *eval.any_data.get_or_insert(false),
        limit: eval.limit,
        num_fewshot: eval.num_fewshot,
        max_gen_toks: eval.max_gen_toks,
        max_length: eval.max_length,
        chat: *eval.apply_chat_template.get_or_insert(false),
    }))
}
