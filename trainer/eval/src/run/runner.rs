//! Runs tasks: all their documents as one queue, with bounded work in flight; graded samples are written as they come.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Map, Value};

use crate::backend::Backend;
use crate::prompt::context::{ChatRendering, PromptStyle};
use crate::run::aggregate;
use crate::run::results::Results;
use crate::run::{EvalOptions, ShownPrompt, TaskRun};
use crate::{Error, Result};
use command::folder_lock::FolderLock;
use command::interrupt::Interrupt;
use command::progress::Progress;

/// How long the loop sleeps at most, so that Ctrl-C is seen.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Evaluates.
///
/// # Errors
/// Data or settings that cannot be used; what the backend refuses; [`Error::Interrupted`] after Ctrl-C.
pub(crate) fn run<B: Backend>(
    options: EvalOptions,
    mut backend: B,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Results> {
    let began = Instant::now();
    let mut options = options;
    let tasks = std::mem::take(&mut options.tasks);
    let mut runs = tasks.into_iter().map(|task| TaskRun::new(task, &options)).collect::<Result<Vec<_>>>()?;
    let identity = backend.identity();
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
    }
    let _held = options.out.as_ref().map(|out| FolderLock::take(out, progress)).transpose()?;
    let mut queue = queue(&mut runs, &options, &backend, &identity)?;
    let total: usize = runs.iter().map(|run| run.asked).sum();
    let found = total - queue.len();
    if found > 0 {
        progress.line(&format!("resume     {found} of {total} samples are there already"));
    }
    interrupt.begin();
    let bar = progress.bar_with_time_left("eval", total as u64, "samples");
    bar.set_position(found as u64);
    bar.reset_eta();
    answer(&mut queue, &mut runs, &options, &mut backend, interrupt, &bar)?;
    bar.finish_and_clear();
    let truncated = backend.truncated();
    Ok(aggregate::results(&runs, &options, &identity, truncated, began.elapsed()))
}

/// A document to evaluate: its run, its place, what is shown of it.
struct QueuedDocument<W> {
    run: usize,
    doc: usize,
    shown: ShownPrompt,
    work: W,
}

/// Every document that has no sample yet.
fn queue<B: Backend>(
    runs: &mut [TaskRun],
    options: &EvalOptions,
    backend: &B,
    identity: &Map<String, Value>,
) -> Result<Vec<QueuedDocument<B::EncodedDocument>>> {
    let render = backend.render();
    let chat = match (options.chat, render) {
        (false, _) => None,
        (true, Some(render)) => Some(ChatRendering::Render(render)),
        (true, None) => Some(ChatRendering::Send),
    };
    let system = options.system.as_deref();
    let style = PromptStyle { system, chat, max_tokens: options.max_tokens, repeats: options.repeats as u64 };
    let (mut places, mut requests) = (Vec::new(), Vec::new());
    for (index, run) in runs.iter_mut().enumerate() {
        let all = run.requests(options, &style)?;
        run.open(options, identity)?;
        for (doc, asked) in all.into_iter().enumerate().filter(|(doc, _)| run.samples[*doc].is_none()) {
            places.push((index, doc, ShownPrompt::of(&asked)));
            requests.push(asked);
        }
    }
    let work = backend.prepare(requests)?;
    let item = |((run, doc, shown), work)| QueuedDocument { run, doc, shown, work };
    Ok(places.into_iter().zip(work).map(item).collect())
}

fn answer<B: Backend>(
    queue: &mut Vec<QueuedDocument<B::EncodedDocument>>,
    runs: &mut [TaskRun],
    options: &EvalOptions,
    backend: &mut B,
    interrupt: &Interrupt,
    bar: &ProgressBar,
) -> Result<()> {
    let mut open: Vec<Option<(usize, usize, ShownPrompt)>> = Vec::with_capacity(queue.len());
    let mut waiting = 0;
    let mut items = queue.drain(..).peekable();
    while waiting > 0 || items.peek().is_some() {
        if interrupt.is_requested() {
            bar.finish_and_clear();
            let done = runs.iter().map(|run| run.samples.iter().flatten().count()).sum();
            let (of, kept) = (runs.iter().map(|run| run.asked).sum(), options.out.is_some());
            return Err(Error::Interrupted { done, of, kept });
        }
        while !backend.is_full() {
            let Some(QueuedDocument { run, doc, shown, work }) = items.next() else { break };
            backend.submit(open.len(), work)?;
            open.push(Some((run, doc, shown)));
            waiting += 1;
        }
        if let Some((place, responses)) = backend.next(POLL_INTERVAL)? {
            let (run, doc, shown) = open[place].take().expect("a document is answered once");
            runs[run].take(doc, shown, responses, options)?;
            waiting -= 1;
            bar.inc(1);
        }
    }
    Ok(())
}
