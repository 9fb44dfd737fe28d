//! The name under which an event is published on a bus.
//!
//! | event | parts, below the root |
//! | --- | --- |
//! | API call | `opennebula` `api` `<call>` `ok` or `failed` |
//! | state change | `opennebula` `state` `<vm, host, image, net>` `<STATE>` `<LCM_STATE>` `<id>` |
//! | OpenNebula's event without a header | `opennebula` `other` |
//! | Ganeti hook | `ganeti` `<object type, lower case>` `<hooks path>` `<phase>` `<name>` |
//! | Ganeti job | `ganeti` `job` `<status>` `<job id>` |
//! | hook result | `hook` `<name>` `success` or `failure` |
//! | anything else | `custom` and the words of its key: what stands between blanks, dots and slashes |
//! | OpenNebula's `RETRY` | none: it is for executors on ZeroMQ only |
//!
//! # Encoding
//!
//! Names are ASCII, without blanks, on every bus. An empty part is `-`. In a part, control characters, blanks, bytes that are not ASCII and
//! `%`, `*`, `>`, `+`, `#`, `/` are percent-encoded, the same way for all buses, so that a name means the same on all of them.
//! A dot stays a dot (`one.vm.allocate`), also where the bus has dots between parts: there such a part takes several places. Only
//! a dot that would make an empty place (the first or last of a part, or one behind another) becomes `%2E`.
//!
//! Names are for filters, not for identity: where dots separate, the parts `a.b` and `a`, `b` give one address. Apart from that and from what
//! is cut, two lists of parts give two addresses, save that `-` and the empty part look alike.

use std::fmt::Write as _;

use hookbus_broker::Received;
use sha2::{Digest as _, Sha256};

use crate::cloudevents::telling;

/// What stands between the parts, where they are kept: it is percent-encoded inside of them.
const BETWEEN: char = '\0';

/// `~` and 16 hexadecimal digits, at the end of an address that was cut.
const MARK_BYTES: usize = 17;

/// The name of an event: its parts, root first, each percent-encoded and not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventName {
    joined: Box<str>,
}

impl EventName {
    /// The name of an event below `root`, whose dots and slashes separate parts; `None` for a retry, which only ZeroMQ carries.
    ///
    /// The key that tells most decides, as for the extension `hookbuskey`.
    pub fn of(event: &Received, root: &str) -> Option<Self> {
        Self::of_key(telling(event.keys()), root)
    }

    /// The name of an event with this key.
    pub fn of_key(key: &[u8], root: &str) -> Option<Self> {
        let mut name = Builder { joined: String::with_capacity(root.len() + key.len() + 32) };
        name.words(root.as_bytes(), |byte| matches!(byte, b'.' | b'/'));
        if let Some(rest) = key.strip_prefix(b"EVENT API ") {
            let (call, result) = around_last(rest, b' ');
            name.plain("opennebula").plain("api").part(call).plain(if result == b"1" { "ok" } else { "failed" });
        } else if let Some(rest) = key.strip_prefix(b"EVENT STATE ") {
            // <OBJ>/<STATE>/<LCM_STATE>/<id>: what is too much goes to LCM_STATE.
            let (object, rest) = around_first(without_blank(rest), b'/');
            let (states, id) = around_last(rest, b'/');
            let (state, lcm_state) = around_first(states, b'/');
            name.plain("opennebula").plain("state").part(&object.to_ascii_lowercase());
            name.part(state).part(lcm_state).part(id);
        } else if let Some(rest) = key.strip_prefix(b"EVENT GANETI JOB/") {
            let (status, id) = around_first(without_blank(rest), b'/');
            name.plain("ganeti").plain("job").part(status).part(id);
        } else if let Some(rest) = key.strip_prefix(b"EVENT GANETI ") {
            // <OBJECT_TYPE>/<hooks path>/<phase>/<name>: what is too much goes to the name.
            let (object, rest) = around_first(without_blank(rest), b'/');
            let (path, rest) = around_first(rest, b'/');
            let (phase, of) = around_first(rest, b'/');
            name.plain("ganeti").part(&object.to_ascii_lowercase()).part(path).part(phase).part(of);
        } else if let Some(rest) = key.strip_prefix(b"HOOKBUS HOOK ") {
            let (hook, result) = around_last(without_blank(rest), b'/');
            name.plain("hook").part(hook).part(result);
        } else if key.starts_with(b"EVENT ") {
            name.plain("opennebula").plain("other");
        } else if key.starts_with(b"RETRY") {
            return None;
        } else {
            name.plain("custom");
            if name.words(key, |byte| matches!(byte, b' ' | b'.' | b'/')) == 0 {
                name.part(b"");
            }
        }
        Some(EventName { joined: name.joined.into() })
    }

