//! Hooks of oned: a server that answers as oned was recorded answering, and the replies that OpenNebula's own executor was recorded
//! sending.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "../../../../bridges/tests/servers/certificates.rs"]
#[allow(dead_code, unreachable_pub, reason = "the other tests with TLS need more of it")]
mod certificates;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::support::oned::{Answer, Request, StubOned};
use crate::support::{PATIENCE, fixture, json_lines, wait};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use certificates::Authority;
use hookbus_bridges::tls::TlsOptions;
use hookbus_hem::oned::{
    Access, CHANGE_KEYS, LoadError, OnedClient, Patience, Pool, PoolHook, RETRY_KEY, Reply, Retry, RpcError, Session,
    load_all,
};
use hookbus_hem::{Origin, Severity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// That of the recorded requests.
const SESSION: &str = "oneadmin:throwaway-oneadmin-pw";

fn client(endpoint: &str) -> OnedClient {
    let session = Session::new(SESSION, "/home/one_auth");
    OnedClient::new(&Access { endpoint: endpoint.into(), session, timeout: Some(PATIENCE) }).unwrap()
}

/// A recorded answer, with its headers.
fn recorded(name: &str) -> Answer {
    Answer::Bytes(fixture(&format!("http/{name}-response.http.zst")))
}

fn recorded_body(name: &str) -> String {
    let request = String::from_utf8(fixture(&format!("http/{name}-request.http.zst"))).unwrap();
    request.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// What a client gets of a server that always answers so.
async fn pool_of(answer: Answer) -> Result<Pool, RpcError> {
    let oned = StubOned::always(answer).await;
    client(&oned.endpoint()).hook_pool().await
}

fn between<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let from = text.find(&start)? + start.len();
    Some(&text[from..from + text[from..].find(&end)?])
}

#[tokio::test]
async fn requests_are_those_of_the_original() {
    let oned = StubOned::start(|request: &Request| match request.call() {
        "one.hookpool.info" => recorded("hookpool-info"),
        _ if request.body.contains("<i4>9999</i4>") => recorded("hook-info-error"),
        _ if request.body.contains("<i4>12</i4>") => recorded("hook-info-with-log"),
        _ => recorded("hook-info-new"),
    })
    .await;
    let client = client(&oned.endpoint());
    assert_eq!(client.hook_pool().await.unwrap().hooks.len(), 43);
    assert_eq!(client.hook(0).await.unwrap().name, "hook-api-user");
    assert_eq!(client.hook(12).await.unwrap().name, "hook-vm-unknown");
    let error = client.hook(9999).await.unwrap_err();
    assert!(matches!(error, RpcError::NoSuchHook { .. }), "{error:?}");
    assert!(error.to_string().ends_with("[one.hook.info] Error getting hook [9999]."), "{error}");

    let requests = oned.requests();
    let names = ["hookpool-info", "hook-info-new", "hook-info-with-log", "hook-info-error"];
    for (request, name) in requests.iter().zip(names) {
        assert_eq!(request.body, recorded_body(name), "{name}");
        let head = request.head.to_lowercase();
        assert!(head.starts_with("post /rpc2 http/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("host: {}\r\n", oned.address)), "{head}");
        assert!(head.contains("content-type: text/xml; charset=utf-8\r\n"), "{head}");
    }
    assert_eq!(requests.len(), names.len());
}

/// All hooks are what oned says that they are. What is expected is cut out of the text, so that it isn't compared with itself.
#[tokio::test]
async fn all_recorded_hooks_come_out_right() {
    let pool = pool_of(recorded("hookpool-info")).await.unwrap();
    let xml = String::from_utf8(fixture("hookpool.xml.zst")).unwrap();
    let mut raw: BTreeMap<i64, &str> = BTreeMap::new();
    for hook in xml.split("<HOOK>").skip(1) {
        raw.insert(between(hook, "ID").unwrap().parse().unwrap(), hook);
    }
    assert_eq!((pool.hooks.len(), raw.len()), (43, 43));
    assert_eq!(pool, Pool::parse(xml.as_bytes()).unwrap(), "both are the same list");
    assert_eq!(pool.hooks.iter().map(|hook| hook.id).collect::<Vec<_>>(), raw.keys().copied().collect::<Vec<_>>());

    let (mut executable, mut remote) = (0, Vec::new());
    for hook in &pool.hooks {
        let raw = raw[&hook.id];
        let attribute = |name: &str| {
            between(raw, name).map(|value| value.trim_start_matches("<![CDATA[").trim_end_matches("]]>").to_owned())
        };
        assert_eq!(hook.name, attribute("NAME").unwrap());
        assert_eq!(hook.locked, raw.contains("<LOCK>"), "{raw}");
        if attribute("REMOTE").as_deref() == Some("YES") {
            remote.push(hook.id);
            if hook.hook.is_none() {
                // As long as nothing runs on other hosts.
                let errors = hook.problems.iter().filter(|problem| problem.severity == Severity::Error);
                let errors: Vec<_> = errors.map(ToString::to_string).collect();
                assert!(errors.len() == 1 && errors[0].contains("REMOTE = yes"), "{errors:?}");
                continue;
            }
        }
        let Some(it) = &hook.hook else { panic!("hook {}: {:?}", hook.id, hook.problems) };
        executable += 1;
        let trigger = match attribute("TYPE").as_deref() {
            Some("api") => format!("api {}", attribute("CALL").unwrap()),
            _ => ["STATE", "LCM_STATE"]
                .iter()
                .filter_map(|name| attribute(name))
                .fold(format!("state {}", attribute("RESOURCE").unwrap()), |trigger, state| {
                    format!("{trigger}/{state}")
                }),
        };
        assert_eq!(it.trigger.to_string(), trigger);
        assert_eq!(it.command, attribute("COMMAND").unwrap());
        assert_eq!(it.arguments, attribute("ARGUMENTS").unwrap_or_default());
        assert_eq!(
            it.arguments_stdin,
            attribute("ARGUMENTS_STDIN").is_some_and(|text| text.eq_ignore_ascii_case("yes"))
        );
        let seconds: u64 = attribute("TIMEOUT").and_then(|text| text.parse().ok()).unwrap_or(0);
        assert_eq!(it.timeout, (seconds > 0).then(|| Duration::from_secs(seconds)));
        assert_eq!(it.origin, Origin::Oned { id: hook.id });
    }
    assert_eq!(remote, [15, 16, 17, 37, 40]);
    assert!(executable >= 43 - remote.len());
    let warned: Vec<_> = pool.problems().filter(|problem| problem.severity == Severity::Warning).collect();
    let warned: Vec<_> =
        warned.into_iter().map(ToString::to_string).filter(|said| !said.contains("is empty in")).collect();
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(warned[0].starts_with("hook 10 (hook-vm-stop): ARGUMENTS_STDIN = true counts as no"), "{warned:?}");
    assert!(warned[1].starts_with("hook 34 (hook-vm-timeout-text): TIMEOUT = soon counts as none"), "{warned:?}");

    // One by one they are the same, whatever has been logged of them.
    for id in [0, 3, 4, 6, 9, 12, 13, 14, 15, 18, 22, 24, 28, 29, 37] {
        let hook = PoolHook::parse(&fixture(&format!("hook-info-{id}.xml.zst"))).unwrap();
        assert_eq!(Some(&hook), pool.hooks.iter().find(|hook| hook.id == id), "hook {id}");
    }
}

#[tokio::test]
async fn an_oned_without_hooks() {
    assert_eq!(pool_of(recorded("hookpool-info-empty")).await.unwrap(), Pool::default());
}

#[tokio::test]
async fn errors_of_oned_are_told_as_what_they_are() {
    let said = |code| async move { pool_of(Answer::error(code, "[one.hookpool.info] no, never")).await.unwrap_err() };
    let error = said(256).await;
    assert!(matches!(error, RpcError::NotAuthenticated { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("doesn't accept user and password from /home/one_auth: [one.hookpool.info] no"), "{text}");
    assert!(!format!("{text}{error:?}").contains("throwaway"), "the password is never shown: {text}");
    let error = said(512).await;
    assert!(matches!(error, RpcError::NotAuthorized { .. }), "{error:?}");
    let error = said(8192).await;
    assert!(matches!(error, RpcError::Failed { code: 8192, .. }), "{error:?}");
    assert!(error.to_string().ends_with("has failed at one.hookpool.info: [one.hookpool.info] no, never (code 8192)"));
}

#[tokio::test]
async fn a_fault_is_told() {
    let fault = "<?xml version=\"1.0\"?><methodResponse><fault><value><struct><member><name>faultCode</name><value><int>-506</int>\
                 </value></member><member><name>faultString</name><value><string>Method 'x' not defined</string></value></member>\
                 </struct></value></fault></methodResponse>";
    let error = pool_of(Answer::ok(fault)).await.unwrap_err();
    assert!(matches!(error, RpcError::Fault { code: -506, .. }), "{error:?}");
    assert!(
        error.to_string().contains("has refused one.hookpool.info: Method 'x' not defined (fault -506)"),
        "{error}"
    );
}

#[tokio::test]
async fn answers_that_make_no_sense() {
    let whole = fixture("http/hookpool-info-response.http.zst");
    let text = String::from_utf8(whole.clone()).unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1;
    // Without a length, so that only the text can tell that it was cut off.
    let cut = |bytes: &str| Answer::Bytes(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{bytes}").into());
    for (answer, expected) in [
        (Answer::ok("<html>It works!</html>"), "it is no XML-RPC, but begins with \"<html>It works!"),
        (Answer::ok(""), "it is no XML-RPC"),
        (cut(&body[..body.len() / 2]), "it ends too early"),
        (Answer::text("<VM_POOL></VM_POOL>"), "expected the element HOOK_POOL, found VM_POOL"),
        (Answer::text("<HOOK_POOL><HOOK><ID>1</ID>"), "the element HOOK_POOL ends too early"),
        (Answer::text(""), "found no XML"),
    ] {
        let error = pool_of(answer).await.unwrap_err();
        assert!(matches!(error, RpcError::Nonsense { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    for answer in [
        Answer::Bytes(vec![]),
        Answer::Bytes(b"\x00\x01\x02 nothing of the kind\r\n\r\n".to_vec()),
        Answer::Bytes(whole[..whole.len() / 2].to_vec()),
    ] {
        let error = pool_of(answer).await.unwrap_err();
        assert!(matches!(error, RpcError::Broken { .. }), "{error:?}");
        assert!(error.to_string().contains("has not answered one.hookpool.info: "), "{error}");
    }
    let error = pool_of(Answer::status("500 Internal Server Error", "x")).await.unwrap_err();
    assert!(matches!(error, RpcError::Status { status: 500, .. }), "{error:?}");
    assert!(error.to_string().contains("with HTTP 500"), "{error}");
    let error = pool_of(Answer::status("302 Found", "x")).await.unwrap_err();
    assert!(matches!(error, RpcError::Status { status: 302, .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_short() {
    let oned = StubOned::always(Answer::Endless).await;
    let error = client(&oned.endpoint()).body_limit_bytes(1 << 20).hook_pool().await.unwrap_err();
    assert!(matches!(error, RpcError::TooLarge { limit_bytes: 1_048_576, .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_ends_in_time() {
    for answer in [vec![], b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<methodResp".to_vec()] {
        let oned = StubOned::always(Answer::Unfinished(answer)).await;
        let client = client(&oned.endpoint()).timeout(Duration::from_millis(200));
        let error = timeout(PATIENCE, client.hook_pool()).await.expect("it ends by itself").unwrap_err();
        assert!(matches!(error, RpcError::Late { .. }), "{error:?}");
        assert!(error.to_string().contains("has not answered one.hookpool.info within 0.2 s"), "{error}");
    }
}

#[tokio::test]
async fn oned_behind_tls() {
    let authority = Authority::new();
    let certificate = authority.server();
    let chain = CertificateDer::pem_file_iter(&certificate.cert).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}/RPC2", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that doesn't trust it hangs up.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"</methodCall>\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
            let _ = stream.write_all(&fixture("http/hookpool-info-response.http.zst")).await;
            let _ = stream.shutdown().await;
        }
    });
    let error = client(&endpoint).hook_pool().await.unwrap_err();
    assert!(matches!(error, RpcError::Tls { .. }), "nobody else trusts it: {error:?}");
    let tls = TlsOptions { ca_file: Some(authority.ca()), ..TlsOptions::default() };
    assert_eq!(client(&endpoint).tls(tls.clone()).hook_pool().await.unwrap().hooks.len(), 43);
    let named = endpoint.replace("127.0.0.1", "localhost");
    assert_eq!(client(&named).tls(tls).hook_pool().await.unwrap().hooks.len(), 43);
    server.abort();
}

#[tokio::test]
async fn what_speaks_no_tls_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        // Until the client goes away.
        while stream.read(&mut [0; 512]).await.is_ok_and(|read| read > 0) {}
    });
    let error = client(&format!("https://{address}/RPC2")).hook_pool().await.unwrap_err();
    assert!(matches!(error, RpcError::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}");
    server.abort();
}

#[tokio::test]
async fn hooks_are_loaded_once_oned_is_up() {
    // A port that is ours, and refuses.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let client = client(&format!("http://{address}/RPC2"));
    let (_stop, mut stopped) = watch::channel(false);
    let patience = Patience { tries: 3, pause: Duration::from_millis(1), ..Patience::default() };
    let error = load_all(&client, patience, &mut stopped).await.unwrap_err();
    let LoadError::GaveUp { tries: 3, source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, RpcError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("after 3 tries") && error.to_string().contains("does oned run"), "{error}");

    let patience = Patience { tries: 10_000, pause: Duration::from_millis(1), limit: PATIENCE };
    let loading = tokio::spawn(async move { load_all(&client, patience, &mut stopped).await });
    let mut calls = 0;
    let oned = StubOned::serve(socket.listen(16).unwrap(), move |_| {
        calls += 1;
        // While it starts, its authentication driver isn't there yet.
        if calls < 3 {
            Answer::error(256, "[one.hookpool.info] User couldn't be authenticated")
        } else {
            recorded("hookpool-info")
        }
    });
    let pool = timeout(PATIENCE, loading).await.expect("it ends").unwrap().unwrap();
    assert_eq!((pool.hooks.len(), oned.requests().len()), (43, 3));
}

#[tokio::test]
async fn loading_ends_when_it_is_stopped() {
    let oned = StubOned::always(Answer::Unfinished(vec![])).await;
    let client = client(&oned.endpoint());
    let (stop, mut stopped) = watch::channel(false);
    let loading = tokio::spawn(async move { load_all(&client, Patience::default(), &mut stopped).await });
    wait("a request", || if oned.requests().is_empty() { Err("none".into()) } else { Ok(()) }).await;
    stop.send(true).unwrap();
    let loaded = timeout(PATIENCE, loading).await.expect("it ends").unwrap();
    assert!(matches!(loaded, Err(LoadError::Stopped)), "{loaded:?}");
}

#[tokio::test]
async fn loading_ends_when_oned_never_answers() {
    let oned = StubOned::always(Answer::Unfinished(vec![])).await;
    let (_stop, mut stopped) = watch::channel(false);
    let patience = Patience { limit: Duration::from_millis(300), ..Patience::default() };
    let error = load_all(&client(&oned.endpoint()), patience, &mut stopped).await.unwrap_err();
    assert!(matches!(error, LoadError::Late { .. }), "{error:?}");
    let patience = Patience { pause: Duration::from_millis(1), ..patience };
    let quick = client(&oned.endpoint()).timeout(Duration::from_millis(20));
    let error = load_all(&quick, patience, &mut stopped).await.unwrap_err();
    let LoadError::GaveUp { tries, source, .. } = &error else { panic!("{error:?}") };
    assert!(*tries >= 1 && matches!(**source, RpcError::Late { .. }), "{error:?}");
}

/// Takes apart what the original sent. It escapes nothing, so it is cut up as text.
fn taken_apart(request: &str) -> Reply {
    let words: Vec<_> = request.split(' ').collect();
    let xml = String::from_utf8(BASE64_STANDARD.decode(words[2]).unwrap()).unwrap();
    let output = |name| {
        let base64: String = between(&xml, name).unwrap().split_whitespace().collect();
        BASE64_STANDARD.decode(base64).unwrap()
    };
    let command = xml.split_once("</ARGUMENTS><EXECUTION_RESULT>").unwrap().1;
    let code = between(&xml, "CODE").unwrap();
    assert_eq!(code, words[0]);
    Reply {
        hook_id: words[1].parse().unwrap(),
        arguments: between(&xml, "ARGUMENTS").unwrap().to_owned(),
        command: between(command, "COMMAND").unwrap().to_owned(),
        stdout: output("STDOUT"),
        stderr: output("STDERR"),
        code: code.parse().unwrap(),
        remote_host: between(&xml, "REMOTE_HOST").map(str::to_owned),
        retry: xml.contains("<RETRY>yes</RETRY>"),
    }
}

/// What the original sent is what we send, byte for byte, save for hook 24, whose arguments are `a&&echo b`: unescaped, as the
/// original sends them, oned drops the record.
#[test]
fn replies_are_those_of_the_original() {
    let (mut same, mut escaped) = (0, 0);
    for line in json_lines("replies.jsonl.zst") {
        let request = line["request"].as_str().unwrap();
        let reply = taken_apart(request);
        if reply.hook_id == 24 {
            assert_ne!(reply.to_request(), request);
            assert!(reply.to_xml().starts_with("<ARGUMENTS>a&amp;&amp;echo b</ARGUMENTS><EXECUTION_RESULT>"));
            let read = reply.to_xml().replace("&amp;", "&");
            assert_eq!(BASE64_STANDARD.encode(read), request.split(' ').nth(2).unwrap(), "nothing else is different");
            escaped += 1;
            continue;
        }
        assert_eq!(reply.to_request(), request, "hook {}", reply.hook_id);
        same += 1;
    }
    assert_eq!((same, escaped), (445, 2));
}

#[test]
fn recorded_retries_and_changes_are_understood() {
    let (mut retries, mut remote, mut changes) = (0, 0, 0);
    for line in json_lines("published.jsonl.zst") {
        let (key, content) = (line["key"].as_str().unwrap(), line["content"].as_str().unwrap());
        if key == RETRY_KEY {
            let retry = Retry::parse(content.as_bytes()).unwrap();
            assert!((0..=43).contains(&retry.hook_id));
            retries += 1;
            remote += usize::from(retry.remote_host.is_some());
        } else if key.starts_with("EVENT API one.hook.") && key.ends_with(" 1") && key != "EVENT API one.hook.retry 1" {
            assert!(CHANGE_KEYS.contains(&key), "{key}");
            changes += 1;
        }
    }
    assert_eq!((retries, remote, changes), (58, 4, 57));
}
