# Tries to get out. `port` is a listener of the host, `secret` and `outside` are files of the host, `host` a process there.
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
if [name for _, name in socket.if_nameindex() if name != "lo"]:
    raise SystemError("sees a network interface")
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
