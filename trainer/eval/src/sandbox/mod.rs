//! Runs generated Python programs where they can do no harm, and reports whether they came to their end.
//!
//! Each program is one `python3` in namespaces of its own (user, mount, network, process, IPC, host name): a root that holds
//! the interpreter and the system's libraries read-only and an empty `/tmp` in memory, no interface but an idle loopback, no
//! environment, no capability, the first process of its process namespace, so that nothing it starts outlives it, and it ends
//! when this process does, killed or not. The kernel answers the system calls of a list only (`isolate/syscalls`): no memory
//! beside the limits, no key rings, no namespaces, sockets of this machine and the internet's alone. [`ResourceLimits`] bound time,
//! memory, processes, files and output. Where this process is root, the program runs as a user of its own.
//!
//! [`Sandbox::open`] starts a program that tries to get out: it must find no other interface, reach no listener of this
//! process, read no file of the host and write none, and get none of the calls that are left out. Where that fails, or the kernel offers no namespaces (not Linux, before
//! 5.14, a container that forbids them), `open` refuses; [`Isolation::None`] is for those who say that they run where a
//! generated program may do anything, and keeps the limits and the process group only.
//!
//! `hostile.py` holds programs that try more; the tests run them as root and as an ordinary user.
//!
//! What it does not bound: memory of all processes of one program together is at most `processes` times `memory`; there is
//! no control group. A program that has its own password can claim to have passed; it would have to look for it on
//! purpose in the frames above it.

mod isolate;
mod supervise;

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use crate::{Error, Result};

/// What bounds one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceLimits {
    /// From start to end.
    pub wall: Duration,
    /// Processor time of a process, whole seconds.
    pub cpu_seconds: u64,
    /// Address space of a process, bytes.
    pub memory: u64,
    /// Processes and threads at a time.
    pub processes: u64,
    /// Bytes of a file, and of all files together.
    pub files: u64,
    /// Bytes that it prints.
    pub output: usize,
}

impl Default for ResourceLimits {
    /// Three seconds of processor time, as the `code_eval` that lm-evaluation-harness uses; more by the clock, so that a
    /// busy machine fails no program.
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(15),
            cpu_seconds: 3,
            memory: 512 << 20,
            processes: 8,
            files: 16 << 20,
            output: 1 << 20,
        }
    }
}

/// How far a program is from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces, checked when the sandbox is opened.
    Namespaces,
    /// Resource limits and a process group only: the program can read, write and reach what this user can.
    None,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It came to its end.
    Passed,
    /// It raised; the last line that it printed.
    Raised(String),
    /// It left by itself before its end.
    LeftEarly,
    /// It ran longer than the clock allows.
    WallTime,
    /// It used more processor time than allowed.
    CpuTime,
    /// It wanted more memory than allowed.
    Memory,
    /// It printed more than allowed.
    Output,
    /// A signal ended it.
    Signal(i32),
}

impl Verdict {
    /// Whether it came to its end.
    #[must_use]
    pub fn passed(&self) -> bool {
        *self == Self::Passed
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Raised(line) => write!(f, "raised {line}"),
            Self::LeftEarly => f.write_str("left before its end"),
            Self::WallTime => f.write_str("timed out"),
            Self::CpuTime => f.write_str("used up its processor time"),
            Self::Memory => f.write_str("used up its memory"),
            Self::Output => f.write_str("printed too much"),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
        }
    }
}

/// The interpreter.
#[derive(Debug)]
struct Python {
    executable: PathBuf,
    /// Folders that it needs: its own and, in a virtual environment, the one that it was made from.
    prefixes: Vec<PathBuf>,
}

/// A place for programs.
#[derive(Debug)]
pub struct Sandbox {
    python: Python,
    limits: ResourceLimits,
    /// What to mount; without it, programs are not isolated.
    root: Option<isolate::Root>,
}

impl Sandbox {
    /// Finds `python3` and, for [`Isolation::Namespaces`], checks that a program cannot get out.
    ///
    /// # Errors
    /// No interpreter; a machine on which programs cannot be isolated.
    pub fn open(isolation: Isolation, limits: ResourceLimits) -> Result<Self> {
        let python = find_python()?;
        let root = match isolation {
            Isolation::None => None,
            Isolation::Namespaces => Some(isolate::Root::new(&python.prefixes, limits.files).map_err(refused)?),
        };
        let sandbox = Self { python, limits, root };
        if isolation == Isolation::Namespaces {
            sandbox.check(&std::env::current_exe().map_err(refused)?)?;
        }
        Ok(sandbox)
    }

    /// Runs one program.
    ///
    /// # Errors
    /// When it cannot be started; whatever the program does is a verdict.
    pub fn run(&self, program: &str) -> Result<Verdict> {
        supervise::run(self, program).map_err(|source| Error::Sandbox { what: format!("does not start: {source}") })
    }

    /// Runs programs, `workers` at a time; the verdicts are in their order.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_all(&self, programs: &[String], workers: usize) -> Result<Vec<Verdict>> {
        let todo: Mutex<VecDeque<usize>> = Mutex::new((0..programs.len()).collect());
        let next = || todo.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
        let work = || {
            let mut done = Vec::new();
            while let Some(at) = next() {
                done.push((at, self.run(&programs[at])?));
            }
            Ok(done)
        };
        let mut all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers.clamp(1, programs.len().max(1))).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| thread.join().expect("a worker does not panic"));
            joined.collect::<Result<Vec<Vec<_>>>>()
        })?
        .concat();
        all.sort_by_key(|(at, _)| *at);
        Ok(all.into_iter().map(|(_, verdict)| verdict).collect())
    }

    /// Runs a program that tries to get out; `outside` is a program of the host.
    fn check(&self, outside: &Path) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(refused)?;
        let port = listener.local_addr().map_err(refused)?.port();
        let secret = tempfile::NamedTempFile::new().map_err(refused)?;
        let probe = include_str!("probe.py");
        let (secret, outside) = (secret.path().to_string_lossy().into_owned(), outside.to_string_lossy().into_owned());
        let head = format!("port, secret, outside, host = {port}, {secret:?}, {outside:?}, {}\n", std::process::id());
        let head = head + isolate::probed().as_str();
        match self.run(&(head + probe))? {
            Verdict::Passed => Ok(()),
            verdict => Err(refused(io::Error::other(format!("a program that tries to get out {verdict}")))),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn refused(source: io::Error) -> Error {
    Error::Sandbox {
        what: format!(
            "cannot isolate generated programs here ({source}); run on Linux 5.14 or newer with user namespaces, or pass \
             --allow-unsandboxed-code on a machine on which they may do anything"
        ),
    }
}

/// `python3` may be a script that finds the interpreter by the environment, which programs do not get.
fn find_python() -> Result<Python> {
    let missing = |what: String| Error::Sandbox { what: format!("needs python3: {what}; put one on PATH") };
    let ask = "import sys; print(sys.executable); print(sys.prefix); print(sys.base_prefix)";
    let output = Command::new("python3").args(["-c", ask]).output();
    let output = output.map_err(|source| missing(format!("it does not start: {source}")))?;
    if !output.status.success() {
        return Err(missing(format!("its error is {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().map(PathBuf::from);
    let executable =
        lines.next().filter(|path| path.is_absolute()).ok_or_else(|| missing("it names no file".into()))?;
    Ok(Python { executable, prefixes: lines.collect() })
}

#[cfg(all(test, target_os = "linux"))]
mod hostile;
#[cfg(test)]
mod tests;
