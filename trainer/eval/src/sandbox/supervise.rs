//! Starts a program, watches its clock and its output, and sees to its end.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{ResourceLimits, Sandbox, Verdict, isolate};

const DRIVER: &str = include_str!("driver.py");
/// How much of what is printed is kept to find the last line.
const TAIL: usize = 8192;

/// Runs one program to its end, whoever brings it about.
pub(super) fn run(sandbox: &Sandbox, program: &str) -> io::Result<Verdict> {
    let deadline = Instant::now() + sandbox.limits.wall;
    let folder = if sandbox.root.is_none() { Some(tempfile::tempdir()?) } else { None };
    let mut command = Command::new(&sandbox.python.executable);
    command.args(["-I", "-B", "-c", DRIVER]).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(folder) = &folder {
        command.current_dir(folder.path());
    }
    prepare(&mut command, sandbox);
    let mut running = RunningProcess { child: command.spawn()? };
    let password = password(running.child.id());
    if let Some(mut input) = running.child.stdin.take() {
        // A program that is gone already has closed its end; its exit status has the reason.
        let _ = input.write_all(format!("{password}\n{program}").as_bytes());
    }
    let watched = watch(&mut running.child, deadline, sandbox.limits.output)?;
    let ended = running.end(deadline)?;
    Ok(verdict(&watched, &ended, &password, sandbox.limits))
}

