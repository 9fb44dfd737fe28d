#!/usr/bin/env python3
"""Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through AMQP 0.9.1 (RabbitMQ).

    amqp_consumer.py [URL] [QUEUE]    URL: $AMQP_URL, amqp://guest:guest@127.0.0.1:5672/%2f   QUEUE: vm-states

Install:  apt install python3-pika, or pip install pika
Promise:  every event is printed at least once, in order. The durable QUEUE keeps what comes while this program is away, from
          its first start on, also over restarts of the server. An event is acknowledged when it has been printed; ended in
          between, the program prints it again next time.
"""
import json
import os
import signal
import sys
import time

import pika
from pika.exceptions import AMQPError

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
QUEUE = sys.argv[2] if len(sys.argv) > 2 else "vm-states"
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


def consume():
    with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
        channel = connection.channel()
        channel.exchange_declare("hookbus", "topic", durable=True)  # As hookbus declares it; whoever comes first makes it.
        channel.queue_declare(QUEUE, durable=True)
        channel.queue_bind(QUEUE, "hookbus", "hookbus.opennebula.state.vm.#")
        channel.basic_qos(prefetch_count=100)
        print(f"consuming from {QUEUE}", file=sys.stderr, flush=True)
        for delivery, _, body in channel.consume(QUEUE):
            event = json.loads(body)
            if is_new(event):
                show(event)
            channel.basic_ack(delivery.delivery_tag)


signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ends it as Ctrl-C does.
try:
    while True:
        try:
            consume()
        except (AMQPError, OSError) as error:
            print(f"{error!r}; connecting again", file=sys.stderr)
            time.sleep(1)
except KeyboardInterrupt:
    pass  # Leaving `with` has closed the connection; what was not acknowledged is in the queue.
