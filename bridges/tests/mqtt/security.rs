//! Who is let in.

use hookbus_bridges::mqtt::{MqttOptions, Version};
use hookbus_bridges::secret::Secret;
use hookbus_bridges::tls::TlsOptions;

use crate::servers::certificates::Authority;
use crate::servers::mosquitto::{Mosquitto, put_passwords};
use crate::support::{options, soon, try_connect};

const VERSIONS: [Version; 2] = [Version::V5, Version::V311];

/// Why it is not let in. A server may also let the handshake pass, and end the connection after it.
async fn refusal(options: MqttOptions) -> String {
    let Err(fault) = soon("an answer", try_connect(options)).await else { panic!("it was let in") };
    assert!(fault.needs_help, "{fault}");
    fault.reason
}

#[tokio::test]
async fn a_password_lets_in_and_a_wrong_one_does_not() {
    let dir = tempfile::TempDir::new().unwrap();
    put_passwords(dir.path(), &[("bridge", "right one")]);
    std::fs::write(dir.path().join("secret"), "right one\n").unwrap();
    let server = Mosquitto::start_in(dir, "allow_anonymous false\npassword_file $DIR/passwords");
    for version in VERSIONS {
        let with = |password: Secret| options(server.port(), version).login("bridge", Some(password));
        assert!(try_connect(with(Secret::File(server.path("secret")))).await.is_ok());
        assert!(try_connect(with("right one".into())).await.is_ok());
        for options in [with("wrong one".into()), options(server.port(), version)] {
            let reason = refusal(options).await;
            assert!(reason.contains("not authorized") && reason.contains("check user"), "{reason}");
            assert!(!reason.contains("one"), "the password is in it: {reason}");
        }
        let reason = refusal(with(Secret::File(server.path("no-such-file")))).await;
        assert!(reason.contains("no-such-file"), "{reason}");
        let shown = format!("{:?}", with("right one".into()));
        assert!(!shown.contains("right one"), "{shown}");
    }
}

#[tokio::test]
async fn certificates_let_in_and_wrong_ones_do_not() {
    let (ours, others) = (Authority::new(), Authority::new());
    let (certificate, client, stranger) = (ours.server(), ours.client(), others.client());
    let lines = |more: &str| {
        format!(
            "allow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\n{more}",
            ours.ca().display(),
            certificate.cert.display(),
            certificate.key.display()
        )
    };
    let open = Mosquitto::start_with(&lines(""));
    let closed = Mosquitto::start_with(&lines("require_certificate true"));
    for version in VERSIONS {
        let with = |server: &Mosquitto, tls: TlsOptions| options(server.port(), version).tls(tls);
        let trusting = TlsOptions { ca_file: Some(ours.ca()), ..TlsOptions::default() };
        assert!(try_connect(with(&open, trusting.clone())).await.is_ok());

        let mistrusting = TlsOptions { ca_file: Some(others.ca()), ..TlsOptions::default() };
        let reason = refusal(with(&open, mistrusting)).await;
        assert!(reason.contains("the server's certificate") && reason.contains("trusted"), "{reason}");
        let mut elsewhere = with(&open, trusting.clone());
        elsewhere.host = "127.0.0.2".into();
        let fault = try_connect(elsewhere).await.map(drop).unwrap_err();
        assert!(fault.reason.contains("127.0.0.2"), "{fault}");

        let identity = |of: &crate::servers::certificates::Certificate| TlsOptions {
            cert_file: Some(of.cert.clone()),
            key_file: Some(of.key.clone()),
            ..trusting.clone()
        };
        assert!(try_connect(with(&closed, identity(&client))).await.is_ok());
        let reason = refusal(with(&closed, trusting.clone())).await;
        assert!(reason.contains("cert_file"), "{reason}");
        let reason = refusal(with(&closed, identity(&stranger))).await;
        assert!(reason.contains("client certificate"), "{reason}");

        // TLS to a port without, and the other way round, which mosquitto answers by hanging up.
        let plain = Mosquitto::start();
        let fault = try_connect(with(&plain, trusting.clone())).await.map(drop).unwrap_err();
        assert!(fault.reason.contains("mqtts://"), "{fault}");
        let fault = try_connect(options(open.port(), version)).await.map(drop).unwrap_err();
        assert!(fault.reason.contains("TLS"), "{fault}");
    }
}
