//! `hookbus hm` in oned's hands: the recorded run, the handshake, the ways to end, bad input, bad configuration.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;

use hookbus_tests::tools::Tool;
use hookbus_tests::{
    Hm, HmOptions, Launcher, Message, NetworkNamespace, Peer, PeerOptions, assert_same, events, fixtures, ports,
    wait_until,
};
use rustix::process::Signal;
use tempfile::TempDir;

/// What the contract says is the answer to INIT.
const INIT_ANSWER: &[u8] = b"INIT SUCCESS - -              \n";

// --- the recorded run -----------------------------------------------------------------------------------------------

#[test]
fn the_recorded_run_is_published_byte_for_byte() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let lines = fixtures::event_lines();
    assert_eq!(lines.len(), 893, "the recording is complete");

    hm.feed(&lines.concat());
    let end = hm.mark("the end");

    assert_same("a subscriber to everything", &peer.until(&end), &fixtures::expected(&lines));
    hm.finalize();
    assert_eq!(hm.program.stdout.to_end(), INIT_ANSWER, "nothing else is for oned");
}

#[test]
fn what_the_original_published_differs_only_in_order_and_in_twelve_hidden_keys() {
    let mut recorded = fixtures::published();
    let mut expected = fixtures::expected(&fixtures::event_lines());
    recorded.sort();
    expected.sort();
    let hidden: Vec<_> = recorded.extract_if(.., |message| message.key() == b"EVENT ").collect();
    for message in &hidden {
        expected.retain(|other| other.content() != message.content());
    }
    assert_eq!(hidden.len(), 12);
    assert_same("the original's subscriber", &recorded, &expected);
}

#[test]
fn the_recorded_results_reach_oned_byte_for_byte() {
    let mut hm = Hm::start();
    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    let replies = fixtures::replies();
    assert_eq!(replies.len(), 447, "the recording is complete");
    let mut expected = INIT_ANSWER.to_vec();
    let recorded = fixtures::driver_to_oned();
    expected.extend_from_slice(recorded.strip_prefix(b"INIT SUCCESS - -\n").expect("it begins with the handshake"));

    thread::scope(|scope| {
        scope.spawn(|| {
            for reply in &replies {
                assert_eq!(executor.ask(reply.request.as_bytes()), reply.reply.as_bytes());
            }
        });
        hm.program.stdout.until("all results", |seen| (seen.len() >= expected.len()).then_some(()));
    });
    hm.finalize();

    let written = hm.program.stdout.to_end();
    let differs = written.iter().zip(&expected).position(|(one, other)| one != other);
    assert_eq!((written.len(), differs), (expected.len(), None), "length, and place of the first difference");
}

// --- the start ------------------------------------------------------------------------------------------------------

#[test]
fn events_may_come_before_init() {
    let mut hm = HmOptions::default().spawn();
    let mut peer = PeerOptions::new(Tool::Python, "SUB").subscribe(&hm.url(), [""]);
    hm.join(&mut [&mut peer]);
    hm.init();
    let end = hm.mark("after INIT");
    assert_same("the subscriber", &peer.until(&end), &[]);
}

#[test]
fn what_oned_leaves_in_disorder_at_the_start_is_put_right() {
    let hm = Hm::start();
    // The launcher closed descriptor 2 and blocked all signals.
    let stderr = fs::read_link(hm.program.proc("fd/2")).expect("descriptor 2 is open");
    assert_eq!(stderr, Path::new("/dev/null"), "what is written to descriptor 2 must reach neither oned nor a peer");
    // For the moment in which a thread is made, the C library blocks all of them.
    wait_until("no signal to stay blocked", || match &*hm.program.status("SigBlk") {
        "0000000000000000" => Ok(()),
        blocked => Err(blocked.to_owned()),
    });
    if rustix::process::geteuid().is_root() {
        assert!(hm.program.status("Uid").starts_with("65534"), "these tests run it as an ordinary user");
    }
}

#[test]
fn under_its_other_names_it_needs_no_word_hm() {
    for name in ["one_hm", "hookbus-hm", "/usr/lib/one/mads/one_hm"] {
        let mut hm = HmOptions::default().called(name).start();
        drop(Peer::joined(&mut hm));
        hm.finalize();
    }
}

