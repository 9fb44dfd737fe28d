//! TLS.

use hookbus_bridges::tls::TlsOptions;
use hookbus_bridges::webhook::{WebhookBus, WebhookOptions};

use super::direct::{deliver, numbered, refused};
use super::servers::certificates::Authority;
use super::servers::http::HttpServer;
use super::{SHORT, options};

/// A server is checked, and a client shows its certificate; who doesn't fit is told what to do.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_are_checked() {
    let authority = Authority::new();
    let client = authority.client();
    let mut server = HttpServer::with_tls(&authority.server(), Some(&authority));
    let letters = numbered::<WebhookBus>(10).await;
    let tls = TlsOptions { ca_file: Some(authority.ca()), cert_file: Some(client.cert), key_file: Some(client.key) };
    let with = |tls: &TlsOptions| WebhookBus::new(WebhookOptions { tls: tls.clone(), ..options(&server, "/") });
    let outcome = deliver(&mut with(&tls), &letters, 1, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (10, 0), "{outcome:?}");

    let fault = refused(&mut with(&TlsOptions::default())).await;
    assert!(fault.needs_help && fault.reason.contains("set ca_file"), "{fault}");
    let other = Authority::new();
    let fault = refused(&mut with(&TlsOptions { ca_file: Some(other.ca()), ..tls.clone() })).await;
    assert!(fault.needs_help && fault.reason.contains("set ca_file"), "{fault}");
    // With TLS 1.3 the server's refusal comes after the handshake, with the first request.
    let nobody = TlsOptions { ca_file: Some(authority.ca()), ..TlsOptions::default() };
    let fault = first_fault(&mut with(&nobody), &letters[0]).await;
    assert!(fault.needs_help && fault.reason.contains("wants a client certificate"), "{fault}");

    let place = server.url().replacen("https", "http", 1);
    let plain = WebhookOptions { tls: tls.clone(), ..WebhookOptions::new(place.as_str().into()) };
    let fault = refused(&mut WebhookBus::new(plain)).await;
    assert!(fault.needs_help && fault.reason.contains("has no TLS"), "{fault}");
    assert_eq!(server.requests().len(), 10);

    let insecure = HttpServer::start();
    let url = insecure.url().replacen("http", "https", 1);
    let fault = refused(&mut WebhookBus::new(WebhookOptions { tls, ..WebhookOptions::new(url.as_str().into()) })).await;
    assert!(fault.needs_help && fault.reason.contains("doesn't speak TLS"), "{fault}");
}

async fn first_fault(
    bus: &mut WebhookBus,
    letter: &hookbus_bridges::delivery::Letter,
) -> hookbus_bridges::delivery::Fault {
    use hookbus_bridges::delivery::{Bus, Receipts, Sender, Ticket};
    let (mut sender, mut receipts) = match bus.connect().await {
        Ok(connection) => connection,
        Err(fault) => return fault,
    };
    sender.send(Ticket(1), letter).await.unwrap();
    tokio::time::timeout(SHORT, receipts.next(&mut Vec::new())).await.unwrap().unwrap_err()
}
