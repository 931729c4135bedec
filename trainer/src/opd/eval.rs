//! Held-out measurements: how far the student is from the teacher on prompts that it is never trained on.
//!
//! | key | on | is |
//! |---|---|---|
//! | `eval/kl` | the student's own completions | KL(student ‖ teacher), mean per token |
//! | `eval/kl_forward` | the same | KL(teacher ‖ student) |
//! | `eval/agreement` | the same | how often both prefer the same token |
//! | `eval/teacher_nll` | the same | -ln p_teacher of the student's tokens |
//! | `eval/kl_teacher_samples` | completions that the teacher wrote once, at the start | KL(teacher ‖ student) |
//! | `eval/perplexity` | the same | exp of the student's mean -ln q |
//!
//! Of a teacher that only says what it thinks of given tokens, `eval/kl` is its estimate by the student's samples, and what
//! needs its distributions or its own completions is left out.

use std::fs;
use std::sync::Arc;

use runtime::request::{GenerateRequest, Slot, TrainRequest, TrainSequence};
use runtime::sampler::SamplingParams;
use runtime::train::Loss;
use serde_json::{Map, Value, json};

use super::batch::{Completion, Source, split};
use super::folder::RunFolder;
use super::graded::{self, Asked};
use super::rollout::{Purpose, generate, params, request};
use super::setup::Setup;
use super::step::Sums;
use crate::loss::HeldOut;
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::prompt::Example;
use crate::recipe::{Eval, Recipe, Sampling};
use crate::teacher::RemoteTeacher;
use crate::{Error, Result};

const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0 };

/// Measures on held-out rows.
pub(super) struct Evaluator<'a> {
    recipe: &'a Recipe,
    eval: &'a Eval,
    setup: &'a Setup,
    progress: Progress,
    /// What the teacher wrote at the start, a completion for every held-out row; nothing when it cannot be asked to.
    teacher_completions: Vec<Vec<u32>>,
    samples: Vec<(String, Example)>,
}

