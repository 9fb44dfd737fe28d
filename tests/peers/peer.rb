#!/usr/bin/ruby
# A libzmq socket under remote control, through Ruby's ffi-rzmq, which OpenNebula's own programs use. The protocol is
# described in tests/src/peer.rs and is the same as that of peer.py.
require 'json'
require 'ffi-rzmq'

# ffi-rzmq is older than libzmq's heartbeats and does not know their names (from zmq.h).
NEWER_OPTIONS = { 'HEARTBEAT_IVL' => 75, 'HEARTBEAT_TTL' => 76, 'HEARTBEAT_TIMEOUT' => 77 }.freeze

$stdout.sync = true

def say(what)
  puts JSON.generate(what)
end

def must(result)
  raise "libzmq: #{ZMQ::Util.error_string}" unless ZMQ::Util.resultcode_ok?(result)
end

def text(bytes)
  bytes.dup.force_encoding('ISO-8859-1').encode('UTF-8')
end

config = JSON.parse(ARGV.fetch(0))
kind = config.fetch('type')
context = ZMQ::Context.new(1)
socket = context.socket(ZMQ.const_get(kind))
must socket.setsockopt(ZMQ::LINGER, 0)
config.fetch('options').each do |name, value|
  if NEWER_OPTIONS.key?(name)
    pointer = FFI::MemoryPointer.new(:int).write_int(value)
    must LibZMQ.zmq_setsockopt(socket.socket, NEWER_OPTIONS[name], pointer, 4)
  else
    must socket.setsockopt(ZMQ.const_get(name), value)
  end
end
must socket.connect(config.fetch('url'))
say('ready' => true)

poller = ZMQ::Poller.new
poller.register_readable(socket)
poller.register_readable($stdin)
unread = String.new
done = 0

loop do
  poller.poll(:blocking)
  readable = poller.readables

  if readable.include?($stdin)
    begin
      unread << $stdin.readpartial(1 << 20)
    rescue EOFError
      exit
    end
    while (line = unread.slice!(/\A[^\n]*\n/))
      command, *arguments = JSON.parse(line)
      arguments.map! { |argument| argument.encode('ISO-8859-1').force_encoding('BINARY') }
      case command
      when 'subscribe', 'unsubscribe'
        arguments.each do |prefix|
          if kind == 'XSUB'
            must socket.send_string((command == 'subscribe' ? "\x01" : "\x00").b + prefix)
          else
            option = command == 'subscribe' ? ZMQ::SUBSCRIBE : ZMQ::UNSUBSCRIBE
            must socket.setsockopt(option, prefix, prefix.bytesize)
          end
        end
      when 'send' then must socket.send_strings(arguments)
      when 'pause' then poller.deregister_readable(socket)
      when 'resume' then poller.register_readable(socket)
      else raise "unknown command #{command}"
      end
      done += 1
      say('done' => done)
    end
  end

  next unless readable.include?(socket)

  1000.times do
    frames = []
    break unless ZMQ::Util.resultcode_ok?(socket.recv_strings(frames, ZMQ::DONTWAIT))

    say('message' => frames.map { |frame| text(frame) })
  end
end
