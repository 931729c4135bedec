//! Texts of a given form: JSON by a schema, a regular expression, a choice, a grammar. `llguidance` says which tokens may come
//! next, the runtime's sampler draws among them.

use std::sync::{Arc, OnceLock};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use runtime::files::ModelFiles;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::limits::blocking_pool::run_blocking;
use crate::limits::memory;
use crate::openapi::schema::{Members, Schema, any, any_of, boolean, map, one_of, word};
use crate::structured::closed_objects::close;
use crate::structured::grammar_limits;

/// A form, as a request asks for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ResponseFormat {
    Schema(Value),
    Regex(String),
    /// In llguidance's Lark dialect.
    Lark(String),
}

/// A checked grammar, ready for any number of generations.
pub(crate) struct Grammar {
    matcher: Matcher,
    bytes: u64,
}

/// What knows a model's tokens; made when the first form is asked for.
#[derive(Default, Clone)]
pub(crate) struct Grammars(Arc<OnceLock<Result<ParserFactory, String>>>);

impl ResponseFormat {
    /// `response_format`.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        const FIELD: &str = "response_format";
        let Some(format) = fields.take::<Value>(FIELD)? else { return Ok(None) };
        Self::of_format(&format, &format["json_schema"], FIELD, "json_schema.")
    }

    /// A format whose schema and its name stand in `holder`, at `path` below `field`.
    pub(crate) fn of_format(
        format: &Value,
        holder: &Value,
        field: &'static str,
        path: &str,
    ) -> Result<Option<Self>, ApiError> {
        match format["type"].as_str() {
            Some("text") => Ok(None),
            Some("json_object") => Ok(Some(Self::Schema(json!({"type": "object"})))),
            Some("json_schema") => {
                let wrong = |what: &str| Err(ApiError::invalid(field, format!("`{field}.{path}{what}")));
                match (&holder["name"], &holder["schema"]) {
                    (Value::String(name), _) if !is_name(name) => {
                        wrong(&format!("name` is \"{name}\": must be 1 to {MAX_NAME} of a-z, A-Z, 0-9, _ and -"))
                    }
                    (Value::String(_), schema @ (Value::Object(_) | Value::Bool(_))) => {
                        Ok(Some(Self::Schema(schema.clone())))
                    }
                    (Value::String(_), _) => wrong("schema` is missing"),
                    _ => wrong("name` is missing"),
                }
            }
            _ => Err(ApiError::invalid(field, format!("`{field}.type` must be text, json_object or json_schema"))),
        }
    }

    pub(crate) fn grammar(self) -> GrammarWithLexer {
        match self {
            Self::Schema(schema) => GrammarWithLexer::from_json_schema(bounded(schema)),
            Self::Regex(regex) => GrammarWithLexer::from_regex(&regex),
            Self::Lark(lark) => GrammarWithLexer::from_lark(lark),
        }
    }
}

/// Characters of a form's name, at most.
const MAX_NAME: usize = 64;

/// As OpenAI allows the name of a schema.
fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(known)
}

/// A schema whose values end: with white space as Python writes it, since free white space could go on for ever, and with
/// objects that have only the members that it lists.
pub(crate) fn bounded(mut schema: Value) -> Value {
    close(&mut schema);
    let Value::Object(mut schema) = schema else { return schema };
    let spaces = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    schema.entry("x-guidance").or_insert(spaces);
    Value::Object(schema)
}

/// Stack of the thread that compiles: `form_limits` allow 10,000 levels, of which each took at most 9 KB (llguidance 1.9).
/// Pages that are not used take no memory.
const STACK: usize = 256 << 20;
/// Bytes that compiling may take, within the limits of `make_factory`.
const COMPILE_BYTES: u64 = 128 << 20;
/// Grammars that are compiled at a time.
static COMPILERS: Semaphore = Semaphore::const_new(2);

