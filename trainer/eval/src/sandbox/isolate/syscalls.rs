//! The system calls that a program may make: what Python and its libraries compute, read, write and start processes with.
//!
//! All others do not exist for it, those of kernels to come among them: `ENOSYS`, after which a C library tries an older
//! call. Left out on purpose: memory that no limit counts (System V and POSIX queues, shared memory, `memfd`, `io_uring`,
//! `userfaultfd`), key rings, namespaces, mounts, tracing, BPF, modules, clocks that are set.

use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The filter, to be installed last.
pub(super) fn filter() -> io::Result<BpfProgram> {
    let whole = ALLOWED.iter().chain(ALLOWED_HERE).map(|&call| (call, Vec::new()));
    let limited = [
        // Threads and processes, in the namespaces that are there.
        (libc::SYS_clone, vec![only([argument(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?])?]),
        // Sockets of this machine and of the internet, which is not there; none of the hypervisor's, kernel's or hardware's.
        (libc::SYS_socket, families(&[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6])?),
        (libc::SYS_socketpair, families(&[libc::AF_UNIX])?),
        // A program must not outlive who started it.
        (libc::SYS_prctl, vec![only([argument(0, SeccompCmpOp::Ne, libc::PR_SET_PDEATHSIG as u64)?])?]),
        // Pipes keep their size: a mebibyte for each would be beside the limit.
        (libc::SYS_fcntl, vec![only([argument(1, SeccompCmpOp::Ne, libc::F_SETPIPE_SZ as u64)?])?]),
        // Terminals: no input is put into one.
        (
            libc::SYS_ioctl,
            vec![only([argument(1, SeccompCmpOp::Ne, libc::TIOCSTI)?, argument(1, SeccompCmpOp::Ne, TIOCLINUX)?])?],
        ),
    ];
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let target = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(whole.chain(limited).collect(), missing, SeccompAction::Allow, target);
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

/// For the probe: numbers of calls that must be missing.
pub(in super::super) fn probed() -> String {
    let calls = [
        ("shmget", libc::SYS_shmget),
        ("memfd_create", libc::SYS_memfd_create),
        ("keyctl", libc::SYS_keyctl),
        ("unshare", libc::SYS_unshare),
        ("io_uring_setup", libc::SYS_io_uring_setup),
    ];
    format!("calls = dict({:?})\n", Vec::from(calls))
}

const TIOCLINUX: libc::Ioctl = 0x541c;
/// All but that of time, whose flag is a part of the signal's number here.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

fn families(all: &[i32]) -> io::Result<Vec<SeccompRule>> {
    all.iter().map(|&family| only([argument(0, SeccompCmpOp::Eq, family as u64)?])).collect()
}

fn only<const N: usize>(conditions: [SeccompCondition; N]) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions.to_vec()).map_err(io::Error::other)
}

/// Of the lower half, which is all that the kernel reads of these.
fn argument(at: u8, op: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(at, SeccompCmpArgLen::Dword, op, value).map_err(io::Error::other)
}

/// On every kind of processor.
#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // Files and folders.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_read, libc::SYS_write,
    libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev,
    libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_ftruncate, libc::SYS_truncate, libc::SYS_fallocate,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_fadvise64, libc::SYS_readahead,
    libc::SYS_sendfile, libc::SYS_copy_file_range, libc::SYS_splice, libc::SYS_tee, libc::SYS_fstat,
    libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_mkdirat,
    libc::SYS_mknodat, libc::SYS_unlinkat, libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_readlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat,
    libc::SYS_utimensat, libc::SYS_umask, libc::SYS_flock, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_pipe2, libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr,
    libc::SYS_llistxattr, libc::SYS_flistxattr, libc::SYS_inotify_init1, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_signalfd4, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_restart_syscall,
    // Memory that the limit on address space counts.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise,
    libc::SYS_msync, libc::SYS_mincore, libc::SYS_membarrier, libc::SYS_get_mempolicy,
    libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect,
    // Processes, threads, signals.
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4, libc::SYS_waitid,
    libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_tgsigqueueinfo, libc::SYS_sigaltstack, libc::SYS_futex,
    libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_set_tid_address, libc::SYS_rseq, libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_getpgid,
    libc::SYS_setpgid, libc::SYS_getsid, libc::SYS_setsid, libc::SYS_sched_yield, libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_sched_getattr,
    libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_sched_rr_get_interval,
    libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_prlimit64, libc::SYS_getrlimit, libc::SYS_setrlimit,
    libc::SYS_getrusage, libc::SYS_times, libc::SYS_seccomp,
    // Who, when and where; a user of its own cannot change its identity.
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid,
    libc::SYS_getgroups, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid,
    libc::SYS_setresgid, libc::SYS_setgroups, libc::SYS_capget, libc::SYS_capset, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_getcpu, libc::SYS_getrandom, libc::SYS_gettimeofday, libc::SYS_clock_gettime, libc::SYS_clock_getres,
    libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_create, libc::SYS_timer_delete, libc::SYS_timer_settime,
    libc::SYS_timer_gettime, libc::SYS_timer_getoverrun,
    // Sockets.
    libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4, libc::SYS_connect, libc::SYS_shutdown,
    libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_sendto,
    libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg,
];

/// Older forms that some C libraries still use there.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_mkdir, libc::SYS_rmdir,
    libc::SYS_mknod, libc::SYS_unlink, libc::SYS_link, libc::SYS_symlink, libc::SYS_readlink, libc::SYS_rename,
    libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat,
    libc::SYS_getdents, libc::SYS_dup2, libc::SYS_pipe, libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_create,
    libc::SYS_epoll_wait, libc::SYS_eventfd, libc::SYS_signalfd, libc::SYS_inotify_init, libc::SYS_fork, libc::SYS_vfork,
    libc::SYS_getpgrp, libc::SYS_alarm, libc::SYS_pause, libc::SYS_time, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];
