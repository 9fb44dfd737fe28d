//! The lists, what is checked across keys, and the annotated sample.

use std::collections::BTreeSet;

use super::bridge::{
    AmqpConfig, BridgeKind, Delivery, EventFormat, MqttConfig, MqttVersion, NatsConfig, TlsFiles, WebhookConfig,
};
use super::read::{field_names, read};
use super::source::{GanetiJobsSource, SourceKind, ZeromqSource};
use super::*;

/// What a file says that has no errors.
fn right(text: &str) -> Config {
    read(text).strict().unwrap_or_else(|errors| panic!("{errors:?}\n{text}")).0
}

fn told(text: &str) -> Vec<String> {
    let problems = read(text).problems.into_iter().map(|problem| {
        let Place { line, column } = problem.place.expect("what is in a text has a place");
        format!("{line}:{column} {:?} {}", problem.severity, problem.what)
    });
    problems.collect()
}

fn told_of_bridge(keys: &str) -> Vec<String> {
    told(&format!("[[bridge]]\nname = \"b\"\n{keys}"))
}

#[test]
fn a_list_has_tables_of_several_types() {
    let config = right(
        r#"
        [[source]]
        name = "old-frontend"
        type = "zeromq"
        url = "tcp://127.0.0.1:2101"

        [[source]]
        name = "cluster"
        type = "ganeti-jobs"
        url = "file:///var/lib/ganeti/a%20queue"
        cluster = "c.example.com"

        [[bridge]]
        name = "ops-nats"
        type = "nats"
        url = "nats://127.0.0.1:4222"
        prefixes = ["EVENT STATE VM/"]
        hwm = 77

        [[bridge]]
        name = "core"
        type = "nats"
        url = "nats://127.0.0.1:4222"
        jetstream = false
        root = "clouds.one"

        [[bridge]]
        name = "home"
        type = "mqtt"
        url = "mqtts://user@broker.example.com:8883"
        password_file = "/etc/hookbus/mqtt.password"
        ca_file = "/etc/ssl/home.pem"
        version = "3.1.1"

        [[bridge]]
        name = "rabbit"
        type = "amqp"
        url = "amqp://guest:s3cr3t@127.0.0.1:5672/%2f"
        unroutable = "dead-letter"
        overflow = "disconnect"

        [[bridge]]
        name = "chat"
        type = "webhook"
        url = "https://chat.example.com/hook"
        format = "cloudevents-binary"
        "#,
    );
    assert_eq!(config.sources[0].kind, SourceKind::Zeromq(ZeromqSource::default()));
    assert_eq!(
        config.sources[1].kind,
        SourceKind::GanetiJobs(GanetiJobsSource { cluster: Some("c.example.com".into()) })
    );
    assert_eq!(config.sources[1].directory(), Ok("/var/lib/ganeti/a queue".into()));
    let [ops, core, home, rabbit, chat] = &config.bridges[..] else { panic!("{config:?}") };
    assert_eq!((&*ops.name, ops.delivery.hwm, ops.delivery.overflow), ("ops-nats", 77, Overflow::Spill));
    assert_eq!(ops.delivery.prefixes, ["EVENT STATE VM/"]);
    assert_eq!(ops.kind, BridgeKind::Nats(NatsConfig::default()));
    let BridgeKind::Nats(nats) = &core.kind else { panic!("{core:?}") };
    assert_eq!((core.delivery.overflow, &nats.subjects[..]), (Overflow::DropNewest, &["clouds.one.>".to_owned()][..]));
    let BridgeKind::Mqtt(mqtt) = &home.kind else { panic!("{home:?}") };
    assert_eq!((mqtt.qos, mqtt.version, home.tls.ca_file.is_some()), (1, MqttVersion::V311, true));
    assert_eq!(rabbit.delivery.overflow, Overflow::Disconnect);
    assert_eq!((chat.delivery.format, chat.delivery.overflow), (EventFormat::CloudeventsBinary, Overflow::Spill));
    assert!(!config.zeromq.enabled, "off beside a source of that type");
    assert!(!format!("{config:?}").contains("s3cr3t"));
    assert_eq!(rabbit.url.reveal(), "amqp://guest:s3cr3t@127.0.0.1:5672/%2f");
}

