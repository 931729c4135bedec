# Tries to get out. `port` is a listener of the host, `secret` and `outside` are files of the host, `host` a process there,
# `calls` numbers of system calls that the kernel must not answer.
import errno
import os
import socket


def fails(what, attempt):
    try:
        attempt()
    except (OSError, NotImplementedError):
        return
    raise SystemError("could " + what)


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        client.connect(address)


def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("192.0.2.1", 53))


fails("reach the host", lambda: connect(socket.AF_INET, ("127.0.0.1", port)))
fails("reach the network", lambda: connect(socket.AF_INET, ("192.0.2.1", 80)))
fails("send to the network", send)
for index in range(1, 100):
    try:
        if socket.if_indextoname(index) != "lo":
            raise SystemError("sees a network interface")
    except OSError:
        pass
for family in [16, 17, 38, 40]:
    fails("open a socket of family %d" % family, lambda: socket.socket(family, socket.SOCK_RAW if family < 38 else 5))
try:
    import ctypes
except ImportError:
    # An interpreter without it makes none of these calls either.
    calls = {}
for name, number in calls.items():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.ENOSYS:
        raise SystemError("could call " + name)
fails("read a file of the host", lambda: open(secret))
fails("write over a program of the host", lambda: open(outside, "r+b"))
fails("read the password file", lambda: open("/etc/shadow"))
fails("see processes of the host", lambda: os.listdir("/proc/" + str(host)))
fails("signal a process of the host", lambda: os.kill(host, 0) if os.getpid() != host else os.kill(-1, 0))
fails("change the system's files", lambda: open("/usr/arle-probe", "w"))
fails("become root", lambda: os.setuid(0))
fails("mount", lambda: os.chroot("/tmp"))
if os.getpid() != 1:
    raise SystemError("shares its process namespace")
if os.environ.keys() - {"LC_CTYPE"}:
    raise SystemError("has an environment")
with open("/tmp/own", "w") as own:
    own.write("x")
