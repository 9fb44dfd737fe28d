//! TLS and passwords, from the configuration to the server: let in with the right ones, and otherwise told what is wrong, in
//! `hookbus status` and in the log.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hookbus_tests::servers::certificates::{Authority, Certificate};
use hookbus_tests::servers::free_port;
use hookbus_tests::servers::http::{HttpServer, Request};
use hookbus_tests::servers::mosquitto::{Mosquitto, put_passwords};
use hookbus_tests::servers::nats::NatsServer;
use hookbus_tests::servers::rabbitmq::RabbitMq;
use hookbus_tests::{Home, Kind, Server};
use serde_json::json;

const PASSWORD: &str = "s3cret-and-right";
const WRONG: &str = "s3cret-but-wrong";

#[test]
fn nats_over_tls() {
    let (ours, server) = authority();
    let configuration = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\nauthorization {{ user: guest, password: {PASSWORD:?} }}",
        server.cert,
        server.key,
        ours.ca()
    );
    let server = NatsServer::start_with(&configuration);
    let url = format!("tls://127.0.0.1:{}", server.port());
    secured(&Server::Nats(server), &url, &ours, "Authorization Violation");
}

#[test]
fn mqtt_over_tls() {
    let (ours, server) = authority();
    let dir = tempfile::tempdir().expect("a directory");
    put_passwords(dir.path(), &[("guest", PASSWORD)]);
    let configuration = format!(
        "allow_anonymous false\npassword_file $DIR/passwords\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        ours.ca().display(),
        server.cert.display(),
        server.key.display()
    );
    let server = Mosquitto::start_in(dir, &configuration);
    let url = format!("mqtts://127.0.0.1:{}", server.port());
    secured(&Server::Mqtt(server), &url, &ours, "not authorized");
}

#[test]
fn amqp_over_tls() {
    let (ours, server) = authority();
    let port = free_port();
    let configuration = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\ndefault_user = guest\ndefault_pass = {PASSWORD}",
        ours.ca().display(),
        server.cert.display(),
        server.key.display()
    );
    let server = RabbitMq::start_with(&configuration);
    let url = format!("amqps://127.0.0.1:{port}/%2f");
    secured(&Server::Amqp(server), &url, &ours, "ACCESS_REFUSED");
}

