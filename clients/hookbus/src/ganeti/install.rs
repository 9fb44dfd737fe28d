//! Putting the links there, and taking them away.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use hookbus_ganeti_hook::PROGRAM;
use hookbus_ganeti_hook::config::Reading;
use hookbus_ganeti_hook::report::host_name;

use super::node::{Nodes, Own};
use super::{GanetiError, HooksArgs, InstallArgs, LINK, Place, complain, directory, failed, is_ours, known};

pub(super) fn install(args: &InstallArgs, out: &mut String) -> Result<(), GanetiError> {
    let program = program()?;
    let hooks_dir = &args.hooks.hooks_dir;
    let mut troubles = Vec::new();
    let (mut made, mut there) = (0, 0);
    for operation in known().filter(|known| args.ops.is_empty() || args.ops.iter().any(|op| op == known)) {
        for phase in &args.phases {
            match link(&directory(hooks_dir, operation, *phase), &program) {
                Ok(true) => made += 1,
                Ok(false) => there += 1,
                Err(e) => troubles.push(e.to_string()),
            }
        }
    }
    let _ = writeln!(out, "{}: {made} links {LINK} were made, {there} were there already.", hooks_dir.display());
    let _ = writeln!(out, "They point to {}.", program.display());
    match name_node(args) {
        Ok(told) => out.push_str(&told),
        Err(e) => troubles.push(e.to_string()),
    }
    let _ = writeln!(out, "Do this on each node; `hookbus ganeti status` tells whether reports get through.");
    if troubles.is_empty() { Ok(()) } else { Err(GanetiError::Several(troubles.join("\nerror: "))) }
}

/// The program that Ganeti will run.
fn program() -> Result<PathBuf, GanetiError> {
    let own = std::env::current_exe().map_err(GanetiError::Nowhere)?;
    let program = own.with_file_name(PROGRAM);
    let can_run = fs::metadata(&program).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    if can_run { Ok(program) } else { Err(GanetiError::NoProgram(PROGRAM, own)) }
}

/// Puts the link there; false where it was there already.
fn link(directory: &Path, program: &Path) -> Result<bool, GanetiError> {
    let link = directory.join(LINK);
    match Place::of(&link).map_err(failed("look at", &link))? {
        Place::Ours(target) if target == program => return Ok(false),
        Place::Foreign => {
            let problem = format!("this is no link to {PROGRAM}; it was left as it is. Move it away and try again");
            return Err(GanetiError::Config { path: link, problem });
        }
        Place::NoDirectory => fs::create_dir_all(directory).map_err(failed("make", directory))?,
        Place::Nothing | Place::Ours(_) => {}
    }
    // Under a name that Ganeti doesn't run, then in its place: there is a whole link at every moment.
    let new = directory.join(format!(".{LINK}.new"));
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new)(e)),
        _ => {}
    }
    symlink(program, &new).map_err(failed("make", &new))?;
    fs::rename(&new, &link).map_err(|e| {
        let _ = fs::remove_file(&new);
        failed("make", &link)(e)
    })?;
    Ok(true)
}

/// Writes down how Ganeti calls this node, unless it stands there; says what it did.
fn name_node(args: &InstallArgs) -> Result<String, GanetiError> {
    let file = &args.places.hook_config;
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(failed("read", file)(e)),
    };
    let table: toml::Table = toml::from_str(&text).map_err(|e| GanetiError::Config {
        path: file.clone(),
        problem: format!("`node` could not be written into it, since it is broken: {}", e.to_string().trim_end()),
    })?;
    let nodes = Nodes::read(&args.places.data_dir)?;
    let reading = Reading::of_text(&text, file);
    if let Some(node) = reading.config.node {
        if nodes.have(&node) == Some(false) {
            let list = nodes.path.display();
            complain("warning", &format!("{}: node is {node:?}, which is not in {list}", file.display()));
        }
        return Ok(format!("{}: node is {node:?} already.\n", file.display()));
    }
    if table.contains_key("node") {
        let problem = "node stands there, but is no name: correct it, or remove it and try again".to_owned();
        return Err(GanetiError::Config { path: file.clone(), problem });
    }
    let host = host_name();
    let warn = |why: &str| {
        let file = file.display();
        complain(
            "warning",
            &format!("{why}; {file} gets what this machine calls itself. Set node there to its name in Ganeti"),
        );
    };
    let list = nodes.path.display();
    let name = match nodes.own(&host) {
        Own::Is(name) => name,
        Own::NoGaneti => {
            warn(&format!("there is no {list}, so Ganeti's name for this node is not known"));
            host
        }
        Own::NotAmong => {
            warn(&format!("{list} has no node {host:?}"));
            host
        }
        Own::Ambiguous(names) => {
            warn(&format!("{list} has several nodes that could be {host:?} ({})", names.join(", ")));
            host
        }
    };
    let new = with_node(&text, &table, &name);
    if Reading::of_text(&new, file).config.node.as_deref() != Some(&name) {
        let problem = format!("node = {name:?} could not be added to it; add it by hand");
        return Err(GanetiError::Config { path: file.clone(), problem });
    }
    replace(file, &new)?;
    Ok(format!("{}: node is {name:?} now.\n", file.display()))
}

