// A subscriber under remote control, through the `zeromq` package of Node.js, which OpenNebula's FireEdge uses. The protocol
// is described in tests/src/peer.rs and is the same as that of peer.py, but for pause and resume.
//
// Type SUB uses the package's present interface, as FireEdge's hooks.js does: `new zeromq.Subscriber()`, `subscribe`,
// `connect`, `for await`. Type SUB-v5 uses the interface of its version 5, which older FireEdges were written for.
'use strict'
const readline = require('node:readline')

const say = (what) => process.stdout.write(JSON.stringify(what) + '\n')
const message = (frames) => say({ message: frames.map((frame) => frame.toString('latin1')) })
const config = JSON.parse(process.argv[2])

let socket
if (config.type === 'SUB-v5') {
  socket = require('zeromq/v5-compat').socket('sub')
  socket.connect(config.url)
  socket.on('message', (...frames) => message(frames))
} else {
  const { Subscriber } = require('zeromq')
  socket = new Subscriber(config.options)
  socket.connect(config.url)
  const receive = async () => {
    for await (const frames of socket) message(frames)
  }
  receive().catch((error) => {
    console.error(error)
    process.exit(1)
  })
}
say({ ready: true })

let done = 0
const commands = readline.createInterface({ input: process.stdin })
commands.on('line', (line) => {
  const [command, ...prefixes] = JSON.parse(line)
  if (command !== 'subscribe' && command !== 'unsubscribe') throw new Error(`unknown command ${command}`)
  for (const prefix of prefixes) socket[command](Buffer.from(prefix, 'latin1'))
  say({ done: ++done })
})
commands.on('close', () => process.exit(0))
