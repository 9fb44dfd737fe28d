//! The URL of a bus or source, which may hold a password and must not show it.
//!
//! Nothing is looked up here; each bus reads its own URL later. What is checked is what keeps a secret: the part
//! in front of the last `@` is user and password, and there is no other `@`. A text for which that can't be said
//! is refused, without repeating it.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};

/// `SCHEME://[USER[:PASSWORD]@]HOST[:PORT][/...]`. Shown, also by `Debug` and when it is serialized, with `***` for the
/// password. NATS takes a lone user for a token, so that one is hidden, too.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    text: String,
    /// The end of the scheme, where `://` begins.
    scheme: usize,
    /// Where the `@` is that ends user and password.
    at: Option<usize>,
}

impl Url {
    /// What stands for a URL that is in a file of its own.
    pub(crate) fn in_a_file() -> Self {
        Url { text: "://".into(), scheme: 0, at: None }
    }

    /// Whether it is only that.
    pub(crate) fn is_in_a_file(&self) -> bool {
        self.scheme == 0
    }

    /// The part in front of `://`, in lower case.
    pub(crate) fn scheme(&self) -> &str {
        &self.text[..self.scheme]
    }

    /// The user, as it is written.
    pub(crate) fn user(&self) -> Option<&str> {
        self.credentials().map(|credentials| credentials.split(':').next().unwrap_or(credentials))
    }

    /// Whether a password is in it.
    pub(crate) fn has_password(&self) -> bool {
        self.credentials().is_some_and(|credentials| credentials.contains(':'))
    }

    /// The user, decoded.
    pub(crate) fn user_decoded(&self) -> Option<String> {
        self.user().filter(|user| !user.is_empty()).map(decoded)
    }

    /// The password, decoded.
    pub(crate) fn password_decoded(&self) -> Option<String> {
        self.credentials().and_then(|credentials| credentials.split_once(':')).map(|(_, password)| decoded(password))
    }

    /// Host and port; the port is this one where none is written. An IPv6 address comes without its brackets.
    ///
    /// # Errors
    /// When what should be a port is none.
    pub(crate) fn host_and_port(&self, default_port: u16) -> Result<(String, u16), String> {
        let start = self.at.map_or(self.scheme + 3, |at| at + 1);
        let end = self.text[start..].find(['/', '?', '#']).map_or(self.text.len(), |end| start + end);
        let authority = &self.text[start..end];
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            None => default_port,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(format!("`{}` is no port; write SCHEME://HOST:PORT", port.escape_debug())),
            },
        };
        if host.is_empty() {
            return Err("the host is missing; write SCHEME://HOST:PORT".into());
        }
        Ok((host.to_owned(), port))
    }

    /// What stands behind host and port, from its `/`, `?` or `#` on; may be empty.
    pub(crate) fn path(&self) -> &str {
        let start = self.at.map_or(self.scheme + 3, |at| at + 1);
        self.text[start..].find(['/', '?', '#']).map_or("", |path| &self.text[start + path..])
    }

    /// The whole text without user and password.
    pub(crate) fn without_credentials(&self) -> String {
        let rest = self.at.map_or(self.scheme + 3, |at| at + 1);
        format!("{}://{}", self.scheme(), &self.text[rest..])
    }

    /// The whole text with everything that is secret, for the one who connects.
    pub(crate) fn reveal(&self) -> &str {
        &self.text
    }

    fn credentials(&self) -> Option<&str> {
        self.at.map(|at| &self.text[self.scheme + 3..at])
    }
}