#[test]
fn what_is_wrong_in_a_list_is_told_with_its_place() {
    for (text, expected) in [
        ("[[bridge]]\ntype = \"nats\"\nurl = \"nats://h\"", "1:1 Error bridge: `name` is missing"),
        (
            "[[bridge]]\nname = \"a\"\nurl = \"nats://h\"",
            "1:1 Error bridge `a`: `type` is missing; write one of nats, mqtt,",
        ),
        ("[[bridge]]\nname = \"a\"\ntype = \"nats\"", "1:1 Error bridge `a`: `url` is missing"),
        (
            "[[bridge]]\nname = \"a b\"\ntype = \"nats\"\nurl = \"nats://h\"",
            "2:8 Error bridge `a b`: name: `a b` can't be a name",
        ),
        (
            "[[bridge]]\nname = \"a\"\ntype = \"natz\"\nurl = \"nats://h\"\nqos = 1",
            "3:8 Error bridge `a`: unknown type `natz`; did you mean `nats`?",
        ),
        (
            "[[bridge]]\nname = \"a\"\ntype = \"zeromq\"\nurl = \"tcp://h:1\"",
            "3:8 Error bridge `a`: the ZeroMQ ports are a section of their own",
        ),
        (
            "[[bridge]]\nname = \"a\"\ntype = \"nats\"\nurl = \"mqtt://h\"",
            "4:7 Error bridge `a`: a URL of type nats begins with nats://",
        ),
        (
            "[[bridge]]\nname = \"a\"\ntype = \"nats\"\nurl = \"s3cr3t@h\"",
            "4:7 Error bridge `a`: url: there is no `://` in it",
        ),
        ("[bridge]\nname = \"a\"", "1:1 Error `bridge` is a list: write [[bridge]]"),
        ("bridge = [5]", "1:11 Error `bridge` is a list of tables"),
        (
            "[[source]]\nname = \"a\"\ntype = \"zeromq\"\nurl = \"tcp://h\"",
            "4:7 Error source `a`: url: endpoint `tcp://h`: the port is missing",
        ),
        (
            "[[source]]\nname = \"a\"\ntype = \"ganeti-jobs\"\nurl = \"file://var/lib/ganeti/queue\"",
            "4:7 Error source `a`: url: a directory of this host is expected; write file:///var/lib/ganeti/queue",
        ),
        (
            "[[source]]\nname = \"a\"\ntype = \"ganeti-jobs\"\nurl = \"file:///q?x\"",
            "4:7 Error source `a`: url: a directory is expected; write ? and # in its name as %3F and %23",
        ),
        (
            "[[source]]\nname = \"a\"\ntype = \"zeromq\"\nurl = \"tcp://*:2101\"",
            "4:7 Error source `a`: url: a place to connect to",
        ),
    ] {
        let Reading { config, .. } = read(text);
        let mut told = told(text);
        told.retain(|told| !told.contains("Warning"));
        assert!(matches!(&told[..], [one] if one.starts_with(expected)), "{text}: {told:?}");
        assert_eq!(config, Config::default(), "it is left out: {text}");
    }
}