#[test]
fn all_forms_of_arguments_are_understood() {
    for text in ["-h 10", "--hwm 10", "--hwm=10", "-t 15", "  -t  5   -h 10 "] {
        let mut hm = HmOptions::default().arguments(text).start();
        drop(Peer::joined(&mut hm));
        hm.finalize();
        let written = String::from_utf8_lossy(hm.program.stdout.to_end()).into_owned();
        assert_eq!(written.as_bytes(), INIT_ANSWER, "`{text}` is no reason to complain, but it wrote {written:?}");
    }
}

#[test]
fn the_long_names_of_the_originals_options_are_understood() {
    let (publisher, logger) = (ports::free(), ports::free());
    let text = format!("hm --publisher-port {publisher} --logger-port={logger} --bind 127.0.0.1");
    let mut program = Launcher::new(&["hookbus", &text]).spawn();
    program.write(b"INIT\n");
    assert_eq!(program.stdout.first_read(31), 31);
    wait_until("the logger port", || std::net::TcpStream::connect(("127.0.0.1", logger)));
    wait_until("the publisher's port", || std::net::TcpStream::connect(("127.0.0.1", publisher)));
    drop(program.stdin.take());
    assert!(program.wait("the end of its input").success());
}

#[test]
fn it_does_not_speak_to_the_service_manager_of_oned() {
    let directory = open_directory();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket in a directory of our own");
    fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("it is our own");
    socket.set_nonblocking(true).expect("a socket can be non-blocking");

    let mut hm = HmOptions::default().env("NOTIFY_SOCKET", path.to_str().expect("a plain path")).start();
    hm.finalize();

    let answer = socket.recv(&mut [0; 100]).map_err(|error| error.kind());
    assert_eq!(answer, Err(io::ErrorKind::WouldBlock), "READY=1 from a driver would be taken for oned's own");
}

// --- restarts and ports ---------------------------------------------------------------------------------------------

#[test]
fn subscribers_miss_nothing_that_is_read_after_a_restart() {
    let mut hm = Hm::start();
    // libzmq's own 100 ms between two attempts would do, too, on a machine that has nothing else to do.
    let eager = |tool, kind| PeerOptions::new(tool, kind).option("RECONNECT_IVL", 10);
    let mut python = eager(Tool::Python, "SUB").subscribe(&hm.url(), [""]);
    let mut ruby = eager(Tool::Ruby, "SUB").subscribe(&hm.url(), ["EVENT STATE VM/", "RETRY"]);
    let mut executor = eager(Tool::Python, "REQ").connect(&hm.logger_url());
    hm.join(&mut [&mut python, &mut ruby]);

    for round in 0..10 {
        hm.program.kill();
        hm = hm.again().start();
        let events: Vec<_> = (0..50).map(|id| events::vm(id, "ACTIVE", "RUNNING", &format!("round {round}"))).collect();
        hm.feed(&events.iter().flat_map(|event| event.line.clone()).collect::<Vec<u8>>());
        let end = hm.mark(&format!("end of round {round}"));

        let all: Vec<Message> = events.iter().flat_map(|event| event.messages.clone()).collect();
        let states: Vec<Message> = events.iter().map(|event| event.messages[1].clone()).collect();
        assert_same(&format!("the Python subscriber in round {round}"), &python.until(&end), &all);
        assert_same(&format!("the Ruby subscriber in round {round}"), &ruby.until(&end), &states);
        assert_eq!(executor.ask(format!("0 {round} QQ==").as_bytes()), b"ACK");
    }
}

#[test]
fn a_port_that_is_taken_is_served_as_soon_as_it_is_free() {
    let (publisher, logger) = (ports::free(), ports::free());
    let obstacle = TcpListener::bind(("127.0.0.1", publisher)).expect("the port is free");
    let mut hm = HmOptions::on(publisher, logger).start();
    let complaint = first_complaint(&mut hm);
    assert!(complaint.contains(&publisher.to_string()), "it should name the port {publisher}: {complaint}");

    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    assert_eq!(executor.ask(b"0 1 QQ=="), b"ACK", "the other port is served meanwhile");

    drop(obstacle);
    drop(Peer::joined(&mut hm));
    hm.finalize();
}

#[test]
fn a_logger_port_that_is_taken_does_not_hold_up_events() {
    let (publisher, logger) = (ports::free(), ports::free());
    let obstacle = TcpListener::bind(("127.0.0.1", logger)).expect("the port is free");
    let mut hm = HmOptions::on(publisher, logger).start();
    drop(Peer::joined(&mut hm));
    let complaint = first_complaint(&mut hm);
    assert!(complaint.contains(&logger.to_string()), "it should name the port {logger}: {complaint}");

    drop(obstacle);
    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    assert_eq!(executor.ask(b"0 1 QQ=="), b"ACK");
    hm.finalize();
}