/// Resource limits and isolation, between fork and exec.
fn prepare(command: &mut Command, sandbox: &Sandbox) {
    let limits = resources(sandbox.limits);
    // The closure must own what it uses; the sandbox outlives the spawn, which runs it.
    let root: Option<*const isolate::Root> = sandbox.root.as_ref().map(std::ptr::from_ref);
    let shared = SharedRoot(root);
    let starter = std::process::id();
    let alone = move || {
        let shared = &shared;
        // SAFETY: takes no pointer.
        if unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        isolate::end_with(starter)?;
        if let Some(root) = shared.0 {
            // SAFETY: the sandbox is borrowed by `run`, which spawns before it returns.
            unsafe { &*root }.enter()?;
        }
        for (which, limit) in limits {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            // SAFETY: the structure lives through the call.
            if unsafe { libc::setrlimit(which, &raw const limit) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; see `isolate`.
    unsafe { command.pre_exec(alone) };
}

/// A pointer that may cross into the closure: what it points at is only read.
struct SharedRoot(Option<*const isolate::Root>);
// SAFETY: `Root` is `Sync`, and the closure runs in the forked child of the thread that made it.
unsafe impl Send for SharedRoot {}
// SAFETY: as above.
unsafe impl Sync for SharedRoot {}

#[cfg(target_os = "linux")]
type RlimitResource = libc::__rlimit_resource_t;
#[cfg(not(target_os = "linux"))]
type RlimitResource = libc::c_int;

fn resources(limits: ResourceLimits) -> [(RlimitResource, u64); 6] {
    [
        (libc::RLIMIT_CPU, limits.cpu_seconds),
        (libc::RLIMIT_AS, limits.memory),
        (libc::RLIMIT_FSIZE, limits.files),
        (libc::RLIMIT_NOFILE, 64),
        (libc::RLIMIT_CORE, 0),
        // Last: starting processes ends here.
        (libc::RLIMIT_NPROC, limits.processes),
    ]
}

/// A value that only this program has: the process, the moment, and where the kernel put things.
fn password(id: u32) -> String {
    use sha2::Digest as _;
    let place = std::ptr::from_ref(&id) as usize;
    let now = Instant::now();
    format!("{:x?}", sha2::Sha256::digest(format!("{id} {place} {now:?}").as_bytes()))
}

struct RunningProcess {
    child: Child,
}

/// How the process ended.
struct ProcessExit {
    status: i32,
    cpu: Duration,
    in_time: bool,
}

impl RunningProcess {
    fn kill(&self) {
        // SAFETY: takes no pointer. The child leads its own group and is not waited for yet, so the number is its own.
        unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
    }

    /// Waits until the deadline, then ends the whole group.
    fn end(&mut self, deadline: Instant) -> io::Result<ProcessExit> {
        let mut in_time = true;
        loop {
            let mut status = 0;
            // SAFETY: an all-zero `rusage` is a valid one.
            let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
            let id = self.child.id() as libc::pid_t;
            // SAFETY: both pointers live through the call.
            let waited = unsafe { libc::wait4(id, &raw mut status, libc::WNOHANG, &raw mut usage) };
            if waited == id {
                let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
                // What it started and left in its group goes with it; the number stays taken while one of them lives.
                // SAFETY: takes no pointer.
                unsafe { libc::kill(-id, libc::SIGKILL) };
                return Ok(ProcessExit { status, cpu: time(usage.ru_utime) + time(usage.ru_stime), in_time });
            }
            if waited < 0 {
                return Err(io::Error::last_os_error());
            }
            if in_time && Instant::now() >= deadline {
                in_time = false;
                self.kill();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A program's output.
struct ProcessOutput {
    result: Vec<u8>,
    tail: Vec<u8>,
    too_much: bool,
}

/// Reads until both pipes close, the deadline, or too much; then ends a program that does not stop.
fn watch(child: &mut Child, deadline: Instant, limit: usize) -> io::Result<ProcessOutput> {
    let (Some(mut result), Some(mut printed)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    let mut watched = ProcessOutput { result: Vec::new(), tail: Vec::new(), too_much: false };
    let (mut open, mut bytes) = ([true, true], 0);
    while open.contains(&true) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let poll =
            |at: usize, fd| libc::pollfd { fd: if open[at] { fd } else { -1 }, events: libc::POLLIN, revents: 0 };
        let mut polled = [poll(0, result.as_raw_fd()), poll(1, printed.as_raw_fd())];
        // SAFETY: the array lives through the call and its length is passed.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, left.as_millis().min(1000) as i32 + 1) };
        if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return Err(io::Error::last_os_error());
        }
        let mut chunk = [0; 4096];
        for at in 0..2 {
            if ready <= 0 || polled[at].revents == 0 {
                continue;
            }
            let read = if at == 0 { result.read(&mut chunk)? } else { printed.read(&mut chunk)? };
            open[at] = read > 0;
            bytes += read;
            let kept = if at == 0 { &mut watched.result } else { &mut watched.tail };
            kept.extend_from_slice(&chunk[..read]);
            let cut = kept.len().saturating_sub(TAIL);
            kept.drain(..cut);
        }
        if bytes > limit {
            watched.too_much = true;
            // SAFETY: takes no pointer.
            unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
            break;
        }
    }
    Ok(watched)
}

fn verdict(watched: &ProcessOutput, ended: &ProcessExit, password: &str, limits: ResourceLimits) -> Verdict {
    let (exit, signal) = match (libc::WIFEXITED(ended.status), libc::WEXITSTATUS(ended.status)) {
        // The child reports a signal of the grandchild as a shell does.
        (true, code) if code > 128 => (None, Some(code - 128)),
        (true, code) => (Some(code), None),
        (false, _) => (None, Some(libc::WTERMSIG(ended.status))),
    };
    if watched.too_much {
        return Verdict::Output;
    }
    if !ended.in_time {
        return Verdict::WallTime;
    }
    match (exit, signal) {
        // The kernel's limit counts ticks of the clock, `cpu` is measured: on a busy machine a program that forks is stopped
        // well before its measured time is up. Whoever else kills (the kernel, out of memory) seldom waits for half of it.
        (_, Some(libc::SIGKILL | libc::SIGXCPU)) if 2 * ended.cpu >= Duration::from_secs(limits.cpu_seconds) => {
            Verdict::CpuTime
        }
        (_, Some(signal)) => Verdict::Signal(signal),
        (Some(0), None) if watched.result == password.as_bytes() => Verdict::Passed,
        (Some(0), None) => Verdict::LeftEarly,
        _ => raised(&String::from_utf8_lossy(&watched.tail)),
    }
}

/// The last line of a traceback names the exception.
fn raised(printed: &str) -> Verdict {
    let last = printed.lines().rev().map(str::trim).find(|line| !line.is_empty());
    match last {
        Some(line) if line.starts_with("MemoryError") => Verdict::Memory,
        Some(line) if printed.contains("Traceback") || line.contains("Error") => {
            Verdict::Raised(line.chars().take(200).collect())
        }
        _ => Verdict::LeftEarly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_after_much_work_is_the_processor_limit() {
        let limits = ResourceLimits { cpu_seconds: 1, ..ResourceLimits::default() };
        let watched = ProcessOutput { result: Vec::new(), tail: Vec::new(), too_much: false };
        let killed = |cpu, status| verdict(&watched, &ProcessExit { status, cpu, in_time: true }, "", limits);
        let milliseconds = Duration::from_millis;
        // As a wait reports it, and as the first process of a namespace hands it on.
        for status in [libc::SIGKILL, (128 + libc::SIGKILL) << 8] {
            assert_eq!(killed(milliseconds(1004), status), Verdict::CpuTime);
            assert_eq!(killed(milliseconds(640), status), Verdict::CpuTime, "ticks ran ahead of the measured time");
            assert_eq!(killed(milliseconds(40), status), Verdict::Signal(libc::SIGKILL));
        }
        assert_eq!(killed(milliseconds(1004), libc::SIGSEGV), Verdict::Signal(libc::SIGSEGV));
    }
}
