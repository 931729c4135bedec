# Programs that want out, or more than they may have. Each comes to its end only where it got what it wanted; `# ==` begins
# one. The test puts before each: `calls`, numbers of system calls by name; `port`, a listener of the host, and `abstract`,
# its socket without a file; `secret` and `outside`, files of the host; `host`, a process there; `prefix`, the
# interpreter's folder; and this:
import ctypes
import errno
import mmap
import os
import signal
import socket
import sys
import time

NEW_USER, NEW_NS = 0x10000000, 0x00020000


def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(calls[name] if isinstance(name, str) else name), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# == memory: System V shared memory
call("shmget", 0, 1 << 30, 0o1600)
# == memory: memfd
file = call("memfd_create", b"x", 0)
for _ in range(64):
    os.write(file, b"x" * (1 << 20))
# == memory: memfd by Python
os.ftruncate(os.memfd_create("x"), 1 << 30)
# == memory: memfd_secret
call("memfd_secret", 0)
# == memory: System V message queue
call("msgget", 0, 0o1600)
# == memory: System V semaphores
call("semget", 0, 30000, 0o1600)
# == memory: POSIX message queue
call("mq_open", b"x", os.O_CREAT | os.O_RDWR, 0o600, None)
# == memory: io_uring
call("io_uring_setup", 4096, ctypes.create_string_buffer(120))
# == memory: userfaultfd
call("userfaultfd", 1)
# == memory: an anonymous map beyond the limit
mmap.mmap(-1, 1 << 30)
# == memory: a shared map beyond the limit
mmap.mmap(-1, 1 << 30, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
# == memory: the limit raised
import resource
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
# == memory: locked
call("mlock", ctypes.create_string_buffer(1 << 20), 1 << 20)
# == memory: pages given to a pipe
call("vmsplice", os.pipe()[1], ctypes.create_string_buffer(16), 1, 0)
# == memory: large pipes
import fcntl
for _ in range(20):
    fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)
# == memory: a file in /dev/shm
with open("/dev/shm/x", "wb") as file:
    file.write(b"x")
# == memory: much in /tmp
for number in range(64):
    with open(f"/tmp/{number}", "wb") as file:
        file.write(b"x" * (1 << 20))
# == files: ten thousand of them
for number in range(10000):
    open(f"/tmp/{number}", "wb").close()
# == files: one with a hole of a tebibyte
with open("/tmp/big", "wb") as file:
    file.truncate(1 << 40)
# == files: a thousand open
files = [open("/dev/null") for _ in range(1000)]
# == processes: a fork bomb
for _ in range(64):
    if os.fork() == 0:
        time.sleep(5)
        os._exit(0)
# == processes: threads
import threading
for _ in range(64):
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
# == processes: one that keeps running when the starter ends
call("prctl", 1, 0, 0, 0, 0)
# == output: without end
while True:
    os.write(2, b"x" * 65536)
# == keys: the session's key ring
call("keyctl", 0, -3, 0)
# == keys: the user's key ring
call("keyctl", 0, -4, 1)
# == keys: a key that the caller has
call("request_key", b"user", b"arle-test", None, -3)
# == keys: a new key, in the kernel's memory
call("add_key", b"user", b"x", b"x" * 32000, 32000, -2)
# == namespaces: a user namespace by unshare
call("unshare", NEW_USER)
# == namespaces: a mount namespace by unshare
call("unshare", NEW_NS)
# == namespaces: a user namespace by clone
if call("clone", NEW_USER | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    os._exit(0)
# == namespaces: by clone3
arguments = (ctypes.c_uint64 * 8)(NEW_USER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
if call("clone3", arguments, 64) == 0:
    os._exit(0)
# == namespaces: another's
call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), 0)
# == namespaces: another's, by a process
call("setns", call("pidfd_open", os.getppid() or 1, 0), NEW_USER)
# == mounts: a file system in memory
call("mount", b"x", b"/tmp", b"tmpfs", 0, None)
# == mounts: the processes
os.mkdir("/tmp/proc")
call("mount", b"x", b"/tmp/proc", b"proc", 0, None)
# == mounts: the system's files made writable
call("mount", None, b"/usr", None, 32 | 4096, None)
# == mounts: what a mount hides
call("umount2", b"/usr", 2)
# == mounts: by the new calls
call("fsopen", b"tmpfs", 0)
# == mounts: a copy of the tree
call("open_tree", -100, b"/", 1)
# == mounts: another root
os.chroot("/tmp")
# == mounts: another root by pivot_root
call("pivot_root", b".", b".")
# == files: a handle instead of a path
call("name_to_handle_at", -100, b"/", ctypes.create_string_buffer(b"\x80\0\0\0", 256), ctypes.create_string_buffer(8), 0)
# == files: opened by a handle
call("open_by_handle_at", 0, ctypes.create_string_buffer(256), 0)
# == sockets: the hypervisor's
socket.socket(40, socket.SOCK_STREAM)
# == sockets: the kernel's
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
# == sockets: packets
socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
# == sockets: the kernel's ciphers
socket.socket(38, socket.SOCK_SEQPACKET)
# == sockets: the internet's raw ones
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
# == sockets: a listener of the host
socket.create_connection(("127.0.0.1", port), 2)
# == sockets: an abstract socket of the host
socket.socket(socket.AF_UNIX).connect("\0" + abstract)
# == sockets: a datagram to elsewhere
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))
# == sockets: another name
socket.getaddrinfo("example.org", 80)
# == the host: a file read
open(secret).read()
# == the host: a program written over
open(outside, "r+b")
# == the host: the interpreter changed
open(prefix + "/arle-hostile", "w")
# == the host: passwords
open("/etc/shadow").read()
# == the host: its processes
os.listdir("/proc/1")
# == the host: the kernel's settings
os.listdir("/sys/kernel")
# == the host: a process signalled
if host == os.getpid():
    raise OSError
