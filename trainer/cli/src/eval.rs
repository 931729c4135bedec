//! `arle eval`

mod args;
mod held_out;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::files::GenerationRules;
use runtime::request::ModelId;
use runtime::sampler::SamplingParams;
use serde_json::{Map, Value, json};

use super::model::ModelArgs;
use super::{print, print_json};
use crate::{Error, Result};
use ::eval::data::{DataFolder, HUB};
use ::eval::sandbox::Isolation;
use ::eval::{self, EvalOptions, LocalSettings, RemoteSettings, Results, compare, report, tasks};
use command::endpoint::EVALUATED;
use command::interrupt::{Interrupt, InterruptMessages};
use command::progress::Progress;

pub(super) use args::EvalArgs;

const MESSAGES: InterruptMessages = InterruptMessages {
    early: "interrupted before the first sample",
    stopping: "stopping; what is graded is kept (again: stop at once)",
    at_once: "stopped at once",
};

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
    let interrupt = Interrupt::listen(&MESSAGES).map_err(command::Error::Signals)?;
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
            let error = Error::from(command::Error::NoEffect { key: key.to_owned(), because: because.to_owned() });
            if given { Err(error) } else { Ok(()) }
        };
        if self.tasks.is_empty() {
            let why = "names of tasks (--list shows them), separated by commas".to_owned();
            return Err(Error::from(command::Error::Missing { key: "--tasks".to_owned(), why }));
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

    fn options(&self, progress: Progress) -> Result<EvalOptions> {
        let isolation = if self.allow_unsandboxed_code { Isolation::None } else { Isolation::Namespaces };
        let tasks = tasks::find(&self.tasks, tasks::Programs { isolation, answers: self.repeats })?;
        let needs_data = self.tasks.iter().any(|name| !name.ends_with(".toml"));
        if self.data.is_none() && needs_data {
            let why = "the folder with the tasks' data (trainer/EVALUATION.md), or hf: for the hub's; nothing is downloaded \
                       unasked";
            return Err(Error::from(command::Error::Missing { key: "--data".to_owned(), why: why.to_owned() }));
        }
        Ok(EvalOptions {
            tasks,
            data: Arc::new(DataFolder::open(self.data.as_deref().unwrap_or(Path::new("")), self.any_data, progress)?),
            limit: self.limit,
            shots: self.num_fewshot,
            seed: self.seed,
            out: self.out.clone(),
            system: self.system.clone(),
            chat: self.apply_chat_template,
            max_tokens: eval::NEW_TOKENS,
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
            return Err(Error::from(command::Error::NoEffect { key: EVALUATED.ca_file.to_owned(), because }));
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
            max_length: self.max_length.unwrap_or(eval::MAX_LENGTH),
            truncate: self.left_truncate,
            sampling,
        })
    }

    fn evaluate_model(&self, options: EvalOptions, interrupt: &Interrupt, progress: Progress) -> Result<Results> {
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
        Ok(eval::evaluate_model(options, runtime, &files, settings, identity, interrupt, progress)?)
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
