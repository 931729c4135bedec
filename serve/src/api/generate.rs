//! `POST /inference/v1/generate`: tokens in, tokens out, as vLLM has it for trainers that tokenize themselves.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use runtime::sampler::SamplingParams;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::envelope::{Usage, describe_finish, describe_versions, token_ids, versions};
use super::score::{alternatives, fits};
use crate::api_error::ApiError;
use crate::app::Shared;
use crate::config::SamplingDefaults;
use crate::fields::Fields;
use crate::generation::{Finished, Job, Running};
use crate::ids;
use crate::logprobs::{Names, chat_entry};
use crate::models::Model;
use crate::openapi::Operation;
use crate::openapi::schema::{
    Members, any, count, exactly, integer, list, map, named, null, nullable, some, text, token_id,
};
use crate::prompt::{check_ids, room};
use crate::prompt_logprobs::{self, Ask, PromptLogprobs};
use crate::sampling::Sampling;
use crate::structured::constraint::Constraint;
use crate::structured::grammar::ResponseFormat;

/// The field with the fields of sampling.
const SAMPLING: &str = "sampling_params";
/// Tokens of an answer that names no length, as in vLLM.
const USUAL_TOKENS: usize = 16;

/// What is asked for.
struct Asked {
    ids: Vec<u32>,
    sampling: Sampling,
    copies: usize,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    form: Option<(ResponseFormat, &'static str)>,
}

/// The answer, of which one member is not held as JSON.
#[derive(Serialize)]
pub(crate) struct Answer {
    #[serde(flatten)]
    rest: Value,
    prompt_logprobs: Option<PromptLogprobs>,
}

/// Continues token ids.
pub(crate) async fn create(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Answer>, ApiError> {
    let name: Option<String> = fields.take("model")?;
    let model = app.models.find(name.as_deref())?;
    let id = fields.take("request_id")?.unwrap_or_else(|| ids::fresh("generate-"));
    let asked = Asked::take(fields, &model)?;
    if asked.logprobs.is_some() {
        asked.sampling.check_logprobs(app.config.logprobs_mode).map_err(below)?;
    }
    check_ids(&asked.ids, &model, "token_ids")?;
    fits(asked.ids.len(), model.context(), "token_ids")?;
    let pages = model.of(&app.runtime.snapshot()).scheduler.total_pages;
    let params = asked
        .sampling
        .params(&model, asked.ids.len(), room(&model, pages, asked.ids.len()), USUAL_TOKENS)
        .map_err(below)?;
    let grammar = match asked.form {
        None => None,
        Some((form, field)) => {
            asked.sampling.check_form().map_err(below)?;
            Some(model.grammars.compile(vec![form.grammar()], model.shared_files(), field).await.map_err(below)?)
        }
    };
    let prompt_logprobs = match asked.prompt_logprobs {
        None => None,
        Some(top) => {
            prompt_logprobs::check_size(&app, top, asked.ids.len(), 1).map_err(below)?;
            let ask = Ask { top, temperature: asked.sampling.scored_temperature(), ranks: true };
            let rows = prompt_logprobs::of_prompts(&app, &model, &[&asked.ids], ask).await?.remove(0);
            let tokenizer = model.files().tokenizer.clone();
            Some(PromptLogprobs { ids: asked.ids.clone(), rows, top, tokenizer })
        }
    };
    let names = match asked.logprobs {
        None => None,
        Some(_) => Some(Names { tokenizer: Arc::clone(model.tokenizer()?), as_ids: true }),
    };
    let mut usage = Usage { prompt: asked.ids.len(), ..Usage::default() };
    let (name, guide) = (name.unwrap_or_else(|| model.name().to_owned()), Constraint::new(grammar, None));
    let job = Job { model, prompts: vec![(asked.ids, params)], copies: asked.copies, guide };
    let finished = Running::start(&app, job)?.collect().await?;
    usage.completion = finished.iter().map(|one| one.tokens.len()).sum();
    usage.cached = finished.first().map_or(0, |one| one.cached_tokens);
    let choices: Value = finished.iter().enumerate().map(|(index, one)| choice(index, one, names.as_ref())).collect();
    let rest = json!({
        "request_id": id, "model": name, "choices": choices, "usage": usage.body(), "kv_transfer_params": null,
    });
    Ok(Json(Answer { rest, prompt_logprobs }))
}

/// An error about a field of sampling.
fn below(error: ApiError) -> ApiError {
    error.below(SAMPLING)
}

impl Asked {
    fn take(mut fields: Fields, model: &Model) -> Result<Self, ApiError> {
        let ids = fields.need("token_ids")?;
        fields.only("features", &[], "only text is read")?;
        fields.only("stream", &[json!(false)], "stream with /v1/completions, which takes token ids as `prompt`")?;
        fields.only("priority", &[json!(0)], "requests are served in the order in which they come")?;
        let sampling: Fields = fields.take(SAMPLING)?.unwrap_or_default();
        fields.finish()?;
        Self::take_sampling(ids, sampling, model).map_err(below)
    }

    fn take_sampling(ids: Vec<u32>, mut fields: Fields, model: &Model) -> Result<Self, ApiError> {
        let mut sampling = Sampling::take(&mut fields, model, SamplingDefaults::OpenAi, &["max_tokens"])?;
        let copies = Sampling::copies(&mut fields)?;
        let logprobs = alternatives(fields.take("logprobs")?, "logprobs")?;
        sampling.report(logprobs);
        let prompt_logprobs = prompt_logprobs::take(&mut fields, model)?;
        let form = ResponseFormat::take_structured(&mut fields)?;
        // How vLLM's parts talk to each other, and whether they make text; the answer is one object of token ids.
        fields.accept(&["output_kind", "detokenize"]);
        fields.finish()?;
        Ok(Self { ids, sampling, copies, logprobs, prompt_logprobs, form })
    }
}

fn choice(index: usize, one: &Finished, names: Option<&Names>) -> Value {
    let content = |names| one.tokens.iter().map(|token| chat_entry(names, token)).collect::<Vec<_>>();
    json!({
        "index": index,
        "token_ids": token_ids(&one.tokens),
        "logprobs": names.map(|names| json!({"content": content(names)})),
        "finish_reason": one.reason.as_str(),
        "weights_versions": versions(&one.tokens),
    })
}

/// Parameters of sampling as this route reads them.
pub(super) fn sampling_params(params: &SamplingParams, copies: usize) -> Value {
    let bias: Map<String, Value> = params.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias))).collect();
    json!({
        "n": copies,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k.unwrap_or(0),
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "logit_bias": bias,
        "seed": params.seed,
        "min_tokens": params.min_tokens,
        "max_tokens": params.max_tokens,
        "stop": params.stop,
        "stop_token_ids": params.stop_token_ids,
        "include_stop_str_in_output": params.include_stop,
        "skip_special_tokens": params.skip_special_tokens,
        "ignore_eos": params.ignore_eos,
        "logprobs": params.logprobs,
    })
}