/// A webhook from the configuration to the server and back: what is refused for now waits, what is refused for good can be looked at and sent again,
/// what the condition passes over is counted; and nothing that is secret is shown, although the server repeats all that it gets.
#[test]
fn webhook_over_tls() {
    const SECRETS: [&str; 3] = ["s3cret-url-part", "s3cret-token", "s3cret-in-the-body"];
    let (ours, certificate) = authority();
    let mut server = HttpServer::with_tls(&certificate, Some(&ours));
    let home = Home::default();
    let put = |name: &str, content: &[u8]| put(&home, name, content);
    let ca = put("ca.pem", &fs::read(ours.ca()).expect("a certificate"));
    let own = ours.client();
    let cert = put("cert.pem", &fs::read(own.cert).expect("a certificate"));
    let key = put("key.pem", &fs::read(own.key).expect("a key"));
    let url = put("url", format!("{}/hooks/{}", server.url(), SECRETS[0]).as_bytes());
    let (token, body) = (put("token", SECRETS[1].as_bytes()), put("body", SECRETS[2].as_bytes()));
    home.configure(&format!(
        "[[bridge]]\nname = \"chat\"\ntype = \"webhook\"\nurl_file = {url:?}\nca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n\
         token_file = {token:?}\nsecrets = {{ body = {body:?} }}\nprefixes = [\"app \"]\nwhen = '.data.level != \"debug\"'\n\
         body = '{{\"text\": \"{{{{ data.text }}}}\", \"secret\": {{{{ secrets.body }}}}, \"key\": \"{{{{ key }}}}\"}}'\n"
    ));
    let check = home.run(&["config", "check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    let publish = |key: &str, data: serde_json::Value| {
        let file = put("event", data.to_string().as_bytes());
        let output = home.run(&["publish", key, file.to_str().expect("a plain path")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    server.rules(&json!([
        { "status": 403, "echo": true, "times": 1 },
        { "status": 503, "echo": true, "times": 1, "headers": { "Retry-After": "1" } },
        { "body": "poison", "status": 400, "echo": true },
    ]));
    let serve = home.serve();
    home.until_bridge("chat", "to be ready", |bridge| bridge["state"] == "ready");
    publish("app first", json!({ "level": "info", "text": "a \"first\" one" }));
    publish("other", json!({ "level": "info", "text": "elsewhere" }));
    publish("app second", json!({ "level": "debug", "text": "unwanted" }));
    publish("app third", json!({ "level": "info", "text": "poison" }));
    publish("app fourth", json!({ "level": "info", "text": "another" }));
    let bridge = home.until_bridge("chat", "to have delivered", |bridge| bridge["lag_events"] == 0);
    assert_eq!(
        (&bridge["confirmed"], &bridge["filtered"], &bridge["dead"]),
        (&2.into(), &1.into(), &1.into()),
        "{bridge}"
    );
    assert_eq!(bridge["guarantee"], "at-least-once");
    let taken: Vec<_> = server.requests().iter().filter(|request| request.status == 200).cloned().collect();
    let expected = [("a \"first\" one", "app first"), ("another", "app fourth")]
        .map(|(text, key)| json!({ "text": text, "secret": SECRETS[2], "key": key }));
    assert_eq!(taken.iter().map(Request::json).collect::<Vec<_>>(), expected);
    assert_eq!(taken[0].header("authorization"), Some(&*format!("Bearer {}", SECRETS[1])));

    let shown = |args: &[&str]| String::from_utf8(home.run(args).stdout).expect("text");
    let list = shown(&["dlq", "list"]);
    let list_json = shown(&["dlq", "list", "-o", "json"]);
    assert!(list.contains("400 Bad Request"), "{list}");
    server.rules(&json!([]));
    assert!(home.run(&["dlq", "retry", "--all"]).status.success(), "{list}");
    home.until_bridge("chat", "to have sent the dead letter", |bridge| bridge["dead_letters"] == 0);
    let again = server.requests().last().expect("several").clone();
    assert!(again.header("idempotency-key").is_some_and(|id| id.ends_with(";replay=1")), "{again:?}");

    let all =
        [list, list_json, shown(&["status"]), shown(&["status", "-o", "json"]), shown(&["config", "show"]), home.log()];
    for (number, shown) in all.iter().enumerate() {
        assert!(!SECRETS.iter().any(|secret| shown.contains(secret)), "{number}: a secret is shown: {shown}");
        assert!(shown.contains("chat"), "{number}: {shown}");
    }
    assert!(home.log().contains("answers 403 Forbidden: ") && home.log().contains("***"), "what is hidden was there");
    serve.stop();
}

fn authority() -> (Authority, Certificate) {
    let authority = Authority::new();
    let server = authority.server();
    (authority, server)
}

/// Three ways of not being let in, and then the right one.
fn secured(server: &Server, url: &str, ours: &Authority, refusal: &str) {
    let kind = server.kind();
    let name = kind.to_string();
    let home = Home::default();
    let theirs = Authority::new();
    let (trusted, own) = (ours.ca(), ours.client());
    let (stranger, foreign) = (theirs.ca(), theirs.client());
    let refused = [
        (&trusted, &own, WRONG, refusal),
        (&stranger, &own, PASSWORD, "not signed by an authority that is trusted here"),
        // In which words depends on when the server says so; which files are meant doesn't.
        (&trusted, &foreign, PASSWORD, "cert_file"),
    ];
    for (event, (ca, identity, password, what)) in refused.into_iter().enumerate() {
        configure(&home, kind, url, ca, identity, password);
        let serve = home.serve();
        let bridge = home.until_bridge(&name, "to be told why not", |bridge| {
            bridge["reason"].as_str().is_some_and(|reason| reason.contains(what))
        });
        assert_ne!(bridge["state"], "ready");
        let reason = bridge["reason"].as_str().expect("just seen");
        home.logged(reason);
        let status = String::from_utf8(home.run(&["status"]).stdout).expect("text");
        assert!(status.contains(reason), "{status}");
        for shown in [&home.log(), &status] {
            assert!(!shown.contains(PASSWORD) && !shown.contains(WRONG), "a password is shown: {shown}");
        }
        // What is published meanwhile waits.
        home.publish(&format!("secured/{event}"), b"x");
        assert_eq!(home.bridge(&name)["confirmed"], 0);
        serve.stop();
    }
    configure(&home, kind, url, &trusted, &own, PASSWORD);
    let serve = home.serve();
    home.until_bridge(&name, "to have delivered what waited", |bridge| {
        bridge["state"] == "ready" && bridge["confirmed"] == refused.len() && bridge["lag_events"] == 0
    });
    serve.stop();
}

/// The files are in the daemon's home, where it may read them.
fn configure(home: &Home, kind: Kind, url: &str, ca: &Path, identity: &Certificate, password: &str) {
    let put = |name: &str, content: &[u8]| put(home, name, content);
    let copy = |name: &str, from: &Path| put(name, &fs::read(from).expect("a certificate"));
    let (ca, cert) = (copy("ca.pem", ca), copy("cert.pem", &identity.cert));
    let (key, password) = (copy("key.pem", &identity.key), put("password", password.as_bytes()));
    home.configure(&format!(
        "[[bridge]]\nname = \"{kind}\"\ntype = \"{kind}\"\nurl = \"{url}\"\nuser = \"guest\"\npassword_file = {password:?}\n\
         ca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n"
    ));
}

fn put(home: &Home, name: &str, content: &[u8]) -> PathBuf {
    let path = home.path().join(name);
    fs::write(&path, content).expect("our own file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("our own file");
    path
}
