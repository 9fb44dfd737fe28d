//! A directory of hooks: each `*.tmpl` in it is one.
//!
//! Files are taken in the order of their names. Symbolic links are followed, directories below are not looked into, and names that
//! begin with a dot are passed over (editors leave such files behind). What can't be read or isn't a hook is told as a [`Problem`] and
//! costs no other hook. Where two files have the same NAME, the first counts.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::hook::{Hook, Origin};
use crate::problem::{Problem, Severity};
use crate::template::{MAX_TEMPLATE_BYTES, Template};

/// What a directory gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The hooks, in the order of their files.
    pub hooks: Vec<Hook>,
    /// What there is to tell, in the same order.
    pub problems: Vec<Problem>,
    /// Whether the directory itself could not be read. Then nothing is known of its hooks, and who has some from an earlier
    /// time had better keep them.
    pub unreadable: bool,
}

impl Loaded {
    /// The problems that cost a hook, or the directory; a file may have several.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error)
    }

    /// How many files gave no hook.
    pub fn not_loaded(&self) -> usize {
        self.errors().map(|problem| &problem.path).collect::<BTreeSet<_>>().len()
    }
}

/// Loads the hooks of a directory. It reads files, so it may block.
pub fn load(directory: &Path) -> Loaded {
    let mut loaded = Loaded::default();
    let mut names = match template_names(directory) {
        Ok(names) => names,
        Err(e) => {
            let what = format!("cannot read the directory of hooks: {e}; create it, or set [hooks] dir");
            loaded.problems.push(Problem::error(what).in_file(directory));
            loaded.unreadable = true;
            return loaded;
        }
    };
    names.sort();
    let mut first: HashMap<String, PathBuf> = HashMap::new();
    for name in names {
        let path = directory.join(name);
        let (hook, problems) = load_file(&path);
        loaded.problems.extend(problems);
        let Some(hook) = hook else { continue };
        if let Some(first) = first.get(&hook.name) {
            let what = format!("NAME = {} is taken by {}; this hook is not loaded", hook.name, first.display());
            loaded.problems.push(Problem::error(what).in_file(path));
            continue;
        }
        first.insert(hook.name.clone(), path);
        loaded.hooks.push(hook);
    }
    loaded
}

/// Loads one template file. Without a hook, an error is among the problems.
pub fn load_file(path: &Path) -> (Option<Hook>, Vec<Problem>) {
    let text = match read(path) {
        Ok(text) => text,
        Err(e) => return (None, vec![Problem::error(format!("cannot read the template: {e}")).in_file(path)]),
    };
    match Template::parse(&text) {
        Ok(template) => Hook::from_template(&template, &Origin::File(path.to_owned())),
        Err(e) => (None, vec![Problem::from(e).in_file(path)]),
    }
}

fn template_names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".tmpl") && !bytes.starts_with(b".") {
            names.push(name);
        }
    }
    Ok(names)
}

fn read(path: &Path) -> io::Result<String> {
    // Anything else might block for ever (a pipe) or never end (a device).
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more than is possible, so that the template is refused and not cut.
    File::open(path)?.take(MAX_TEMPLATE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_TEMPLATE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_TEMPLATE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| {
        io::Error::other(format!(
            "it is not UTF-8 (byte {}); save it in that encoding",
            e.utf8_error().valid_up_to() + 1
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "TYPE = api\nCALL = one.vm.action\nCOMMAND = x\n";

    /// Loads a directory; the problems without its path.
    fn loaded(directory: &Path) -> (Vec<String>, Vec<String>) {
        let loaded = load(directory);
        let start = format!("{}/", directory.display());
        (
            loaded.hooks.iter().map(|hook| hook.name.clone()).collect(),
            loaded.problems.iter().map(|problem| problem.to_string().replace(&start, "")).collect(),
        )
    }

    #[test]
    fn the_good_ones_are_loaded_and_the_others_told() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| fs::write(directory.path().join(name), text).unwrap();
        let hook = |name: &str| format!("NAME = {name}\n{GOOD}").into_bytes();
        write("c.tmpl", &hook("c"));
        write("a.tmpl", &hook("a"));
        write("b.tmpl", b"NAME = b\nTYPE = api\nCALL one.vm.action\n");
        write("d.tmpl", &hook("a"));
        write("e.tmpl", b"NAME = e\nCOMMAND = \xFF\n");
        write("f.tmpl", &vec![b'#'; MAX_TEMPLATE_BYTES + 1]);
        write("g.txt", b"no template");
        write(".#h.tmpl", b"what an editor leaves behind");
        fs::create_dir(directory.path().join("i.tmpl")).unwrap();
        std::os::unix::fs::symlink(directory.path().join("g.txt"), directory.path().join("j.tmpl")).unwrap();
        std::os::unix::fs::symlink("/no/such/file", directory.path().join("k.tmpl")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("l"), hook("l")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("l"), directory.path().join("l.tmpl")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, directory.path().join("m.tmpl"), rustix::fs::Mode::RWXU).unwrap();
        let (hooks, problems) = loaded(directory.path());
        assert_eq!(hooks, ["a", "c", "l"]);
        let expected = [
            "b.tmpl:3:6: expected `=` after \"CALL\"",
            "d.tmpl: NAME = a is taken by a.tmpl; this hook is not loaded",
            "e.tmpl: cannot read the template: it is not UTF-8 (byte 20)",
            "f.tmpl: cannot read the template: it is larger than 1048576 bytes",
            "i.tmpl: cannot read the template: it is not a regular file",
            "j.tmpl:1:4: expected `=` after \"no\"",
            "k.tmpl: cannot read the template: No such file or directory",
            "m.tmpl: cannot read the template: it is not a regular file",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem}");
        }
        assert_eq!(load(directory.path()).not_loaded(), expected.len());
        write("b.tmpl", b"NAME = b\nTYPE = api\n");
        let loaded = load(directory.path());
        assert_eq!((loaded.errors().count(), loaded.not_loaded()), (expected.len() + 1, expected.len()), "{loaded:#?}");
    }

    #[test]
    fn a_directory_that_is_missing_is_a_problem() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()), Loaded::default());
        let (hooks, problems) = loaded(&directory.path().join("missing"));
        assert!(hooks.is_empty() && load(&directory.path().join("missing")).unreadable);
        assert!(problems[0].contains("cannot read the directory of hooks: No such file or directory"), "{problems:?}");
    }
}
