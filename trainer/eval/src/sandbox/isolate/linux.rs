//! Namespaces and the root folder of a program.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use seccompiler::BpfProgram;

use super::syscalls;

/// Folders of the system that an interpreter needs; `/etc` is not among them.
const SYSTEM: [&str; 6] = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/nix/store"];
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"];
/// Where the new root is put together; a file system in memory covers it, in the program's mount namespace only. Nothing that
/// is mounted from may lie below it, as it is covered by then: an interpreter can live in `/tmp`, none lives in `/proc`.
const STAGE: &str = "/proc";
/// Where a program starts and may write.
const OWN: &str = "/tmp";
/// Users that no system gives out; the process's number is added.
const FIRST_USER: libc::uid_t = 2_000_000_000;

/// What the root of a program is made of. Everything is prepared here, as the child may not allocate.
#[derive(Debug)]
pub(in super::super) struct Root {
    /// The program's own folder, below the stage.
    own: CString,
    /// Below the stage, parents before children.
    folders: Vec<CString>,
    links: Vec<(CString, CString)>,
    mounts: Vec<Mount>,
    /// Options of the file system in memory.
    memory: CString,
    /// Root needs no user namespace, and must stop being root: a limit on processes does not bind it.
    as_root: bool,
    users: CString,
    groups: CString,
    /// What it may ask of the kernel.
    filter: BpfProgram,
}

#[derive(Debug)]
struct Mount {
    source: CString,
    target: CString,
    device: bool,
}

impl Root {
    pub(in super::super) fn new(prefixes: &[PathBuf], bytes: u64) -> io::Result<Self> {
        // SAFETY: neither call touches memory.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        let mut root = Self {
            own: staged(Path::new(OWN))?,
            folders: Vec::new(),
            links: Vec::new(),
            mounts: Vec::new(),
            memory: c(format!("size={bytes},nr_inodes=4096,mode=755"))?,
            as_root: user == 0,
            users: c(format!("1000 {user} 1"))?,
            groups: c(format!("1000 {group} 1"))?,
            filter: syscalls::filter()?,
        };
        let mut folders = BTreeSet::from([PathBuf::from(OWN), PathBuf::from("/dev")]);
        let system = SYSTEM.iter().map(PathBuf::from).chain(prefixes.iter().cloned());
        let covered = |path: &Path| SYSTEM.iter().any(|system| path != Path::new(system) && path.starts_with(system));
        for path in system.filter(|path| path.exists() && !covered(path)) {
            // `/lib` is a link to `usr/lib` on most systems.
            match fs::read_link(&path) {
                Ok(to) => root.links.push((c(to.as_os_str().as_bytes())?, staged(&path)?)),
                Err(_) => root.mount(&path, false, &mut folders)?,
            }
        }
        for device in DEVICES {
            root.mount(Path::new(device), true, &mut folders)?;
        }
        root.folders = folders.iter().map(|folder| staged(folder)).collect::<io::Result<_>>()?;
        Ok(root)
    }

    fn mount(&mut self, path: &Path, device: bool, folders: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let target = staged(path)?;
        if self.mounts.iter().any(|mount| mount.target == target) {
            return Ok(());
        }
        folders.extend(
            path.ancestors().skip(usize::from(device)).map(Path::to_owned).filter(|path| path != Path::new("/")),
        );
        self.mounts.push(Mount { source: c(path.as_os_str().as_bytes())?, target, device });
        Ok(())
    }

    /// Called in the child. Returns in a grandchild that is alone; the child waits for it and ends as it ends.
    pub(in super::super) fn enter(&self) -> io::Result<()> {
        let user = if self.as_root { 0 } else { libc::CLONE_NEWUSER };
        let kinds =
            libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        // SAFETY: the process has one thread, as it was just forked.
        done(unsafe { libc::unshare(kinds | user) })?;
        if !self.as_root {
            write(c"/proc/self/setgroups", c"deny")?;
            write(c"/proc/self/uid_map", &self.users)?;
            write(c"/proc/self/gid_map", &self.groups)?;
        }
        self.build()?;
        if self.as_root {
            // SAFETY: takes no pointer.
            let starter = unsafe { libc::getppid() };
            drop_privileges()?;
            // Becoming another user has unset it.
            end_with(starter as u32)?;
        }
        first_of_its_namespace()?;
        seccompiler::apply_filter(&self.filter).map_err(|_| io::Error::last_os_error())
    }

    /// Puts the root together and makes it the only one.
    fn build(&self) -> io::Result<()> {
        const KEEP: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;
        let stage = CString::new(STAGE).map_err(io::Error::other)?;
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
        mount(Some(c"tmpfs"), &stage, Some(c"tmpfs"), KEEP, Some(&self.memory))?;
        for folder in &self.folders {
            // SAFETY: a path that lives through the call.
            done(unsafe { libc::mkdir(folder.as_ptr(), 0o755) })?;
        }
        // SAFETY: as above.
        done(unsafe { libc::chmod(self.own.as_ptr(), 0o777) })?;
        for (to, at) in &self.links {
            // SAFETY: as above.
            done(unsafe { libc::symlink(to.as_ptr(), at.as_ptr()) })?;
        }
        for one in &self.mounts {
            if one.device {
                // SAFETY: as above.
                let file = unsafe { libc::open(one.target.as_ptr(), libc::O_CREAT | libc::O_CLOEXEC, 0o644) };
                done(file)?;
            }
            mount(Some(&one.source), &one.target, None, libc::MS_BIND | libc::MS_REC, None)?;
            if !one.device {
                read_only(&one.target)?;
            }
        }
        // SAFETY: paths that live through the calls. The old root lands on top of the new one and is taken off.
        unsafe {
            done(libc::chdir(stage.as_ptr()))?;
            done(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as i32)?;
            done(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
            done(libc::chdir(c"/tmp".as_ptr()))
        }
    }
}

