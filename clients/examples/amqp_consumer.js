#!/usr/bin/env node
// Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through AMQP 0.9.1 (RabbitMQ).
//
//     node amqp_consumer.js [URL] [QUEUE]    URL: $AMQP_URL, amqp://guest:guest@127.0.0.1:5672/%2f   QUEUE: vm-states
//
// Install:  npm install amqplib
// Promise:  every event is printed at least once, in order. The durable QUEUE keeps what comes while this program is away, from
//           its first start on, also over restarts of the server. An event is acknowledged when it has been printed; ended in
//           between, the program prints it again next time.
'use strict'
const amqp = require('amqplib')

const url = process.argv[2] ?? process.env.AMQP_URL ?? 'amqp://guest:guest@127.0.0.1:5672/%2f'
const queue = process.argv[3] ?? 'vm-states'

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

let connection
const consume = async () => {
  connection = await amqp.connect(url, { heartbeat: 30 })
  const closed = new Promise((resolve) => connection.on('close', resolve))
  connection.on('error', (error) => console.error(error.message))
  const channel = await connection.createChannel()
  channel.on('error', () => connection.close())
  await channel.assertExchange('hookbus', 'topic', { durable: true }) // As hookbus declares it; whoever comes first makes it.
  await channel.assertQueue(queue, { durable: true })
  await channel.bindQueue(queue, 'hookbus', 'hookbus.opennebula.state.vm.#')
  await channel.prefetch(100)
  await channel.consume(queue, (message) => {
    if (message === null) return connection.close() // Somebody has deleted the queue.
    const event = JSON.parse(message.content)
    if (isNew(event)) show(event)
    channel.ack(message)
  })
  console.error(`consuming from ${queue}`)
  await closed
}

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => Promise.resolve(connection?.close()).catch(() => {}).finally(() => process.exit(0)))
}

const forever = async () => {
  for (;;) {
    await consume().catch((error) => console.error(error.message))
    await new Promise((resolve) => setTimeout(resolve, 1000))
  }
}
forever()