#[test]
fn an_unknown_key_of_a_list_names_the_nearest_one_of_its_type() {
    let nats = "type = \"nats\"\nurl = \"nats://h\"\n";
    for (key, expected) in [
        ("jetsteam = true", "5:1 Error unknown key `jetsteam` in bridge `b`; did you mean `jetstream`?"),
        ("hwn = 1", "5:1 Error unknown key `hwn` in bridge `b`; did you mean `hwm`?"),
        ("pasword_file = \"/x\"", "5:1 Error unknown key `pasword_file` in bridge `b`; did you mean `password_file`?"),
        ("qos = 1", "5:1 Error bridge `b`: `qos` is a key of type mqtt, this one is of type nats"),
        ("zzz = 1", "5:1 Error unknown key `zzz` in bridge `b`"),
        ("jetstream = \"no\"", "5:13 Error bridge `b`: jetstream: invalid type: string \"no\", expected a boolean"),
        ("subjects = [\"a\", 5]", "5:18 Error bridge `b`: subjects: invalid type: integer `5`, expected a string"),
        ("root = \"a..b\"", "5:8 Error bridge `b`: root: `a..b` can't be the beginning of names"),
    ] {
        let told = told_of_bridge(&format!("{nats}{key}"));
        assert!(matches!(&told[..], [one] if one.starts_with(expected)), "{key}: {told:?}");
    }
}

#[test]
fn a_name_stands_for_one_table_of_a_list() {
    let bridge = "[[bridge]]\nname = \"a\"\ntype = \"mqtt\"\nurl = \"mqtt://h\"\n";
    let source = "[[source]]\nname = \"a\"\ntype = \"zeromq\"\nurl = \"tcp://h:1\"\n";
    let told = told(&format!("{bridge}{bridge}{source}"));
    let errors: Vec<_> = told.iter().filter(|told| told.contains("Error")).collect();
    assert_eq!(errors, ["6:8 Error another bridge is called `a` already; give this one a name of its own"]);
}

#[test]
fn keys_that_do_not_fit_together_are_told() {
    for (keys, expected) in [
        (
            "type = \"mqtt\"\nurl = \"mqtt://h\"\npassword_file = \"/x\"",
            "5:17 Error bridge `b`: password_file: whose password is it?",
        ),
        (
            "type = \"mqtt\"\nurl = \"mqtt://u:p@h\"\npassword_file = \"/x\"",
            "5:17 Error bridge `b`: password_file: the URL has a password, too",
        ),
        ("type = \"amqp\"\nurl = \"amqp://u@h\"\nuser = \"v\"", "5:8 Error bridge `b`: user: the URL names one, too"),
        (
            "type = \"nats\"\nurl = \"nats://h\"\ntoken_file = \"/t\"\nnkey_file = \"/n\"",
            "6:13 Error bridge `b`: nkey_file: token_file says already who we are",
        ),
        (
            "type = \"nats\"\nurl = \"nats://t@h\"\nnkey_file = \"/n\"",
            "5:13 Error bridge `b`: nkey_file: the URL says already who we are",
        ),
        (
            "type = \"nats\"\nurl = \"nats://h\"\njetstream = false\nstream = \"X\"",
            "6:10 Warning bridge `b`: stream has no effect: jetstream = false",
        ),
        (
            "type = \"amqp\"\nurl = \"amqps://h\"\ncert_file = \"/c\"",
            "5:13 Error bridge `b`: cert_file and key_file belong together",
        ),
        (
            "type = \"amqp\"\nurl = \"amqp://h\"\nca_file = \"/c\"",
            "5:11 Warning bridge `b`: ca_file has no effect: a URL with amqp:// is not encrypted; write amqps://",
        ),
        ("type = \"mqtt\"\nurl = \"mqtt://h\"\nqos = 2", "5:7 Error bridge `b`: qos: 2 is not offered"),
        (
            "type = \"mqtt\"\nurl = \"mqtt://h\"\nversion = \"3.1.1\"\nformat = \"cloudevents-binary\"",
            "6:10 Error bridge `b`: format: MQTT 3.1.1 has no headers",
        ),
        (
            "type = \"mqtt\"\nurl = \"mqtt://h\"\nhwm_bytes = \"1GiB\"",
            "5:13 Warning bridge `b`: hwm_bytes: 1GiB are never reached, since all queues together hold 512MiB",
        ),
        (
            "type = \"mqtt\"\nurl = \"mqtt://h\"\noverflow = \"block\"",
            "5:12 Warning bridge `b`: overflow: oned can't wait",
        ),
        (
            "type = \"nats\"\nurl = \"nats://h\"\nroot = \"one\"\nsubjects = [\"hookbus.>\", \"one.*.state.>\"]",
            "6:12 Error bridge `b`: subjects: none of them takes everything below the root",
        ),
        (
            "type = \"mqtt\"\nurl = \"mqtt://h\"\nretain_state = true\nprefixes = [\"EVENT STATE \", \"EVENT API one.host.\"]",
            "6:12 Warning bridge `b`: prefixes: retain_state can't follow",
        ),
        (
            "type = \"amqp\"\nurl = \"amqp://h\"\nheader_prefix = \"a b\"",
            "5:17 Error bridge `b`: header_prefix: at most 32 letters",
        ),
        (
            "type = \"amqp\"\nurl = \"amqp://h\"\nheader_prefix = \"ce-\"",
            "5:17 Warning bridge `b`: header_prefix has no effect",
        ),
        ("type = \"mqtt\"\nurl = \"mqtt://h\"\nin_flight = 0", "5:13 Error bridge `b`: in_flight: 0 is too little"),
    ] {
        let told = told_of_bridge(keys);
        assert!(matches!(&told[..], [one] if one.starts_with(expected)), "{keys}: {told:?}");
    }
    let user = "type = \"nats\"\nurl = \"nats://u@h\"\npassword_file = \"/x\"";
    assert_eq!(told_of_bridge(user), [""; 0]);
}