impl<'a> Evaluator<'a> {
    /// Lets the teacher write its completions, or reads those that the run started with.
    ///
    /// # Errors
    /// What the runtime refuses; a damaged file.
    pub(super) fn new(
        recipe: &'a Recipe,
        eval: &'a Eval,
        setup: &'a Setup,
        folder: &RunFolder,
        progress: Progress,
    ) -> Result<Self> {
        let samples = eval.sample_prompts.iter().map(|text| Ok((text.clone(), setup.encoder.encode_prompt(text)?)));
        let samples = samples.collect::<Result<_>>()?;
        let mut evaluator = Self { recipe, eval, setup, progress, teacher_completions: Vec::new(), samples };
        if setup.remote.as_ref().is_some_and(|remote| !remote.writes()) {
            return Ok(evaluator);
        }
        let path = folder.file("teacher_completions.json");
        evaluator.teacher_completions = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .ok()
                .filter(|completions: &Vec<Vec<u32>>| completions.len() == setup.held_out.len())
                .ok_or_else(|| Error::RunFolder {
                    path,
                    what: "is not one list of token ids for every held-out row; delete it".to_owned(),
                })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let completions = evaluator.complete(Slot::Teacher)?;
                let completions: Vec<Vec<u32>> =
                    completions.iter().map(|c| c.sequence.tokens[c.sequence.prompt_len..].to_vec()).collect();
                let temporary = path.with_extension("json.tmp");
                fs::write(&temporary, json!(completions).to_string()).map_err(Error::io(&temporary))?;
                fs::rename(&temporary, &path).map_err(Error::io(&path))?;
                completions
            }
            Err(source) => return Err(Error::Io { path, source }),
        };
        Ok(evaluator)
    }

    /// Adds the measurements to `metrics`.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub(super) fn measure(&self, metrics: &mut Metrics) -> Result<()> {
        let own = self.complete(Slot::Student)?;
        let count = own.len() as f64;
        metrics.set("eval/mean_length", own.iter().map(Completion::len).sum::<usize>() as f64 / count);
        metrics.set("eval/truncated_fraction", own.iter().filter(|c| c.truncated).count() as f64 / count);
        let own = self.forward(own)?;
        let teacher_nll = own.mean("teacher_logprob").map(|mean| -mean);
        let estimate = own.mean("student_logprob").zip(teacher_nll).map(|(student, nll)| student + nll);
        set(metrics, "eval/kl", own.mean("reverse_kl").or(estimate));
        set(metrics, "eval/kl_forward", own.mean("forward_kl"));
        set(metrics, "eval/agreement", own.mean("agreement"));
        set(metrics, "eval/entropy", own.mean("entropy"));
        set(metrics, "eval/teacher_nll", teacher_nll);
        if self.teacher_completions.is_empty() {
            return Ok(());
        }
        let teachers = self.setup.held_out.iter().zip(&self.teacher_completions);
        let teachers = self.forward(teachers.map(|(example, tokens)| Completion::given(example, tokens)).collect())?;
        let perplexity = |name: &str| teachers.mean(name).map(|mean| (-mean).exp());
        set(metrics, "eval/kl_teacher_samples", teachers.mean("forward_kl"));
        set(metrics, "eval/agreement_teacher_samples", teachers.mean("agreement"));
        set(metrics, "eval/perplexity", perplexity("student_logprob"));
        set(metrics, "eval/teacher_perplexity", perplexity("teacher_logprob"));
        Ok(())
    }

    /// Greedy completions of the sample prompts: shown, and returned as the lines of samples.jsonl.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub(super) fn show_samples(&self, step: u64) -> Result<Vec<Map<String, Value>>> {
        let mut slots = vec![(Slot::Student, "completion")];
        let column = self.setup.encoder.context_column();
        let writes = self.setup.remote.as_ref().is_none_or(RemoteTeacher::writes);
        if step == 0 && column.is_none() && writes {
            slots.push((Slot::Teacher, "teacher"));
        }
        let mut lines: Vec<Map<String, Value>> = self
            .samples
            .iter()
            .map(|(prompt, _)| Map::from_iter([("step".to_owned(), json!(step)), ("prompt".to_owned(), json!(prompt))]))
            .collect();
        for (slot, key) in slots {
            let sampling = params(&GREEDY, self.eval.max_new_tokens, self.recipe.runtime.seed);
            for (line, text) in lines.iter_mut().zip(self.texts(slot, &sampling)?) {
                self.progress.line(&shown(step, key, line["prompt"].as_str().unwrap_or_default(), &text));
                line.insert(key.to_owned(), json!(text));
            }
        }
        if let Some(column) = column.filter(|_| step == 0 && !self.samples.is_empty()) {
            let why = format!(
                "not shown: its context comes from the data column `{column}` (`teacher.context_column`), which \
                 `eval.sample_prompts` do not have"
            );
            self.progress.line(&format!("  [teacher] {why}"));
            lines.iter_mut().for_each(|line| _ = line.insert("teacher_skipped".to_owned(), json!(why)));
        }
        Ok(lines)
    }

    /// Texts that follow the sample prompts.
    fn texts(&self, slot: Slot, sampling: &SamplingParams) -> Result<Vec<String>> {
        let prompts = self.samples.iter().map(|(_, example)| prompt_of(example, slot));
        if let (Slot::Teacher, Some(remote)) = (slot, &self.setup.remote) {
            let prompts: Vec<_> = prompts.map(|prompt| (prompt, 0)).collect();
            return Ok(remote.write(&prompts, sampling)?.into_iter().map(|written| written.text).collect());
        }
        let requests =
            prompts.map(|prompt| GenerateRequest { text: true, ..request(slot, prompt, sampling.clone(), 0) });
        let bar = self.progress.bar("samples", (self.samples.len() * self.eval.max_new_tokens) as u64, "tokens");
        let generated = generate(&self.setup.runtime, requests, &bar)?;
        Ok(generated.into_iter().map(|generated| generated.text).collect())
    }

    /// One completion of every held-out row. The same random numbers every time, so that only the weights differ.
    fn complete(&self, slot: Slot) -> Result<Vec<Completion>> {
        let purpose = if slot == Slot::Student { Purpose::HeldOut } else { Purpose::HeldOutTeacher };
        let sampling = params(&self.recipe.rollout.sampling, self.eval.max_new_tokens, self.recipe.runtime.seed);
        let rows = &self.setup.held_out;
        if let (Slot::Teacher, Some(remote)) = (slot, &self.setup.remote) {
            let prompt = |(row, example)| (prompt_of(example, slot), purpose.index(row as u64));
            let written = remote.write(&rows.iter().enumerate().map(prompt).collect::<Vec<_>>(), &sampling)?;
            return Ok(rows.iter().zip(&written).map(|(row, written)| Completion::written(row, written)).collect());
        }
        let requests = rows
            .iter()
            .enumerate()
            .map(|(row, example)| request(slot, prompt_of(example, slot), sampling.clone(), purpose.index(row as u64)));
        let bar = self.progress.bar("eval", (rows.len() * self.eval.max_new_tokens) as u64, "tokens");
        let generated = generate(&self.setup.runtime, requests, &bar)?;
        Ok(rows
            .iter()
            .zip(&generated)
            .map(|(row, generated)| Completion::sampled(row, generated, Source::Other))
            .collect())
    }

    fn forward(&self, completions: Vec<Completion>) -> Result<Sums> {
        let mut sums = Sums::default();
        let bar = self.progress.bar("eval", completions.iter().map(Completion::len).sum::<usize>() as u64, "tokens");
        let batches = split(completions, self.recipe.runtime.tokens_per_microbatch);
        let run = |_, sequences: &[TrainSequence], asked: Asked| {
            let report = self.setup.runtime.forward_backward(TrainRequest {
                sequences: sequences.to_vec(),
                loss: Arc::new(HeldOut),
                normalizer: 1.0,
                backward: false,
                dropout_key: 0,
                teacher: asked.teacher,
            })?;
            bar.inc(report.tokens as u64);
            sums.add(&report);
            Ok(())
        };
        graded::each(self.setup.remote.as_ref(), &batches, |_| HeldOut.needs(), run)?;
        bar.finish_and_clear();
        Ok(sums)
    }
}

/// Sets what is known.
fn set(metrics: &mut Metrics, name: &str, value: Option<f64>) {
    if let Some(value) = value {
        metrics.set(name, value);
    }
}

fn prompt_of(example: &Example, slot: Slot) -> Vec<u32> {
    match slot {
        Slot::Student | Slot::Adapter(_) => example.prompt.clone(),
        Slot::Teacher => example.teacher_prompt.as_ref().unwrap_or(&example.prompt).clone(),
    }
}

fn shown(step: u64, who: &str, prompt: &str, text: &str) -> String {
    let who = if who == "completion" { format!("student, step {step}") } else { who.to_owned() };
    format!("  > {prompt}\n  [{who}] {}", text.trim().replace('\n', "\n    "))
}
