//! What servers answer, and what becomes of it.

use std::time::Duration;

use hookbus_bridges::delivery::{Bus, Fault, Receipt, Receipts, Rejection, Sender, Ticket};
use hookbus_bridges::secret::Secret;
use hookbus_bridges::webhook::{Body, Login, WebhookBus, WebhookOptions};
use serde_json::{Value, json};

use super::direct::{assert_numbers, deliver, numbered};
use super::servers::http::HttpServer;
use super::{SHORT, bus, options};

/// What is told of one letter: receipts, or a fault.
async fn told(bus: &mut WebhookBus) -> Result<Vec<Receipt>, Fault> {
    let letters = numbered::<WebhookBus>(1).await;
    let (mut sender, mut receipts) = bus.connect().await.unwrap();
    sender.send(Ticket(1), &letters[0]).await.unwrap();
    let mut told = Vec::new();
    tokio::time::timeout(SHORT, receipts.next(&mut told)).await.unwrap().map(|()| told)
}

/// Each kind of answer once; the table stands in `answer.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn answers_become_receipts_and_faults() {
    let server = HttpServer::start();
    let place = server.url();
    let answer = |status: u16, more: Value| {
        let mut rule = json!({ "status": status });
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.rules(&json!([rule]));
    };
    answer(204, json!({}));
    assert_eq!(told(&mut bus(&server, "/")).await.unwrap(), [Receipt::Confirmed(Ticket(1))]);
    answer(400, json!({ "text": "invalid_payload" }));
    let never = Rejection::Permanent(format!("{place} answers 400 Bad Request: invalid_payload"));
    assert_eq!(told(&mut bus(&server, "/")).await.unwrap(), [Receipt::Rejected(Ticket(1), never)]);
    answer(500, json!({}));
    let later = Rejection::Transient(format!("{place} answers 500 Internal Server Error"));
    assert_eq!(told(&mut bus(&server, "/")).await.unwrap(), [Receipt::Rejected(Ticket(1), later)]);
    answer(503, json!({ "headers": { "Retry-After": "7" } }));
    let all = told(&mut bus(&server, "/")).await.unwrap();
    let quiet = format!("{place} answers 503 Service Unavailable; it asks for 7 s");
    assert!(matches!(&all[..], [Receipt::Rejected(..), Receipt::Blocked(Some(reason))] if *reason == quiet), "{all:?}");
    for (status, more, expected) in [
        (401, json!({}), "answers 401 Unauthorized; does it know who we are?"),
        (404, json!({ "text": "no_service" }), "answers 404 Not Found: no_service; is the URL right?"),
        (
            302,
            json!({ "headers": { "Location": "https://elsewhere.example/x" } }),
            "points to https://elsewhere.example/x;",
        ),
    ] {
        answer(status, more);
        let fault = told(&mut bus(&server, "/")).await.unwrap_err();
        assert!(fault.needs_help && fault.reason.contains(expected), "{fault}");
    }
    let all = told(&mut bus(&server, "/{{ id }}")).await;
    assert!(all.unwrap_err().needs_help, "302 is no matter of the event");
    answer(404, json!({}));
    let all = told(&mut bus(&server, "/{{ id }}")).await.unwrap();
    assert!(matches!(&all[..], [Receipt::Rejected(_, Rejection::Permanent(_))]), "{all:?}");
    let accepting = WebhookOptions { accept_status: vec![404], ..options(&server, "/{{ id }}") };
    assert_eq!(told(&mut WebhookBus::new(accepting)).await.unwrap(), [Receipt::Confirmed(Ticket(1))]);
}

