#!/usr/bin/env python3
"""Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through ZeroMQ, as OpenNebula's own.

    zeromq_consumer.py [URL]          URL: $ZEROMQ_URL, tcp://127.0.0.1:2101

Install:  apt install python3-zmq, or pip install pyzmq
Promise:  each event is printed at most once, in order. ZeroMQ has no acknowledgements: what happens while this program isn't
          connected is gone. What was lost because it was too slow is told as `HOOKBUS GAP`. There are no repetitions and no ids.
"""
import base64
import json
import os
import signal
import sys
from xml.etree import ElementTree

import zmq

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ZEROMQ_URL", "tcp://127.0.0.1:2101")

socket = zmq.Context.instance().socket(zmq.SUB)
socket.linger = 0
socket.rcvhwm = 0  # What waits, waits in hookbus, which tells what it had to drop; the library would drop in silence.
socket.heartbeat_ivl = 10_000  # A connection that has died without a word is noticed, and made again by the library.
# An event of a machine has two keys, and comes once for each that is subscribed to: these filters match one of them.
socket.subscribe(b"EVENT STATE VM/")
socket.subscribe(b"HOOKBUS GAP")
socket.connect(URL)
print(f"consuming from {URL}", file=sys.stderr, flush=True)

signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ends it as Ctrl-C does.
try:
    while True:
        key, content = socket.recv_multipart()
        content = base64.b64decode(content)
        if key == b"HOOKBUS GAP":
            print(f"{json.loads(content)['count']} events before the next one were lost", file=sys.stderr)
            continue
        # The key says it, too: `EVENT STATE VM/ACTIVE/RUNNING/42 `. The document has the whole machine.
        message = ElementTree.fromstring(content)
        state, lcm_state = message.findtext("STATE"), message.findtext("LCM_STATE")
        print(f"VM {message.findtext('RESOURCE_ID')} is {lcm_state if state == 'ACTIVE' else state}", flush=True)
except KeyboardInterrupt:
    socket.close()
