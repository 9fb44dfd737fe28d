#!/bin/bash
# Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through MQTT 5, with nothing but a shell.
#
#     mqtt_consumer.sh [URL] [NAME]     URL: $MQTT_URL, mqtt://127.0.0.1:1883 (user:password@ and mqtts: work)   NAME: vm-states
#
# Install:  apt install mosquitto-clients jq
# Promise:  every event is printed at least once, in order, save that mosquitto_sub acknowledges what it has read before it is
#           printed: what lies between the two when one of them is killed is lost. (Ended by a signal or by Ctrl-C, nothing is.) The
#           server keeps a session under the client id NAME, from the first start of this program on, and in it what comes
#           while the program is away, for a week (Mosquitto: up to max_queued_messages, 1000 unless set).
url="${1:-${MQTT_URL:-mqtt://127.0.0.1:1883}}"
name="${2:-vm-states}"
topic='hookbus/opennebula/state/vm/#'

# At least once means that an event may come again, with the same source and id: the last 1000 are remembered. The key
# (`EVENT STATE VM/ACTIVE/RUNNING/42 `) is always there; `.data` has the whole machine (.data.VM.NAME), unless it was too large.
# shellcheck disable=SC2016
program='
  foreach inputs as $event ({seen: [], new: false};
    [$event.source, $event.id] as $identity
    | .new = all(.seen[]; . != $identity)
    | if .new then .seen = (.seen + [$identity])[-1000:] else . end;
    select(.new and $event.type == "org.opennebula.state.vm")
    | $event.hookbuskey | rtrimstr(" ") | split("/")
    | "VM \(.[3]) is \(if .[1] == "ACTIVE" then .[2] else .[1] end)")'

# jq ends when its input does, not with Ctrl-C, so that all that was read is printed.
exec 3> >(trap '' INT TERM; exec jq --unbuffered -nr "$program")
printer=$!
trap 'stop=yes; kill "$subscriber" 2>/dev/null' INT TERM
echo "consuming as $name" >&2

while [[ -z $stop ]]; do
  # In the background, because the shell hears signals while it waits, not while a command runs.
  mosquitto_sub -L "$url/$topic" -i "$name" -V mqttv5 -q 1 -c -x 604800 >&3 &
  subscriber=$!
  wait "$subscriber"
  [[ -n $stop ]] || { sleep 1 & wait $!; }
done
wait "$subscriber"
exec 3>&-
wait "$printer"
exit 0
