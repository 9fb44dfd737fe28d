//! TLS and passwords, from the configuration to the server: let in with the right ones, and otherwise told what is wrong, in
//! `hookbus status` and in the log.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hookbus_tests::servers::certificates::{Authority, Certificate};
use hookbus_tests::servers::free_port;
use hookbus_tests::servers::mosquitto::{Mosquitto, put_passwords};
use hookbus_tests::servers::nats::NatsServer;
use hookbus_tests::servers::rabbitmq::RabbitMq;
use hookbus_tests::{Home, Kind, Server};

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
    let put = |name: &str, content: &[u8]| {
        let path = home.path().join(name);
        fs::write(&path, content).expect("our own file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("our own file");
        path
    };
    let copy = |name: &str, from: &Path| put(name, &fs::read(from).expect("a certificate"));
    let (ca, cert) = (copy("ca.pem", ca), copy("cert.pem", &identity.cert));
    let (key, password) = (copy("key.pem", &identity.key), put("password", password.as_bytes()));
    home.configure(&format!(
        "[[bridge]]\nname = \"{kind}\"\ntype = \"{kind}\"\nurl = \"{url}\"\nuser = \"guest\"\npassword_file = {password:?}\n\
         ca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n"
    ));
}
