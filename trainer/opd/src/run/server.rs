//! The server of a training run: its student, its teacher and its control plane over HTTP while it trains.

use std::sync::Arc;
use std::thread::JoinHandle;

use runtime::request::ModelId;
use serve::{ServeConfig, ServedModel, Server, Stop};

use super::setup::Setup;
use crate::Result;
use crate::control::Control;
use command::progress::{Progress, eprint_line};

/// A server beside the run; it stops when this is dropped.
pub(super) struct RunServer {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl RunServer {
    /// Starts answering. A request waits for the step that runs, as any other work does.
    pub(super) fn start(
        setup: &Setup,
        config: &ServeConfig,
        control: &Arc<Control>,
        progress: Progress,
    ) -> Result<Self> {
        let model = |name: &str, id, files: &_| ServedModel {
            names: vec![name.to_owned()],
            id,
            base: None,
            files: Arc::clone(files),
        };
        let student = model("student", ModelId::STUDENT, &setup.student);
        let teacher = setup.teacher.as_ref().map(|files| model("teacher", ModelId::TEACHER, files));
        let models = [Some(student), teacher].into_iter().flatten().collect();
        let control: Arc<dyn serve::TrainControl> = control.clone();
        let server = Server::bind(setup.runtime.clone(), models, config.clone())?.with_training(control);
        progress.line(&format!("serve      {}", server.url()));
        let stop = Stop::default();
        let asked = stop.clone();
        let run = move || {
            if let Err(error) = server.run(&asked) {
                eprint_line(&format!("the server ended, the run goes on: {error}"));
            }
        };
        let thread = std::thread::Builder::new().name("serve".to_owned()).spawn(run).map_err(serve::Error::from)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for RunServer {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has printed it.
            let _ended = thread.join();
        }
    }
}