pub(crate) fn describe() -> Operation {
    let choice = Members::new()
        .always("index", count(), "")
        .always("token_ids", list(token_id()), "")
        .always("logprobs", nullable(map(list(named("ChatLogprob")))), "")
        .always("finish_reason", describe_finish(), "")
        .always("weights_versions", describe_versions(), "");
    let answer = Members::new()
        .always("request_id", text(), "")
        .always("model", text(), "")
        .always("choices", list(choice.closed()), "")
        .always("prompt_logprobs", nullable(named("PromptLogprobs")), "")
        .always("usage", named("Usage"), "")
        .always("kv_transfer_params", null(), "");
    let nothing = "Nothing but `null` is honoured.";
    Operation::new("generateTokens", "Continues token ids")
        .reads(
            Members::new()
                .maybe("model", text(), "The first one when it is left out.")
                .maybe("request_id", text(), "What the answer is called.")
                .always("token_ids", some(token_id(), None), "What is continued.")
                .maybe(
                    SAMPLING,
                    map(any()),
                    "The sampling fields of /v1/completions; `max_tokens` is 16 when it is left out.",
                )
                .maybe("features", null(), nothing)
                .maybe("stream", exactly(false), "")
                .maybe("priority", integer(0..=0), ""),
        )
        .finds_model()
        .submits()
        .answers(answer.closed())
}
