# What Nokogiri makes of a document, for comparison. Speaks over a pipe:
#
#   in:   <length of the document, 4 bytes, big endian> <document>
#   out:  <count, 1 byte> { <length, 4 bytes, big endian> <answer> }     count 255: an error, with its text as one answer
#
# The answers: `1` if there was no error (save in the use of namespaces), else `0`; then of the root, and of the first CALL_INFO,
# VM, HOST, IMAGE and VNET, its text and what to_s writes, both empty where there is no such element; then names and texts of
# the elements below the root, one a line.

begin
    require 'nokogiri'
rescue LoadError => e
    warn "nokogiri_trees.rb: #{e.message}; install Debian's ruby-nokogiri (or: gem install nokogiri)"
    exit 3
end

NAMESPACE_ERRORS = 3

def answers(text)
    xml = Nokogiri::XML(text)
    errors = xml.errors.reject {|error| error.domain == NAMESPACE_ERRORS || error.warning? }
    elements = [xml.root] + %w[CALL_INFO VM HOST IMAGE VNET].map {|name| xml.xpath("//#{name}")[0] }
    below = xml.root ? xml.root.element_children.map {|child| "#{child.name}=#{child.text}\n".b }.join : ''
    [errors.empty? ? '1' : '0'] + elements.flat_map {|element| element ? [element.text, element.to_s] : ['', ''] } + [below]
end

# libxml2 tells there about each text that it can't write as UTF-8.
$stderr.reopen(File::NULL)
$stdin.binmode
$stdout.binmode
$stdout.sync = false
$stdout.write("READY\n")
$stdout.flush

while (head = $stdin.read(4))
    text = $stdin.read(head.unpack1('N'))
    begin
        found = answers(text || '')
        count = found.size
    rescue StandardError => e
        found = [e.message.to_s]
        count = 255
    end
    $stdout.write([count].pack('C') + found.map {|answer| [answer.bytesize].pack('N') + answer.b }.join)
    $stdout.flush
end