os.kill(host, 0)
# == the host: the starter signalled
os.kill(os.getppid() or 4194303, 0)
# == the host: the environment
if not os.environ.keys() - {"LC_CTYPE"}:
    raise OSError
# == the host: a disk
os.mknod("/tmp/disk", 0o060600, os.makedev(8, 0))
open("/tmp/disk").read(1)
# == the host: its memory
os.mknod("/tmp/mem", 0o020600, os.makedev(1, 1))
open("/tmp/mem").read(1)
# == the host: its log
call("syslog", 3, ctypes.create_string_buffer(64), 64)
# == the host: its name
socket.sethostname("x")
# == the host: its clock
time.clock_settime(time.CLOCK_REALTIME, 0)
# == the host: its end
call("reboot", 0xfee1dead, 672274793, 0)
# == the kernel: BPF
call("bpf", 0, ctypes.create_string_buffer(128), 128)
# == the kernel: performance counters
call("perf_event_open", ctypes.create_string_buffer(b"\1\0\0\0\x80\0\0\0", 128), 0, -1, -1, 0)
# == the kernel: a module
call("init_module", b"x", 1, b"")
# == the kernel: another one
call("kexec_load", 0, 0, None, 0)
# == others: traced
child = os.fork()
if child == 0:
    time.sleep(5)
    os._exit(0)
call("ptrace", 16, child, 0, 0)
# == others: their memory
text = ctypes.create_string_buffer(16)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(text), 16)
call("process_vm_readv", os.getpid(), vector, 1, vector, 1, 0)
# == others: their files
call("pidfd_getfd", call("pidfd_open", 1, 0), 0, 0)
# == privileges: root
os.setuid(0)
# == privileges: capabilities
call("capset", ctypes.create_string_buffer(b"\x22\x05\x08\x20" + b"\0" * 4, 8), ctypes.create_string_buffer(b"\xff" * 24))
# == privileges: a program that belongs to root
for name in ["/bin/su", "/usr/bin/sudo", "/bin/mount", "/usr/bin/passwd"]:
    if os.path.exists(name) and os.spawnv(os.P_WAIT, name, [name, "--version"]) == 0:
        if os.stat(name).st_mode & 0o4000 and not os.statvfs(name).f_flag & os.ST_NOSUID:
            break
else:
    raise OSError
# == terminals: input put into one
import fcntl
fcntl.ioctl(os.open("/dev/tty", os.O_RDWR), 0x5412, b"x")
# == the filter: by the numbers of another kind of program
call(0x40000000 | calls["memfd_create"], b"x", 0)
# == the filter: by calls of 32 bits
if os.uname().machine != "x86_64":
    raise OSError
# memfd_create there: mov eax, 356; xor ebx, ebx; xor ecx, ecx; int 0x80; ret, with rbx kept.
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\x53\xb8\x64\x01\x00\x00\x31\xdb\x31\xc9\xcd\x80\x5b\xc3")
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
