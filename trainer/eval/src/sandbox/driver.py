# Runs one program. Standard input: a line that only a program that came to its end may echo, then the program.
import os
import sys


def run():
    result = os.dup(1)
    os.dup2(2, 1)
    password, _, program = sys.stdin.buffer.read().decode().partition("\n")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    exec(compile(program, "program", "exec"), {})
    sys.stdout.flush()
    os.write(result, password.encode())


run()