/// The text with one more line. What stands there stays, byte for byte.
fn with_node(text: &str, table: &toml::Table, name: &str) -> String {
    let line = format!("node = {}\n", toml::Value::from(name));
    // Behind the head of a section it would belong to that.
    if table.values().any(|value| value.is_table() || value.is_array()) && text.contains("\n[") || text.starts_with('[')
    {
        return line + text;
    }
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}{line}")
}

/// Puts a new text in a file's place, at once; the file keeps its mode and owner. A link is followed.
fn replace(file: &Path, text: &str) -> Result<(), GanetiError> {
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".hookbus-new");
    let new = file.with_file_name(name);
    // Left behind by one that was killed.
    let _ = fs::remove_file(&new);
    let written = (|| {
        let mut to = File::options().write(true).create_new(true).mode(0o644).open(&new)?;
        if let Ok(old) = fs::metadata(&file) {
            let ours = to.metadata()?;
            if (ours.uid(), ours.gid()) != (old.uid(), old.gid()) {
                fchown(&to, Some(old.uid()), Some(old.gid()))?;
            }
            to.set_permissions(Permissions::from_mode(old.permissions().mode() & 0o7777))?;
        }
        to.write_all(text.as_bytes())?;
        to.sync_all()?;
        fs::rename(&new, &file)
    })();
    written.map_err(|e| {
        let _ = fs::remove_file(&new);
        failed("write", &file)(e)
    })
}

pub(super) fn uninstall(args: &HooksArgs, out: &mut String) -> Result<(), GanetiError> {
    let mut troubles = Vec::new();
    let mut removed = 0;
    for link in our_links(&args.hooks_dir)? {
        match fs::remove_file(&link) {
            Ok(()) => removed += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => troubles.push(failed("remove", &link)(e).to_string()),
        }
    }
    let _ =
        writeln!(out, "{}: {removed} links to {PROGRAM} were removed; the directories stay.", args.hooks_dir.display());
    if troubles.is_empty() { Ok(()) } else { Err(GanetiError::Several(troubles.join("\nerror: "))) }
}

/// All links to a hookbus-ganeti-hook in directories of hooks, whatever they are called.
pub(super) fn our_links(hooks_dir: &Path) -> Result<Vec<PathBuf>, GanetiError> {
    let list = |directory: &Path| -> Result<Vec<PathBuf>, GanetiError> {
        match fs::read_dir(directory) {
            Ok(entries) => {
                let paths = entries.map(|entry| entry.map(|entry| entry.path()));
                paths.collect::<Result<_, _>>().map_err(failed("read", directory))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(failed("read", directory)(e)),
        }
    };
    let mut links = Vec::new();
    for directory in list(hooks_dir)? {
        let is_of_hooks = directory.extension().is_some_and(|extension| extension == "d") && directory.is_dir();
        if is_of_hooks {
            links.extend(list(&directory)?.into_iter().filter(|path| fs::read_link(path).is_ok_and(|to| is_ours(&to))));
        }
    }
    links.sort();
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_added_where_it_belongs_and_nothing_else_changes() {
        for (text, expected) in [
            ("", "node = \"n1\"\n"),
            ("# a comment\nspool = \"/s\" # one more", "# a comment\nspool = \"/s\" # one more\nnode = \"n1\"\n"),
            ("#node = \"x\"\n", "#node = \"x\"\nnode = \"n1\"\n"),
            ("a = 1\n[section]\nb = 1\n", "node = \"n1\"\na = 1\n[section]\nb = 1\n"),
            ("[[list]]\nb = 1\n", "node = \"n1\"\n[[list]]\nb = 1\n"),
            ("gate_ops = [\n  \"*\",\n]\n", "gate_ops = [\n  \"*\",\n]\nnode = \"n1\"\n"),
        ] {
            let new = with_node(text, &toml::from_str(text).unwrap(), "n1");
            assert_eq!(new, expected);
            assert_eq!(Reading::of_text(&new, Path::new("f")).config.node.as_deref(), Some("n1"), "{new}");
        }
    }
}