// --- configuration and arguments ------------------------------------------------------------------------------------

#[test]
fn no_configuration_is_so_bad_that_events_stop() {
    let directory = open_directory();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("a file in a directory of our own");
        path
    };
    let unreadable = file("unreadable.toml", "");
    fs::set_permissions(&unreadable, Permissions::from_mode(0o000)).expect("it is our own");
    let cases = [
        (directory.path().join("missing.toml"), "missing.toml"),
        (unreadable, "unreadable.toml"),
        (directory.path().to_path_buf(), "directory"),
        (file("torn.toml", "[zeromq\npublisher = "), "torn.toml"),
        (file("binary.toml", "\u{0}\u{1}\u{7f}"), "binary.toml"),
        (file("unknown.toml", "[zeromq]\nhwn = 10\n"), "hwm"),
        (file("wrong.toml", "[zeromq]\nhwm = \"many\"\n"), "hwm"),
    ];
    for (path, word) in cases {
        let mut hm = HmOptions::default().arguments(&format!("--config {}", path.display())).start();
        let complaint = first_complaint(&mut hm);
        assert!(complaint.contains(word), "`{word}` should be in the complaint about {}: {complaint}", path.display());
        drop(Peer::joined(&mut hm));
        hm.finalize();
    }
}

#[test]
fn no_argument_is_so_bad_that_events_stop() {
    for text in ["--nonsense", "stray", "-h many", "-h -1", "-h", "-t x", "--config"] {
        let mut hm = HmOptions::default().arguments(text).start();
        if text != "-t x" {
            let complaint = first_complaint(&mut hm);
            let word = text.split(' ').next().expect("a word");
            assert!(complaint.contains(word), "`{word}` should be in the complaint about `{text}`: {complaint}");
        }
        drop(Peer::joined(&mut hm));
        hm.finalize();
    }
}

#[test]
fn it_lives_without_any_valid_address() {
    // Where an address is not valid, the defaults may be served, which must not touch the machine's own ports.
    let Some(network) = NetworkNamespace::new() else {
        eprintln!("left out: a network namespace takes root");
        return;
    };
    for text in ["hm -p 70000 -l none", "hm -p -1", "hm -b 999.999.999.999", "hm -b", "hm -p 2101 -l 2101"] {
        let mut program = Launcher::new(&["hookbus", text]).through(network.command("/usr/bin/python3")).spawn();
        program.write(b"INIT\n");
        assert_eq!(program.stdout.first_read(31), 31, "`{text}`");
        program.stdout.until(&format!("a complaint about `{text}`"), |seen| contains(seen, b"\nLOG E ").then_some(()));
        program.write(b"FINALIZE\n");
        assert!(program.wait("FINALIZE").success(), "`{text}`");
    }
}

// --- bad input ------------------------------------------------------------------------------------------------------

#[test]
fn a_hundred_megabytes_without_a_line_feed_leave_nothing_behind() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let megabyte = vec![b'A'; 1 << 20];
    for _ in 0..100 {
        hm.feed(&megabyte);
    }
    hm.feed(b"\n");
    let end = hm.mark("after the long line");
    assert_same("the subscriber", &peer.until(&end), &[]);
    wait_until("less than 64 MiB of memory", || match hm.program.resident_mib() {
        0..64 => Ok(()),
        much => Err(format!("{much} MiB")),
    });
    hm.finalize();
}

#[test]
fn a_line_over_the_limit_is_skipped_and_told_and_never_held_whole() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    hm.feed(b"EXECUTE  -1 ");
    let megabyte = vec![b'A'; 1 << 20];
    for _ in 0..700 {
        hm.feed(&megabyte);
    }
    hm.feed(b"\n");
    let end = hm.mark("after the line that was too long");
    assert_same("the subscriber", &peer.until(&end), &[]);

    hm.program.stdout.until("a line in oned's log", |seen| contains(seen, b"\nLOG ").then_some(()));
    let peak = hm.program.status("VmHWM");
    let kib: u64 = peak.trim_end_matches(" kB").parse().expect("a number of kB");
    assert!(kib < 600 << 10, "the limit is 256 MiB, but {peak} were held for a line of 700 MiB");
    wait_until("less than 64 MiB of memory", || match hm.program.resident_mib() {
        0..64 => Ok(()),
        much => Err(format!("{much} MiB")),
    });
}

