#!/usr/bin/env node
// Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through MQTT 5.
//
//     node mqtt_consumer.js [URL] [NAME]     URL: $MQTT_URL, mqtt://127.0.0.1:1883 (user:password@ and mqtts: work)   NAME: vm-states
//
// Install:  npm install mqtt
// Promise:  every event is printed at least once, in order. The server keeps a session under the client id NAME, from the first
//           start of this program on, and in it what comes while the program is away, for a week (Mosquitto: up to
//           max_queued_messages, 1000 unless set). The library acknowledges an event when the handler has returned.
'use strict'
const mqtt = require('mqtt')

const url = process.argv[2] ?? process.env.MQTT_URL ?? 'mqtt://127.0.0.1:1883'
const name = process.argv[3] ?? 'vm-states'

// At least once means that an event may come again, with the same source and id. A Set keeps the order of insertion.
const seen = new Set()
const isNew = ({ source, id }) => {
  const identity = `${source} ${id}`
  if (seen.has(identity)) return false
  seen.add(identity)
  if (seen.size > 10_000) seen.delete(seen.values().next().value)
  return true
}

const show = (event) => {
  if (event.hookbusdropped) console.error(`${event.hookbusdropped} events before this one were lost`)
  if (event.type !== 'org.opennebula.state.vm') return
  // The key is always there. `data` has the whole machine (event.data.VM.NAME), unless it was too large for the bus.
  const [, state, lcmState, number] = event.hookbuskey.trim().split('/')
  console.log(`VM ${number} is ${state === 'ACTIVE' ? lcmState : state}`)
}

// The library connects again by itself, as often as it takes.
const client = mqtt.connect(url, {
  clientId: name,
  protocolVersion: 5,
  clean: false,
  properties: { sessionExpiryInterval: 7 * 24 * 3600 }
})
client.on('error', (error) => console.error(error.message))
client.on('message', (topic, payload) => {
  const event = JSON.parse(payload)
  if (isNew(event)) show(event)
})
// Again each time: the server may have lost the session.
client.on('connect', () =>
  client.subscribe('hookbus/opennebula/state/vm/#', { qos: 1 }, (error) =>
    console.error(error ? error.message : `consuming as ${name} from ${url}`)
  )
)

for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => client.end(() => process.exit(0)))
