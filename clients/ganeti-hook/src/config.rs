//! `/etc/hookbus/ganeti-hook.toml`.
//!
//! It is read leniently: what is wrong becomes a text that names the place, what is expected and what is used instead, and the hook goes on with
//! the default. A file that isn't there is all defaults.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use toml::{Table, Value};

/// Where the file is, unless somebody names another one.
pub const DEFAULT_PATH: &str = "/etc/hookbus/ganeti-hook.toml";

/// Where the spool is, unless the file says so.
pub const DEFAULT_SPOOL: &str = "/var/spool/hookbus";

/// The longest that a hook may take.
const MAX_TIMEOUT_MS: i64 = 1000;
/// Shorter than this, not even a healthy daemon is heard.
const MIN_TIMEOUT_MS: i64 = 50;
/// Ganeti itself gives a hook 15 minutes.
const MAX_GATE_TIMEOUT_MS: i64 = 600_000;

/// The keys of the file.
const KEYS: [&str; 11] = [
    "socket",
    "url",
    "token_file",
    "ca_file",
    "spool",
    "timeout_ms",
    "node",
    "report",
    "gate_ops",
    "gate_timeout_ms",
    "gate_default",
];

/// What the hook does, and whom it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whom it tells.
    pub target: Target,
    /// The file with the token that goes with every request.
    pub token_file: Option<PathBuf>,
    /// The certificates that an https server is checked with; what the system trusts unless set.
    pub ca_file: Option<PathBuf>,
    /// The directory of the spool.
    pub spool: PathBuf,
    /// All that a run may take, save waiting for a verdict.
    pub timeout: Duration,
    /// The name of this node, as Ganeti knows it.
    pub node: Option<String>,
    /// Where operations are reported.
    pub report: ReportOn,
    /// The operations that wait for a verdict; `*` is all.
    pub gate_ops: Vec<String>,
    /// How long to wait for a verdict.
    pub gate_timeout: Duration,
    /// What counts where there is none.
    pub gate_default: GateDefault,
}

/// Whom the hook tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The daemon on this machine: the first of these sockets where somebody listens.
    Sockets(Vec<PathBuf>),
    /// A daemon anywhere.
    Url(Url),
}

/// `http://HOST:PORT/PATH` or `https://...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// With TLS.
    pub tls: bool,
    /// A name or an address, that of IPv6 without brackets.
    pub host: String,
    /// 80 or 443 unless it stands there.
    pub port: u16,
    /// Comes before each path: empty, or it begins with a slash and doesn't end in one.
    pub prefix: String,
}

/// On which nodes an operation is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportOn {
    /// On the master; on every node for operations that may not run on the master.
    Master,
    /// On every node that runs the hook.
    Always,
}

/// What counts where nobody gives a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateDefault {
    /// The operation goes on.
    Allow,
    /// The operation is refused.
    Deny,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            target: Target::Sockets(default_sockets()),
            token_file: None,
            ca_file: None,
            spool: DEFAULT_SPOOL.into(),
            timeout: Duration::from_millis(1000),
            node: None,
            report: ReportOn::Master,
            gate_ops: Vec::new(),
            gate_timeout: Duration::from_millis(5000),
            gate_default: GateDefault::Allow,
        }
    }
}

/// Where daemons have their socket. (Ganeti clears the environment, so `XDG_RUNTIME_DIR` counts only when a person tries the hook.)
fn default_sockets() -> Vec<PathBuf> {
    let fixed = ["/run/hookbus", "/run/one"].map(PathBuf::from);
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    fixed.into_iter().chain(own).map(|dir| dir.join("hookbus.sock")).collect()
}

/// What a file said: what to use, and what was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What to use.
    pub config: Config,
    /// What was wrong, each with the file's name.
    pub problems: Vec<String>,
}

impl Reading {
    /// Reads the file, or that at [`DEFAULT_PATH`], which need not exist.
    pub fn of_file(path: Option<&Path>) -> Self {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let unreadable = |what: String| Reading {
            config: Config::default(),
            problems: vec![format!("{}: {what}; all of it counts as not set", file.display())],
        };
        match std::fs::read(file) {
            Ok(text) => match String::from_utf8(text) {
                Ok(text) => Reading::of_text(&text, file),
                Err(_) => unreadable("it is not UTF-8 text".into()),
            },
            Err(e) if path.is_none() && e.kind() == io::ErrorKind::NotFound => Reading::default(),
            Err(e) => unreadable(format!("cannot read it: {e}")),
        }
    }