#[test]
fn an_event_of_sixteen_megabytes_is_an_event() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let event = events::vm(1, "ACTIVE", "RUNNING", &"x".repeat(12 << 20));
    hm.feed(&event.line);
    let end = hm.mark("after the large event");
    assert_same("the subscriber", &peer.until(&end), &event.messages);
    wait_until("less than 64 MiB of memory", || match hm.program.resident_mib() {
        0..64 => Ok(()),
        much => Err(format!("{much} MiB")),
    });
}

#[test]
fn rubbish_harms_no_events_and_is_told_of_in_few_words() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let mut random = fastrand::Rng::with_seed(0x6f6e65);
    let mut expected = Vec::new();
    for number in 0..200 {
        let mut line: Vec<u8> = match number % 8 {
            0 => (0..random.usize(0..5000)).map(|_| random.u8(..)).filter(|byte| *byte != b'\n').collect(),
            1 => b"EXECUTE".to_vec(),
            2 => b"EXECUTE  -1 *not-base64*".to_vec(),
            3 => b"EXECUTE  -1 QUJDR".to_vec(),
            4 => b"\0\0\0\0".to_vec(),
            5 => b"EXECUTOR  -1 QUJD".to_vec(),
            6 => Vec::new(),
            _ => "ÄÖÜ € 𝄞".as_bytes().to_vec(),
        };
        line.push(b'\n');
        let event = events::vm(number, "ACTIVE", "RUNNING", "amid rubbish");
        hm.feed(&line);
        hm.feed(&event.line);
        match number % 8 {
            // Events all the same, of which nothing can be told: the original publishes them so.
            2 => expected.push(Message::new("EVENT ", "*not-base64*")),
            3 => expected.push(Message::new("EVENT ", "QUJDR")),
            _ => {}
        }
        expected.extend(event.messages);
    }
    let end = hm.mark("after the rubbish");
    assert_same("the subscriber", &peer.until(&end), &expected);

    hm.finalize();
    let written = String::from_utf8(hm.program.stdout.to_end().to_vec()).expect("what oned gets is text");
    let complaints: Vec<&str> = written.lines().skip(1).collect();
    assert!(!complaints.is_empty(), "somebody must hear of it");
    assert!(complaints.iter().all(|line| line.starts_with("LOG ")), "only LOG lines: {complaints:#?}");
    // Ten a minute of a kind, a few kinds, and a minute may have ended meanwhile.
    assert!(complaints.len() <= 80, "200 bad lines fill oned's log with {} lines: {complaints:#?}", complaints.len());
}

#[test]
fn lines_may_come_in_pieces() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let lines = &fixtures::event_lines()[..60];
    let text = lines.concat();
    let mut random = fastrand::Rng::with_seed(7);
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(random.usize(1..=rest.len().min(3000)));
        hm.feed(piece);
        rest = more;
    }
    let end = hm.mark("after the pieces");
    assert_same("the subscriber", &peer.until(&end), &fixtures::expected(lines));
}

// --- the ends -------------------------------------------------------------------------------------------------------

#[test]
fn what_was_read_before_finalize_is_delivered() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let events: Vec<_> = (0..2000).map(|id| events::vm(id, "DONE", "LCM_INIT", "the last")).collect();
    let last = &events[events.len() - 1].messages[1];
    let mut text: Vec<u8> = events.iter().flat_map(|event| event.line.clone()).collect();
    text.extend_from_slice(b"FINALIZE\n");
    hm.feed(&text);
    hm.close_input();

    let mut received = peer.until(last);
    received.push(last.clone());
    assert_same("the subscriber", &received, &events.into_iter().flat_map(|event| event.messages).collect::<Vec<_>>());
    assert!(hm.program.wait("after FINALIZE").success());
}

#[test]
fn an_input_that_stops_in_the_middle_of_a_line_ends_it_well() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let whole = events::vm(1, "ACTIVE", "RUNNING", "whole");
    let half = events::vm(2, "ACTIVE", "RUNNING", "half");
    hm.feed(&whole.line);
    hm.feed(&half.line[..half.line.len() / 2]);
    hm.close_input();

    assert_eq!(peer.next("the first key"), whole.messages[0]);
    assert_eq!(peer.next("the second key"), whole.messages[1]);
    assert!(hm.program.wait("the end of its input").success());
}

