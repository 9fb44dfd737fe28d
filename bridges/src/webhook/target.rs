//! The URL: where to connect to, and what is asked for there.

use std::fmt;

use percent_encoding::percent_decode_str;

/// A URL in its parts. Its `Debug` shows the server alone.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) origin: Origin,
    /// User and password, decoded.
    pub(super) credentials: Option<(String, String)>,
    /// What stands behind host and port; may be a template.
    pub(super) path: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.origin)
    }
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) is_https: bool,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// Host and port as they stand in the URL.
    pub(super) authority: String,
}

/// How the server is called in messages and in the log: nothing behind its name is shown, which may be a secret.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_https { "https" } else { "http" }, self.authority)
    }
}

impl Target {
    /// Takes a URL apart. An error says what is wrong without repeating it.
    pub(super) fn new(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("there is no `://` in it; write https://HOST/...")?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("it begins with neither https:// nor http://"),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains(['{', '}']) {
            return Err("host and port can't be a template, only what stands behind them");
        }
        if path.contains('#') && !super::template::is_template(path) {
            return Err("what stands behind a # is not sent to a server; take it out");
        }
        let (credentials, authority) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((credentials, authority)) => {
                let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                (Some((decoded(user), decoded(password))), authority)
            }
        };
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or("its host can't be read")?)),
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port.map(str::parse) {
            None => {
                if is_https {
                    443
                } else {
                    80
                }
            }
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err("what stands behind the host is no port"),
        };
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("its host is missing, or can't be read");
        }
        let path = match path.as_bytes().first() {
            Some(b'/') => path.to_owned(),
            _ => format!("/{path}"),
        };
        let origin = Origin { is_https, host: host.to_owned(), port, authority: authority.to_owned() };
        Ok(Target { origin, credentials, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        for (url, host, port, path, shown) in [
            ("https://h", "h", 443, "/", "https://h"),
            ("HTTP://h:8080/a/b?c=d", "h", 8080, "/a/b?c=d", "http://h:8080"),
            ("http://[::1]:81?x", "::1", 81, "/?x", "http://[::1]:81"),
            ("https://u:p%40x@h/t/{{data.name | upper}}", "h", 443, "/t/{{data.name | upper}}", "https://h"),
        ] {
            let target = Target::new(url).unwrap();
            let Origin { host: found, port: at, .. } = &target.origin;
            assert_eq!((found.as_str(), *at, target.path.as_str()), (host, port, path), "{url}");
            assert_eq!(target.origin.to_string(), shown);
        }
        let target = Target::new("https://u:p%40x@h").unwrap();
        assert_eq!(target.credentials, Some(("u".into(), "p@x".into())));
        for url in [
            "h/x",
            "ftp://h",
            "https://",
            "https://{{host}}/x",
            "https://h:x",
            "https://h:0",
            "https://h/#a",
            "https://a b/",
        ] {
            assert!(Target::new(url).is_err(), "{url}");
        }
    }
}
