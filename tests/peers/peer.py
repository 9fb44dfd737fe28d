#!/usr/bin/python3
"""A libzmq socket under remote control, for the tests (the protocol is described in tests/src/peer.rs).

Arguments: one JSON object {"type": "SUB", "url": "tcp://...", "options": {"SNDHWM": 0}}. Commands come on standard input,
one JSON array a line; what the socket receives goes to standard output, one JSON object a line. Bytes travel as Latin-1
text, so that every byte is one character. The program ends when its standard input does.
"""
import json
import os
import sys

import zmq


def main():
    config = json.loads(sys.argv[1])
    kind = config["type"]
    socket = zmq.Context.instance().socket(getattr(zmq, kind))
    socket.setsockopt(zmq.LINGER, 0)
    for name, value in config["options"].items():
        socket.setsockopt(getattr(zmq, name), value)
    socket.connect(config["url"])
    say({"ready": True})

    poller = zmq.Poller()
    poller.register(0, zmq.POLLIN)
    poller.register(socket, zmq.POLLIN)
    unread = b""
    done = 0
    while True:
        events = dict(poller.poll())
        if 0 in events:
            data = os.read(0, 1 << 20)
            if not data:
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                command, *arguments = json.loads(line)
                arguments = [argument.encode("latin-1") for argument in arguments]
                if command in ("subscribe", "unsubscribe"):
                    for prefix in arguments:
                        change(socket, kind, command, prefix)
                elif command == "send":
                    socket.send_multipart(arguments)
                elif command == "pause":
                    poller.unregister(socket)
                elif command == "resume":
                    poller.register(socket, zmq.POLLIN)
                else:
                    raise ValueError(f"unknown command {command}")
                done += 1
                say({"done": done})
        if socket in events:
            # What is there now, but not for ever: commands must not starve behind a flood. (A REQ may receive but once.)
            for _ in range(1 if kind == "REQ" else 1000):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                say({"message": [frame.decode("latin-1") for frame in frames]})


def change(socket, kind, command, prefix):
    """An XSUB's subscriptions are messages that begin with 1 or 0; a SUB has options for it."""
    if kind == "XSUB":
        socket.send((b"\x01" if command == "subscribe" else b"\x00") + prefix)
    else:
        socket.setsockopt(zmq.SUBSCRIBE if command == "subscribe" else zmq.UNSUBSCRIBE, prefix)


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


main()
