# Hook template
#
# NAME = image-ready
# TYPE = state
# COMMAND = image_ready.rb
# STATE = READY
# RESOURCE = IMAGE
# ARGUMENTS = "$TEMPLATE"

#!/usr/bin/ruby

require 'base64'
require 'nokogiri'

#img_template = Nokogiri::XML(Base64::decode64(STDIN.gets.chomp)) for reading from STDIN
img_template = Nokogiri::XML(Base64::decode64(ARGV[0]))

img_id = img_template.xpath("//ID").text.to_i

puts "Image #{img_id} ready to use!!"
