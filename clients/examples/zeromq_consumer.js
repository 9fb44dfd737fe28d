#!/usr/bin/env node
// Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through ZeroMQ, as OpenNebula's own.
//
//     node zeromq_consumer.js [URL]          URL: $ZEROMQ_URL, tcp://127.0.0.1:2101
//
// Install:  npm install zeromq
// Promise:  each event is printed at most once, in order. ZeroMQ has no acknowledgements: what happens while this program isn't
//           connected is gone. What was lost because it was too slow is told as `HOOKBUS GAP`. There are no repetitions and no ids.
'use strict'
const { Subscriber } = require('zeromq')

const url = process.argv[2] ?? process.env.ZEROMQ_URL ?? 'tcp://127.0.0.1:2101'

const socket = new Subscriber({
  receiveHighWaterMark: 0, // What waits, waits in hookbus, which tells what it had to drop; the library would drop in silence.
  heartbeatInterval: 10_000 // A connection that has died without a word is noticed, and made again by the library.
})

const consume = async () => {
  for await (const [key, content] of socket) {
    const text = Buffer.from(content.toString(), 'base64').toString()
    if (key.equals(Buffer.from('HOOKBUS GAP'))) {
      console.error(`${JSON.parse(text).count} events before the next one were lost`)
      continue
    }
    // `EVENT STATE VM/ACTIVE/RUNNING/42 `; `text` is an XML document with the whole machine.
    const [, state, lcmState, number] = key.toString().trim().split('/')
    console.log(`VM ${number} is ${state === 'ACTIVE' ? lcmState : state}`)
  }
}

// An event of a machine has two keys, and comes once for each that is subscribed to: these filters match one of them.
socket.subscribe('EVENT STATE VM/', 'HOOKBUS GAP')
socket.connect(url)
console.error(`consuming from ${url}`)
// Closing the socket ends the loop.
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => socket.close())
consume()
