//! [`Reply`]: what oned is told of an execution, so that `onehook show`, `log` and `retry` know of it.
//!
//! A request to the logger port of oned's driver is one text, which the driver answers with `ACK`:
//!
//! ```text
//! <return code> <hook id> <base64 of>
//!   <ARGUMENTS>a</ARGUMENTS><EXECUTION_RESULT><COMMAND>c</COMMAND><STDOUT>base64</STDOUT><STDERR>base64</STDERR><CODE>n</CODE></EXECUTION_RESULT>
//!   [<REMOTE_HOST>h</REMOTE_HOST>][<RETRY>yes</RETRY>]
//! ```
//!
//! Standard output and error are base64 with a line feed after every 60 characters and at the end; the whole is base64 in one piece.
//!
//! # Where the original is broken
//!
//! It escapes nothing. oned parses what it gets, and drops a record that is no XML without a word; so a hook with `&` or `<` in its
//! arguments leaves no record there. Here such characters are escaped, and those that XML has no way to write are replaced by U+FFFD.
//! What needs neither is written byte for byte as the original writes it.
//!
//! # Guarantees
//!
//! Nothing is lost here, and nothing is sent: whoever sends a request until it is answered may have oned store it twice.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::hook::Origin;
use crate::output::Output;
use crate::record::Record;

/// What oned is told of an execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The number of the hook.
    pub hook_id: i64,
    /// The arguments, expanded.
    pub arguments: String,
    /// The command line, with the arguments unless they went to standard input.
    pub command: String,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The exit code; 255 where there is none.
    pub code: i32,
    /// The host that it ran on, where that is another one.
    pub remote_host: Option<String>,
    /// Whether somebody asked for it to run again.
    pub retry: bool,
}

impl Reply {
    /// The reply for a record; nothing where its hook isn't one of oned.
    pub fn of(record: &Record) -> Option<Reply> {
        let Origin::Oned { id } = record.hook.origin else { return None };
        Some(Reply {
            hook_id: id,
            arguments: record.arguments.clone(),
            command: record.command.clone(),
            stdout: bytes(&record.stdout),
            stderr: bytes(&record.stderr),
            code: record.ending.code(),
            remote_host: record.host.clone(),
            retry: record.by_hand,
        })
    }

    /// The text for oned's driver.
    pub fn to_request(&self) -> String {
        format!("{} {} {}", self.code, self.hook_id, BASE64_STANDARD.encode(self.to_xml()))
    }

    /// The text that oned keeps.
    pub fn to_xml(&self) -> String {
        let mut xml = format!(
            "<ARGUMENTS>{}</ARGUMENTS><EXECUTION_RESULT><COMMAND>{}</COMMAND><STDOUT>{}</STDOUT><STDERR>{}</STDERR>\
             <CODE>{}</CODE></EXECUTION_RESULT>",
            escape(&self.arguments),
            escape(&self.command),
            base64_lines(&self.stdout),
            base64_lines(&self.stderr),
            self.code
        );
        if let Some(host) = self.remote_host.as_deref().filter(|host| !host.is_empty()) {
            xml.push_str(&format!("<REMOTE_HOST>{}</REMOTE_HOST>", escape(host)));
        }
        if self.retry {
            xml.push_str("<RETRY>yes</RETRY>");
        }
        xml
    }
}

/// All bytes that were kept, and a line about those that were not.
fn bytes(output: &Output) -> Vec<u8> {
    if output.cut_bytes == 0 {
        return output.bytes().into_owned();
    }
    let said = format!("\n[hookbus: {} bytes were cut here]\n", output.cut_bytes);
    [&*output.head, said.as_bytes(), &*output.tail].concat()
}

/// Base64 as Ruby's `Base64.encode64` writes it.
fn base64_lines(bytes: &[u8]) -> String {
    /// 60 characters.
    const LINE_BYTES: usize = 45;
    let mut text = String::with_capacity(bytes.len().div_ceil(LINE_BYTES) * 61);
    for line in bytes.chunks(LINE_BYTES) {
        BASE64_STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text
}

/// A text as it can stand in an element: read as XML it is that text again, save characters that XML 1.0 does not have.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // A parser makes a line feed of it otherwise.
            '\r' => escaped.push_str("&#13;"),
            '\t' | '\n' => escaped.push(c),
            '\0'..='\x1F' | '\u{FFFE}' | '\u{FFFF}' => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use hookbus_bridges::opennebula::Document;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_base64_are_those_of_ruby() {
        assert_eq!(base64_lines(b""), "");
        assert_eq!(base64_lines(b"a"), "YQ==\n");
        assert_eq!(base64_lines(&[0; 45]), format!("{}\n", "A".repeat(60)));
        assert_eq!(base64_lines(&[0; 46]), format!("{}\nAA==\n", "A".repeat(60)));
    }

    #[test]
    fn what_was_cut_is_said() {
        let output = Output { head: b"a\xFF".to_vec(), cut_bytes: 7, tail: b"\xFFb".to_vec() };
        assert_eq!(bytes(&output), b"a\xFF\n[hookbus: 7 bytes were cut here]\n\xFFb");
    }

    #[test]
    fn text_of_any_kind_leaves_a_record() {
        assert_eq!(
            escape("a&&b <c> ]]> \r\n\t\0\u{1b}\u{FFFF}ü"),
            "a&amp;&amp;b &lt;c&gt; ]]&gt; &#13;\n\t\u{FFFD}\u{FFFD}\u{FFFD}ü"
        );
        let reply = Reply {
            hook_id: 24,
            arguments: "a&&echo b".into(),
            command: "x.sh a&&echo b".into(),
            code: -1,
            remote_host: Some("<node>".into()),
            retry: true,
            ..Reply::default()
        };
        assert_eq!(
            reply.to_xml(),
            "<ARGUMENTS>a&amp;&amp;echo b</ARGUMENTS><EXECUTION_RESULT><COMMAND>x.sh a&amp;&amp;echo b</COMMAND><STDOUT></STDOUT>\
             <STDERR></STDERR><CODE>-1</CODE></EXECUTION_RESULT><REMOTE_HOST>&lt;node&gt;</REMOTE_HOST><RETRY>yes</RETRY>"
        );
        assert!(reply.to_request().starts_with("-1 24 PEFSR1"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(arguments in "\\PC{0,40}|[ -~\r\n\t]{0,40}", any in any::<String>()) {
            let reply = Reply { arguments: arguments.clone(), command: any, ..Reply::default() };
            let xml = format!("<HOOK_EXECUTION_RECORD>{}</HOOK_EXECUTION_RECORD>", reply.to_xml());
            let document = Document::parse(xml.as_bytes());
            prop_assert!(document.is_well_formed(), "{xml}");
            let read = document.root().and_then(|root| root.child("ARGUMENTS")).expect("it was written");
            prop_assert_eq!(read.text().into_owned(), arguments.into_bytes());
        }
    }
}
