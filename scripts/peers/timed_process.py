"""Programs with a time limit, for `check/gpu` and `bench/gpu`."""
import os
import signal
import subprocess


def run(command, limit, merge=False):
    """Exit code (None after `limit` seconds), standard output and standard error; with `merge` the latter is in the former.

    A program that takes too long is ended with all that it started: a child that goes on would keep card and pipe.
    Raises OSError when it cannot be started.
    """
    program = subprocess.Popen([str(word) for word in command], text=True, errors="replace", start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT if merge else subprocess.PIPE)
    try:
        out, errors = program.communicate(timeout=limit)
        return program.returncode, out, errors
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        out, errors = program.communicate()
        return None, out, errors
