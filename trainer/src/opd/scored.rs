//! Micro-batches with what a teacher elsewhere says of them.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use runtime::request::{ModelId, TrainSequence};
use runtime::train::{Needs, TeacherSource};

use super::micro_batch::CompletionSource;
use crate::Result;
use crate::teacher::RemoteTeacher;

/// Micro-batches, each of one source.
pub(super) type Batches = [(CompletionSource, Vec<TrainSequence>)];

/// What a micro-batch's teacher said, where it is elsewhere.
pub(super) struct BatchTeacher {
    /// Its answer.
    pub(super) teacher: Option<TeacherSource>,
    /// When it began to be waited for.
    pub(super) since: Instant,
    /// How long.
    pub(super) seconds: f64,
}

/// Calls `run` for every micro-batch, in order. Where the teacher is elsewhere it is asked about the next one meanwhile: never
/// more than that one waits.
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
        let resident = || Some(TeacherSource::Resident(ModelId::TEACHER));
        let nobody = || BatchTeacher { teacher: resident(), since: Instant::now(), seconds: 0.0 };
        return batches.iter().try_for_each(|(source, sequences)| run(*source, sequences, nobody()));
    };
    let ask = |(source, sequences): &(CompletionSource, Vec<TrainSequence>)| match needs(*source) {
        Needs::Nothing => Ok(None),
        needs => remote.score(sequences, needs).map(Some),
    };
    std::thread::scope(|scope| {
        let (sender, answers) = sync_channel(0);
        scope.spawn(move || {
            for batch in batches {
                let answer = ask(batch);
                let failed = answer.is_err();
                // Nobody listens any more once a micro-batch has failed.
                if sender.send(answer).is_err() || failed {
                    return;
                }
            }
        });
        for (source, sequences) in batches {
            let since = Instant::now();
            let answer = answers.recv().expect("the thread answers for every micro-batch, or with an error");
            run(
                *source,
                sequences,
                BatchTeacher {
                    teacher: answer?.map(TeacherSource::Remote),
                    since,
                    seconds: since.elapsed().as_secs_f64(),
                },
            )?;
        }
        Ok(())
    })
}