impl Grammars {
    /// Checks grammars, of which the first is the whole's, for a model; `field` is where they came from.
    pub(crate) async fn compile(
        &self,
        grammars: Vec<GrammarWithLexer>,
        files: &Arc<ModelFiles>,
        field: &'static str,
    ) -> Result<Grammar, ApiError> {
        let wrong = move |why: String| ApiError::invalid(field, format!("`{field}`: {why}"));
        grammar_limits::check(&grammars).map_err(wrong)?;
        let turn = COMPILERS.acquire().await.ok();
        let share = memory::wait(COMPILE_BYTES, "to compile a grammar").await?;
        let (files, factory) = (Arc::clone(files), self.clone());
        run_blocking(move || {
            // Both are held as long as the work goes on, whoever has left.
            let (_turn, _share) = (turn, share);
            let factory = factory.0.get_or_init(|| make_factory(&files)).as_ref();
            let factory = factory.map_err(|why| ApiError::unsupported(field, format!("`{field}`: {why}")))?;
            let compile = || compiled(factory, TopLevelGrammar { grammars, max_tokens: None }).map_err(wrong);
            std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
                let compiling = thread.spawn_scoped(scope, compile);
                let compiling =
                    compiling.map_err(|error| ApiError::internal(format!("no thread for a grammar: {error}")))?;
                compiling.join().unwrap_or_else(|_| Err(wrong("the form cannot be compiled".to_owned())))
            })
        })
        .await
    }
}

fn compiled(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Grammar, String> {
    let parser = factory.create_parser(grammar).map_err(|error| error.to_string())?;
    let bytes = parser.parser.lexer_stats().num_bytes as u64;
    let mut matcher = Matcher::new(Ok(parser));
    match matcher.get_error() {
        Some(error) => Err(error),
        None => matcher.compute_mask().map(|_| Grammar { matcher, bytes }).map_err(|error| error.to_string()),
    }
}

impl Grammar {
    /// For a generation.
    pub(crate) fn matcher(&self) -> Matcher {
        self.matcher.deep_clone()
    }

    /// About what a generation takes for it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// States of a lexer, of 1 to 2 kB each; a generation whose form needs more fails.
const LEXER_STATES: usize = 20_000;

/// All tokens as bytes, special ones apart from texts.
fn make_factory(files: &ModelFiles) -> Result<ParserFactory, String> {
    let tokenizer = files.tokenizer.as_ref().ok_or("the model has no tokenizer")?;
    let eos = files.config.eos_token_ids.first();
    let eos = *eos.ok_or("the model has no end-of-sequence token to end a response format with")?;
    let word = |id: u32| match tokenizer.token_bytes(id) {
        Some(bytes) if tokenizer.is_special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER][..], &bytes].concat(),
        bytes => bytes.unwrap_or_default(),
    };
    let words: Vec<Vec<u8>> = (0..files.config.vocab_size as u32).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos), &words);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory =
        ParserFactory::new(&environment, InferenceCapabilities::default(), &[]).map_err(|e| e.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_lexer_states = LEXER_STATES;
    // Looking at every token in every state of a large regular expression took 4 GiB; without that a step takes longer.
    limits.precompute_large_lexemes = false;
    limits.verbose_errors = false;
    Ok(factory)
}

/// What [`ResponseFormat::take`] reads.
pub(crate) fn describe_format() -> Schema {
    let kind = |name: &str| Members::new().always("type", one_of(&[name]), "");
    let schema = describe_named_schema(Members::new()).open();
    any_of([
        kind("text").open(),
        kind("json_object").open(),
        kind("json_schema").always("json_schema", schema, "").open(),
    ])
}

/// A schema under a name, which answers do not depend on.
pub(crate) fn describe_named_schema(members: Members) -> Members {
    members.always("name", word(MAX_NAME), "").always("schema", describe_schema(), "")
}

/// A JSON schema that refers to itself only.
pub(crate) fn describe_schema() -> Schema {
    any_of([map(any()), boolean()])
}
