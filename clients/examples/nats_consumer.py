#!/usr/bin/env python3
"""Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through NATS JetStream.

    nats_consumer.py [URL] [NAME]     URL: $NATS_URL, nats://127.0.0.1:4222   NAME: vm-states

Install:  pip install nats-py
Promise:  every event in the stream is printed at least once, in order. The server remembers for the durable consumer NAME
          what was acknowledged, also while this program is away, for as long as the stream keeps events (7 days, 1 GiB).
          An event is acknowledged when it has been printed; ended in between, the program prints it again next time.
"""
import asyncio
import json
import os
import signal
import sys

import nats
from nats.errors import Error, TimeoutError

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
NAME = sys.argv[2] if len(sys.argv) > 2 else "vm-states"
seen = {}  # The last ids, oldest first.


def is_new(event):
    """At least once means that an event may come again, with the same source and id."""
    identity = (event["source"], event["id"])
    if identity in seen:
        return False
    seen[identity] = True
    if len(seen) > 10_000:
        del seen[next(iter(seen))]
    return True


def show(event):
    if "hookbusdropped" in event:
        print(f"{event['hookbusdropped']} events before this one were lost", file=sys.stderr)
    if event["type"] == "org.opennebula.state.vm":
        # The key is always there. `data` has the whole machine (its name: event["data"]["VM"]["NAME"]), unless it was too
        # large for the bus.
        _, state, lcm_state, number = event["hookbuskey"].strip().split("/")
        print(f"VM {number} is {lcm_state if state == 'ACTIVE' else state}", flush=True)


async def consume(connection):
    stream = connection.jetstream()
    subscription = await stream.pull_subscribe("hookbus.opennebula.state.vm.>", durable=NAME, stream="HOOKBUS")
    print(f"consuming as {NAME} from {URL}", file=sys.stderr, flush=True)
    while True:
        try:
            messages = await subscription.fetch(100, timeout=5)
        except TimeoutError:
            continue  # Nothing happened for 5 s, or the server went away: the library connects again by itself.
        for message in messages:
            event = json.loads(message.data)
            if is_new(event):
                show(event)
            await message.ack()


async def complain(error):
    print(f"NATS: {error!r}", file=sys.stderr)


async def main():
    stop = asyncio.current_task().cancel
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop)
    try:
        connection = await nats.connect(URL, max_reconnect_attempts=-1, error_cb=complain)
        while True:
            try:
                await consume(connection)
            except Error as error:  # The stream isn't there yet, say: hookbus makes it when it connects.
                print(f"{error}; trying again", file=sys.stderr)
                await asyncio.sleep(1)
    except asyncio.CancelledError:
        await connection.close()


asyncio.run(main())