#[test]
fn what_has_no_effect_is_a_warning() {
    for (text, expected) in [
        ("state_dir = \"state\"", "1:13 Warning state_dir: `state` depends on where a program is started"),
        ("[hooks]\ndir = \"~/hooks\"", "2:7 Warning hooks.dir: `~/hooks` depends on where a program is started"),
        ("[http]\ntoken_file = \"/t\"", "2:14 Warning http.token_file has no effect: listen names no address"),
        ("[http]\nlisten = []\nhosts = [\"a\"]", "3:9 Warning http.hosts has no effect: listen names no address"),
        (
            "[hooks]\noverflow = \"block\"",
            "2:12 Warning hooks.overflow: oned can't wait: towards its events `block` acts as",
        ),
        ("[zeromq]\nhwm_bytes = \"2GiB\"", "2:13 Warning zeromq.hwm_bytes: 2GiB are never reached"),
        (
            "[broker]\nmax_bytes = \"64MiB\"\n[hooks]\nhwm_bytes = \"65MiB\"",
            "4:13 Warning hooks.hwm_bytes: 65MiB are never reached",
        ),
        (
            "[[bridge]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"https://h\"\ncontent_type = \"text/plain\"",
            "5:16 Warning bridge `a`: content_type has no effect: without a body",
        ),
        (
            "[[bridge]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"https://h\"\nbody = \"{}\"\nformat = \"raw\"",
            "6:10 Warning bridge `a`: format has no effect: the body is made",
        ),
        (
            "[[bridge]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"https://h\"\nheaders = { Authorization = \"Bearer x\" }",
            "5:11 Warning bridge `a`: headers.Authorization: who may read this file",
        ),
        (
            "[journal]\nenabled = false\n[[bridge]]\nname = \"a\"\ntype = \"nats\"\nurl = \"nats://h\"",
            "2:11 Warning journal.enabled: bridge `a` needs the journal; without it",
        ),
    ] {
        let told = told(text);
        assert!(matches!(&told[..], [one] if one.starts_with(expected)), "{text}: {told:?}");
        assert!(read(text).strict().is_ok(), "{text}");
    }
    assert_eq!(told("[broker]\nmax_bytes = \"64MiB\""), [""; 0], "nobody is warned of a default");
}

