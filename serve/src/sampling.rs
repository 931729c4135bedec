//! The sampling fields that chat, text completions and responses share.

use std::collections::BTreeMap;

use runtime::sampler::SamplingParams;
use serde::Deserialize;
use serde_json::{Number, json};

use crate::api_error::ApiError;
use crate::config::{LogprobsMode, SamplingDefaults};
use crate::fields::Fields;
use crate::ids;
use crate::models::Model;
use crate::openapi::schema::{
    Members, any_of, at_most, boolean, count, exactly, integer, list, map_from, number, number_above, some_text,
    token_id,
};

/// Stop strings of one request.
pub(crate) const MAX_STOPS: usize = 64;
/// Alternatives reported for one token.
pub(crate) const MAX_ALTERNATIVES: usize = 128;

/// A text or some.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Texts {
    One(String),
    Some(Vec<String>),
}

/// How to sample, but for the length, which the prompt limits.
#[derive(Debug)]
pub(crate) struct Sampling {
    params: SamplingParams,
    /// The temperature that the request itself names.
    named_temperature: Option<f32>,
    max_tokens: Option<usize>,
    /// What the request calls it.
    length_field: &'static str,
    /// A length that does not fit is shortened.
    shortens: bool,
}

/// The names of the length of a completion; the older one comes second.
pub(crate) const COMPLETION_LENGTH: &[&str] = &["max_completion_tokens", "max_tokens"];

