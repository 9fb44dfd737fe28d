use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Everything that a stream of bytes leads to.
#[derive(Debug, PartialEq)]
struct Outcome {
    events: Vec<Event<'static>>,
    error: Option<ProtocolError>,
    output: Vec<u8>,
}

fn feed<'a>(settings: Settings, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let limit = settings.frame_limit.max(64 << 10);
    let mut connection = Connection::new(settings);
    let mut outcome = Outcome { events: Vec::new(), error: None, output: Vec::new() };
    'feeding: for mut piece in pieces {
        loop {
            match connection.next(&mut piece) {
                Ok(Some(event)) => outcome.events.push(into_owned(event)),
                Ok(None) => break,
                Err(error) => {
                    outcome.error = Some(error);
                    break 'feeding;
                }
            }
        }
        assert!(piece.is_empty(), "input is left over, though more was asked for");
        assert!(connection.held_bytes() <= limit + MAX_HEAD_BYTES);
    }
    outcome.output = std::mem::take(connection.output());
    outcome
}

fn into_owned(event: Event<'_>) -> Event<'static> {
    let own = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
    match event {
        Event::Ready(peer) => Event::Ready(peer),
        Event::Frame { more, body } => Event::Frame { more, body: own(body) },
        Event::Subscribe(prefix) => Event::Subscribe(own(prefix)),
        Event::Cancel(prefix) => Event::Cancel(own(prefix)),
        Event::Ping { ttl } => Event::Ping { ttl },
        Event::Pong => Event::Pong,
    }
}

fn publisher() -> Settings {
    Settings::new(SocketType::Pub, 64 << 10)
}

/// What a SUB peer says first.
fn hello(minor: u8, socket_type: &str) -> Vec<u8> {
    let greeting = Greeting { minor, ..Greeting::ours("NULL", false) };
    let mut bytes = greeting.to_bytes().to_vec();
    Metadata { socket_type: socket_type.into(), identity: Vec::new() }.put_ready(&mut bytes);
    bytes
}

fn ready(minor: u8, socket_type: &str) -> Event<'static> {
    Event::Ready(PeerInfo { minor, socket_type: socket_type.into(), identity: Vec::new(), libzmq: true })
}

fn subscribe(prefix: &[u8]) -> Event<'_> {
    Event::Subscribe(Cow::Borrowed(prefix))
}

