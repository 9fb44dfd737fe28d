#!/usr/bin/env ruby
# Prints "VM 42 is RUNNING" for each state that a virtual machine reaches: hookbus through ZeroMQ, as OpenNebula's own.
#
#     zeromq_consumer.rb [URL]          URL: $ZEROMQ_URL, tcp://127.0.0.1:2101
#
# Install:  apt install ruby-ffi-rzmq (OpenNebula's frontend has it already), or gem install ffi-rzmq
# Promise:  each event is printed at most once, in order. ZeroMQ has no acknowledgements: what happens while this program isn't
#           connected is gone. What was lost because it was too slow is told as `HOOKBUS GAP`. There are no repetitions and no ids.
require 'base64'
require 'ffi-rzmq'
require 'json'
require 'rexml/document'

url = ARGV[0] || ENV['ZEROMQ_URL'] || 'tcp://127.0.0.1:2101'
$stdout.sync = true

def must(result)
  abort "ZeroMQ: #{ZMQ::Util.error_string}" unless ZMQ::Util.resultcode_ok?(result)
end

context = ZMQ::Context.new # In a variable, because it ends its sockets when it is collected as garbage.
socket = context.socket(ZMQ::SUB)
must socket.setsockopt(ZMQ::LINGER, 0)
must socket.setsockopt(ZMQ::RCVTIMEO, 500) # Signals are looked for at least twice a second.
must socket.setsockopt(ZMQ::RCVHWM, 0) # What waits, waits in hookbus, which tells what it had to drop.
# An event of a machine has two keys, and comes once for each that is subscribed to: these filters match one of them.
must socket.setsockopt(ZMQ::SUBSCRIBE, 'EVENT STATE VM/')
must socket.setsockopt(ZMQ::SUBSCRIBE, 'HOOKBUS GAP')
must socket.connect(url)
warn "consuming from #{url}"

stop = false
%w[INT TERM].each { |signal| trap(signal) { stop = true } }

until stop
  frames = []
  unless ZMQ::Util.resultcode_ok?(socket.recv_strings(frames))
    # Nothing came within the time, or a signal did. The library connects again by itself.
    next if [ZMQ::EAGAIN, ZMQ::EINTR].include?(ZMQ::Util.errno)

    abort "ZeroMQ: #{ZMQ::Util.error_string}"
  end

  key, content = frames[0], Base64.decode64(frames[1])
  if key == 'HOOKBUS GAP'
    warn "#{JSON.parse(content)['count']} events before the next one were lost"
    next
  end
  # The key says it, too: `EVENT STATE VM/ACTIVE/RUNNING/42 `. The document has the whole machine.
  message = REXML::Document.new(content.force_encoding('UTF-8')).root.elements
  state = message['STATE'].text
  puts "VM #{message['RESOURCE_ID'].text} is #{state == 'ACTIVE' ? message['LCM_STATE'].text : state}"
end
socket.close
context.terminate