/// What is wrong about who is let in over TCP is told, and nothing is listened at.
#[test]
fn tcp_needs_what_belongs_together() {
    let tls = "cert_file = \"/c\"\nkey_file = \"/k\"\n";
    for (keys, expected) in [
        ("listen = [\"[::]:1\"]\n".to_owned(), "2:11 Error http.listen: `[::]:1` is reachable from other machines"),
        (
            "listen = [\"127.0.0.1:1\"]\ncert_file = \"/c\"\n".to_owned(),
            "3:13 Error http: cert_file and key_file belong together",
        ),
        (
            "listen = [\"10.0.0.1:1\"]\nkey_file = \"/k\"\n".to_owned(),
            "3:12 Error http: cert_file and key_file belong together",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\nclient_ca_file = \"/c\"\n".to_owned(),
            "3:18 Error http.client_ca_file: clients show certificates with TLS only",
        ),
        (
            format!("listen = [\"0.0.0.0:1\"]\n{tls}token_file = \"/t\"\nread_token_file = \"/t\"\n"),
            "6:19 Error http.read_token_file: it is token_file, too",
        ),
    ] {
        let text = format!("[http]\n{keys}");
        let told = told(&text);
        assert!(matches!(&told[..], [one] if one.starts_with(expected)), "{text}: {told:?}");
        assert!(read(&text).config.http.listen.is_empty(), "{text}");
    }
    let text = format!(
        "[http]\nlisten = [\"0.0.0.0:1\", \"[::1]:2\"]\n{tls}client_ca_file = \"/a\"\ntoken_file = \"/t\"\nread_token_file = \
         \"/r\"\nhosts = [\"bus.example.com\", \"192.0.2.1\", \"2001:db8::1\"]\n"
    );
    assert_eq!(told(&text), [""; 0]);
    assert_eq!(read(&text).config.http.listen.len(), 2);
}

#[test]
fn two_bridges_with_one_client_id_would_throw_each_other_out() {
    let one = "type = \"mqtt\"\nurl = \"mqtt://h\"\nclient_id = \"x\"\n";
    let other = "type = \"mqtt\"\nurl = \"mqtt://h:1884\"\nclient_id = \"x\"\n";
    assert_eq!(told(&format!("[[bridge]]\nname = \"a\"\n{one}[[bridge]]\nname = \"b\"\n{other}")), [""; 0]);
    let told = told(&format!("[[bridge]]\nname = \"a\"\n{one}[[bridge]]\nname = \"b\"\n{one}"));
    assert!(
        matches!(&told[..], [one] if one.starts_with("10:13 Error bridge `b`: client_id: bridge `a` has the same")),
        "{told:?}"
    );
}

#[test]
fn what_a_bus_could_not_take_is_told() {
    for (keys, expected) in [
        ("type = \"nats\"\nurl = \"nats://h/x\"", "4:7 Error bridge `b`: url: `/x` behind host and port means nothing"),
        (
            "type = \"mqtt\"\nurl = \"mqtt://h:1/x\"",
            "4:7 Error bridge `b`: url: `/x` behind host and port means nothing",
        ),
        ("type = \"amqp\"\nurl = \"amqp://h/a/b\"", "4:7 Error bridge `b`: url: `/a/b` is more than one virtual host"),
        ("type = \"nats\"\nurl = \"nats://h\"\nstream = \"A B\"", "5:10 Error bridge `b`: stream: `A B` can't be"),
        ("type = \"nats\"\nurl = \"nats://h\"\nprefixes = []", "5:12 Error bridge `b`: prefixes: nothing begins with"),
        ("type = \"mqtt\"\nurl = \"mqtt://h\"\nclient_id = \"\"", "5:13 Error bridge `b`: client_id: an empty one"),
        (
            "type = \"nats\"\nurl = \"nats://h\"\nprefixes = [\"EVENT VM *\"]",
            "5:12 Warning bridge `b`: prefixes: `EVENT VM *` is no pattern",
        ),
        (
            "type = \"nats\"\nurl = \"nats://h\"\njetstream = false\noverflow = \"spill\"",
            "6:12 Warning bridge `b`: overflow: `spill` keeps what waits, but",
        ),
        (
            "type = \"mqtt\"\nurl = \"mqtt://h\"\nqos = 0\noverflow = \"spill\"",
            "6:12 Warning bridge `b`: overflow: `spill` keeps what waits, but",
        ),
    ] {
        let told = told_of_bridge(keys);
        assert!(matches!(&told[..], [one] if one.starts_with(expected)), "{keys}: {told:?}");
    }
    for right in ["amqp://h", "amqp://h/", "amqp://h/%2f", "amqp://h/clouds%2Fone", "amqp://h/a?heartbeat=5"] {
        assert_eq!(told_of_bridge(&format!("type = \"amqp\"\nurl = \"{right}\"")), [""; 0]);
    }
    assert_eq!(told_of_bridge("type = \"nats\"\nurl = \"nats://h/\""), [""; 0]);
    assert_eq!(told("[journal]\nmax_bytes = \"3MiB\"")[0].split(';').count(), 2, "the least is told");
}

