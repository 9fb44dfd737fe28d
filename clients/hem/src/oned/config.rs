//! [`Config`]: `onehem-server.conf`, read as OpenNebula ships it.
//!
//! The file is YAML, a flat list of settings whose names are Ruby symbols:
//!
//! ```yaml
//! :debug_level: 2
//! :hook_base_path: '/var/lib/one/remotes/hooks'
//! :remote_hook_base_path: '/var/tmp/one/hooks'
//! :subscriber_endpoint: 'tcp://localhost:2101'
//! :replier_endpoint: 'tcp://localhost:2102'
//! :concurrency: 10
//! ```
//!
//! What is not set has OpenNebula's default. A name that is unknown is warned of, and has no effect, as there. A value that makes no
//! sense is an error, where the original ends with a Ruby exception, or, worse, doesn't. All errors of a file are told at once, each with
//! line and column.
//!
//! # Constraints
//!
//! The file is read event by event rather than into a tree, so that nothing in it (nesting, anchors and aliases) can cost more memory
//! than its own length, and every value is known with its place.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use hookbus_bridges::zeromq::{Endpoint, Host};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use thiserror::Error;

use super::shown;
use crate::problem::{Problem, Severity};
use crate::states::nearest;
use crate::template::Position;

/// The largest configuration file, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The largest `:concurrency:`.
pub const MAX_CONCURRENCY: usize = 10_000;

const NAMES: [&str; 6] = [
    ":debug_level",
    ":hook_base_path",
    ":remote_hook_base_path",
    ":subscriber_endpoint",
    ":replier_endpoint",
    ":concurrency",
];

/// Where an installation of OpenNebula has its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locations {
    /// Configuration: `/etc/one`.
    pub etc: PathBuf,
    /// Data, and the home of oneadmin: `/var/lib/one`.
    pub var: PathBuf,
    /// The log of the executor: `/var/log/one/onehem.log`.
    pub log_file: PathBuf,
}

impl Locations {
    /// Those of a system-wide installation, or, where `ONE_LOCATION` is set, of one in that directory.
    pub fn of(env: impl Fn(&str) -> Option<OsString>) -> Self {
        match env("ONE_LOCATION").filter(|location| !location.is_empty()) {
            Some(location) => {
                let location = PathBuf::from(location);
                let var = location.join("var");
                Locations { etc: location.join("etc"), log_file: var.join("onehem.log"), var }
            }
            None => Locations {
                etc: "/etc/one".into(),
                var: "/var/lib/one".into(),
                log_file: "/var/log/one/onehem.log".into(),
            },
        }
    }

    /// The configuration of the executor: `/etc/one/onehem-server.conf`.
    pub fn config_file(&self) -> PathBuf {
        self.etc.join("onehem-server.conf")
    }
}

/// How much goes into the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DebugLevel {
    /// 0: errors.
    Error,
    /// 1: warnings, too.
    Warning,
    /// 2: what is done, too.
    #[default]
    Info,
    /// 3: everything.
    Debug,
}

/// Where events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventsFrom {
    /// The ZeroMQ port of oned's driver.
    Driver(Endpoint),
    /// The journal of a hookbus daemon, at the first of these sockets that answers.
    Daemon(Vec<PathBuf>),
}

impl fmt::Display for EventsFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventsFrom::Driver(endpoint) => endpoint.fmt(f),
            EventsFrom::Daemon(sockets) => {
                let sockets: Vec<_> = sockets.iter().map(|socket| format!("unix://{}", socket.display())).collect();
                f.write_str(&sockets.join(", "))
            }
        }
    }
}

