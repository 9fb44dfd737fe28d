#!/usr/bin/env python3
"""Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through MQTT 5.

    mqtt_consumer.py [URL] [NAME]     URL: $MQTT_URL, mqtt://127.0.0.1:1883 (user:password@ and mqtts: work)   NAME: vm-states

Install:  apt install python3-paho-mqtt, or pip install paho-mqtt (1.6 and 2 both do)
Promise:  every event is printed at least once, in order. The server keeps a session under the client id NAME, from the first
          start of this program on, and in it what comes while the program is away, for a week (Mosquitto: up to
          max_queued_messages, 1000 unless set). The library acknowledges an event when on_message has returned, so after it
          was printed.
"""
import json
import os
import signal
import sys
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MQTT_URL", "mqtt://127.0.0.1:1883")
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


def on_message(client, userdata, message):
    event = json.loads(message.payload)
    if not is_new(event):
        return
    if "hookbusdropped" in event:
        print(f"{event['hookbusdropped']} events before this one were lost", file=sys.stderr)
    if event["type"] == "org.opennebula.state.vm":
        # The key is always there. `data` has the whole machine (its name: event["data"]["VM"]["NAME"]), unless it was too
        # large for the bus.
        _, state, lcm_state, number = event["hookbuskey"].strip().split("/")
        print(f"VM {number} is {lcm_state if state == 'ACTIVE' else state}", flush=True)


def on_connect(client, userdata, flags, reason, properties=None):
    print(f"{reason} as {NAME} at {URL}", file=sys.stderr, flush=True)
    client.subscribe("hookbus/opennebula/state/vm/#", qos=1)  # Again each time: the server may have lost the session.


def on_subscribe(client, userdata, mid, reasons, properties=None):
    print(f"consuming: {reasons[0]}", file=sys.stderr, flush=True)


version = [mqtt.CallbackAPIVersion.VERSION2] if hasattr(mqtt, "CallbackAPIVersion") else []  # paho 2 asks for it
client = mqtt.Client(*version, client_id=NAME, protocol=mqtt.MQTTv5)
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
url = urlsplit(URL)
if url.username:
    client.username_pw_set(url.username, url.password)
if url.scheme == "mqtts":
    client.tls_set()
session = Properties(PacketTypes.CONNECT)
session.SessionExpiryInterval = 7 * 24 * 3600
client.connect_async(url.hostname, url.port or (8883 if url.scheme == "mqtts" else 1883), clean_start=False, properties=session)

signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ends it as Ctrl-C does.
try:
    client.loop_forever(retry_first_connection=True)
except KeyboardInterrupt:
    client.disconnect()  # The session stays.
