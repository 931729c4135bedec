//! The held-out measurements of a run, as `eval/NAME` of [`super::eval_kl`], and its sample prompts.

use runtime::request::{CompletionText, GenerateRequest, ModelId};
use runtime::sampler::SamplingParams;
use runtime::{read, write};
use serde_json::{Map, Value, json};

use super::eval_kl::{EvalKl, prompt_of};
use super::folder::RunFolder;
use super::rollout::{generate, params, request};
use super::setup::Setup;
use crate::metrics::StepMetrics;
use crate::prompt::Example;
use crate::recipe::{Eval, Recipe, Sampling};
use crate::{Error, Result};
use command::interrupt::Interrupt;
use command::progress::Progress;

const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0 };

/// Measures on held-out rows.
pub(super) struct HeldOutEvaluator<'a> {
    recipe: &'a Recipe,
    eval: &'a Eval,
    setup: &'a Setup,
    eval_kl: EvalKl<'a>,
    interrupt: &'a Interrupt,
    progress: Progress,
    /// The teacher's completion of every held-out row, from the start of the run; empty when it does not generate.
    teacher_completions: Vec<Vec<u32>>,
    samples: Vec<(String, Example)>,
}

impl<'a> HeldOutEvaluator<'a> {
    /// Lets the teacher generate its completions, or reads those that the run started with.
    ///
    /// # Errors
    /// What the runtime refuses; a damaged file.
    pub(super) fn new(
        recipe: &'a Recipe,
        eval: &'a Eval,
        setup: &'a Setup,
        folder: &RunFolder,
        interrupt: &'a Interrupt,
        progress: Progress,
    ) -> Result<Self> {
        let samples = eval.sample_prompts.iter().map(|text| Ok((text.clone(), setup.encoder.encode_prompt(text)?)));
        let samples = samples.collect::<Result<_>>()?;
        let eval_kl = EvalKl::new(recipe, setup, eval.max_new_tokens, interrupt, progress);
        let mut evaluator =
            Self { recipe, eval, setup, eval_kl, interrupt, progress, teacher_completions: Vec::new(), samples };
        if !evaluator.eval_kl.teacher_generates() {
            return Ok(evaluator);
        }
        let path = folder.teacher_completions();
        evaluator.teacher_completions = match read::if_there(read::bytes(&path, read::TEXT))? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .ok()
                .filter(|completions: &Vec<Vec<u32>>| completions.len() == setup.held_out.len())
                .ok_or_else(|| {
                    Error::from(command::Error::RunFolder {
                        path,
                        what: "is not one list of token ids for every held-out row; delete it".to_owned(),
                    })
                })?,
            None => {
                let completions = evaluator.eval_kl.of_teacher()?;
                write::replace(&path, json!(completions).to_string())?;
                completions
            }
        };
        Ok(evaluator)
    }

    /// Adds the measurements to `metrics`.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub(super) fn measure(&self, metrics: &mut StepMetrics) -> Result<()> {
        for (name, value) in self.eval_kl.measure(&self.teacher_completions)? {
            metrics.set(&format!("eval/{name}"), value);
        }
        Ok(())
    }

    /// Greedy completions of the sample prompts: shown, and returned as the lines of samples.jsonl.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub(super) fn show_samples(&self, step: u64) -> Result<Vec<Map<String, Value>>> {
        let mut models = vec![(ModelId::STUDENT, "completion")];
        let column = self.setup.encoder.context_column();
        if step == 0 && column.is_none() && self.eval_kl.teacher_generates() {
            models.push((ModelId::TEACHER, "teacher"));
        }
        let mut lines: Vec<Map<String, Value>> = self
            .samples
            .iter()
            .map(|(prompt, _)| Map::from_iter([("step".to_owned(), json!(step)), ("prompt".to_owned(), json!(prompt))]))
            .collect();
        for (model, key) in models {
            let sampling = params(&GREEDY, self.eval.max_new_tokens, self.recipe.runtime.seed);
            for (line, text) in lines.iter_mut().zip(self.texts(model, &sampling)?) {
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
    fn texts(&self, model: ModelId, sampling: &SamplingParams) -> Result<Vec<String>> {
        let prompts = self.samples.iter().map(|(_, example)| prompt_of(example, model));
        if let (ModelId::TEACHER, Some(remote)) = (model, &self.setup.remote) {
            let prompts: Vec<_> = prompts.map(|prompt| (prompt, 0)).collect();
            return Ok(remote.generate(&prompts, sampling)?.into_iter().map(|written| written.text).collect());
        }
        let text = CompletionText::AfterPrompt;
        let requests = prompts.map(|prompt| GenerateRequest { text, ..request(model, prompt, sampling.clone(), 0) });
        let bar = self.progress.bar("samples", (self.samples.len() * self.eval.max_new_tokens) as u64, "tokens");
        let generated = generate(&self.setup.runtime, requests, &bar, Some(self.interrupt))?;
        Ok(generated.into_iter().map(|generated| generated.text).collect())
    }
}

fn shown(step: u64, who: &str, prompt: &str, text: &str) -> String {
    let who = if who == "completion" { format!("student, step {step}") } else { who.to_owned() };
    format!("  > {prompt}\n  [{who}] {}", text.trim().replace('\n', "\n    "))
}
