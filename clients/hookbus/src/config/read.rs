//! Reads the text of a configuration file, keeping what is right and collecting what is wrong.
//!
//! serde alone stops at the first mistake. Here each section's struct still says what it takes, through its `Deserialize`,
//! but it is asked key by key: an entry is tried alone against the struct, so that its error is its own, and the section is
//! then made of the entries that passed. The names of the known keys come from the struct, too (`field_names`), so there
//! is no second list of them to forget.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::value::Error as NoError;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::{Config, Place, Problem, Reading, Severity, checks};

/// What the schema knows at the top.
const KNOWN: [&str; 11] =
    ["state_dir", "broker", "zeromq", "http", "journal", "hooks", "ganeti", "limits", "log", "source", "bridge"];

type Entry<'i> = (Spanned<DeString<'i>>, Spanned<DeValue<'i>>);

/// Reads a file's text. The file in the problems is left empty for the caller to set.
pub(super) fn read(text: &str) -> Reading {
    let mut reader = Reader { text, problems: Vec::new(), told: BTreeMap::new(), places: BTreeMap::new() };
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        reader.tell(Severity::Error, error.span().map(|span| span.start), error.message().replace('\n', ", "));
    }
    let mut config = reader.config(root.into_inner());
    checks::check(&mut config, &mut reader);
    let Reader { mut problems, places, .. } = reader;
    problems.sort_by_key(|problem| problem.place);
    Reading { config, problems, places }
}

/// A text being read.
pub(super) struct Reader<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    /// Where each section and each right key is said, such as `zeromq.hwm` or `bridge[0].url`.
    told: BTreeMap<String, usize>,
    /// The same for right keys, by what they are called in problems, such as "bridge `ops`: url".
    places: BTreeMap<String, Place>,
}

impl<'t> Reader<'t> {
    fn config(&mut self, root: DeTable<'t>) -> Config {
        let mut config = Config::default();
        let mut bridges = None;
        for (key, value) in root {
            let name = key.get_ref().clone();
            match &*name {
                "state_dir" => config.state_dir = self.state_dir(value),
                "broker" => config.broker = self.section(&name, value),
                "zeromq" => config.zeromq = self.section(&name, value),
                "http" => config.http = self.section(&name, value),
                "journal" => config.journal = self.section(&name, value),
                "hooks" => config.hooks = self.section(&name, value),
                "ganeti" => config.ganeti = self.section(&name, value),
                "limits" => config.limits = self.section(&name, value),
                "log" => config.log = self.section(&name, value),
                "source" => config.sources = self.sources(value),
                "bridge" => bridges = Some(value),
                unknown => self.unknown(unknown, &key, "", KNOWN.into_iter()),
            }
        }
        // Last, since they are compared with what stands in [broker].
        if let Some(value) = bridges {
            config.bridges = self.bridges(value, config.broker.max_bytes);
        }
        config
    }

    /// One section, made of those of its entries that are right.
    fn section<T: DeserializeOwned + Default>(&mut self, section: &str, value: Spanned<DeValue<'t>>) -> T {
        let start = value.span().start;
        let DeValue::Table(table) = value.into_inner() else {
            let what = format!("`{section}` is a section: write [{section}] on a line of its own, its keys below it");
            self.tell(Severity::Error, Some(start), what);
            return T::default();
        };
        self.told.insert(section.into(), start);
        let known = field_names::<T>();
        for (key, _) in &table {
            if !known.contains(&&**key.get_ref()) {
                self.unknown(key.get_ref(), key, &format!(" in [{section}]"), known.iter().copied());
            }
        }
        self.part(&table, section, &format!("{section}."))
    }