#[test]
fn the_journal_is_on_as_soon_as_something_needs_it() {
    let bridge = |keys: &str| format!("[[bridge]]\nname = \"b\"\n{keys}\n");
    for (text, on) in [
        (String::new(), false),
        ("[journal]\nmax_age = \"7d\"".into(), false),
        ("[journal]\nenabled = true".into(), true),
        ("[journal]\nenabled = false".into(), false),
        ("[hooks]\noverflow = \"spill\"".into(), true),
        (bridge("type = \"nats\"\nurl = \"nats://h\""), true),
        (bridge("type = \"nats\"\nurl = \"nats://h\"\njetstream = false"), false),
        (bridge("type = \"nats\"\nurl = \"nats://h\"\noverflow = \"drop-oldest\""), false),
        (bridge("type = \"mqtt\"\nurl = \"mqtt://h\"\nqos = 0"), false),
        (bridge("type = \"mqtt\"\nurl = \"mqtt://h\"\nqos = 0\noverflow = \"spill\""), true),
        (bridge("type = \"amqp\"\nurl = \"amqp://h\""), true),
    ] {
        assert_eq!(right(&text).journal.enabled, on, "{text}");
    }
}

#[test]
fn the_ports_are_off_beside_a_zeromq_source_unless_somebody_wants_them() {
    let source = "[[source]]\nname = \"a\"\ntype = \"zeromq\"\nurl = \"tcp://h:1\"\n";
    assert!(!right(source).zeromq.enabled);
    assert!(told(source).iter().any(|told| told.starts_with("1:1 Warning [zeromq] is off because source `a`")));
    assert!(right(&format!("{source}[zeromq]\nenabled = true")).zeromq.enabled);
    assert!(!right(&format!("{source}[zeromq]\nhwm = 5")).zeromq.enabled);
}

#[test]
fn what_is_shown_can_be_read_again() {
    for text in ["", SAMPLE, &uncommented()] {
        let config = right(text);
        let shown = toml::to_string(&config).unwrap();
        assert_eq!(right(&shown), config, "{shown}");
    }
    let secret = "[[bridge]]\nname = \"a\"\ntype = \"amqp\"\nurl = \"amqp://u:s3cr3t@h\"";
    let shown = toml::to_string(&right(secret)).unwrap();
    assert!(shown.contains("amqp://u:***@h") && !shown.contains("s3cr3t"), "{shown}");
}

const SAMPLE: &str = include_str!("../../../../packaging/hookbus.toml");