/// The settings of the executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How much goes into the log.
    pub debug_level: DebugLevel,
    /// Where commands are that are not given with their whole path.
    pub hook_base_path: PathBuf,
    /// The same on hosts, for hooks with REMOTE = yes.
    pub remote_hook_base_path: PathBuf,
    /// Where events come from.
    pub subscriber_endpoint: EventsFrom,
    /// Where results go.
    pub replier_endpoint: Endpoint,
    /// How many hooks run at once.
    pub concurrency: usize,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {path}: {source}; create it, or name another one with -c", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in it is wrong: errors, and the warnings there are.
    #[error("{}", lines(.0))]
    Wrong(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Config {
    /// What holds where the file says nothing.
    pub fn defaults(locations: &Locations) -> Self {
        let local = |port| Endpoint::Tcp { host: Host::Name("localhost".into()), port };
        Config {
            debug_level: DebugLevel::default(),
            // The original has a slip of the pen in this path where ONE_LOCATION is set (`remotest`).
            hook_base_path: locations.var.join("remotes/hooks"),
            remote_hook_base_path: "/var/tmp/one/hooks".into(),
            subscriber_endpoint: EventsFrom::Driver(local(2101)),
            replier_endpoint: local(2102),
            concurrency: 10,
        }
    }

    /// Reads a file. The second value is what there is to warn of.
    ///
    /// # Errors
    /// When the file can't be read, is larger than [`MAX_CONFIG_BYTES`], or something in it is wrong.
    pub fn load(path: &Path, locations: &Locations) -> Result<(Config, Vec<Problem>), ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            let what = format!("the file is larger than {MAX_CONFIG_BYTES} bytes; is it the right one?");
            return Err(ConfigError::Wrong(vec![Problem::error(what).in_file(path)]));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
            let what = "the file is no text in UTF-8; save it as such";
            let problem = Problem::error(what).at(Position { line, column: 1 }).in_file(path);
            ConfigError::Wrong(vec![problem])
        })?;
        Config::parse(&text, path, locations)
    }

    /// Reads a text; `path` is what messages call it.
    ///
    /// # Errors
    /// When something in it is wrong.
    pub fn parse(text: &str, path: &Path, locations: &Locations) -> Result<(Config, Vec<Problem>), ConfigError> {
        let mut reader = Reader { config: Config::defaults(locations), problems: Vec::new(), seen: Vec::new() };
        reader.read(text);
        let Reader { config, problems, .. } = reader;
        let problems: Vec<_> = problems.into_iter().map(|problem| problem.in_file(path)).collect();
        if problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(ConfigError::Wrong(problems));
        }
        Ok((config, problems))
    }
}

/// What an element of the file is.
enum Node {
    /// A text, and whether it stands there without quotes.
    Scalar { text: String, plain: bool },
    /// A list, an alias, or a list of settings below another.
    Other(&'static str),
    /// Nothing more.
    End,
}

/// The parser of the file, without what nobody needs to know of.
struct Nodes<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
}

impl<'t> Nodes<'t> {
    fn event(&mut self) -> Result<(Event<'t>, Position), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, position(&span.start))),
            Some(Err(e)) => {
                let what = format!("the file is no YAML: {}; write each setting as `:name: value`", shown(e.info()));
                Err(Problem::error(what).at(position(e.marker())))
            }
            None => Ok((Event::StreamEnd, Position { line: 1, column: 1 })),
        }
    }

    /// The next element with its place; one that is no text is passed over as a whole.
    fn next(&mut self) -> Result<(Node, Position), Problem> {
        let (event, at) = self.event()?;
        let node = match event {
            Event::Scalar(text, style, _, tag) => {
                // `!ruby/symbol x` is another way to write `:x`.
                let symbol = tag.is_some_and(|tag| tag.suffix.ends_with("symbol") || tag.suffix.ends_with("sym"));
                let text = if symbol && !text.starts_with(':') { format!(":{text}") } else { text.into_owned() };
                Node::Scalar { text, plain: style == ScalarStyle::Plain }
            }
            Event::SequenceStart(..) => self.pass_over("a list")?,
            Event::MappingStart(..) => self.pass_over("a list of settings")?,
            Event::Alias(_) => Node::Other("an alias"),
            _ => Node::End,
        };
        Ok((node, at))
    }

    fn pass_over(&mut self, what: &'static str) -> Result<Node, Problem> {
        let mut open = 1_usize;
        while open > 0 {
            match self.event()?.0 {
                Event::SequenceStart(..) | Event::MappingStart(..) => open += 1,
                Event::SequenceEnd | Event::MappingEnd => open -= 1,
                Event::StreamEnd => break,
                _ => {}
            }
        }
        Ok(Node::Other(what))
    }
}