    /// A struct, made of those entries of a table that are its own and right. `path` is what the table is called in
    /// [`at`](Reader::at), `shown` what stands in front of a key in the text of a problem.
    pub(super) fn part<T: DeserializeOwned + Default>(&mut self, table: &DeTable<'t>, path: &str, shown: &str) -> T {
        let known = field_names::<T>();
        let mut right = DeTable::new();
        for (key, value) in table.iter().filter(|(key, _)| known.contains(&&**key.get_ref())) {
            let name = key.get_ref();
            match T::deserialize(of_entries([(key.clone(), value.clone())])) {
                Ok(_) => {
                    self.told.insert(format!("{path}.{name}"), value.span().start);
                    self.places.insert(format!("{shown}{name}"), place_of(self.text, value.span().start));
                    for (index, element) in value.get_ref().as_array().into_iter().flatten().enumerate() {
                        self.told.insert(format!("{path}.{name}[{index}]"), element.span().start);
                    }
                    self.relative(value, &format!("{shown}{name}"));
                    right.insert(key.clone(), value.clone());
                }
                Err(e) => {
                    // In a list of values it is one of them that is wrong: each is tried alone.
                    let mut elements = value.get_ref().as_array().into_iter().flatten();
                    let alone = |element: &&Spanned<DeValue<'t>>| {
                        let list = DeValue::Array([(*element).clone()].into_iter().collect());
                        T::deserialize(of_entries([(key.clone(), Spanned::new(value.span(), list))])).is_err()
                    };
                    let place = elements.find(alone).map_or(value.span(), Spanned::span);
                    let what = format!("{shown}{name}: {}", plain(e.message()));
                    self.tell(Severity::Error, Some(place.start), what);
                }
            }
        }
        // Each entry was right alone, and no struct has a rule about several of them: those are in `checks`.
        T::deserialize(of_entries(right)).unwrap_or_default()
    }

    /// Warns of a path that means something else for each program that reads the file: oned, systemd and a shell start theirs
    /// in different directories.
    fn relative(&mut self, value: &Spanned<DeValue<'t>>, shown: &str) {
        let key = shown.rsplit(['.', ' ']).next().unwrap_or(shown);
        let is_path =
            key.ends_with("_file") || key.ends_with("path") || matches!(key, "state_dir" | "dir" | "socket" | "file");
        if let Some(path) = value.get_ref().as_str()
            && is_path
            && !path.starts_with('/')
        {
            let what = format!(
                "{shown}: `{}` depends on where a program is started; write the whole path",
                path.escape_debug()
            );
            self.warn(value.span().start, what);
        }
    }

    fn state_dir(&mut self, value: Spanned<DeValue<'t>>) -> Option<PathBuf> {
        let start = value.span().start;
        self.relative(&value, "state_dir");
        PathBuf::deserialize(toml::de::ValueDeserializer::from(value))
            .map_err(|e| self.tell(Severity::Error, Some(start), format!("state_dir: {}", e.message())))
            .ok()
    }

    /// Where this section or key was said, if it was, and rightly.
    pub(super) fn at(&self, path: &str) -> Option<usize> {
        self.told.get(path).copied()
    }

    /// Remembers where something was said.
    pub(super) fn said(&mut self, path: String, offset: usize) {
        self.told.insert(path, offset);
    }

    pub(super) fn unknown(
        &mut self,
        name: &str,
        key: &Spanned<DeString<'_>>,
        place: &str,
        known: impl Iterator<Item = &'static str>,
    ) {
        let what = match nearest(name, known) {
            Some(nearest) => format!("unknown key `{name}`{place}; did you mean `{nearest}`?"),
            None => format!("unknown key `{name}`{place}"),
        };
        self.tell(Severity::Error, Some(key.span().start), what);
    }

    pub(super) fn tell(&mut self, severity: Severity, offset: Option<usize>, what: String) {
        let place = offset.map(|offset| place_of(self.text, offset));
        self.problems.push(Problem { severity, file: PathBuf::new(), place, what });
    }

    pub(super) fn error(&mut self, offset: usize, what: String) {
        self.tell(Severity::Error, Some(offset), what);
    }

    pub(super) fn warn(&mut self, offset: usize, what: String) {
        self.tell(Severity::Warning, Some(offset), what);
    }
}

/// The known name that is most like a misspelt one; the nearest there is, if it is alike at all.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// serde's message in the words of those who write a file.
fn plain(message: &str) -> String {
    let types = [
        ("usize", "a whole number, 0 or more"),
        ("u64", "a whole number, 0 or more"),
        ("u8", "a small whole number"),
        ("a sequence", "a list: [\"...\", \"...\"]"),
    ];
    let mut message = message.replace('\n', ", ").replace("wanted string or table", "write it in quotes");
    for (name, meaning) in types {
        if let Some(rest) = message.strip_suffix(&format!("expected {name}")) {
            message = format!("{rest}expected {meaning}");
        }
    }
    message
}

