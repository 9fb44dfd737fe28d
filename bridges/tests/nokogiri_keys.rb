# The keys that OpenNebula's own driver gives an event, for comparison. Speaks over a pipe:
#
#   in:   <length of base64, 4 bytes, big endian> <base64>
#   out:  <count of keys, 1 byte> { <length, 4 bytes, big endian> <key> }     count 255: an error, with its text as one key
#
# This is the driver's way with an event: lenient base64, Nokogiri (libxml2, recovering), the first node of each name. With one
# difference: of several HOOK_TYPE elements the first decides, as it does in hookbus, rather than their joined text.

begin
    require 'nokogiri'
rescue LoadError => e
    warn "nokogiri_keys.rb: #{e.message}; install Debian's ruby-nokogiri (or: gem install nokogiri)"
    exit 3
end
require 'base64'

def text(xml, path)
    node = xml.xpath(path)[0] or raise "no #{path}"
    node.text
end

def keys(base64)
    xml = Nokogiri::XML(Base64.decode64(base64))
    type = xml.xpath('//HOOK_TYPE')[0]
    case type && type.text.b
    when 'API'
        ["EVENT API #{text(xml, '//CALL')} #{text(xml, '//CALL_INFO/RESULT')}"]
    when 'STATE'
        object = text(xml, '//HOOK_OBJECT')
        state  = text(xml, '//STATE')
        lcm    = text(xml, '//LCM_STATE') if object == 'VM'
        id     = text(xml, '//RESOURCE_ID')
        service = xml.xpath('//SERVICE_ID')[0]
        keys = ["EVENT #{object} #{id}/#{state}/#{lcm} ", "EVENT STATE #{object}/#{state}/#{lcm}/#{id} "]
        keys << "EVENT SERVICE #{service.text} " if service
        keys
    else
        ['EVENT ']
    end
end

$stdin.binmode
$stdout.binmode
$stdout.sync = false
$stdout.write("READY\n")
$stdout.flush

while (head = $stdin.read(4))
    base64 = $stdin.read(head.unpack1('N'))
    begin
        found = keys(base64)
        count = found.size
    rescue StandardError => e
        found = [e.message.to_s]
        count = 255
    end
    $stdout.write([count].pack('C') + found.map {|key| [key.bytesize].pack('N') + key.b }.join)
    $stdout.flush
end
