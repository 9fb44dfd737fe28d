"""Starts a program the way oned starts its drivers, which no shell can do: every signal blocked, descriptor 2 closed, in a
directory that isn't the program's, as an ordinary user where we are root. (A shell would clear the signal mask.)

Arguments: one JSON object {"program": path, "argv": [..], "env": {..}, "cwd": path, "uid": number or null}. The program is
opened before the privileges go, since a build directory may be closed to others.
"""
import json
import os
import signal
import sys

config = json.loads(sys.argv[1])
program = os.open(config["program"], os.O_RDONLY | os.O_CLOEXEC)
os.chdir(config["cwd"])
if config["uid"] is not None:
    os.setgroups([])
    os.setgid(config["uid"])
    os.setuid(config["uid"])
# Python ignores these two; oned leaves them alone.
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.close(2)
os.execve(program, config["argv"], config["env"])