fn position(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

struct Reader {
    config: Config,
    problems: Vec<Problem>,
    /// The settings that were there, by their place in [`NAMES`].
    seen: Vec<&'static str>,
}

impl Reader {
    fn read(&mut self, text: &str) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut nodes = Nodes { parser: Parser::new_from_str(text) };
        if let Err(problem) = self.document(&mut nodes) {
            self.problems.push(problem);
        }
    }

    fn document(&mut self, nodes: &mut Nodes<'_>) -> Result<(), Problem> {
        loop {
            match nodes.event()? {
                (Event::StreamStart | Event::DocumentStart(_), _) => {}
                (Event::MappingStart(..), _) => return self.settings(nodes),
                // Nothing but comments, or an explicit nothing.
                (Event::StreamEnd | Event::DocumentEnd, _) => return Ok(()),
                (Event::Scalar(text, ScalarStyle::Plain, ..), _) if is_null(&text) => return Ok(()),
                (_, at) => {
                    let what = "the file is no list of settings; write each one as `:name: value` on a line of its own";
                    return Err(Problem::error(what).at(at));
                }
            }
        }
    }

    fn settings(&mut self, nodes: &mut Nodes<'_>) -> Result<(), Problem> {
        loop {
            let (name, name_at) = match nodes.next()? {
                (Node::Scalar { text, .. }, at) => (text, at),
                (Node::Other(what), at) => {
                    return Err(Problem::error(format!("{what} can't be the name of a setting")).at(at));
                }
                (Node::End, _) => return Ok(()),
            };
            let (value, at) = nodes.next()?;
            let Some(known) = NAMES.into_iter().find(|known| *known == name) else {
                self.unknown(&name, name_at);
                continue;
            };
            if self.seen.contains(&known) {
                let what = format!("{known}: is set a second time; this one counts");
                self.problems.push(Problem::warning(what).at(name_at));
            }
            self.seen.push(known);
            if let Err(what) = self.set(known, value) {
                self.problems.push(Problem::error(format!("{known}: {what}")).at(at));
            }
        }
    }

    fn unknown(&mut self, name: &str, at: Position) {
        let symbol = format!(":{name}");
        let hint = if NAMES.contains(&symbol.as_str()) {
            format!("; write {symbol}:, with a colon before it, too")
        } else {
            nearest(name, NAMES).map(|name| format!("; did you mean {name}:?")).unwrap_or_default()
        };
        let what = format!("the setting {:?} is unknown and has no effect{hint}", shown(name));
        self.problems.push(Problem::warning(what).at(at));
    }

    fn set(&mut self, name: &str, value: Node) -> Result<(), String> {
        let (text, plain) = match value {
            Node::Scalar { text, plain } => (text, plain),
            Node::Other(what) => return Err(format!("has {what} as its value; write one value behind it")),
            Node::End => (String::new(), true),
        };
        if (plain && is_null(&text)) || text.trim().is_empty() {
            return Err("has no value; write one, or remove the line so that the default counts".into());
        }
        let config = &mut self.config;
        match name {
            ":debug_level" => {
                config.debug_level = match number(&text) {
                    Some(0) => DebugLevel::Error,
                    Some(1) => DebugLevel::Warning,
                    Some(2) => DebugLevel::Info,
                    Some(3) => DebugLevel::Debug,
                    _ => {
                        let what = "is no level; write 0 (errors), 1 (warnings), 2 (what is done) or 3 (everything)";
                        return Err(format!("{:?} {what}", shown(&text)));
                    }
                }
            }
            ":concurrency" => match number(&text).filter(|number| (1..=MAX_CONCURRENCY).contains(number)) {
                Some(number) => config.concurrency = number,
                None => {
                    return Err(format!(
                        "{:?} is no number of hooks that may run at once; write a whole number from 1 to {MAX_CONCURRENCY}",
                        shown(&text)
                    ));
                }
            },
            ":hook_base_path" => config.hook_base_path = path(&text)?,
            ":remote_hook_base_path" => config.remote_hook_base_path = path(&text)?,
            ":subscriber_endpoint" => config.subscriber_endpoint = events_from(&text)?,
            _ => config.replier_endpoint = endpoint(&text)?,
        }
        Ok(())
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn number(text: &str) -> Option<usize> {
    text.trim().parse().ok()
}

fn path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err(format!("{:?} is no directory with its whole path; begin it with /", shown(text)));
    }
    Ok(text.into())
}

