//! What arrives.

use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::secret::Secret;
use hookbus_bridges::webhook::{Body, Login, WebhookBus, WebhookOptions};

use super::direct::{Outcome, deliver, letters, refused};
use super::servers::http::{HttpServer, Request};
use super::{SHORT, bus, options};

/// Delivers one event with JSON data, over these options.
async fn one(options: WebhookOptions, data: &str) -> Outcome {
    let letters =
        letters::<WebhookBus>(Format::CloudEvents, [("backup of db".to_owned(), data.as_bytes().to_vec())]).await;
    deliver(&mut WebhookBus::new(options), &letters, 1, SHORT).await
}

/// The binding of CloudEvents to HTTP, and the other formats.
#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_the_binding_says() {
    let mut server = HttpServer::start();
    let event = || [("backup done".to_owned(), "gr\u{fc}n".as_bytes().to_vec())];
    let mut all = Vec::new();
    for format in [Format::CloudEvents, Format::CloudEventsBinary, Format::Raw, Format::Base64] {
        all.extend(letters::<WebhookBus>(format, event()).await);
    }
    let outcome = deliver(&mut bus(&server, "/hook?a=b"), &all, 1, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.faults.len()), (4, 0));
    let requests = server.until(4);
    for (request, letter) in requests.iter().zip(&all) {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hook?a=b"));
        assert_eq!(request.header("idempotency-key"), Some(&*letter.id));
        assert_eq!(request.header("host"), Some(&*format!("127.0.0.1:{}", server.port())));
        assert!(request.header("user-agent").unwrap().starts_with("hookbus/"));
        assert_eq!(request.connection, requests[0].connection, "one connection serves all");
    }
    let [structured, binary, raw, base64] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(structured.header("content-type"), Some("application/cloudevents+json"));
    assert_eq!(
        (&structured.json()["data"], &structured.json()["hookbuskey"]),
        (&"gr\u{fc}n".into(), &"backup done".into())
    );
    assert_eq!((binary.header("content-type"), binary.text()), (Some("text/plain"), "gr\u{fc}n"));
    assert_eq!((binary.header("ce-specversion"), binary.header("ce-type")), (Some("1.0"), Some("org.hookbus.custom")));
    assert_eq!((raw.text(), raw.header("ce-id")), ("gr\u{fc}n", None));
    assert_eq!(base64.text(), "Z3LDvG4=");
}

