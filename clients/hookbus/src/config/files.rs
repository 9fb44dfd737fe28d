//! The files that a configuration names, and whether they can be read.
//!
//! Only `hookbus config check` looks: a daemon reads them when it needs them, tells what is wrong then, and tries again, since a
//! certificate may be renewed or a secret put there while it runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hookbus_bridges::http::{ServerTls, check_token_file};
use hookbus_bridges::tls::TlsError;
use hookbus_bridges::webhook::{check_template, check_url};

use super::bridge::{BridgeConfig, BridgeKind};
use super::{Config, Problem, Reading, Severity};

/// What is wrong with the files and directories that the configuration names, for this user.
pub(super) fn problems(reading: &Reading, file: &Path) -> Vec<Problem> {
    let Reading { config, places, .. } = reading;
    let told = |severity, key: &str, what: String| Problem {
        severity,
        file: file.into(),
        place: places.get(key).copied(),
        what: format!("{key}: {what}"),
    };
    let problem = |key: &str, path: &Path, e: &std::io::Error| {
        told(Severity::Error, key, format!("{} cannot be read: {e}", path.display()))
    };
    let mut problems = Vec::new();
    for (key, path) in named(config) {
        if let Err(e) = readable(&path) {
            problems.push(problem(&key, &path, &e));
        }
    }
    for (key, path, wrong) in misread(config) {
        let what = format!("{key}: {}: {wrong}", path.display());
        let place = places.get(&key).copied();
        problems.push(Problem { severity: Severity::Error, file: file.into(), place, what });
    }
    if let Some(dir) = &config.hooks.dir
        && let Err(e) = std::fs::read_dir(dir)
    {
        problems.push(problem("hooks.dir", dir, &e));
    }
    for (key, path) in
        [("http.token_file", &config.http.token_file), ("http.read_token_file", &config.http.read_token_file)]
    {
        match path.as_deref().map(check_token_file) {
            None => {}
            Some(Err(what)) => problems.push(told(Severity::Error, key, what)),
            Some(Ok(doubts)) => {
                problems.extend(doubts.into_iter().map(|what| told(Severity::Warning, key, what)));
            }
        }
    }
    if let Some(tls) = config.http.tls() {
        match tls.check() {
            Ok(()) => {}
            Err(e) => problems.push(told(Severity::Error, at_fault(&e, &tls), e.to_string())),
        }
        if let Some(what) = open_to_all(&tls.key_file) {
            problems.push(told(Severity::Warning, "http.key_file", what));
        }
    }
    problems
}

/// The key whose file it is about.
fn at_fault(error: &TlsError, tls: &ServerTls) -> &'static str {
    match error {
        TlsError::Unreadable { path, .. } | TlsError::NotPem { path, .. } | TlsError::Empty(path)
            if *path == tls.key_file =>
        {
            "http.key_file"
        }
        TlsError::Unreadable { path, .. }
        | TlsError::NotPem { path, .. }
        | TlsError::Empty(path)
        | TlsError::BadAuthority { path, .. }
            if Some(path) == tls.client_ca_file.as_ref() =>
        {
            "http.client_ca_file"
        }
        _ => "http.cert_file",
    }
}

/// What is said of a key that everybody on this machine can read.
fn open_to_all(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o007 != 0).then(|| {
        let shown = path.display();
        format!(
            "{shown} is open to every user of this machine (mode {:o}); take that away: chmod o= {shown}",
            mode & 0o777
        )
    })
}

/// Files that can be read, and don't say what they should: a webhook's template and URL.
fn misread(config: &Config) -> Vec<(String, PathBuf, String)> {
    let mut wrong = Vec::new();
    for BridgeConfig { name, kind, .. } in &config.bridges {
        let BridgeKind::Webhook(webhook) = kind else { continue };
        let secrets = webhook.secret_names();
        let mut check = |key: &str, path: &Option<PathBuf>, check: &dyn Fn(&str) -> Result<(), String>| {
            let Some((path, Ok(text))) = path.as_ref().map(|path| (path, std::fs::read_to_string(path))) else {
                return;
            };
            if let Err(what) = check(&text) {
                wrong.push((format!("bridge `{name}`: {key}"), path.clone(), what));
            }
        };
        let body = |text: &str| check_template(webhook.body_kind(), text, &secrets).map_err(|error| error.to_string());
        check("body_file", &webhook.body_file, &body);
        check("url_file", &webhook.url_file, &|text| check_url(text.trim(), &secrets));
    }
    wrong
}

/// Opened, not only looked at: who checks as another user than the daemon's should see what that one would.
fn readable(path: &Path) -> std::io::Result<()> {
    if std::fs::File::open(path)?.metadata()?.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    Ok(())
}