/// Servers that answer nothing, or nonsense, or half of something: it is told, in time, and nothing is lost when they are well again.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_misbehave_cost_nothing_but_time() {
    let server = HttpServer::start();
    for (rule, expected, needs_help) in [
        (json!({ "do": "hang" }), "there is not an answer within 0.5 s", false),
        (json!({ "do": "hang_up" }), "has closed the connection without an answer", false),
        (json!({ "do": "close" }), "has closed the connection without an answer", false),
        (json!({ "do": "garbage" }), "doesn't speak HTTP/1.1", true),
    ] {
        server.rules(&json!([rule]));
        let mut bus = WebhookBus::new(WebhookOptions { timeout: Duration::from_millis(500), ..options(&server, "/") });
        let fault = told(&mut bus).await.unwrap_err();
        assert_eq!((fault.needs_help, fault.reason.contains(expected)), (needs_help, true), "{fault}");
    }
    // The status has come, the rest never ends: the server has it.
    server.rules(&json!([{ "do": "drip" }]));
    let mut patient = WebhookBus::new(WebhookOptions { timeout: Duration::from_millis(500), ..options(&server, "/") });
    assert_eq!(told(&mut patient).await.unwrap(), [Receipt::Confirmed(Ticket(1))]);

    let mut server = HttpServer::start();
    server.rules(&json!([
        { "times": 3 }, { "do": "hang_up", "times": 1 }, { "times": 3 }, { "do": "close", "times": 1 }, { "times": 3 },
        { "do": "garbage", "times": 1 }, { "do": "last", "times": 5 },
    ]));
    let letters = numbered::<WebhookBus>(40).await;
    let outcome = deliver(&mut bus(&server, "/"), &letters, 1, SHORT).await;
    assert_eq!(outcome.confirmed, 40, "{outcome:?}");
    assert!(outcome.faults.len() >= 3, "{outcome:?}");
    let arrived = server.requests().iter().filter(|request| request.status == 200).map(|request| request.body.clone());
    assert_numbers(arrived, 40);
}

/// A server that refuses a body for its size before it has read it is understood all the same, or asked again; never is the event lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_the_request_is_an_answer() {
    let server = HttpServer::start();
    server.rules(&json!([{ "do": "early", "status": 413, "text": "too large" }]));
    let event = [("k".to_owned(), vec![b'x'; 900_000])];
    let letters = super::direct::letters::<WebhookBus>(hookbus_bridges::cloudevents::Format::Raw, event).await;
    let (mut sender, mut receipts) = bus(&server, "/").connect().await.unwrap();
    sender.send(Ticket(1), &letters[0]).await.unwrap();
    let mut told = Vec::new();
    match tokio::time::timeout(SHORT, receipts.next(&mut told)).await.unwrap() {
        Ok(()) => assert!(
            matches!(&told[..], [Receipt::Rejected(_, Rejection::Permanent(reason))] if reason.contains("413")),
            "{told:?}"
        ),
        // The server's reset has overtaken its answer.
        Err(fault) => assert!(!fault.needs_help, "{fault}"),
    }
}

/// A server that repeats all that it was sent gets no secret into what is told.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_not_in_what_is_told() {
    let server = HttpServer::start();
    let dir = tempfile::tempdir().unwrap();
    let secret = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Secret::File(path)
    };
    let secrets = ["s3cr3t-in-the-url", "s3cr3t/in\"the body", "s3cr3t-token"];
    let options = || WebhookOptions {
        body: Some(Body::Text(r#"{"token": "{{ secrets.body }}"}"#.into())),
        headers: vec![("X-A".into(), "{{ secrets.body }}".into())],
        secrets: vec![("body".into(), secret("body", secrets[1]))],
        login: Login::Bearer(secret("token", secrets[2])),
        ..WebhookOptions::new(secret("url", &format!("{}/hook/{}?b={{{{ secrets.body }}}}", server.url(), secrets[0])))
    };
    for status in [400, 403, 500] {
        server.rules(&json!([{ "status": status, "echo": true }]));
        let said = format!("{:?}", told(&mut WebhookBus::new(options())).await);
        assert!(said.contains("***") && !said.contains("s3cr3t") && !said.contains("in%20the"), "{said}");
    }
    // Nor in what an error of a template shows, or in the options.
    let wrong = WebhookOptions { body: Some(Body::Text("{{ secrets.body | int }}".into())), ..options() };
    assert!(!format!("{wrong:?}").contains("s3cr3t"));
    let letters = numbered::<WebhookBus>(1).await;
    let (mut sender, _receipts) = WebhookBus::new(wrong).connect().await.unwrap();
    let refused = sender.send(Ticket(1), &letters[0]).await.unwrap_err().to_string();
    assert!(refused.starts_with("body: line 1") && !refused.contains("s3cr3t"), "{refused}");
}