/// URL, headers and body by template, secrets among them; whatever the event holds stays a value.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_made_by_templates() {
    let mut server = HttpServer::start();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "s3cr3t\n").unwrap();
    std::fs::write(dir.path().join("body"), "{{ type }}: {{ data }}").unwrap();
    let token = Secret::File(dir.path().join("token"));
    let made = WebhookOptions {
        method: "PUT".into(),
        headers: vec![
            ("X-Key".into(), "{{ key }}".into()),
            ("X-Token".into(), "t={{ secrets.token }}".into()),
            ("X-Fixed".into(), "as it is".into()),
            ("Idempotency-Key".into(), "my-{{ id }}".into()),
        ],
        body: Some(Body::Text(r#"{"text": "{{ data }} is up", "data": {{ data }}, "n": {{ sequence | int }}}"#.into())),
        secrets: vec![("token".into(), token.clone())],
        login: Login::Bearer(token.clone()),
        ..options(&server, "/put/{{ data }}?t={{ secrets.token }}")
    };
    let text = "we\"b/1\n\\ & co";
    assert_eq!(one(made, text).await.confirmed, 1);
    let plain = WebhookOptions {
        body: Some(Body::File(dir.path().join("body"))),
        content_type: Some("text/plain; charset=utf-8".into()),
        login: Login::Basic { user: "ops".into(), password: token },
        ..options(&server, "/")
    };
    assert_eq!(one(plain, text).await.confirmed, 1);
    let deleted = WebhookOptions { method: "DELETE".into(), ..options(&server, "/x") };
    assert_eq!(one(deleted, text).await.confirmed, 1);

    let requests = server.until(3);
    let made = &requests[0];
    assert_eq!((made.method.as_str(), made.path.as_str()), ("PUT", "/put/we%22b%2F1%0A%5C%20%26%20co?t=s3cr3t"));
    assert_eq!((made.header("x-key"), made.header("x-token")), (Some("backup of db"), Some("t=s3cr3t")));
    assert_eq!((made.header("x-fixed"), made.header("authorization")), (Some("as it is"), Some("Bearer s3cr3t")));
    assert!(made.header("idempotency-key").unwrap().starts_with("my-"));
    assert_eq!(made.header("content-type"), Some("application/json"));
    assert_eq!(made.json(), serde_json::json!({ "text": format!("{text} is up"), "data": text, "n": 1 }));
    assert_eq!(requests[1].text(), format!("org.hookbus.custom: {text}"));
    assert_eq!(requests[1].header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(requests[1].header("authorization"), Some("Basic b3BzOnMzY3IzdA=="));
    assert_eq!(
        (requests[2].method.as_str(), requests[2].body.len(), requests[2].header("content-type")),
        ("DELETE", 0, None)
    );
}

/// A template that makes nothing of an event costs that event, with a reason, and nothing is sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_template_cannot_make_is_refused() {
    let mut server = HttpServer::start();
    let body = |text: &str| WebhookOptions { body: Some(Body::Text(text.into())), ..options(&server, "/") };
    let header = |text: &str| WebhookOptions { headers: vec![("X-A".into(), text.into())], ..options(&server, "/") };
    for (options, expected) in [
        (body("{\"a\": \"{{ dta }}\"}"), "body: line 1: undefined value"),
        (body("{\"a\": {{ data|safe }}}"), "body: what it makes is no JSON"),
        (
            body("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}1"),
            "too long, or too much memory",
        ),
        (
            header("{{ data }}"),
            "headers.x-a: what the template makes can't be a header's value: there is a control character",
        ),
        (options(&server, "/{{ data | safe }}"), "url: what the template makes can't stand in a URL"),
        (WebhookOptions { body_max_bytes: 100, ..body("[\"{{ data * 100 }}\"]") }, "body_max_bytes is 100"),
    ] {
        let outcome = one(options, "a\nb").await;
        let [(0, said)] = &outcome.rejected[..] else { panic!("{expected}: {outcome:?}") };
        assert!(said.contains(expected) && outcome.faults.is_empty(), "{said}");
    }
    assert_eq!(server.requests().len(), 0);
}

/// What the options say and can't be is told before anything is sent, and costs no event.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_configured_is_told() {
    let server = HttpServer::start();
    let usual = || options(&server, "/");
    for (options, expected) in [
        (WebhookOptions { body: Some(Body::Text("{{ x".into())), ..usual() }, "body: line 1: syntax error"),
        (
            WebhookOptions { body: Some(Body::File("/no/such/file".into())), ..usual() },
            "body_file: /no/such/file can't be read",
        ),
        (
            WebhookOptions { when: Some("until(false; .)".into()), ..usual() },
            "when: at character 1: `until` isn't offered",
        ),
        (
            WebhookOptions { secrets: vec![("a".into(), Secret::File("/no/such/file".into()))], ..usual() },
            "secrets.a: /no/such/file",
        ),
        (
            WebhookOptions { login: Login::Bearer(Secret::Variable("HOOKBUS_NO_SUCH".into())), ..usual() },
            "token_file: there is no text in $HOOKBUS",
        ),
        (
            WebhookOptions { headers: vec![("Host".into(), "x".into())], ..usual() },
            "headers: `Host` is the connection's own",
        ),
        (WebhookOptions { method: "post".into(), ..usual() }, "method: `post` is none of POST"),
        (WebhookOptions { url: "https://hidden{{x}}/".into(), ..usual() }, "url: host and port can't be a template"),
    ] {
        let fault = refused(&mut WebhookBus::new(options)).await;
        assert!(fault.needs_help && fault.reason.starts_with(expected), "{fault}");
    }
    // A file that is mended counts from the next connection on.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    let mut bus = WebhookBus::new(WebhookOptions::new(Secret::File(file.clone())));
    assert!(refused(&mut bus).await.reason.starts_with("url_file: "));
    std::fs::write(file, format!("{}/secret/path\n", server.url())).unwrap();
    let letters = letters::<WebhookBus>(Format::Raw, [("k".to_owned(), b"x".to_vec())]).await;
    assert_eq!(deliver(&mut bus, &letters, 1, SHORT).await.confirmed, 1);
}

/// A server that closes its connection after each answer, without saying so in it: each event goes over another one, and none is lost, also where a
/// request crosses with the end of the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_closed_meanwhile_loses_nothing() {
    let mut server = HttpServer::start();
    server.rules(&serde_json::json!([{ "do": "last" }]));
    let letters = super::direct::numbered::<WebhookBus>(100).await;
    let outcome = deliver(&mut bus(&server, "/"), &letters, 1, SHORT).await;
    assert_eq!((outcome.confirmed, outcome.rejected.len()), (100, 0), "{outcome:?}");
    assert!(outcome.faults.iter().all(|fault| !fault.needs_help), "{outcome:?}");
    let requests: Vec<Request> = server.until(100);
    assert!(
        requests.windows(2).all(|pair| pair[0].connection < pair[1].connection),
        "each had a connection of its own"
    );
    super::direct::assert_numbers(requests.into_iter().map(|request| request.body), 100);
}
