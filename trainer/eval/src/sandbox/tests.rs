use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use super::*;

/// Short limits, so that a program that must be stopped is stopped soon.
fn limits() -> ResourceLimits {
    ResourceLimits { wall: Duration::from_secs(20), cpu_seconds: 1, processes: 4, ..ResourceLimits::default() }
}

/// Nothing where the kernel forbids namespaces: the refusal is tested there instead.
fn sandbox() -> Option<Sandbox> {
    match Sandbox::open(Isolation::Namespaces, limits()) {
        Ok(sandbox) => Some(sandbox),
        Err(refusal) => {
            assert!(refusal.to_string().contains("--allow-unsandboxed-code"), "{refusal}");
            None
        }
    }
}

#[test]
fn a_program_passes_by_coming_to_its_end() {
    let Some(sandbox) = sandbox() else { return };
    let verdict = |program: &str| sandbox.run(program).expect("it starts");
    assert_eq!(verdict("import math, json, re\nassert math.sqrt(4) == 2\nprint('x' * 1000)"), Verdict::Passed);
    assert_eq!(verdict("open('own', 'w').write('x')\nassert open('own').read() == 'x'"), Verdict::Passed);
    assert_eq!(verdict("import sys\nsys.exit(0)"), Verdict::LeftEarly);
    assert_eq!(verdict("import os\nos._exit(0)"), Verdict::LeftEarly);
    assert_eq!(verdict("exit()"), Verdict::LeftEarly);
    assert_eq!(verdict("assert 1 == 2, 'no'"), Verdict::Raised("AssertionError: no".into()));
    assert!(matches!(verdict("def f(:"), Verdict::Raised(line) if line.starts_with("SyntaxError")));
    assert!(matches!(verdict("input()"), Verdict::Raised(line) if line.starts_with("EOFError")));
}

/// What answers to programming questions use.
#[test]
fn what_programs_need_is_there() {
    let Some(sandbox) = sandbox() else { return };
    let programs = [
        "import subprocess, sys\nassert subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout == b'1\\n'",
        "import asyncio\nasync def f():\n  await asyncio.sleep(0.01)\n  return 3\nassert asyncio.run(f()) == 3",
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()\np.join()\nassert p.exitcode == 0",
        "import os, shutil, tempfile\nd = tempfile.mkdtemp()\nopen(d + '/a', 'w').write('x')\nshutil.copy(d + '/a', d + '/b')\nshutil.rmtree(d)",
        "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'",
        "import sqlite3\nassert sqlite3.connect(':memory:').execute('select 1 + 1').fetchone() == (2,)",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\nsignal.pause()",
        "import datetime, decimal, hashlib, platform, random, uuid\nuuid.uuid1(), platform.platform(), hashlib.sha256(b'x')",
    ];
    for program in programs {
        assert_eq!(sandbox.run(program).expect("it starts"), Verdict::Passed, "{program}");
    }
}

#[test]
fn a_program_that_does_not_stop_is_stopped() {
    let Some(sandbox) = sandbox() else { return };
    let verdict = |program: &str| sandbox.run(program).expect("it starts");
    assert_eq!(verdict("while True: pass"), Verdict::CpuTime);
    assert_eq!(verdict("try:\n  while True: pass\nexcept BaseException: pass"), Verdict::CpuTime);
    assert_eq!(verdict("while True: print('x' * 1000)"), Verdict::Output);
    assert_eq!(verdict("x = 'x' * (1 << 33)"), Verdict::Memory);
    let bomb = verdict("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass");
    assert!(matches!(bomb, Verdict::CpuTime | Verdict::WallTime), "{bomb}");
    let file = verdict("f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))");
    assert!(matches!(&file, Verdict::Raised(line) if line.contains("Error")), "{file}");
    let quick = Sandbox { limits: ResourceLimits { wall: Duration::from_secs(1), ..limits() }, ..sandbox };
    let verdict = |program: &str| quick.run(program).expect("it starts");
    assert_eq!(verdict("import time\ntime.sleep(60)"), Verdict::WallTime);
    assert_eq!(verdict("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)"), Verdict::WallTime);
}