    /// Reads a text; `file` is for what is said about it.
    pub fn of_text(text: &str, file: &Path) -> Self {
        let table: Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(e) => {
                // The first line says where, the last one what.
                let text = e.to_string();
                let place = text.lines().next().unwrap_or_default();
                let problem = format!("{}: {place}: {}; all of it counts as not set", file.display(), e.message());
                return Reading { config: Config::default(), problems: vec![problem] };
            }
        };
        let mut reader = Reader { table: &table, problems: Vec::new() };
        let config = reader.config();
        let problems = reader.problems.iter().map(|problem| format!("{}: {problem}", file.display())).collect();
        Reading { config, problems }
    }
}

struct Reader<'t> {
    table: &'t Table,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn config(&mut self) -> Config {
        let mut config = Config::default();
        for key in self.table.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            self.problems.push(format!("unknown key `{key}`; known are {}", KEYS.join(", ")));
        }
        let url = self.parsed("url", Url::parse);
        match (self.path("socket"), url) {
            (Some(socket), url) => {
                if url.is_some() {
                    self.problems.push("`socket` and `url` exclude each other; url is not used".into());
                }
                config.target = Target::Sockets(vec![socket]);
            }
            (None, Some(url)) => config.target = Target::Url(url),
            (None, None) => {}
        }
        config.token_file = self.path("token_file");
        config.ca_file = self.path("ca_file");
        if let Some(spool) = self.path("spool") {
            config.spool = spool;
        }
        if let Some(timeout) = self.milliseconds("timeout_ms", MIN_TIMEOUT_MS, MAX_TIMEOUT_MS) {
            config.timeout = timeout;
        }
        config.node = self.parsed("node", |text| match text.trim() {
            "" => Err("the name of this node is expected".to_owned()),
            name => Ok(name.to_owned()),
        });
        if let Some(report) = self.parsed("report", |text| match text {
            "master" => Ok(ReportOn::Master),
            "always" => Ok(ReportOn::Always),
            _ => Err("\"master\" or \"always\" is expected".to_owned()),
        }) {
            config.report = report;
        }
        config.gate_ops = self.names("gate_ops");
        if let Some(timeout) = self.milliseconds("gate_timeout_ms", 1, MAX_GATE_TIMEOUT_MS) {
            config.gate_timeout = timeout;
        }
        if let Some(default) = self.parsed("gate_default", |text| match text {
            "allow" => Ok(GateDefault::Allow),
            "deny" => Ok(GateDefault::Deny),
            _ => Err("\"allow\" or \"deny\" is expected".to_owned()),
        }) {
            config.gate_default = default;
        }
        config
    }

    fn wrong(&mut self, key: &str, value: &Value, expected: &str) {
        self.problems.push(format!("`{key}` is {value}: {expected}; the default is used"));
    }

    fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.table.get(key)?;
        let parsed = match value {
            Value::String(text) => parse(text),
            _ => Err("a text in quotes is expected".into()),
        };
        parsed.map_err(|expected| self.wrong(key, value, &expected)).ok()
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.parsed(key, |text| match PathBuf::from(text) {
            path if path.is_absolute() => Ok(path),
            _ => Err("a path that begins with `/` is expected".into()),
        })
    }

    fn milliseconds(&mut self, key: &str, min: i64, max: i64) -> Option<Duration> {
        let value = self.table.get(key)?;
        match value.as_integer().filter(|number| (min..=max).contains(number)) {
            Some(number) => Some(Duration::from_millis(number.unsigned_abs())),
            None => {
                self.wrong(key, value, &format!("a number from {min} to {max} is expected"));
                None
            }
        }
    }

    /// A list of names; a single one may stand there without brackets.
    fn names(&mut self, key: &str) -> Vec<String> {
        let Some(value) = self.table.get(key) else { return Vec::new() };
        let list = match value {
            Value::Array(list) => list.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            Value::String(name) => Some(vec![name.clone()]),
            _ => None,
        };
        list.unwrap_or_else(|| {
            self.wrong(key, value, "a list of operations is expected, such as [\"instance-migrate\"], or [\"*\"]");
            Vec::new()
        })
    }
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || "http://HOST:PORT or https://HOST:PORT is expected".to_owned();
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let tls = match uri.scheme_str() {
            Some("https") if cfg!(feature = "tls") => true,
            Some("https") => return Err("this program was built without TLS; http is what it can do".into()),
            Some("http") => false,
            _ => return Err(expected()),
        };
        let authority = uri.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err("a user name has no place in it; the token comes from token_file".into());
        }
        if uri.query().is_some() {
            return Err("a query (`?`) has no place in it".into());
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(expected());
        }
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Url { tls, host, port, prefix: uri.path().trim_end_matches('/').to_owned() })
    }

    /// `HOST:PORT`, as it stands in the header `Host`.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.prefix)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Url(url) => url.fmt(f),
            Target::Sockets(sockets) => {
                for (i, socket) in sockets.iter().enumerate() {
                    write!(f, "{}{}", if i == 0 { "" } else { ", " }, socket.display())?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Reading {
        Reading::of_text(text, Path::new("f.toml"))
    }

    #[test]
    fn all_keys_are_read() {
        let reading = read(
            "socket = \"/s\"\ntoken_file = \"/t\"\nca_file = \"/c\"\nspool = \"/sp\"\ntimeout_ms = 250\nnode = \"n1\"\nreport = \"always\"\n\
             gate_ops = [\"instance-migrate\", \"*\"]\ngate_timeout_ms = 7000\ngate_default = \"deny\"\n",
        );
        let expected = Config {
            target: Target::Sockets(vec!["/s".into()]),
            token_file: Some("/t".into()),
            ca_file: Some("/c".into()),
            spool: "/sp".into(),
            timeout: Duration::from_millis(250),
            node: Some("n1".into()),
            report: ReportOn::Always,
            gate_ops: vec!["instance-migrate".into(), "*".into()],
            gate_timeout: Duration::from_secs(7),
            gate_default: GateDefault::Deny,
        };
        assert_eq!(reading, Reading { config: expected, problems: Vec::new() });
        assert_eq!(read(""), Reading::default());
        assert_eq!(read("gate_ops = \"*\"").config.gate_ops, ["*"]);
    }

    /// The file that comes along has every key, and says what holds without it.
    #[test]
    fn the_annotated_file_has_all_defaults() {
        let text = include_str!("../../../packaging/ganeti-hook.toml");
        assert_eq!(read(text), Reading::default());
        let all: String = text
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with(' '))
            .fold(String::new(), |all, line| all + line + "\n");
        for key in KEYS {
            assert!(all.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        }
        let Reading { config, problems } = read(&all);
        assert!(problems.len() == 1 && problems[0].contains("exclude each other"), "{problems:?}");
        let same = Config { target: config.target.clone(), token_file: None, ca_file: None, node: None, ..config };
        assert_eq!(same, Config { target: same.target.clone(), ..Config::default() });
    }

    #[test]
    fn what_is_wrong_is_told_and_the_rest_counts() {
        for (text, told) in [
            ("nod = 1", "f.toml: unknown key `nod`; known are socket,"),
            ("timeout_ms = 1001", "`timeout_ms` is 1001: a number from 50 to 1000 is expected; the default is used"),
            ("timeout_ms = \"1s\"", "a number from 50 to 1000"),
            ("report = \"all\"", "\"master\" or \"always\" is expected"),
            ("gate_default = true", "a text in quotes is expected"),
            ("gate_ops = [1]", "a list of operations is expected"),
            ("socket = \"s\"", "a path that begins with `/` is expected"),
            ("url = \"ftp://h\"", "http://HOST:PORT or https://HOST:PORT is expected"),
            ("url = \"http://u:p@h\"", "the token comes from token_file"),
            ("url = \"http://h/?a\"", "has no place in it"),
            ("url = \"http://h\"\nsocket = \"/s\"", "exclude each other"),
            ("node = \" \"", "the name of this node is expected"),
        ] {
            let reading = read(&format!("{text}\nspool = \"/sp\"\n"));
            assert_eq!(reading.problems.len(), 1, "{text}: {:?}", reading.problems);
            assert!(reading.problems[0].contains(told), "{text}: {:?}", reading.problems);
            assert_eq!(reading.config.spool, Path::new("/sp"), "{text}");
        }
        let broken = read("spool = \"/sp\"\nnode = \n");
        assert_eq!(broken.config, Config::default());
        assert!(broken.problems[0].contains("f.toml: TOML parse error at line 2"), "{:?}", broken.problems);
        let missing = Reading::of_file(Some(Path::new("/nonexistent/f.toml")));
        assert!(missing.problems[0].contains("cannot read it: No such file"), "{:?}", missing.problems);
    }

    #[test]
    fn urls_are_taken_apart() {
        for (text, tls, host, port, prefix, authority) in [
            ("http://h", false, "h", 80, "", "h:80"),
            ("http://[::1]:2180/", false, "::1", 2180, "", "[::1]:2180"),
            ("http://10.0.0.1:2180/bus/", false, "10.0.0.1", 2180, "/bus", "10.0.0.1:2180"),
        ] {
            let url = Url::parse(text).unwrap();
            let expected = Url { tls, host: host.into(), port, prefix: prefix.into() };
            assert_eq!((url.authority().as_str(), &url), (authority, &expected), "{text}");
        }
        if cfg!(feature = "tls") {
            assert_eq!(Url::parse("https://h.example.com").unwrap().to_string(), "https://h.example.com:443");
        } else {
            assert!(Url::parse("https://h").unwrap_err().contains("without TLS"));
        }
    }
}