/// A command in the long form, however short it is.
fn long_command(name: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![COMMAND | LONG];
    bytes.extend_from_slice(&((1 + name.len() + data.len()) as u64).to_be_bytes());
    bytes.push(name.len() as u8);
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn recorded(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/opennebula/zmtp");
    std::fs::read(folder.join(name)).unwrap()
}

/// What the recorded HEM had subscribed to, read off the recording with other means.
const HEM_FILTERS: [&str; 28] = [
    "EVENT API one.group.allocate",
    "EVENT API one.hook.allocate 1",
    "EVENT API one.hook.delete 1",
    "EVENT API one.hook.update",
    "EVENT API one.hook.update 1",
    "EVENT API one.image.rename",
    "EVENT API one.internal.vmmonitor",
    "EVENT API one.user.allocate",
    "EVENT API one.vm.action",
    "EVENT API one.vm.allocate",
    "EVENT API one.vm.rename",
    "EVENT STATE HOST/DISABLED/",
    "EVENT STATE HOST/ERROR/",
    "EVENT STATE HOST/MONITORED/",
    "EVENT STATE IMAGE/ERROR/",
    "EVENT STATE IMAGE/READY/",
    "EVENT STATE NET/READY/",
    "EVENT STATE VM/ACTIVE/BOOT",
    "EVENT STATE VM/ACTIVE/EPILOG",
    "EVENT STATE VM/ACTIVE/PROLOG",
    "EVENT STATE VM/ACTIVE/RUNNING",
    "EVENT STATE VM/ACTIVE/UNKNOWN",
    "EVENT STATE VM/DONE/LCM_INIT",
    "EVENT STATE VM/PENDING/LCM_INIT",
    "EVENT STATE VM/POWEROFF/LCM_INIT",
    "EVENT STATE VM/STOPPED/LCM_INIT",
    "EVENT STATE VM/SUSPENDED/LCM_INIT",
    "RETRY",
];

#[test]
fn recorded_subscribers_are_understood() {
    // At first HEM subscribes as its hooks come, some of them to the same; libzmq repeats each but once when it
    // connects again.
    for (name, commands) in [("hem-sub-first-connect.c2s.bin", 48), ("hem-sub-reconnect.c2s.bin", 28)] {
        let bytes = recorded(name);
        let outcome = feed(publisher(), [&bytes[..]]);
        assert_eq!(outcome.error, None, "{name}");
        assert_eq!(outcome.events[0], ready(1, "SUB"), "{name}");
        assert_eq!(outcome.events.len() - 1, commands, "{name}");
        let mut filters: Vec<String> = Vec::new();
        for event in &outcome.events[1..] {
            let Event::Subscribe(prefix) = event else { panic!("{name}: {event:?}") };
            filters.push(String::from_utf8(prefix.to_vec()).unwrap());
        }
        filters.sort();
        filters.dedup();
        assert_eq!(filters, HEM_FILTERS, "{name}");
    }
}

#[test]
fn our_side_of_the_handshake_is_what_libzmq_sends() {
    let theirs = recorded("hem-sub-reconnect.s2c.bin");
    let ours = feed(publisher(), [&hello(1, "SUB")[..]]).output;
    assert_eq!(ours[..], theirs[..ours.len()]);
    // And the frames behind it are what a SUB of ours understands.
    let outcome = feed(Settings::new(SocketType::Sub, 1 << 20), [&theirs[..]]);
    assert_eq!((outcome.error, &outcome.events[0]), (None, &ready(1, "PUB")));
    let frames = &outcome.events[1..];
    assert!(!frames.is_empty() && frames.len().is_multiple_of(2));
    for pair in frames.chunks(2) {
        assert!(matches!(&pair[0], Event::Frame { more: true, body } if body.starts_with(b"EVENT ")));
        assert!(matches!(&pair[1], Event::Frame { more: false, .. }));
    }
}

#[test]
fn recorded_requests_are_understood() {
    let (asked, answered) = (recorded("hem-req.c2s.bin"), recorded("hem-req.s2c.bin"));
    let outcome = feed(Settings::new(SocketType::Rep, 64 << 20), [&asked[..]]);
    assert_eq!((outcome.error, &outcome.events[0]), (None, &ready(1, "REQ")));
    let mut answer = outcome.output;
    let requests = outcome.events[1..].chunks(2);
    for request in requests {
        assert_eq!(request[0], Event::Frame { more: true, body: Cow::Borrowed(b"") });
        let Event::Frame { more: false, body } = &request[1] else { panic!("{request:?}") };
        assert_eq!(body.split(|&b| b == b' ').count(), 3);
        put_frame(&mut answer, MORE, b"");
        put_frame(&mut answer, 0, b"ACK");
    }
    assert_eq!(answer, answered);
}

#[test]
fn both_forms_of_subscriptions_are_understood_from_both_versions() {
    for minor in [0, 1] {
        let mut bytes = hello(minor, "XSUB");
        put_subscribe(&mut bytes, b"A");
        put_subscription_message(&mut bytes, true, b"B");
        put_cancel(&mut bytes, b"A");
        put_subscription_message(&mut bytes, false, b"B");
        bytes.extend(long_command("SUBSCRIBE", b"C"));
        put_subscribe(&mut bytes, b"");
        // A message of an XSUB that is no subscription has no reader here.
        put_frame(&mut bytes, 0, b"hello");
        put_frame(&mut bytes, 0, b"");
        let cancel = |prefix| Event::Cancel(Cow::Borrowed(prefix));
        assert_eq!(
            feed(publisher(), [&bytes[..]]).events,
            [
                ready(minor, "XSUB"),
                subscribe(b"A"),
                subscribe(b"B"),
                cancel(b"A"),
                cancel(b"B"),
                subscribe(b"C"),
                subscribe(b""),
            ]
        );
    }
}

#[test]
fn pings_are_answered_in_both_versions_and_forms() {
    for minor in [0, 1] {
        let mut bytes = hello(minor, "SUB");
        let quiet = feed(publisher(), [&bytes[..]]).output.len();
        put_ping(&mut bytes, Duration::from_millis(1500), b"sixteen bytes...");
        bytes.extend(long_command("PING", &[0, 0]));
        // A context that is longer than allowed comes back cut, as from libzmq.
        put_ping(&mut bytes, Duration::ZERO, b"more than sixteen bytes");
        put_pong(&mut bytes, b"");
        let outcome = feed(publisher(), [&bytes[..]]);
        let ping = |millis| Event::Ping { ttl: Duration::from_millis(millis) };
        assert_eq!(outcome.events[1..], [ping(1500), ping(0), ping(0), Event::Pong]);
        let mut pongs = Vec::new();
        put_pong(&mut pongs, b"sixteen bytes...");
        put_pong(&mut pongs, b"");
        put_pong(&mut pongs, b"more than sixtee");
        assert_eq!(outcome.output[quiet..], pongs);
    }
}

#[test]
fn a_peer_that_pings_and_never_reads_is_bounded() {
    let mut bytes = hello(1, "SUB");
    for _ in 0..100_000 {
        put_ping(&mut bytes, Duration::ZERO, b"");
    }
    let outcome = feed(publisher(), [&bytes[..]]);
    assert_eq!((outcome.error, outcome.events.len()), (None, 100_001));
    assert!(outcome.output.len() < 2048, "{}", outcome.output.len());
}

#[test]
fn unknown_commands_are_passed_over_after_the_handshake() {
    let mut bytes = hello(1, "SUB");
    bytes.extend(long_command("FROMTHEFUTURE", b"x"));
    bytes.extend_from_slice(&hello(1, "SUB")[GREETING_BYTES..]);
    put_subscribe(&mut bytes, b"A");
    assert_eq!(feed(publisher(), [&bytes[..]]).events[1..], [subscribe(b"A")]);
}

#[test]
fn metadata_is_read_without_regard_to_case_and_order() {
    let mut bytes = Greeting::ours("NULL", false).to_bytes().to_vec();
    let data = b"\x08identity\0\0\0\x02me\x05X-Foo\0\0\0\x01x\x0bSOCKET-TYPE\0\0\0\x03SUB";
    bytes.extend(long_command("READY", data));
    let expected = PeerInfo { minor: 1, socket_type: "SUB".into(), identity: b"me".into(), libzmq: true };
    assert_eq!(feed(publisher(), [&bytes[..]]).events, [Event::Ready(expected)]);
}

/// Each kind of fault, with a piece of what is said about it.
#[test]
fn faults_are_named() {
    let greeting = |bytes: &[u8]| {
        let mut greeting = Greeting::ours("NULL", false).to_bytes().to_vec();
        greeting.splice(..bytes.len(), bytes.iter().copied());
        greeting
    };
    let with = |hello: Vec<u8>, more: &[u8]| [&hello[..], more].concat();
    let bare = || greeting(&[]);
    let long = |length: u64| [&[LONG][..], &length.to_be_bytes()].concat();
    let plain = Greeting::ours("PLAIN", false).to_bytes().to_vec();
    let mut refused = bare();
    put_error(&mut refused, "no entry\n");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GET / HTTP/1.1\r\n\r\n".into(), "does not speak ZMTP 2 or later: byte 0 of its greeting is 0x47"),
        (greeting(&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0]), "byte 9 of its greeting is 0x00"),
        (greeting(&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 1]), "speaks ZMTP 2"),
        (plain, "security mechanism `PLAIN` where we use `NULL`"),
        (with(bare(), &[0, 0]), "message before the handshake was over"),
        (with(bare(), &[COMMAND, 5, 4, b'P', b'I', b'N', b'G']), "malformed PING"),
        (with(bare(), &long_command("HELLO", b"")), "command `HELLO` where the handshake expects `READY`"),
        (with(bare(), &long_command("READY", b"\x0bSocket-Type\0\0\0\x04SUB")), "metadata is cut off"),
        (with(bare(), &long_command("READY", b"")), "socket is of type ``, which does not go with our PUB"),
        (hello(1, "DEALER"), "socket is of type `DEALER`"),
        (refused, "refused the connection: `no entry\\n`"),
        (with(hello(1, "SUB"), &[0x80, 0]), "flags 0x80"),
        (with(hello(1, "SUB"), &[COMMAND | MORE, 0]), "flags 0x05"),
        (with(hello(1, "SUB"), &[COMMAND, 0]), "malformed nameless command"),
        (with(hello(1, "SUB"), &[COMMAND, 2, 9, b'S']), "malformed nameless command"),
        (with(hello(1, "SUB"), &long(65_537)), "frame of 65537 bytes; the limit here is 65536"),
        (with(hello(1, "SUB"), &long(u64::MAX)), "frame of 18446744073709551615 bytes"),
        (with(bare(), &long(65_537)), "frame of 65537 bytes; the limit here is 65536"),
    ];
    for (bytes, said) in cases {
        let error = feed(publisher(), [&bytes[..]]).error.unwrap_or_else(|| panic!("nothing is wrong, not `{said}`"));
        assert!(error.to_string().contains(said), "`{error}` does not say `{said}`");
    }
}