fn events_from(text: &str) -> Result<EventsFrom, String> {
    let Some(socket) = text.trim().strip_prefix("unix:") else { return endpoint(text).map(EventsFrom::Driver) };
    let socket = socket.strip_prefix("//").unwrap_or(socket);
    if socket.is_empty() {
        return Ok(EventsFrom::Daemon(default_sockets()));
    }
    if !socket.starts_with('/') || socket.contains('\0') {
        let what =
            "is no socket with its whole path; write unix:///run/hookbus/hookbus.sock, or unix: for the usual ones";
        return Err(format!("{:?} {what}", shown(text)));
    }
    Ok(EventsFrom::Daemon(vec![socket.into()]))
}

/// Where a daemon listens that was not told where.
fn default_sockets() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("hookbus.sock"));
    ["/run/hookbus/hookbus.sock", "/run/one/hookbus.sock"].map(PathBuf::from).into_iter().chain(runtime).collect()
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    let endpoint: Endpoint = text.trim().parse().map_err(|e: hookbus_bridges::zeromq::EndpointError| e.to_string())?;
    match endpoint {
        Endpoint::Tcp { host: Host::Any, port } => Err(format!(
            "tcp://*:{port} is an address to listen at; write that of oned's driver, such as tcp://localhost:{port}"
        )),
        Endpoint::Tcp { port: 0, .. } => Err("the port is missing; oned's driver uses 2101 and 2102".into()),
        endpoint => Ok(endpoint),
    }
}

impl fmt::Display for DebugLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DebugLevel::Error => "error",
            DebugLevel::Warning => "warning",
            DebugLevel::Info => "info",
            DebugLevel::Debug => "debug",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As OpenNebula 7 ships it, with fewer comments.
    const SHIPPED: &str = "\
# -------------------------------------------------------------------------- #
# Copyright 2002-2025, OpenNebula Project, OpenNebula Systems                #
#--------------------------------------------------------------------------- #

################################################################################
# OpenNebula server contact information is obtained from
#   - Environment: ONE_XMLRPC and ONE_AUTH
#   - Filesystem: ~/.one/one_endpoint and ~/.one/one_auth
################################################################################

# debug_level: Log debug level (0 = ERROR, 1 = WARNING, 2 = INFO, 3 = DEBUG)
:debug_level: 2

# :hook_base_path location of hook scripts when commands not given as an
# absolute path
:hook_base_path: '/var/lib/one/remotes/hooks'
:remote_hook_base_path: '/var/tmp/one/hooks'

# :subscriber_endpoint to subscribe for OpenNebula events must match those in
# oned.conf
:subscriber_endpoint: 'tcp://localhost:2101'
:replier_endpoint: 'tcp://localhost:2102'

