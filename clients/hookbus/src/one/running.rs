//! Which hook driver a running oned has, as `/proc` shows it.

use std::fs;
use std::path::Path;

/// A process whose name is `oned`, and the driver that it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Oned {
    pub(super) pid: u32,
    pub(super) driver: Driver,
}

/// What is known of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    /// hookbus. Where it was replaced on the disk since it started, a restart brings the new one.
    Hookbus {
        /// The process.
        pid: u32,
        /// Whether its program is no longer the one on the disk.
        outdated: bool,
    },
    /// OpenNebula's own.
    Original {
        /// The process.
        pid: u32,
    },
    /// None that is known.
    Unknown,
}

struct Process {
    pid: u32,
    parent: u32,
    name: String,
    words: Vec<String>,
}

/// Every oned that runs. `proc` is where the process file system is.
pub(super) fn oneds(proc: &Path) -> Vec<Oned> {
    // Processes come and go meanwhile: what can't be read is gone.
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut processes: Vec<Process> = pids.filter_map(|pid| process(proc, pid)).collect();
    processes.sort_by_key(|process| process.pid);
    let is_oned = |process: &&Process| process.name == "oned";
    let oned = |oned: &Process| {
        let drivers = processes.iter().filter(|process| process.parent == oned.pid);
        let driver = drivers.filter_map(|process| driver(proc, process)).next().unwrap_or(Driver::Unknown);
        Oned { pid: oned.pid, driver }
    };
    // A child that oned has forked and that is not another program yet has its name, too.
    let is_own = |oned: &&Process| !processes.iter().filter(is_oned).any(|other| other.pid == oned.parent);
    processes.iter().filter(is_oned).filter(is_own).map(oned).collect()
}

fn process(proc: &Path, pid: u32) -> Option<Process> {
    let directory = proc.join(pid.to_string());
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    // `pid (name) state parent ...`, where the name may have anything in it.
    let (head, tail) = (stat.split_once('(')?.1).rsplit_once(')')?;
    let parent = tail.split_whitespace().nth(1)?.parse().ok()?;
    let command = fs::read(directory.join("cmdline")).unwrap_or_default();
    let words = command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Process { pid, parent, name: head.to_owned(), words })
}

fn driver(proc: &Path, process: &Process) -> Option<Driver> {
    let pid = process.pid;
    let called = |word: &String, names: &[&str]| {
        Path::new(word).file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(&name))
    };
    let first = process.words.first()?;
    let is_hookbus = called(first, &["hookbus-hm"])
        || called(first, &["hookbus"])
            && process.words[1..].iter().flat_map(|word| word.split_whitespace()).any(|word| word == "hm");
    if is_hookbus {
        // Another user's may not be looked at; then it counts as current.
        let program = fs::read_link(proc.join(pid.to_string()).join("exe"));
        let outdated = program.is_ok_and(|program| program.to_string_lossy().ends_with(" (deleted)"));
        return Some(Driver::Hookbus { pid, outdated });
    }
    // A shell script that starts a Ruby script.
    let is_original = process.words.iter().any(|word| called(word, &["one_hm", "one_hm.rb"]));
    is_original.then_some(Driver::Original { pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(directory: &Path, pid: u32, name: &str, parent: u32, words: &[&str]) {
        let directory = directory.join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("stat"), format!("{pid} ({name}) S {parent} 1 1 0 -1")).unwrap();
        fs::write(directory.join("cmdline"), words.join("\0") + "\0").unwrap();
    }

    #[test]
    fn drivers_are_found_by_their_parent() {
        let proc = tempfile::tempdir().unwrap();
        let proc = proc.path();
        fake(proc, 1, "systemd", 0, &["/sbin/init"]);
        fake(proc, 10, "oned", 1, &["/usr/bin/oned", "-f"]);
        fake(proc, 11, "onemonitord", 10, &["onemonitord", "-c", "monitord.conf"]);
        fake(proc, 12, "a) b (", 10, &["/usr/bin/hookbus", "hm -p 2101 -l 2102 -b 127.0.0.1"]);
        std::os::unix::fs::symlink("/usr/bin/hookbus (deleted)", proc.join("12/exe")).unwrap();
        fake(proc, 20, "oned", 1, &["oned"]);
        fake(proc, 21, "ruby", 20, &["ruby", "/usr/lib/one/mads/one_hm.rb", "-p", "2101"]);
        fake(proc, 22, "hookbus", 1, &["/usr/bin/hookbus", "hm"]);
        fake(proc, 30, "oned", 1, &["oned"]);
        fake(proc, 31, "oned", 30, &["oned"]);
        fake(proc, 32, "hookbus", 30, &["/usr/bin/hookbus", "serve"]);
        fs::create_dir(proc.join("40")).unwrap();
        fs::create_dir(proc.join("self")).unwrap();
        assert_eq!(
            oneds(proc),
            [
                Oned { pid: 10, driver: Driver::Hookbus { pid: 12, outdated: true } },
                Oned { pid: 20, driver: Driver::Original { pid: 21 } },
                Oned { pid: 30, driver: Driver::Unknown },
            ]
        );
        assert_eq!(oneds(&proc.join("nothing")), []);
    }
}