/// The sample with everything in it: what follows a `#` without a blank is a line of configuration.
fn uncommented() -> String {
    let meant = |line: &str| line.starts_with(|c: char| c.is_lowercase() || c == '[');
    let lines = SAMPLE.lines().map(|line| line.strip_prefix('#').filter(|line| meant(line)).unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The annotated sample says what the defaults are, and leaves no key out.
#[test]
fn the_sample_is_the_default() {
    assert_eq!(read(SAMPLE), Reading::default());
    let mut config = right(&uncommented());

    // Keys without a default have an example in its place.
    assert!(config.state_dir.take().is_some());
    assert!(config.http.socket.take().is_some() && config.http.group.take().is_some());
    assert!(config.http.token_file.take().is_some() && !std::mem::take(&mut config.http.listen).is_empty());
    assert!(config.http.read_token_file.take().is_some() && !std::mem::take(&mut config.http.hosts).is_empty());
    assert!(config.http.cert_file.take().is_some() && config.http.key_file.take().is_some());
    assert!(config.http.client_ca_file.take().is_some());
    assert!(config.journal.path.take().is_some() && std::mem::take(&mut config.journal.enabled));
    assert!(config.hooks.dir.take().is_some() && config.hooks.run_if.take().is_some());
    assert!(config.log.file.take().is_some());
    let (sources, bridges) = (std::mem::take(&mut config.sources), std::mem::take(&mut config.bridges));
    assert_eq!(config, Config::default());

    for SourceConfig { kind, .. } in sources {
        match kind {
            SourceKind::Zeromq(zeromq) => assert_eq!(zeromq, ZeromqSource::default()),
            SourceKind::GanetiJobs(mut ganeti) => {
                assert!(ganeti.cluster.take().is_some());
                assert_eq!(ganeti, GanetiJobsSource::default());
            }
        }
    }
    for BridgeConfig { delivery, kind, .. } in bridges {
        let in_flight = if matches!(kind, BridgeKind::Webhook(_)) { 1 } else { 1000 };
        assert_eq!(delivery, Delivery { overflow: Overflow::Spill, in_flight, ..Delivery::default() });
        match kind {
            BridgeKind::Nats(mut nats) => {
                (nats.user, nats.password_file, nats.creds_file) = (None, None, None);
                (nats.token_file, nats.nkey_file) = (None, None);
                assert_eq!(nats, NatsConfig::default());
            }
            BridgeKind::Mqtt(mut mqtt) => {
                (mqtt.client_id, mqtt.user, mqtt.password_file) = (None, None, None);
                assert_eq!(mqtt, MqttConfig::default());
            }
            BridgeKind::Amqp(mut amqp) => {
                (amqp.user, amqp.password_file) = (None, None);
                assert_eq!(amqp, AmqpConfig::default());
            }
            BridgeKind::Webhook(mut webhook) => {
                (webhook.token_file, webhook.when, webhook.body) = (None, None, None);
                assert!(
                    !std::mem::take(&mut webhook.headers).is_empty()
                        && !std::mem::take(&mut webhook.secrets).is_empty()
                );
                (webhook.accept_status, webhook.reject_status) = (Vec::new(), Vec::new());
                webhook.content_type = None;
                assert_eq!(webhook, WebhookConfig::default());
            }
        }
    }
}

#[test]
fn a_webhook_is_looked_at_before_it_gets_an_event() {
    let url = "type = \"webhook\"\nurl = \"https://h/x\"\n";
    for (keys, expected) in [
        ("method = \"SEND\"", "5:10 Error bridge `b`: method: `SEND` is none of POST"),
        ("when = \".a = 1\"", "5:8 Error bridge `b`: when: =, |=, += and the like change values"),
        ("when = \"until(false; .)\"", "5:8 Error bridge `b`: when: at character 1: `until` isn't offered"),
        ("when = \"[range(infinite)]\"", "5:8 Error bridge `b`: when: at character 2: `range` isn't offered"),
        ("body = \"\"\"\n{\n  \"a\": {{ x \n}\"\"\"", "5:8 Error bridge `b`: body: line 3: syntax error"),
        ("body = \"{{ x | uper }}\"", "5:8 Error bridge `b`: body: line 1: unknown filter"),
        ("body = \"{{ secrets.x }}\"", "5:8 Error bridge `b`: body: there is no secret `x`"),
        ("body = \"{}\"\nbody_file = \"/x\"", "6:13 Error bridge `b`: body_file: there is a `body`, too"),
        ("headers = { Host = \"x\" }", "5:11 Error bridge `b`: headers: `Host` is the connection's own"),
        ("headers = { Title = \"{{\" }", "5:11 Error bridge `b`: headers.Title: line 1: syntax error"),
        ("secrets = { a = \"s3cr3t\" }", "5:11 Error bridge `b`: secrets.a: write the whole path"),
        ("secrets = { a-b = \"/x\" }", "5:11 Error bridge `b`: secrets: `a-b` can't be a name"),
        ("timeout = \"30s\"", "5:11 Error bridge `b`: timeout: ack_timeout (30s) has to be longer than timeout (30s)"),
        ("accept_status = [404, 1000]", "5:17 Error bridge `b`: accept_status: 1000 is no status"),
        ("token_file = \"/t\"\nuser = \"u\"", "5:14 Error bridge `b`: token_file: a user is named, too"),
        ("url_file = \"/u\"", "4:7 Error bridge `b`: url: there is a `url_file`, too"),
    ] {
        let told = told_of_bridge(&format!("{url}{keys}"));
        assert!(matches!(&told[..], [one] if one.starts_with(expected) && !one.contains("s3cr3t")), "{keys}: {told:?}");
    }
    let hosts = told_of_bridge("type = \"webhook\"\nurl = \"https://{{ x }}/\"");
    assert!(
        matches!(&hosts[..], [one] if one.starts_with("4:7 Error bridge `b`: url: host and port can't be a template")),
        "{hosts:?}"
    );

    let text = "[[bridge]]\nname = \"b\"\ntype = \"webhook\"\nurl_file = \"/u\"\nbody = '{\"t\": \"{{ secrets.a }}\"}'\n\
                secrets = { a = \"env:A\" }\nheaders = { X = \"{{ id }}\" }\nwhen = '.data.op == \"x\"'\n";
    let config = right(text);
    assert_eq!(config.bridges[0].delivery.in_flight, 1, "one at a time keeps the order");
    let shown = toml::to_string(&config).unwrap();
    assert!(!shown.contains("://\"\nprefixes") && right(&shown) == config, "{shown}");
    assert_eq!(told(text), [""; 0]);
    let five = right(&format!("{text}in_flight = 5"));
    assert_eq!(five.bridges[0].delivery.in_flight, 5);
}

/// Sample and page name every key there is. What can't stand in the sample beside another key stands in its comments.
#[test]
fn every_key_is_in_the_sample_and_on_the_page() {
    let page = include_str!("../../../../docs/configuration.md");
    let keys: BTreeSet<&str> = [
        field_names::<BrokerConfig>(),
        field_names::<ZeromqConfig>(),
        field_names::<HttpConfig>(),
        field_names::<JournalConfig>(),
        field_names::<HooksConfig>(),
        field_names::<LimitsConfig>(),
        field_names::<LogConfig>(),
        field_names::<Delivery>(),
        field_names::<TlsFiles>(),
        field_names::<NatsConfig>(),
        field_names::<MqttConfig>(),
        field_names::<AmqpConfig>(),
        field_names::<WebhookConfig>(),
        field_names::<ZeromqSource>(),
        field_names::<GanetiJobsSource>(),
    ]
    .concat()
    .into_iter()
    .chain(["state_dir", "name", "type", "url"])
    .collect();
    for key in keys {
        assert!(SAMPLE.contains(&format!("\n#{key} = ")) || SAMPLE.contains(&format!("`{key}`")), "sample: {key}");
        assert!(page.contains(&format!("`{key}`")), "page: {key}");
    }
}
