//! The files that a configuration names, and whether they can be read.
//!
//! Only `hookbus config check` looks: a daemon reads them when it needs them, tells what is wrong then, and tries again, since a
//! certificate may be renewed or a secret put there while it runs.

use std::path::{Path, PathBuf};

use super::bridge::{BridgeConfig, BridgeKind};
use super::source::SourceKind;
use super::{Config, Problem, Reading, Severity};

/// What is wrong with the files and directories that the configuration names, for this user.
pub(super) fn problems(reading: &Reading, file: &Path) -> Vec<Problem> {
    let Reading { config, places, .. } = reading;
    let problem = |key: &str, path: &Path, e: &std::io::Error| Problem {
        severity: Severity::Error,
        file: file.into(),
        place: places.get(key).copied(),
        what: format!("{key}: {} cannot be read: {e}", path.display()),
    };
    let mut problems = Vec::new();
    for (key, path) in named(config) {
        if let Err(e) = readable(&path) {
            problems.push(problem(&key, &path, &e));
        }
    }
    if let Some(dir) = &config.hooks.dir
        && let Err(e) = std::fs::read_dir(dir)
    {
        problems.push(problem("hooks.dir", dir, &e));
    }
    problems
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
    for source in &config.sources {
        if let SourceKind::GanetiJobs(ganeti) = &source.kind {
            let of_source = [("password_file", &ganeti.password_file), ("ca_file", &ganeti.ca_file)];
            add(&mut files, &format!("source `{}`", source.name), &of_source);
        }
    }
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
            BridgeKind::Webhook(webhook) => add(&mut files, &who, &[("token_file", &webhook.token_file)]),
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