#[test]
fn after_sigterm_it_reads_on_until_finalize() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    hm.program.signal(Signal::TERM);
    let event = events::vm(1, "ACTIVE", "SHUTDOWN", "oned writes while it shuts down");
    hm.feed(&event.line);
    let end = hm.mark("the end");
    assert_same("the subscriber", &peer.until(&end), &event.messages);
    hm.finalize();
}

#[test]
fn sigterm_alone_ends_it_in_order() {
    let mut hm = Hm::start();
    let mut peer = Peer::joined(&mut hm);
    let event = events::vm(1, "ACTIVE", "RUNNING", "just before");
    hm.feed(&event.line);
    hm.program.signal(Signal::TERM);
    assert!(hm.program.wait("SIGTERM").success());
    assert_eq!(peer.next("the event"), event.messages[0]);
    assert_eq!(peer.next("the event"), event.messages[1]);
}

#[test]
fn oned_may_close_both_pipes_while_results_are_on_their_way() {
    let mut hm = Hm::start();
    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    executor.send([b"0 1 QQ==".to_vec()]);
    hm.feed(b"FINALIZE\n");
    hm.close_input();
    assert!(hm.program.wait("FINALIZE").success());
}

#[test]
fn a_file_can_be_its_input() {
    let lines = fixtures::event_lines();
    let directory = open_directory();
    let path = directory.path().join("input");
    fs::write(&path, fixtures::oned_to_driver()).expect("a file in a directory of our own");

    let options = HmOptions::default();
    let url = options.url();
    let mut peer = PeerOptions::new(Tool::Python, "SUB").option("RECONNECT_IVL", 10).subscribe(&url, [""]);
    let mut hm = options.stdin(File::open(&path).expect("it was just written")).spawn();

    let expected = fixtures::expected(&lines);
    let received: Vec<Message> = expected.iter().map(|_| peer.next("all of the file")).collect();
    assert_same("a subscriber that waited for the start", &received, &expected);
    assert!(hm.program.wait("FINALIZE").success());
    assert_eq!(hm.program.stdout.to_end(), INIT_ANSWER);
}

#[test]
fn an_empty_input_ends_it() {
    let mut hm = HmOptions::default().stdin(File::open("/dev/null").expect("it is everywhere")).spawn();
    assert!(hm.program.wait("the end of its input").success());
    assert_eq!(hm.program.stdout.to_end(), b"");
}

#[test]
fn an_oned_that_does_not_read_holds_up_no_events() {
    const RESULTS: usize = 300;
    let mut hm = Hm::start();
    let mut executor = PeerOptions::new(Tool::Python, "REQ").connect(&hm.logger_url());
    let mut peer = Peer::joined(&mut hm);
    let result = "QUJD".repeat(1000);

    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..RESULTS {
                assert_eq!(executor.ask(format!("0 {number} {result}").as_bytes()), b"ACK");
            }
        });
        // A pipe takes 64 KiB.
        wait_until("a full pipe", || match hm.program.stdout.waiting() {
            60_000.. => Ok(()),
            bytes => Err(format!("{bytes} bytes in it")),
        });
        let lines = fixtures::event_lines();
        hm.feed(&lines.concat());
        let end = hm.mark("the end");
        assert_same("the subscriber", &peer.until(&end), &fixtures::expected(&lines));

        let lines = hm.program.stdout.lines(1 + RESULTS);
        for (number, line) in lines[1..].iter().enumerate() {
            assert_eq!(*line, format!("EXECUTE SUCCESS {number} 0 {result}").into_bytes());
        }
    });
    hm.finalize();
}

// --- helpers --------------------------------------------------------------------------------------------------------

/// A directory that others can read, too: `hm` runs as somebody else.
fn open_directory() -> TempDir {
    let directory = TempDir::with_prefix("hookbus-tests-directory-").expect("a temporary directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is our own");
    directory
}

/// Waits for an error in oned's log.
fn first_complaint(hm: &mut Hm) -> String {
    hm.program.stdout.until("a line `LOG E`", |seen| {
        let text = String::from_utf8_lossy(seen);
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.find(|line| line.starts_with("LOG E 0 ")).map(str::to_owned)
    })
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