#[test]
fn an_announced_length_costs_nothing() {
    let mut reader = FrameReader::new(64 << 20);
    let announced = [&[LONG][..], &(64u64 << 20).to_be_bytes(), b"some"].concat();
    assert_eq!(reader.next(&mut &announced[..]), Ok(None));
    assert_eq!(reader.held_bytes(), 13);
    assert!(reader.allocated_bytes() < 1024);
}

#[test]
fn frames_of_every_length_come_back_as_they_were_put() {
    for length in [0, 1, 254, 255, 256, 257, 65_535, 65_536, 100_000] {
        let body: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let mut bytes = Vec::new();
        put_frame(&mut bytes, MORE, &body);
        assert_eq!(bytes.len() - length, if length < 256 { 2 } else { 9 });
        for cut in [0, 1, 2, 5, 9, 10, bytes.len() / 2, bytes.len()] {
            let (mut first, mut second) = bytes.split_at(cut.min(bytes.len()));
            let mut reader = FrameReader::new(100_000);
            let frame = reader.next(&mut first).unwrap().or_else(|| reader.next(&mut second).unwrap()).unwrap();
            assert_eq!((frame.more, frame.command, &*frame.body), (true, false, &body[..]));
        }
    }
}

/// One thing that a peer may send after its greeting.
fn item() -> impl Strategy<Value = Vec<u8>> {
    let body = || prop::collection::vec(any::<u8>(), 0..40);
    let command = prop::sample::select(vec!["SUBSCRIBE", "CANCEL", "PING", "PONG", "READY", "ERROR", "OTHER"]);
    prop_oneof![
        8 => (command, body(), any::<bool>()).prop_map(|(name, data, long)| {
            let mut bytes = long_command(name, &data);
            if !long {
                bytes.splice(..9, [COMMAND, (1 + name.len() + data.len()) as u8]);
            }
            bytes
        }),
        4 => (body(), any::<bool>()).prop_map(|(body, more)| {
            let mut bytes = Vec::new();
            put_frame(&mut bytes, u8::from(more), &body);
            bytes
        }),
        2 => (250usize..2000).prop_map(|length| {
            let mut bytes = Vec::new();
            put_frame(&mut bytes, 0, &vec![1; length]);
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..30),
    ]
}

proptest! {
    /// However the stream is cut, the outcome is the same: events, answers, error.
    #[test]
    fn cuts_make_no_difference(
        hello in prop_oneof![
            Just(hello(1, "SUB")), Just(hello(0, "XSUB")), Just(hello(1, "REQ")), Just(Vec::new()),
        ],
        items in prop::collection::vec(item(), 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        role in prop::sample::select(vec![SocketType::Pub, SocketType::Rep]),
    ) {
        let bytes = [hello, items.concat()].concat();
        let settings = || Settings::new(role, 1000);
        let whole = feed(settings(), [&bytes[..]]);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
        prop_assert_eq!(&feed(settings(), pieces), &whole);
        prop_assert_eq!(&feed(settings(), bytes.chunks(1)), &whole);
    }

    /// What we put together is what we take apart.
    #[test]
    fn commands_come_back(prefix in prop::collection::vec(any::<u8>(), 0..600), ttl in 0u64..7_000_000) {
        let mut bytes = hello(1, "SUB");
        put_subscribe(&mut bytes, &prefix);
        put_cancel(&mut bytes, &prefix);
        put_ping(&mut bytes, Duration::from_millis(ttl), b"");
        let outcome = feed(publisher(), [&bytes[..]]);
        let ttl = Duration::from_millis((ttl / 100).min(65_535) * 100);
        prop_assert_eq!(&outcome.events[1..], &[
            subscribe(&prefix), Event::Cancel(Cow::Borrowed(&prefix[..])), Event::Ping { ttl },
        ][..]);
    }
}
