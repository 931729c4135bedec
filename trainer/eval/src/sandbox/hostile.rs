//! The programs of `hostile.py`, as root and as an ordinary user, and a starter that is killed.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

const ORDINARY: u32 = 65_534;

/// Numbers of the system calls that the programs ask for.
const CALLS: [(&str, libc::c_long); 41] = [
    ("add_key", libc::SYS_add_key),
    ("bpf", libc::SYS_bpf),
    ("capset", libc::SYS_capset),
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("fsopen", libc::SYS_fsopen),
    ("init_module", libc::SYS_init_module),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("memfd_create", libc::SYS_memfd_create),
    ("memfd_secret", libc::SYS_memfd_secret),
    ("mlock", libc::SYS_mlock),
    ("mount", libc::SYS_mount),
    ("mq_open", libc::SYS_mq_open),
    ("msgget", libc::SYS_msgget),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("open_tree", libc::SYS_open_tree),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pivot_root", libc::SYS_pivot_root),
    ("prctl", libc::SYS_prctl),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("ptrace", libc::SYS_ptrace),
    ("reboot", libc::SYS_reboot),
    ("request_key", libc::SYS_request_key),
    ("semget", libc::SYS_semget),
    ("setns", libc::SYS_setns),
    ("shmget", libc::SYS_shmget),
    ("syslog", libc::SYS_syslog),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("vmsplice", libc::SYS_vmsplice),
    ("quotactl", libc::SYS_quotactl),
    ("swapon", libc::SYS_swapon),
    ("acct", libc::SYS_acct),
    ("kcmp", libc::SYS_kcmp),
    ("fanotify_init", libc::SYS_fanotify_init),
];

fn limits() -> ResourceLimits {
    ResourceLimits { wall: Duration::from_secs(30), cpu_seconds: 2, ..ResourceLimits::default() }
}

/// The sandbox, where this kernel has what it takes; the reason is printed where not.
fn sandbox() -> Option<Sandbox> {
    Sandbox::open(Isolation::Namespaces, limits()).inspect_err(|refusal| eprintln!("not run: {refusal}")).ok()
}

/// Names and programs.
fn hostile(facts: &str) -> Vec<(String, String)> {
    let mut parts = include_str!("hostile.py").split("\n# == ");
    let head = parts.next().expect("a head").to_owned();
    let program = |part: &str| {
        let (name, program) = part.split_once('\n').expect("a name and a program");
        (name.to_owned(), format!("{facts}{head}\n{program}\n"))
    };
    parts.map(program).collect()
}

#[test]
fn hostile_programs_get_nothing() {
    let Some(sandbox) = sandbox() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = format!("arle-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _abstract_socket = UnixListener::bind_addr(&address).expect("a socket");
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    fs::write(&secret, "secret").expect("written");
    let facts = format!(
        "calls = dict({:?})\nport, abstract = {}, {name:?}\nsecret = outside = {secret:?}\nhost = {}\nprefix = {:?}\n",
        Vec::from(CALLS),
        listener.local_addr().expect("an address").port(),
        std::process::id(),
        sandbox.python.prefixes[0],
    );
    let (names, programs): (Vec<_>, Vec<_>) = hostile(&facts).into_iter().unzip();
    assert!(names.len() >= 47, "{}", names.len());
    // What they have in common works, so that it is the attack that fails.
    let head = include_str!("hostile.py").split("\n# == ").next().expect("a head");
    let harmless = format!("{facts}{head}\nassert call('pidfd_open', os.getpid(), 0) > 2");
    assert_eq!(sandbox.run(&harmless).expect("it starts"), Verdict::Passed);
    let verdicts = sandbox.run_all(&programs, 4).expect("they start");
    for (name, verdict) in names.iter().zip(&verdicts) {
        // One that fails by a mistake of its own attacks nothing.
        let mistakes = ["SyntaxError", "NameError", "KeyError", "TypeError", "ArgumentError", "AttributeError"];
        let broken = matches!(verdict, Verdict::Raised(line) if mistakes.iter().any(|kind| line.starts_with(kind)));
        assert!(!verdict.passed() && !broken && *verdict != Verdict::WallTime, "{name}: {verdict}");
    }
    assert_eq!(fs::read_to_string(&secret).expect("there"), "secret");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

/// Root has other means to isolate a program than an ordinary user, and other rights to lose.
#[test]
fn hostile_programs_of_an_ordinary_user_get_nothing() {
    // SAFETY: takes no pointer.
    if unsafe { libc::geteuid() } != 0 || !Path::new("/usr/bin/python3").exists() {
        return;
    }
    // Where that user can read it.
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("made readable");
    let program = folder.path().join("tests");
    fs::copy(std::env::current_exe().expect("a path"), &program).expect("copied");
    let mut command = Command::new(&program);
    command.args(["--exact", "sandbox::hostile::hostile_programs_get_nothing", "--nocapture"]);
    command.uid(ORDINARY).gid(ORDINARY).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    let output = command.output().expect("it starts");
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}{errors}");
}

const SLEEPER: &str = "import time; time.sleep(63.5)";
const WITHOUT: &str = "ARLE_TEST_WITHOUT_NAMESPACES";

#[test]
#[ignore = "the next test starts and kills it"]
fn waits_for_a_program_that_sleeps() {
    let isolation = if std::env::var_os(WITHOUT).is_some() { Isolation::None } else { Isolation::Namespaces };
    let Ok(sandbox) = Sandbox::open(isolation, ResourceLimits { wall: Duration::from_secs(60), ..limits() }) else {
        return;
    };
    let program = format!("import os, sys\nos.execv(sys.executable, ['python3', '-c', {SLEEPER:?}])");
    sandbox.run(&program).expect("it starts");
}

#[test]
fn a_killed_starter_takes_its_program_along() {
    for without in [false, true] {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.args(["--ignored", "--exact", "sandbox::hostile::waits_for_a_program_that_sleeps"]);
        if without {
            command.env(WITHOUT, "1");
        }
        let mut starter = command.spawn().expect("it starts");
        let started = wait_for(|| sleepers() > 0 || starter.try_wait().expect("a child").is_some());
        let ended = starter.try_wait().expect("a child").is_some();
        assert!(started, "the program does not start");
        if ended {
            assert!(!without, "the limits alone need nothing of the kernel");
            continue;
        }
        starter.kill().expect("killed");
        starter.wait().expect("waited for");
        assert!(wait_for(|| sleepers() == 0), "the program goes on");
    }
}

fn wait_for(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(40);
    while Instant::now() < end {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn sleepers() -> usize {
    let words = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
    let all = fs::read_dir("/proc").expect("/proc").flatten().map(words);
    all.filter(|words| words.ends_with(format!("{SLEEPER}\0").as_bytes())).count()
}
