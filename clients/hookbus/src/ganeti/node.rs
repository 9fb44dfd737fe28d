//! How Ganeti calls this node.
//!
//! Ganeti keeps the names of all nodes on each of them, in `ssconf_node_list`, one a line. Which of them this node is, it finds out by DNS; we
//! compare with what the machine calls itself, which may be the short form.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{GanetiError, failed};

/// The nodes of the cluster.
const NODE_LIST: &str = "ssconf_node_list";

/// The names that Ganeti knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nodes {
    /// Where they are from.
    pub(super) path: PathBuf,
    /// None where Ganeti isn't on this machine, or has no cluster.
    names: Option<Vec<String>>,
}

/// Which of them this machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// This one.
    Is(String),
    /// There are no names to choose from.
    NoGaneti,
    /// None of them is that of this machine.
    NotAmong,
    /// More than one could be.
    Ambiguous(Vec<String>),
}

impl Nodes {
    pub(super) fn read(data_dir: &Path) -> Result<Self, GanetiError> {
        let path = data_dir.join(NODE_LIST);
        let names = match fs::read_to_string(&path) {
            Ok(text) => Some(text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("read", &path)(e)),
        };
        Ok(Nodes { path, names })
    }

    /// Whether a node is called that; none where Ganeti isn't here.
    pub(super) fn have(&self, name: &str) -> Option<bool> {
        self.names.as_ref().map(|names| names.iter().any(|known| known == name))
    }

    /// Which of them a machine is that calls itself so.
    pub(super) fn own(&self, host: &str) -> Own {
        let Some(names) = &self.names else { return Own::NoGaneti };
        if self.have(host) == Some(true) {
            return Own::Is(host.to_owned());
        }
        let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let mut alike: Vec<String> = names.iter().filter(|name| short(name) == short(host)).cloned().collect();
        match alike.len() {
            0 => Own::NotAmong,
            1 => Own::Is(alike.remove(0)),
            _ => Own::Ambiguous(alike),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_found_by_its_whole_name_or_its_short_one() {
        let dir = tempfile::tempdir().unwrap();
        let none = Nodes::read(dir.path()).unwrap();
        assert_eq!((none.own("n1"), none.have("n1")), (Own::NoGaneti, None));
        fs::write(dir.path().join(NODE_LIST), "n1.example.com\nn2.example.com\nn2.example.org\n").unwrap();
        let nodes = Nodes::read(dir.path()).unwrap();
        for (host, own) in [
            ("n1.example.com", Own::Is("n1.example.com".into())),
            ("n1", Own::Is("n1.example.com".into())),
            ("n1.local", Own::Is("n1.example.com".into())),
            ("n2.example.org", Own::Is("n2.example.org".into())),
            ("n2", Own::Ambiguous(vec!["n2.example.com".into(), "n2.example.org".into()])),
            ("n3", Own::NotAmong),
        ] {
            assert_eq!(nodes.own(host), own, "{host}");
        }
        assert_eq!((nodes.have("n1.example.com"), nodes.have("n1")), (Some(true), Some(false)));
    }
}