fn named(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for BridgeConfig { name, kind, tls, .. } in &config.bridges {
        let who = format!("bridge `{name}`");
        let of_tls = [("ca_file", &tls.ca_file), ("cert_file", &tls.cert_file), ("key_file", &tls.key_file)];
        add(&mut files, &who, &of_tls);
        match kind {
            BridgeKind::Nats(nats) => {
                let of_nats = [
                    ("password_file", &nats.password_file),
                    ("token_file", &nats.token_file),
                    ("nkey_file", &nats.nkey_file),
                    ("creds_file", &nats.creds_file),
                ];
                add(&mut files, &who, &of_nats);
            }
            BridgeKind::Mqtt(mqtt) => add(&mut files, &who, &[("password_file", &mqtt.password_file)]),
            BridgeKind::Amqp(amqp) => add(&mut files, &who, &[("password_file", &amqp.password_file)]),
            BridgeKind::Webhook(webhook) => {
                let of_webhook = [
                    ("url_file", &webhook.url_file),
                    ("body_file", &webhook.body_file),
                    ("token_file", &webhook.token_file),
                    ("password_file", &webhook.password_file),
                ];
                add(&mut files, &who, &of_webhook);
                let in_files = webhook.secrets.values().filter(|from| from.starts_with('/'));
                files.extend(in_files.map(|path| (format!("{who}: secrets"), PathBuf::from(path))));
            }
        }
    }
    files
}

fn add(files: &mut Vec<(String, PathBuf)>, who: &str, keys: &[(&str, &Option<PathBuf>)]) {
    for (key, path) in keys {
        if let Some(path) = path {
            files.push((format!("{who}: {key}"), path.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let reading = super::super::read::read(text);
        let told = problems(&reading, Path::new("f"));
        told.into_iter().map(|problem| format!("{:?} {problem}", problem.severity)).collect()
    }

    #[test]
    fn tokens_and_certificates_are_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        put("open", "0123456789abcdef0123\n", 0o644);
        put("empty", "\n", 0o600);
        put("cert", "no certificate\n", 0o644);
        put("key", "no key\n", 0o644);
        let text = format!(
            "[http]\nlisten = [\"127.0.0.1:1\"]\ntoken_file = \"{0}/open\"\nread_token_file = \"{0}/empty\"\ncert_file = \"{0}/cert\"\nkey_file = \
             \"{0}/key\"\nclient_ca_file = \"{0}/none\"\n",
            dir.path().display()
        );
        let said = told(&text);
        for (said, beginning, contained) in [
            (&said[0], "Warning f:3:14: http.token_file: ", "(mode 644)"),
            (&said[1], "Error f:4:19: http.read_token_file: ", "is empty"),
            (&said[2], "Error f:7:18: http.client_ca_file: ", "No such file"),
            (&said[3], "Warning f:6:12: http.key_file: ", "(mode 644)"),
        ] {
            assert!(said.starts_with(beginning) && said.contains(contained), "{said}");
        }
        assert_eq!(said.len(), 4, "{said:?}");
        put("none", "", 0o600);
        assert!(
            told(&text)[2].starts_with("Error f:7:18: http.client_ca_file: there is no certificate in"),
            "{:?}",
            told(&text)
        );
        let without = text.lines().filter(|line| !line.starts_with("client_ca")).collect::<Vec<_>>().join("\n");
        assert!(
            told(&without)[2].starts_with("Error f:5:13: http.cert_file: there is no certificate in"),
            "{:?}",
            told(&without)
        );
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("good"), "x").unwrap();
        let text = format!(
            "[hooks]\ndir = \"{0}/none\"\n[[bridge]]\nname = \"a\"\ntype = \"nats\"\nurl = \"nats://h\"\ntoken_file = \"{0}/good\"\nca_file = \
             \"{0}/missing\"\n[[bridge]]\nname = \"b\"\ntype = \"amqp\"\nurl = \"amqp://u@h\"\npassword_file = \"{0}\"\n",
            dir.path().display()
        );
        let reading = super::super::read::read(&text);
        let told: Vec<_> = problems(&reading, Path::new("f")).into_iter().map(|problem| problem.to_string()).collect();
        assert!(
            matches!(&told[..], [ca, password, hooks] if ca.starts_with("f:8:11: bridge `a`: ca_file: ") && ca.contains("No such file")
                && password.starts_with("f:13:17: bridge `b`: password_file: ") && password.contains("directory")
                && hooks.starts_with("f:2:7: hooks.dir: ")),
            "{told:?}"
        );
    }
}