    /// A name of these parts.
    pub fn of_parts<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
        let mut name = Builder { joined: String::new() };
        for part in parts {
            name.part(part.as_ref());
        }
        EventName { joined: name.joined.into() }
    }

    /// The parts, root first.
    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        // Only the name of no parts at all is empty.
        self.joined.split(BETWEEN).filter(|part| !part.is_empty())
    }

    /// The parts with this between them. What is longer than `max_bytes` is cut, and ends in `~` and the first 16 hexadecimal digits of
    /// the SHA-256 of the whole; a limit of less than these 17 bytes is taken for 17.
    pub fn address(&self, separator: char, max_bytes: usize) -> Box<str> {
        let mut address = self.joined.replace(BETWEEN, separator.encode_utf8(&mut [0; 4]));
        if address.len() > max_bytes {
            let mark = digest(&address, 8);
            truncate(&mut address, max_bytes.saturating_sub(MARK_BYTES));
            address.push('~');
            address.push_str(&mark);
        }
        address.into()
    }
}

/// The first `bytes` of a text's SHA-256, in hexadecimal.
pub(super) fn digest(text: &str, bytes: usize) -> String {
    let mut hex = String::with_capacity(2 * bytes);
    for byte in Sha256::digest(text.as_bytes()).iter().take(bytes) {
        write!(hex, "{byte:02x}").expect("writing to memory does not fail");
    }
    hex
}

/// Cuts a text, but no character and no `%XX`.
pub(super) fn truncate(text: &mut String, bytes: usize) {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if let Some(escape) = text[..end].rfind('%')
        && escape + 3 > end
    {
        end = escape;
    }
    text.truncate(end);
}

struct Builder {
    joined: String,
}

impl Builder {
    /// Adds a part that is ours: nothing in it needs encoding.
    fn plain(&mut self, part: &str) -> &mut Self {
        self.open();
        self.joined.push_str(part);
        self
    }

    /// Adds a part, encoded.
    fn part(&mut self, part: &[u8]) -> &mut Self {
        self.open();
        if part.is_empty() {
            self.joined.push('-');
        }
        let mut after_dot = true;
        for (at, &byte) in part.iter().enumerate() {
            let is_dot = byte == b'.';
            let stays = match byte {
                b'.' => !after_dot && at + 1 < part.len(),
                b'%' | b'*' | b'>' | b'+' | b'#' | b'/' => false,
                _ => byte.is_ascii_graphic(),
            };
            if stays {
                self.joined.push(char::from(byte));
            } else {
                write!(self.joined, "%{byte:02X}").expect("writing to memory does not fail");
            }
            after_dot = is_dot && stays;
        }
        self
    }

    /// Adds what stands between separators, without what is empty, and says how many parts that gave.
    fn words(&mut self, text: &[u8], is_separator: impl Fn(u8) -> bool) -> usize {
        let mut count = 0;
        for word in text.split(|&byte| is_separator(byte)).filter(|word| !word.is_empty()) {
            self.part(word);
            count += 1;
        }
        count
    }

    fn open(&mut self) {
        if !self.joined.is_empty() {
            self.joined.push(BETWEEN);
        }
    }
}

fn without_blank(text: &[u8]) -> &[u8] {
    text.strip_suffix(b" ").unwrap_or(text)
}