#[test]
fn the_host_is_out_of_reach() {
    let Some(sandbox) = sandbox() else { return };
    let verdict = |program: &str| sandbox.run(program).expect("it starts");
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    fs::write(&key, "secret").expect("written");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let connect = format!("import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)");
    assert!(matches!(verdict(&connect), Verdict::Raised(line) if line.contains("Error")));
    assert!(
        matches!(verdict(&format!("open({key:?}).read()")), Verdict::Raised(line) if line.contains("FileNotFound"))
    );
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
    for path in [home.as_str(), "/etc", "/proc", "/sys", "/home", "/var"] {
        let seen = verdict(&format!("import os\nprint(os.listdir({path:?}))"));
        let hidden = matches!(&seen, Verdict::Raised(line) if line.contains("Error"));
        // The interpreter may live below the home folder; nothing else of it is there.
        let interpreter_only = path == home && sandbox.python.prefixes.iter().any(|prefix| prefix.starts_with(&home));
        assert!(hidden || interpreter_only, "{path}: {seen}");
    }
    let write = format!("open({:?}, 'w').write('x')", folder.path().join("new"));
    assert!(!verdict(&write).passed());
    assert_eq!(verdict("open('/tmp/here', 'w').write('x')"), Verdict::Passed);
    assert!(!std::path::Path::new("/tmp/here").exists());
    let prefix = sandbox.python.prefixes[0].join("new-file");
    assert!(matches!(verdict(&format!("open({prefix:?}, 'w')")), Verdict::Raised(line) if line.contains("Error")));
    assert!(matches!(verdict("import os\nassert not os.environ.keys() - {'LC_CTYPE'}"), Verdict::Passed));
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn programs_of_the_host_and_interpreters_may_live_in_tmp() {
    let Some(sandbox) = sandbox() else { return };
    let outside = tempfile::NamedTempFile::new_in("/tmp").expect("a file");
    sandbox.check(outside.path()).expect("a program directly in /tmp is out of reach");
    // A virtual environment, as `python3 -m venv` makes it, without its packages.
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    fs::create_dir(folder.path().join("bin")).expect("made");
    let (executable, home) = (folder.path().join("bin/python3"), sandbox.python.executable.parent().expect("a folder"));
    std::os::unix::fs::symlink(&sandbox.python.executable, &executable).expect("linked");
    fs::write(folder.path().join("pyvenv.cfg"), format!("home = {}\n", home.display())).expect("written");
    let prefixes: Vec<PathBuf> = [folder.path().to_owned()].into_iter().chain(sandbox.python.prefixes).collect();
    let root = isolate::Root::new(&prefixes, limits().files).expect("a root");
    let sandbox = Sandbox { python: Python { executable, prefixes }, root: Some(root), ..sandbox };
    sandbox.check(outside.path()).expect("an interpreter in /tmp");
    let inside = folder.path().join("pyvenv.cfg");
    let program = format!("import sys\nassert sys.prefix == {:?}\nopen({inside:?}).read()\n", folder.path());
    assert_eq!(sandbox.run(&program).expect("it starts"), Verdict::Passed);
    let over = sandbox.run(&format!("open({inside:?}, 'r+b')")).expect("it starts");
    assert!(matches!(&over, Verdict::Raised(line) if line.contains("Error")), "{over}");
}

#[test]
fn nothing_outlives_its_program() {
    let Some(sandbox) = sandbox() else { return };
    // A grandchild in a session of its own, which would go on for a minute.
    let stays = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    os.execv(__import__('sys').executable, \
                 ['python3', '-c', 'import time; time.sleep(61.5)'])\n  os._exit(0)\ntime.sleep(0.3)";
    assert_eq!(sandbox.run(stays).expect("it starts"), Verdict::Passed);
    let mut left = Vec::new();
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).ends_with("time.sleep(61.5)\0") {
            left.push(process.path());
        }
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_isolation_the_limits_stay() {
    let sandbox = Sandbox::open(Isolation::None, limits()).expect("python3");
    let verdict = |program: &str| sandbox.run(program).expect("it starts");
    assert_eq!(verdict("x = 1"), Verdict::Passed);
    assert_eq!(verdict("while True: pass"), Verdict::CpuTime);
    assert_eq!(verdict("x = 'x' * (1 << 33)"), Verdict::Memory);
    assert_eq!(verdict("import os\nassert not os.environ.keys() - {'LC_CTYPE'}"), Verdict::Passed);
}

#[test]
fn many_programs_keep_their_order() {
    let Some(sandbox) = sandbox() else { return };
    let programs: Vec<String> = (0..12).map(|n| format!("assert {n} % 3, 'at {n}'")).collect();
    let verdicts = sandbox.run_all(&programs, 4).expect("they start");
    for (n, verdict) in verdicts.iter().enumerate() {
        let expected = if n % 3 == 0 { Verdict::Raised(format!("AssertionError: at {n}")) } else { Verdict::Passed };
        assert_eq!(*verdict, expected);
    }
    assert!(sandbox.run_all(&[], 4).expect("nothing to do").is_empty());
}
