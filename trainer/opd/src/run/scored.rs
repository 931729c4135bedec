//! Micro-batches with the scores of a remote teacher.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use runtime::request::{ModelId, TrainSequence};
use runtime::train::{Needs, TeacherSource};

use super::micro_batch::CompletionSource;
use crate::Result;
use crate::teacher::RemoteTeacher;

/// Micro-batches, each of one source.
pub(super) type Batches = [(CompletionSource, Vec<TrainSequence>)];

/// A micro-batch's teacher.
pub(super) struct BatchTeacher {
    /// The teacher of the runtime, or the scores of a remote one; `None` where the loss needs none of those.
    pub(super) source: Option<TeacherSource>,
    /// When the wait for them began.
    pub(super) since: Instant,
    /// How long it took.
    pub(super) seconds: f64,
}

/// Calls `run` for every micro-batch, in order. A remote teacher scores the next one meanwhile; at most one set of scores is
/// waiting.
///
/// # Errors
/// What `run` or the teacher's server refuse; then no further micro-batch is run.
pub(super) fn each(
    remote: Option<&RemoteTeacher>,
    batches: &Batches,
    needs: impl Fn(CompletionSource) -> Needs + Sync,
    mut run: impl FnMut(CompletionSource, &[TrainSequence], BatchTeacher) -> Result<()>,
) -> Result<()> {
    let Some(remote) = remote else {
        let resident = || BatchTeacher {
            source: Some(TeacherSource::Resident(ModelId::TEACHER)),
            since: Instant::now(),
            seconds: 0.0,
        };
        return batches.iter().try_for_each(|(source, sequences)| run(*source, sequences, resident()));
    };
    let score = |(source, sequences): &(CompletionSource, Vec<TrainSequence>)| match needs(*source) {
        Needs::Nothing => Ok(None),
        needs => remote.score(sequences, needs).map(Some),
    };
    std::thread::scope(|scope| {
        let (sender, scored) = sync_channel(0);
        scope.spawn(move || {
            for batch in batches {
                let scores = score(batch);
                let failed = scores.is_err();
                // The receiver is dropped once a micro-batch has failed.
                if sender.send(scores).is_err() || failed {
                    return;
                }
            }
        });
        for (source, sequences) in batches {
            let since = Instant::now();
            let scores = scored.recv().expect("the thread sends scores of every micro-batch, or an error");
            let (scores, seconds) = (scores?.map(TeacherSource::Remote), since.elapsed().as_secs_f64());
            run(*source, sequences, BatchTeacher { source: scores, since, seconds })?;
        }
        Ok(())
    })
}