fn c(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(text).map_err(io::Error::other)
}

/// Where `path` is while the root is put together.
fn staged(path: &Path) -> io::Result<CString> {
    c([STAGE.as_bytes(), path.as_os_str().as_bytes()].concat())
}

fn done(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Becomes a user of this process only, so that its limit on processes counts no other's.
fn drop_privileges() -> io::Result<()> {
    // SAFETY: plain system calls; the raw ones, as the library's would signal threads that are not here.
    unsafe {
        let id = FIRST_USER + libc::getpid() as libc::uid_t;
        done(libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<libc::gid_t>()) as i32)?;
        done(libc::syscall(libc::SYS_setresgid, id, id, id) as i32)?;
        done(libc::syscall(libc::SYS_setresuid, id, id, id) as i32)
    }
}

fn write(path: &CStr, text: &CStr) -> io::Result<()> {
    // SAFETY: both texts live through the calls; the descriptor is closed by the exec or with the process.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        done(file)?;
        done(libc::write(file, text.as_ptr().cast(), text.to_bytes().len()) as i32)
    }
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a text that lives through the call.
    done(unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast()) })
}

/// The mount and all below it.
fn read_only(target: &CStr) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the structure lives through the call and its size is passed.
    let code = unsafe {
        let size = size_of::<libc::mount_attr>();
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size,
        )
    };
    done(code as i32)
}

/// Kills this process when the thread that started it ends, which waits for it unless the program was killed. `starter` is
/// its process, which may be gone already.
pub(in super::super) fn end_with(starter: u32) -> io::Result<()> {
    // SAFETY: neither call takes a pointer.
    unsafe {
        done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        if libc::getppid() as u32 == starter { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }
}

/// Forks into the process namespace. The first process there takes all others with it when it ends, and it ends when the
/// child does.
fn first_of_its_namespace() -> io::Result<()> {
    // SAFETY: `fork` as a raw call, as the library's runs handlers that lock; everything after it is a system call.
    unsafe {
        // The end that the child of this process has is hung up when this process is gone.
        let mut ends = [0; 2];
        done(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        let child = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize);
        done(child as i32)?;
        if child == 0 {
            done(libc::close(ends[1]))?;
            done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            let mut parent = libc::pollfd { fd: ends[0], events: 0, revents: 0 };
            done(libc::poll(&raw mut parent, 1, 0))?;
            if parent.revents != 0 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            return done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        }
        done(libc::dup2(ends[1], 0))?;
        // Whoever spawned waits for the descriptor that an exec closes; this process will not exec.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
        let mut status = 0;
        while libc::waitpid(child as libc::pid_t, &raw mut status, 0) < 0 {}
        // As a shell reports it.
        libc::_exit(if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) })
    }
}