impl Sampling {
    /// Takes the fields; those that are absent come from `defaults`. `length` has the names of the length.
    pub(crate) fn take(
        fields: &mut Fields,
        model: &Model,
        defaults: SamplingDefaults,
        length: &'static [&'static str],
    ) -> Result<Self, ApiError> {
        let own = match defaults {
            SamplingDefaults::Model => model.files().generation.clone(),
            SamplingDefaults::OpenAi => Default::default(),
        };
        let own_temperature = if own.do_sample == Some(false) { Some(0.0) } else { own.temperature };
        let named_temperature: Option<f32> = fields.take("temperature")?;
        let temperature = named_temperature.or(own_temperature.map(|t| t as f32)).unwrap_or(1.0);
        // Greedy decoding has no use for a truncated distribution.
        let unless_greedy = |value: Option<f64>| value.filter(|_| temperature != 0.0).map(|v| v as f32);
        let repetition: Option<f32> = fields.take("repetition_penalty")?;
        let params = SamplingParams {
            temperature,
            top_k: top_k(fields)?.unwrap_or(own.top_k.filter(|&k| k > 0 && temperature != 0.0)),
            top_p: fields.take("top_p")?.or(unless_greedy(own.top_p)).unwrap_or(1.0),
            min_p: fields.take("min_p")?.or(unless_greedy(own.min_p)).unwrap_or(0.0),
            repetition_penalty: repetition.or(own.repetition_penalty.map(|p| p as f32)).unwrap_or(1.0),
            frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(0.0),
            presence_penalty: fields.take("presence_penalty")?.unwrap_or(0.0),
            logit_bias: logit_bias(fields)?,
            seed: seed(fields)?.unwrap_or_else(ids::random),
            min_tokens: fields.take("min_tokens")?.unwrap_or(0),
            stop: stops(fields)?,
            stop_token_ids: fields.take("stop_token_ids")?.unwrap_or_default(),
            include_stop: fields.take("include_stop_str_in_output")?.unwrap_or(false),
            skip_special_tokens: fields.take("skip_special_tokens")?.unwrap_or(true),
            ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
            ..SamplingParams::default()
        };
        no_beams(fields)?;
        let (max_tokens, length_field) = (max_tokens(fields, length)?, length[length.len() - 1]);
        Ok(Self { params, named_temperature, max_tokens, length_field, shortens: false })
    }

    /// Completions of each prompt.
    pub(crate) fn copies(fields: &mut Fields) -> Result<usize, ApiError> {
        match fields.take("n")? {
            Some(0) => Err(ApiError::invalid("n", "n = 0: must be at least 1")),
            n => Ok(n.unwrap_or(1)),
        }
    }

    pub(crate) fn temperature(&self) -> f32 {
        self.params.temperature
    }

    pub(crate) fn top_p(&self) -> f32 {
        self.params.top_p
    }

    /// Temperature of the distribution that `prompt_logprobs` are of: nothing else in a request that scores given tokens
    /// could mean it.
    pub(crate) fn scored_temperature(&self) -> f64 {
        self.named_temperature.filter(|&temperature| temperature > 0.0).map_or(1.0, f64::from)
    }

    /// Temperature of the distribution that `logprobs` are of.
    pub(crate) fn reported_temperature(&self, mode: LogprobsMode) -> f64 {
        reported_temperature(&self.params, mode)
    }

    /// Refuses log-probabilities of a distribution that is more than the logits at a temperature.
    pub(crate) fn check_logprobs(&self, mode: LogprobsMode) -> Result<(), ApiError> {
        let p = &self.params;
        let shapes = [
            ("top_k", p.top_k.is_some()),
            ("top_p", p.top_p < 1.0),
            ("min_p", p.min_p > 0.0),
            ("repetition_penalty", p.repetition_penalty != 1.0),
            ("frequency_penalty", p.frequency_penalty != 0.0),
            ("presence_penalty", p.presence_penalty != 0.0),
            ("logit_bias", !p.logit_bias.is_empty()),
        ];
        match shapes.iter().find(|(_, shapes)| *shapes && mode == LogprobsMode::Processed && p.temperature > 0.0) {
            None => Ok(()),
            Some((field, _)) => {
                let message = format!(
                    "`{field}` changes the distribution that is drawn from, and with --logprobs-mode processed_logprobs \
                     log-probabilities can be those of the temperature alone; send the value of `{field}` that changes \
                     nothing, or ask for no log-probabilities"
                );
                Err(ApiError::unsupported(*field, message))
            }
        }
    }

    /// The length that was asked for.
    pub(crate) fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// Ends the answer at these texts, too; `field` is where they come from.
    pub(crate) fn stop_at(&mut self, stops: &[String], field: &'static str) -> Result<(), ApiError> {
        if stops.len() > MAX_STOPS {
            return Err(ApiError::invalid(
                field,
                format!("{} texts; at most {MAX_STOPS} are watched for", stops.len()),
            ));
        }
        if stops.iter().any(String::is_empty) {
            return Err(ApiError::invalid(field, format!("`{field}`: a text is empty")));
        }
        self.params.stop = stops.to_vec();
        Ok(())
    }

    /// Ends the answer where the context does, if that comes first; returns the length that was asked for.
    pub(crate) fn shorten_to_room(&mut self) -> Option<usize> {
        self.shortens = true;
        self.max_tokens
    }

    /// Refuses what contradicts an answer of a given form.
    pub(crate) fn check_form(&self) -> Result<(), ApiError> {
        if self.params.ignore_eos {
            return Err(ApiError::invalid("ignore_eos", "`ignore_eos` contradicts an answer that ends with its form"));
        }
        Ok(())
    }

    /// Reports so many alternatives to each token.
    pub(crate) fn report(&mut self, alternatives: Option<usize>) {
        self.params.logprobs = alternatives;
    }

    /// The parameters for a prompt of `prompt` tokens where `room` more fit; `usual` is the length for requests that name none.
    /// `None` when no token is asked for.
    pub(crate) fn params(
        &self,
        model: &Model,
        prompt: usize,
        room: usize,
        usual: usize,
    ) -> Result<Option<SamplingParams>, ApiError> {
        let longest = if self.shortens { room.max(1) } else { usize::MAX };
        let max_tokens = self.max_tokens.map_or(usual.min(room), |asked| asked.min(longest));
        if max_tokens > room || (self.max_tokens != Some(0) && room == 0) {
            let wanted = self.max_tokens.map_or_else(|| "any".to_owned(), |max| max.to_string());
            return Err(ApiError::too_long(format!(
                "a prompt of {prompt} tokens leaves room for {room} of the {} that {} holds; {wanted} new ones were asked for: \
                 shorten the prompt or lower {}",
                prompt + room,
                model.name(),
                self.length_field,
            )));
        }
        // What is wrong is wrong for no token, too.
        let params = SamplingParams { max_tokens: max_tokens.max(1), ..self.params.clone() };
        params.validate(model.vocab_size()).map_err(runtime::Error::from)?;
        Ok((max_tokens > 0).then_some(params))
    }
}

/// Temperature of the distribution that the log-probabilities of sampled tokens are of. Greedy decoding has none.
pub(crate) fn reported_temperature(params: &SamplingParams, mode: LogprobsMode) -> f64 {
    match mode {
        LogprobsMode::Processed if params.temperature > 0.0 => f64::from(params.temperature),
        LogprobsMode::Processed | LogprobsMode::Raw => 1.0,
    }
}

/// Fields of vLLM with the values that mean what happens here anyway.
fn no_beams(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("use_beam_search", &[json!(false)], "completions are sampled")?;
    fields.only("length_penalty", &[json!(1), json!(1.0)], "there is no beam search")?;
    fields.only("early_stopping", &[json!(false)], "there is no beam search")?;
    fields.only("spaces_between_special_tokens", &[json!(true)], "texts are what the tokenizer decodes")
}

