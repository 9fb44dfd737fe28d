//! Who may connect, and how it is told who may not.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hookbus_bridges::nats::{Login, NatsBus, NatsOptions};
use hookbus_bridges::secret::Secret;
use hookbus_bridges::tls::TlsOptions;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::direct::{deliver, numbered, refused};
use super::servers::certificates::Authority;
use super::servers::nats::NatsServer;
use super::{SHORT, options};

async fn works(options: NatsOptions) {
    assert_eq!(deliver(&mut NatsBus::new(options), &numbered::<NatsBus>(10).await, 10, SHORT).await.confirmed, 10);
}

/// The reason, which must need help and not show any of the secrets.
async fn reason(options: NatsOptions, secrets: &[&str]) -> String {
    let shown = format!("{options:?}");
    let fault = refused(&mut NatsBus::new(options)).await;
    assert!(fault.needs_help, "{fault}");
    for secret in secrets {
        assert!(!shown.contains(secret) && !fault.reason.contains(secret), "{shown} {fault}");
    }
    fault.reason
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password() {
    let server = NatsServer::start_with("authorization { user: ops, password: s3cret }");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let login = Login::Password { user: "ops".into(), password: Secret::File(file.clone()) };
    let configured = NatsOptions { login, ..options(&server) };

    let missing = reason(configured.clone(), &["s3cret"]).await;
    assert!(missing.contains("password can't be read: No such file"), "{missing}");
    fs::write(&file, "wr0ng").unwrap();
    let wrong = reason(configured.clone(), &["wr0ng"]).await;
    assert_eq!(wrong, format!("{} doesn't let user and password in: Authorization Violation", server.url()));
    // A new password counts without a new bus.
    fs::write(&file, "s3cret\n").unwrap();
    works(configured).await;

    let nobody = reason(options(&server), &[]).await;
    assert!(nobody.contains("doesn't let nobody in"), "{nobody}");
    let with_user = |user: &str| NatsOptions {
        servers: vec![server.url().replace("//", &format!("//{user}@"))],
        ..options(&server)
    };
    works(with_user("ops:s3cret")).await;
    let wrong = reason(with_user("ops:wr0ng"), &[]).await;
    assert!(wrong.contains("doesn't let the user in the URL in") && !wrong.contains("wr0ng"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn token() {
    let server = NatsServer::start_with("authorization { token: t0ken }");
    works(NatsOptions { login: Login::Token("t0ken".into()), ..options(&server) }).await;
    let wrong = reason(NatsOptions { login: Login::Token("wr0ng".into()), ..options(&server) }, &["wr0ng"]).await;
    assert!(wrong.contains("doesn't let the token in"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nkey() {
    let (ours, theirs) = (KeyPair::new_user(), KeyPair::new_user());
    let server = NatsServer::start_with(&format!("authorization {{ users: [{{ nkey: {} }}] }}", ours.public_key()));
    let login = |key: &KeyPair| Login::Nkey(Secret::from(key.seed().unwrap().as_str()));
    works(NatsOptions { login: login(&ours), ..options(&server) }).await;
    let wrong = reason(NatsOptions { login: login(&theirs), ..options(&server) }, &[&theirs.seed().unwrap()]).await;
    assert!(wrong.contains("doesn't let the nkey in"), "{wrong}");
    let none = reason(NatsOptions { login: Login::Nkey("SUNONE".into()), ..options(&server) }, &["SUNONE"]).await;
    assert!(none.contains("the seed of the nkey is none"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let of_operator = jwt(&operator, &operator, &json!({ "type": "operator", "version": 2 }), None);
    let of_account = |account, storage: i64| {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        });
        jwt(account, &operator, &json!({ "type": "account", "version": 2, "limits": limits }), None)
    };
    let system = KeyPair::new_account();
    let server = NatsServer::start_with(&format!(
        "operator: {of_operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n",
        system.public_key(),
        system.public_key(),
        of_account(&system, 0),
        account.public_key(),
        of_account(&account, -1),
    ));
    let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let creds = |expires: Option<u64>, signed_by: &KeyPair| {
        let jwt = jwt(&user, signed_by, &claims, expires);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        )
    };
    let with = |creds: &str| NatsOptions { login: Login::Credentials(creds.into()), ..options(&server) };
    works(with(&creds(None, &account))).await;
    let seed = user.seed().unwrap();
    let foreign = reason(with(&creds(None, &KeyPair::new_account())), &[&seed]).await;
    assert!(foreign.contains("doesn't let the credentials in"), "{foreign}");
    let expired = reason(with(&creds(Some(now() - 60), &account)), &[&seed]).await;
    assert!(expired.contains("the credentials"), "{expired}");
    let none = reason(with("nonsense"), &[]).await;
    assert!(none.contains("the creds file is not one"), "{none}");
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A JWT as nsc makes it.
fn jwt(subject: &KeyPair, issuer: &KeyPair, nats: &Value, expires: Option<u64>) -> String {
    let mut claims =
        json!({ "iat": now(), "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test", "nats": nats });
    claims["jti"] = json!("UNCHECKED");
    if let Some(expires) = expires {
        claims["exp"] = json!(expires);
    }
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test(flavor = "multi_thread")]
async fn tls() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (cert, client, foreign) = (ours.server(), ours.client(), theirs.client());
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        cert.cert,
        cert.key,
        ours.ca()
    ));
    let tls = TlsOptions {
        ca_file: Some(ours.ca()),
        cert_file: Some(client.cert.clone()),
        key_file: Some(client.key.clone()),
    };
    let with = |tls: TlsOptions| NatsOptions { tls, ..options(&server) };
    works(with(tls.clone())).await;
    works(NatsOptions { servers: vec![server.url().replace("nats://", "tls://")], ..with(tls.clone()) }).await;

    let stranger = reason(with(TlsOptions { ca_file: Some(theirs.ca()), ..tls.clone() }), &[]).await;
    assert!(stranger.contains("not signed by an authority that is trusted here; set ca_file"), "{stranger}");
    let none = reason(with(TlsOptions { ca_file: Some(ours.ca()), ..TlsOptions::default() }), &[]).await;
    assert!(
        none.contains("the server wants a client certificate that it trusts; see cert_file and key_file"),
        "{none}"
    );
    let foreign = TlsOptions { cert_file: Some(foreign.cert), key_file: Some(foreign.key), ..tls.clone() };
    let foreign = reason(with(foreign), &[]).await;
    assert!(foreign.contains("the server wants a client certificate that it trusts"), "{foreign}");
    let half = reason(with(TlsOptions { key_file: None, ..tls.clone() }), &[]).await;
    assert!(half.contains("belong together"), "{half}");

    // Who has named an authority gets no connection without TLS.
    let plain = NatsServer::start();
    let fault = refused(&mut NatsBus::new(NatsOptions { tls, ..options(&plain) })).await;
    assert!(fault.reason.contains("TLS"), "{fault}");
}