/// What is before the first such byte, and behind it; without one, everything and nothing.
fn around_first(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    memchr::memchr(byte, text).map_or((text, &[]), |at| (&text[..at], &text[at + 1..]))
}

/// What is before the last such byte, and behind it; without one, everything and nothing.
fn around_last(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    memchr::memrchr(byte, text).map_or((text, &[]), |at| (&text[..at], &text[at + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(key: &str) -> String {
        EventName::of_key(key.as_bytes(), "hookbus").unwrap().address('.', 255).into()
    }

    #[test]
    fn names_of_events() {
        let table = [
            ("EVENT API one.vm.allocate 1", "hookbus.opennebula.api.one.vm.allocate.ok"),
            ("EVENT API one.vm.allocate 0", "hookbus.opennebula.api.one.vm.allocate.failed"),
            ("EVENT API  0", "hookbus.opennebula.api.-.failed"),
            ("EVENT API one.vm.info", "hookbus.opennebula.api.one.vm.info.failed"),
            ("EVENT STATE VM/ACTIVE/RUNNING/7 ", "hookbus.opennebula.state.vm.ACTIVE.RUNNING.7"),
            ("EVENT STATE HOST/MONITORED//3 ", "hookbus.opennebula.state.host.MONITORED.-.3"),
            ("EVENT STATE NET/READY//0 ", "hookbus.opennebula.state.net.READY.-.0"),
            ("EVENT STATE ", "hookbus.opennebula.state.-.-.-.-"),
            ("EVENT STATE VM", "hookbus.opennebula.state.vm.-.-.-"),
            ("EVENT STATE VM/DONE/7 ", "hookbus.opennebula.state.vm.DONE.-.7"),
            ("EVENT STATE VM/A/B/C/D/7 ", "hookbus.opennebula.state.vm.A.B%2FC%2FD.7"),
            (
                "EVENT GANETI INSTANCE/instance-migrate/post/web1.example.com ",
                "hookbus.ganeti.instance.instance-migrate.post.web1.example.com",
            ),
            ("EVENT GANETI CLUSTER/cluster-verify/pre/ ", "hookbus.ganeti.cluster.cluster-verify.pre.-"),
            ("EVENT GANETI NODE/node-add/post/a/b ", "hookbus.ganeti.node.node-add.post.a%2Fb"),
            ("EVENT GANETI JOB/success/1234 ", "hookbus.ganeti.job.success.1234"),
            ("HOOKBUS HOOK notify/success ", "hookbus.hook.notify.success"),
            ("HOOKBUS HOOK a/b c/failure ", "hookbus.hook.a%2Fb%20c.failure"),
            ("HOOKBUS OTHER", "hookbus.custom.HOOKBUS.OTHER"),
            ("EVENT ", "hookbus.opennebula.other"),
            ("EVENT VM 7/ACTIVE/RUNNING ", "hookbus.opennebula.other"),
            ("backup done", "hookbus.custom.backup.done"),
            ("backup/db1..eu  nightly/", "hookbus.custom.backup.db1.eu.nightly"),
            ("", "hookbus.custom.-"),
            (" ./", "hookbus.custom.-"),
            ("a*b>c+d#e%f\tg\u{fc}", "hookbus.custom.a%2Ab%3Ec%2Bd%23e%25f%09g%C3%BC"),
        ];
        for (key, name) in table {
            assert_eq!(address(key), name, "{key:?}");
        }
        assert_eq!(EventName::of_key(b"RETRY", "hookbus"), None);
        assert_eq!(EventName::of_key(b"RETRYING", "hookbus"), None);
    }

    #[test]
    fn separators_and_roots() {
        let name = |root| EventName::of_key(b"EVENT API one.vm.allocate 1", root).unwrap();
        assert_eq!(&*name("hookbus").address('/', 255), "hookbus/opennebula/api/one.vm.allocate/ok");
        assert_eq!(&*name("site 1/.cloud").address('.', 255), "site%201.cloud.opennebula.api.one.vm.allocate.ok");
        assert_eq!(&*name("").address('/', 255), "opennebula/api/one.vm.allocate/ok");
        assert_eq!(
            name("hookbus").parts().collect::<Vec<_>>(),
            ["hookbus", "opennebula", "api", "one.vm.allocate", "ok"]
        );
        assert_eq!(EventName::default().parts().count(), 0);
    }

    #[test]
    fn dots_never_make_empty_places() {
        let table =
            [(".", "%2E"), ("..", "%2E%2E"), ("a.", "a%2E"), (".a", "%2Ea"), ("a..b", "a.%2Eb"), ("a...b", "a.%2E.b")];
        for (part, encoded) in table {
            assert_eq!(&*EventName::of_parts([part]).address('/', 99), encoded);
        }
    }

    #[test]
    fn long_names_are_cut() {
        let name = EventName::of_parts(["hookbus".to_owned(), "x".repeat(300)]);
        let cut = name.address('.', 255);
        assert_eq!(cut.len(), 255);
        assert_eq!(cut[238..], format!("~{}", digest(&format!("hookbus.{}", "x".repeat(300)), 8)));
        // As `printf hookbus.abcdefghijklmnopqrstuvwxyz | sha256sum` says.
        assert_eq!(&*EventName::of_parts(["hookbus", "abcdefghijklmnopqrstuvwxyz"]).address('.', 20), CUT);
        assert_eq!(EventName::of_parts(["\u{fc}".repeat(100)]).address('.', 19 + 17).len(), 18 + 17);
        assert_eq!(name.address('.', 0).len(), 17);
        assert_eq!(name.address('.', 308).len(), 308);
    }
    const CUT: &str = "hoo~82520676fcd329b9";

    fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let hostile = prop::sample::select(b".%*>+#/~- \0\n\xFFaZ2E".to_vec());
        prop::collection::vec(prop::collection::vec(hostile, 0..8), 1..5)
    }

    proptest! {
        /// Whatever a key holds, every bus takes the name, and the same one each time.
        #[test]
        fn any_key_has_a_name(key: Vec<u8>, root in "[ -~]{0,12}", limit in 0usize..80) {
            let Some(name) = EventName::of_key(&key, &root) else { return Ok(()) };
            for separator in ['.', '/'] {
                let address = name.address(separator, limit);
                prop_assert!(address.len() <= limit.max(MARK_BYTES));
                prop_assert!(address.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>+#".contains(&byte)));
                prop_assert!(address.split('.').all(|token| !token.is_empty()), "{}", address);
                prop_assert_eq!(&address, &name.address(separator, limit));
            }
        }

        /// Two lists of parts never meet under one name where slashes separate; where dots do, only if their dots say so.
        #[test]
        fn different_parts_have_different_names(one in parts(), other in parts()) {
            let same = |one: &[Vec<u8>], other: &[Vec<u8>]| {
                let plain = |parts: &[Vec<u8>]| {
                    parts.iter().map(|part| if part.is_empty() { b"-".to_vec() } else { part.clone() }).collect::<Vec<_>>()
                };
                plain(one) == plain(other)
            };
            let (a, b) = (EventName::of_parts(&one), EventName::of_parts(&other));
            prop_assert_eq!(a == b, same(&one, &other));
            prop_assert_eq!(a.address('/', usize::MAX) == b.address('/', usize::MAX), a == b);
            let words = |name: &EventName| name.parts().flat_map(|part| part.split('.')).map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(a.address('.', usize::MAX) == b.address('.', usize::MAX), words(&a) == words(&b));
        }

        /// A name comes back from its parts.
        #[test]
        fn parts_can_be_decoded(parts in parts()) {
            let name = EventName::of_parts(&parts);
            prop_assert_eq!(name.parts().count(), parts.len());
            for (encoded, part) in name.parts().zip(&parts) {
                let decoded: Vec<u8> = percent_encoding::percent_decode_str(encoded).collect();
                let expected: &[u8] = if part.is_empty() { b"-" } else { part };
                prop_assert_eq!(&decoded[..], expected);
            }
        }
    }
}
