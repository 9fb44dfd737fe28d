//! Who may connect, and how it is told who may not.

use std::fs;

use hookbus_bridges::amqp::{AmqpBus, AmqpOptions};
use hookbus_bridges::secret::Secret;
use hookbus_bridges::tls::TlsOptions;

use super::direct::{deliver, numbered, refused};
use super::servers::certificates::Authority;
use super::servers::rabbitmq::RabbitMq;
use super::{SHORT, options};

async fn works(options: AmqpOptions) {
    let outcome = deliver(&mut AmqpBus::new(options), &numbered::<AmqpBus>(10).await, 10, SHORT).await;
    assert_eq!((outcome.unroutable.len(), outcome.faults.len()), (10, 0));
}

/// The reason, which must need help and not show any of the secrets.
async fn reason(options: AmqpOptions, secrets: &[&str]) -> String {
    let shown = format!("{options:?}");
    let fault = refused(&mut AmqpBus::new(options)).await;
    assert!(fault.needs_help, "{fault}");
    for secret in secrets {
        assert!(!shown.contains(secret) && !fault.reason.contains(secret), "{shown} {fault}");
    }
    fault.reason
}

pub(super) async fn user_and_password(server: &RabbitMq) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let url = format!("amqp://127.0.0.1:{}/%2f", server.port());
    let configured = AmqpOptions {
        url,
        user: Some("guest".into()),
        password: Some(Secret::File(file.clone())),
        ..options(server, "login")
    };
    let missing = reason(configured.clone(), &[]).await;
    assert!(missing.contains("password can't be read: No such file"), "{missing}");
    fs::write(&file, "wr0ng").unwrap();
    let wrong = reason(configured.clone(), &["wr0ng"]).await;
    assert!(wrong.contains("ACCESS_REFUSED - Login was refused"), "{wrong}");
    fs::write(&file, "guest\n").unwrap();
    works(configured).await;

    let with = |url: String| AmqpOptions { url, ..options(server, "login") };
    works(with(server.url())).await;
    let wrong = reason(with(server.url().replace("guest:guest", "guest:wr0ng")), &["wr0ng"]).await;
    assert!(wrong.contains("Login was refused"), "{wrong}");
    let vhost = reason(with(server.url().replace("%2f", "nowhere")), &["guest:guest"]).await;
    assert!(vhost.contains("vhost nowhere not found"), "{vhost}");
}

pub(super) async fn tls(server: &RabbitMq, ours: &Authority, port: u16) {
    let theirs = Authority::new();
    let (client, foreign) = (ours.client(), theirs.client());
    let tls = TlsOptions { ca_file: Some(ours.ca()), cert_file: Some(client.cert), key_file: Some(client.key) };
    let with = |tls: TlsOptions| AmqpOptions {
        url: format!("amqps://guest:guest@127.0.0.1:{port}/%2f"),
        tls,
        ..options(server, "login")
    };
    works(with(tls.clone())).await;
    works(AmqpOptions { url: with(tls.clone()).url.replace("127.0.0.1", "localhost"), ..with(tls.clone()) }).await;

    let stranger = reason(with(TlsOptions { ca_file: Some(theirs.ca()), ..tls.clone() }), &[]).await;
    assert!(stranger.contains("not signed by an authority that is trusted here; set ca_file"), "{stranger}");
    let none = reason(with(TlsOptions { ca_file: Some(ours.ca()), ..TlsOptions::default() }), &[]).await;
    assert!(none.contains("wants a client certificate that it trusts; see cert_file and key_file"), "{none}");
    let foreign = TlsOptions { cert_file: Some(foreign.cert), key_file: Some(foreign.key), ..tls.clone() };
    let foreign = reason(with(foreign), &[]).await;
    assert!(foreign.contains("wants a client certificate that it trusts"), "{foreign}");
    let plain = reason(AmqpOptions { tls, ..options(server, "login") }, &[]).await;
    assert!(plain.contains("write amqps:// in url"), "{plain}");
}