fn of_entries<'i>(entries: impl IntoIterator<Item = Entry<'i>>) -> toml::Deserializer<'i> {
    toml::Deserializer::from(Spanned::new(0..0, entries.into_iter().collect::<DeTable<'i>>()))
}

fn place_of(text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

/// The keys that a section's struct takes, as serde's derive tells them to a deserializer.
pub(super) fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Ask<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Ask<'_> {
        type Error = NoError;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NoError> {
            Err(NoError::custom("only structs have fields"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, NoError> {
            *self.0 = fields;
            Err(NoError::custom("the names are all that was asked for"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    // It always fails, on purpose: see above.
    drop(T::deserialize(Ask(&mut names)));
    names
}

#[cfg(test)]
mod tests {
    use super::super::ByteSize;
    use super::super::sections::LogLevel;
    use super::*;

    fn told(text: &str) -> (Config, Vec<String>) {
        let Reading { config, problems, .. } = read(text);
        let told = problems.into_iter().map(|problem| {
            let Place { line, column } = problem.place.expect("what is in a text has a place");
            format!("{line}:{column} {:?} {}", problem.severity, problem.what)
        });
        (config, told.collect())
    }

    #[test]
    fn a_file_without_mistakes_is_what_it_says() {
        let (config, told) = told(
            r#"
            state_dir = "/var/lib/hookbus"
            [broker]
            max_bytes = "64MiB"
            [zeromq]
            publisher = "tcp://*:3101"
            logger = "ipc:///run/hookbus-logger"
            hwm = 0
            hwm_bytes = 1048576
            [log]
            file = "/var/log/hookbus.log"
            level = "debug"
            "#,
        );
        assert_eq!(told, [""; 0]);
        assert_eq!(config.state_dir, Some("/var/lib/hookbus".into()));
        assert_eq!(config.broker.max_bytes, ByteSize::mib(64));
        assert_eq!(config.zeromq.publisher.to_string(), "tcp://*:3101");
        assert_eq!(config.zeromq.logger.to_string(), "ipc:///run/hookbus-logger");
        assert_eq!((config.zeromq.hwm, config.zeromq.hwm_bytes), (0, ByteSize::mib(1)));
        assert!(config.zeromq.enabled);
        assert_eq!((config.log.file, config.log.level), (Some("/var/log/hookbus.log".into()), LogLevel::Debug));
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(told(""), (Config::default(), Vec::new()));
    }

    #[test]
    fn a_misspelt_key_is_told_with_its_place_and_the_nearest_known_one() {
        let (config, told) =
            told("state-dir = 1\n[zeromq]\nhwn = 5\nhwm_bytes = \"1MiB\"\n[zeromp]\n[broker]\nxyz = 1\n");
        assert_eq!(
            told,
            [
                "1:1 Error unknown key `state-dir`; did you mean `state_dir`?",
                "3:1 Error unknown key `hwn` in [zeromq]; did you mean `hwm`?",
                "5:2 Error unknown key `zeromp`; did you mean `zeromq`?",
                "7:1 Error unknown key `xyz` in [broker]",
            ]
        );
        assert_eq!(config.zeromq.hwm_bytes, ByteSize::mib(1), "the rest is used");
    }

    #[test]
    fn a_wrong_value_is_told_and_replaced_by_the_default() {
        for (text, expected) in [
            ("[broker]\nmax_bytes = \"lots\"", "2:13 Error broker.max_bytes: `lots` is not a size"),
            ("[broker]\nmax_bytes = 5", "2:13 Error broker.max_bytes: 5B is too little"),
            ("[broker]\nmax_bytes = -1", "2:13 Error broker.max_bytes: -1 is no size"),
            (
                "[zeromq]\nhwm = \"many\"",
                "2:7 Error zeromq.hwm: invalid type: string \"many\", expected a whole number",
            ),
            ("[zeromq]\nhwm = -5", "2:7 Error zeromq.hwm: invalid value: integer `-5`, expected a whole number"),
            ("[zeromq]\npublisher = \"2101\"", "2:13 Error zeromq.publisher: endpoint `2101`: there is no `://` in it"),
            ("[log]\nlevel = \"loud\"", "2:9 Error log.level: unknown variant `loud`, expected one of `error`, `warn`"),
            (
                "[http]\nlisten = [\"127.0.0.1:1\",\n\"0.0.0.0:2\"]",
                "3:1 Error http.listen: `0.0.0.0:2` is reachable from other machines, which needs TLS",
            ),
            (
                "[http]\nhosts = [\"a.example\",\n\"https://b.example\"]",
                "3:1 Error http.hosts: `https://b.example` is no name of a host",
            ),
            ("[http]\nhosts = [\"*.example\"]", "2:10 Error http.hosts: `*.example` is no name of a host"),
            ("[http]\nlisten = [\"localhost:1\"]", "2:11 Error http.listen: `localhost:1` is no address with a port"),
            ("[hooks]\nconcurrency = 0", "2:15 Error hooks.concurrency: 0 is too little"),
            ("[hooks]\noverflow = \"drop\"", "2:12 Error hooks.overflow: unknown variant `drop`, expected one of"),
            ("broker = 5", "1:10 Error `broker` is a section: write [broker] on a line of its own"),
            ("[[broker]]\nmax_bytes = 5", "1:1 Error `broker` is a section"),
            ("state_dir = 5", "1:13 Error state_dir: invalid type: integer `5`"),
        ] {
            let (config, told) = told(text);
            assert_eq!(config, Config::default(), "{text}");
            assert!(matches!(&told[..], [one] if one.starts_with(expected)), "{text}: {told:?}");
        }
    }

    #[test]
    fn what_is_no_toml_is_told_and_the_lines_around_it_are_used() {
        let (config, told) = told("[zeromq]\nhwm = 7\nhwm_bytes = \n[log]\nlevel = \"trace\"\n");
        assert!(!told.is_empty());
        assert!(told.iter().all(|problem| problem.starts_with("3:")), "{told:?}");
        assert_eq!((config.zeromq.hwm, config.log.level), (7, LogLevel::Trace));
    }

    #[test]
    fn any_bytes_are_survived() {
        for text in [
            "\u{0}",
            "=",
            "[",
            "[[",
            "[broker",
            "a = \"",
            "ü = ä",
            "[zeromq]\nhwm",
            "x = [1, {y = }]",
            "bridge = [1]",
            "[bridge]\nname = 1",
            "[[source]]\ntype = 7",
        ] {
            let reading = read(text);
            assert!(!reading.problems.is_empty(), "{text}");
            assert!(reading.strict().is_err(), "{text}");
        }
    }
}