/// The text without what is in braces: a webhook's URL may have `{{ data.name }}` behind its host.
fn outside_of_templates(text: &str) -> String {
    let mut outside = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once("{{") {
        outside.push_str(before);
        rest = inside.split_once("}}").map_or("", |(_, behind)| behind);
    }
    outside + rest
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let Some(scheme) = text.find("://") else {
            return Err("there is no `://` in it; write SCHEME://HOST:PORT");
        };
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme == 0 || !text[..scheme].chars().all(is_scheme) {
            return Err("what is in front of `://` is no scheme; write SCHEME://HOST:PORT");
        }
        if outside_of_templates(text).chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("there is a blank or a control character in it; write it percent-encoded, a blank as %20");
        }
        let rest = scheme + 3;
        let authority_end = text[rest..].find(['/', '?', '#']).map_or(text.len(), |end| rest + end);
        let at = text.rfind('@');
        if at.is_some_and(|at| at > authority_end) || text[rest..].matches('@').count() > 1 {
            return Err("it can't be told where the password ends; write @, /, ? and # in user and password \
                        percent-encoded: %40, %2F, %3F, %23");
        }
        if at.map_or(rest, |at| at + 1) == text.len() {
            return Err("the host is missing; write SCHEME://HOST:PORT");
        }
        let mut text = text.to_owned();
        text[..scheme].make_ascii_lowercase();
        Ok(Url { text, scheme, at })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = self.at else { return f.write_str(&self.text) };
        write!(f, "{}://", self.scheme())?;
        match (self.user(), self.has_password()) {
            (Some(user), true) => write!(f, "{user}:***")?,
            _ if matches!(self.scheme(), "nats" | "tls" | "ws" | "wss") => f.write_str("***")?,
            (user, _) => f.write_str(user.unwrap_or_default())?,
        }
        f.write_str(&self.text[at..])
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

impl Serialize for Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (text, shown) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("amqp://guest:guest@127.0.0.1:5672/%2f", "amqp://guest:***@127.0.0.1:5672/%2f"),
            ("amqp://guest:a:b@host", "amqp://guest:***@host"),
            ("AMQP://guest:@host", "amqp://guest:***@host"),
            ("mqtts://user@broker.example.com:8883", "mqtts://user@broker.example.com:8883"),
            ("nats://s3cr3t@host", "nats://***@host"),
            ("nats://u:s3cr3t@host", "nats://u:***@host"),
            ("tcp://*:2101", "tcp://*:2101"),
            ("ipc:///run/x.sock", "ipc:///run/x.sock"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(format!("{url:?}"), format!("Url({shown})"), "{text}");
            assert_eq!(serde_json::to_string(&url).unwrap(), format!("{shown:?}"), "{text}");
            assert!(url.reveal().eq_ignore_ascii_case(text), "{text}");
        }
    }

    #[test]
    fn the_parts_are_what_a_client_needs() {
        let parts = |text: &str| {
            let url: Url = text.parse().unwrap();
            (url.host_and_port(1883), url.user_decoded(), url.password_decoded(), url.without_credentials())
        };
        let owned = |text: &str| Some(text.to_owned());
        let expected = (Ok(("h.example".into(), 1883)), None, None, "mqtt://h.example".into());
        assert_eq!(parts("mqtt://h.example"), expected);
        let expected = (Ok(("::1".into(), 8883)), owned("u@x"), owned("p:a/b"), "mqtts://[::1]:8883/%2f".into());
        assert_eq!(parts("mqtts://u%40x:p%3aa%2Fb@[::1]:8883/%2f"), expected);
        assert_eq!(parts("mqtt://[::1]").0, Ok(("::1".into(), 1883)));
        for wrong in ["mqtt://h:", "mqtt://h:0", "mqtt://h:70000", "mqtt://:1883", "mqtt://u@/x"] {
            assert!(parts(wrong).0.is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_could_show_a_password_is_refused_and_not_repeated() {
        for text in
            ["amqp://u:s3/cr3t@host", "amqp://u:s3@cr3t@host", "amqp://u:s3 cr3t@h", "u:s3cr3t@h", "amqp://u:s3cr3t@"]
        {
            let error = text.parse::<Url>().unwrap_err();
            assert!(!error.contains("cr3t"), "{text}: {error}");
        }
        assert!("https://h/{{ data.name | upper }}?a={{b}}".parse::<Url>().is_ok());
        for text in ["", "://x", "nats://", "a b://x", "https://h/{{ a }} b"] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
