//! Micro-batches with what a teacher elsewhere says of them.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use runtime::request::TrainSequence;
use runtime::train::{GivenTeacher, Needs};

use super::batch::Source;
use crate::Result;
use crate::teacher::RemoteTeacher;

/// Micro-batches, each of one source.
pub(super) type Batches = [(Source, Vec<TrainSequence>)];

/// Calls `run` for every micro-batch, in order. Where the teacher is elsewhere it is asked about the next one meanwhile: never
/// more than that one waits. Returns the seconds that were waited for it.
///
/// # Errors
/// What `run` or the teacher's server refuse; then no further micro-batch is run.
pub(super) fn each(
    remote: Option<&RemoteTeacher>,
    batches: &Batches,
    needs: impl Fn(Source) -> Needs + Sync,
    mut run: impl FnMut(Source, &[TrainSequence], Option<GivenTeacher>) -> Result<()>,
) -> Result<f64> {
    let Some(remote) = remote else {
        batches.iter().try_for_each(|(source, sequences)| run(*source, sequences, None))?;
        return Ok(0.0);
    };
    let ask = |(source, sequences): &(Source, Vec<TrainSequence>)| match needs(*source) {
        Needs::Nothing => Ok(None),
        needs => remote.grade(sequences, needs).map(Some),
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
        let mut waited = 0.0;
        for (source, sequences) in batches {
            let start = Instant::now();
            let answer = answers.recv().expect("the thread answers for every micro-batch, or with an error");
            waited += start.elapsed().as_secs_f64();
            run(*source, sequences, answer?)?;
        }
        Ok(waited)
    })
}