# :concurrency number of hooks executed simultaneously
:concurrency: 10
";

    fn system() -> Locations {
        Locations::of(|_| None)
    }

    fn parse(text: &str) -> Result<(Config, Vec<String>), String> {
        Config::parse(text, Path::new("/c"), &system())
            .map(|(config, problems)| (config, problems.iter().map(ToString::to_string).collect()))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_file_says_what_holds_anyway() {
        assert_eq!(parse(SHIPPED), Ok((Config::defaults(&system()), vec![])));
        for nothing in ["", "# x\n", "---\n", "--- ~\n", "\u{feff}"] {
            assert_eq!(parse(nothing), Ok((Config::defaults(&system()), vec![])), "{nothing:?}");
        }
    }

    #[test]
    fn settings_count() {
        let (config, problems) = parse(
            ":debug_level: '3'\n:hook_base_path: /opt/h\n:remote_hook_base_path: \"/r\"\n\
             :subscriber_endpoint: tcp://[::1]:5101\n:replier_endpoint: ipc:///run/x\n:concurrency: 25 # more\n",
        )
        .unwrap();
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((config.debug_level, config.concurrency), (DebugLevel::Debug, 25));
        assert_eq!((config.hook_base_path, config.remote_hook_base_path), ("/opt/h".into(), "/r".into()));
        assert_eq!(config.subscriber_endpoint.to_string(), "tcp://[::1]:5101");
        assert_eq!(config.replier_endpoint.to_string(), "ipc:///run/x");
    }

    #[test]
    fn what_has_no_effect_is_warned_of() {
        for (text, expected) in [
            (
                "debug_level: 3",
                "/c:1:1: the setting \"debug_level\" is unknown and has no effect; write :debug_level:,",
            ),
            (":debug_level: 2\n:concurency: 3", "/c:2:1: the setting \":concurency\" is unknown"),
            (":concurency: 3", "did you mean :concurrency:?"),
            (":host: [a, {b: c}]", "the setting \":host\" is unknown and has no effect"),
            (":concurrency: 3\n:concurrency: 10", "/c:2:1: :concurrency: is set a second time; this one counts"),
        ] {
            let (config, problems) = parse(text).unwrap();
            assert_eq!(config, Config::defaults(&system()), "{text}");
            assert!(problems.len() == 1 && problems[0].contains(expected), "{text}: {problems:?}");
        }
        assert_eq!(parse("!ruby/symbol concurrency: 3").unwrap().0.concurrency, 3);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, expected) in [
            (":concurrency: many", "/c:1:15: :concurrency: \"many\" is no number of hooks"),
            (":concurrency: 0", "from 1 to 10000"),
            (":concurrency: 1.5", "from 1 to 10000"),
            (":concurrency: [1]", "has a list as its value"),
            (":concurrency: {a: b}", "has a list of settings as its value"),
            (":concurrency:\n", ":concurrency: has no value; write one, or remove the line"),
            (":debug_level: 4", "\"4\" is no level; write 0 (errors)"),
            (":hook_base_path: hooks", "begin it with /"),
            (":subscriber_endpoint: localhost:2101", "there is no `://` in it; write tcp://"),
            (":subscriber_endpoint: unix://run/x", "is no socket with its whole path; write unix:///run/"),
            (":subscriber_endpoint: tcp://*:2101", "is an address to listen at"),
            (":replier_endpoint: tcp://localhost:0", "the port is missing"),
            ("a\nb", "/c:1:1: the file is no list of settings"),
            ("- a", "the file is no list of settings"),
            (":x: 1\n  :y: 'a", "the file is no YAML"),
            (":x: \"a", "the file is no YAML"),
            ("? [a]\n: b", "a list can't be the name of a setting"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
        let two = parse(":debug_level: x\n:concurrency: y").unwrap_err();
        assert_eq!(two.lines().count(), 2, "{two}");
    }

    #[test]
    fn a_file_that_is_not_there_or_no_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.conf");
        let said = Config::load(&path, &system()).unwrap_err().to_string();
        assert!(said.contains("x.conf: No such file") && said.contains("-c"), "{said}");
        std::fs::write(&path, b":x: 1\n:y: \xFF").unwrap();
        let said = Config::load(&path, &system()).unwrap_err().to_string();
        assert!(said.contains("x.conf:2:1: the file is no text in UTF-8"), "{said}");
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        let said = Config::load(&path, &system()).unwrap_err().to_string();
        assert!(said.contains("larger than 1048576 bytes"), "{said}");
        std::fs::write(&path, SHIPPED).unwrap();
        assert_eq!(Config::load(&path, &system()).unwrap().0, Config::defaults(&system()));
    }

    #[test]
    fn deep_nesting_and_aliases_cost_nothing() {
        let deep = format!(":x: {}", "[".repeat(100_000));
        assert!(parse(&deep).unwrap_err().contains("no YAML"));
        let deep = format!(":x: {}{}\n:concurrency: 3", "[".repeat(200), "]".repeat(200));
        assert_eq!(parse(&deep).unwrap().0.concurrency, 3);
        assert!(parse(":x: &a 3\n:concurrency: *a").unwrap_err().contains("has an alias as its value"));
    }

    #[test]
    fn an_installation_of_its_own() {
        let own = Locations::of(|name| (name == "ONE_LOCATION").then(|| "/opt/one".into()));
        assert_eq!(own.config_file(), Path::new("/opt/one/etc/onehem-server.conf"));
        assert_eq!(own.log_file, Path::new("/opt/one/var/onehem.log"));
        assert_eq!(Config::defaults(&own).hook_base_path, Path::new("/opt/one/var/remotes/hooks"));
        assert_eq!(system().config_file(), Path::new("/etc/one/onehem-server.conf"));
        assert_eq!(system().log_file, Path::new("/var/log/one/onehem.log"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(:[a-z_]{1,12}: ?)?[ -~\n\t\\[{&*]{0,80}") {
            let _ = parse(&text);
        }
    }
}