/// `-1` and 0 keep all tokens, as vLLM has it: `Some(None)`.
fn top_k(fields: &mut Fields) -> Result<Option<Option<usize>>, ApiError> {
    Ok(match fields.take::<i64>("top_k")? {
        None => None,
        Some(-1 | 0) => Some(None),
        Some(k) => match usize::try_from(k) {
            Ok(k) => Some(Some(k)),
            Err(_) => {
                return Err(ApiError::invalid("top_k", format!("top_k = {k}: must be at least 1, or -1 to keep all")));
            }
        },
    })
}

/// Any 64-bit integer, negative ones too.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(number) = fields.take::<Number>("seed")? else { return Ok(None) };
    let seed = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| ApiError::invalid("seed", format!("seed = {number}: must be a 64-bit integer")))
}

fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, ApiError> {
    let biases: BTreeMap<String, f32> = fields.take("logit_bias")?.unwrap_or_default();
    let parse = |(id, bias): (String, f32)| match id.parse() {
        Ok(number) if id.bytes().all(|byte| byte.is_ascii_digit()) => Ok((number, bias)),
        _ => Err(ApiError::invalid("logit_bias", format!("logit_bias: \"{id}\" is not a token id"))),
    };
    biases.into_iter().map(parse).collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop")? {
        None => Vec::new(),
        Some(Texts::One(stop)) => vec![stop],
        Some(Texts::Some(stops)) => stops,
    };
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid(
            "stop",
            format!("{} stop strings; at most {MAX_STOPS} are watched for", stops.len()),
        ));
    }
    Ok(stops)
}

/// One number, whichever of its names it has.
fn max_tokens(fields: &mut Fields, names: &'static [&'static str]) -> Result<Option<usize>, ApiError> {
    let mut found: Option<(&'static str, usize)> = None;
    for name in names {
        let Some(value) = fields.take::<usize>(name)? else { continue };
        match found {
            Some((other, first)) if first != value => {
                let message = format!("{other} = {first} contradicts {name} = {value}; send one of them");
                return Err(ApiError::invalid(other, message));
            }
            _ => found = Some((name, value)),
        }
    }
    Ok(found.map(|(_, value)| value))
}

/// The fields that [`Sampling::take`] takes, without the names of the length.
pub(crate) fn describe() -> Members {
    let (unit, signed) = (number(Some(0.0), Some(1.0)), || number(Some(-2.0), Some(2.0)));
    let bias = number(Some(-100.0), Some(100.0));
    let stop = any_of([some_text(), at_most(MAX_STOPS, some_text())]);
    Members::new()
        .maybe("temperature", number(Some(0.0), Some(f32::MAX.into())), "Divisor of the logits; 0 is greedy.")
        .maybe("top_p", number_above(0.0, Some(1.0)), "Keeps the fewest tokens whose probabilities sum to this.")
        .maybe(
            "top_k",
            integer(-1..=i128::from(i64::MAX)),
            "Keeps this many of the likeliest tokens; -1 and 0 keep all.",
        )
        .maybe("min_p", unit, "Drops tokens less likely than this times the likeliest.")
        .maybe("repetition_penalty", number_above(0.0, Some(f32::MAX.into())), "Of tokens in prompt or answer.")
        .maybe("frequency_penalty", signed(), "Times the occurrences in the answer.")
        .maybe("presence_penalty", signed(), "Of tokens that occur in the answer.")
        .maybe("logit_bias", map_from("^[0-9]+$", bias), "Added to the logits, by token id.")
        .maybe("seed", integer(i128::from(i64::MIN)..=u64::MAX.into()), "Key of the random numbers.")
        .maybe("min_tokens", count(), "No end before so many tokens.")
        .maybe("stop", stop, "Texts that end the answer and are no part of it.")
        .maybe("stop_token_ids", list(token_id()), "Ids that end the answer.")
        .maybe("include_stop_str_in_output", boolean(), "What ends the answer is part of its text.")
        .maybe("skip_special_tokens", boolean(), "Special tokens are no part of the text; true when it is left out.")
        .maybe("use_beam_search", exactly(false), "Completions are sampled.")
        .maybe("length_penalty", exactly(1.0), "There is no beam search.")
        .maybe("early_stopping", exactly(false), "There is no beam search.")
        .maybe("spaces_between_special_tokens", exactly(true), "Texts are what the tokenizer decodes.")
        .maybe("ignore_eos", boolean(), "The model's end is a token like any other.")
}
