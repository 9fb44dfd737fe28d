//! `hookbus ganeti import`: makes hooks of the scripts in Ganeti's hook directories, to be run once for each operation.
//!
//! A script stays where it is, and its hook names it as its command. As long as Ganeti finds it there, Ganeti runs it, too, on every node of an operation;
//! `--take-over` gives it a name that Ganeti passes over (with a dot in it), at the moment when its hook is there. One that several directories
//! link to becomes one hook for all of these operations.
//!
//! # Guarantees
//!
//! Nothing is deleted, and nothing is overwritten. A script is taken over only when its hook exists; what can't be taken over is told, and costs
//! no other. A script that has its hook already, from an import before, gets no other; with `--take-over` it is taken over then.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use hookbus_bridges::ganeti::{OPERATIONS, Phase};
use hookbus_bridges::http::Client;
use hookbus_ganeti_hook::PROGRAM;
use hookbus_hem::template::Template;
use serde_json::json;

use super::complain;
use crate::client::{ClientArgs, Failure, understood};

/// What a script is called that Ganeti is to pass over.
const TAKEN_OVER: &str = "hookbus";

/// What to import.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImportArgs {
    /// The directory of Ganeti's hooks
    #[arg(value_name = "DIR", default_value = "/etc/ganeti/hooks")]
    dir: PathBuf,
    /// Rename each script, so that Ganeti passes it over: NAME becomes NAME.hookbus
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Scripts that are one hook: the same program, in the same phase.
#[derive(Debug, Default)]
struct Script {
    /// Where it lies, for each operation.
    places: Vec<(String, PathBuf)>,
}

/// Creates the hooks, and says what it did.
pub(super) async fn import(client: &Client, args: &ImportArgs) -> Result<(), Failure> {
    let mut left_out = 0;
    let scripts = scripts(&args.dir, &mut left_out)?;
    let (total, mut pre) = (scripts.len(), false);
    for ((program, phase), script) in &scripts {
        match take(client, program, *phase, script, args.take_over).await {
            Ok(told) => {
                println(&told)?;
                pre |= *phase == Phase::Pre;
            }
            Err(why) => {
                left_out += 1;
                complain("warning", &format!("{} is left out: {why}", program.display()));
            }
        }
    }
    if total == 0 {
        complain("warning", &format!("there is no script in {} that Ganeti would run", args.dir.display()));
    } else if !args.take_over {
        complain(
            "warning",
            "Ganeti runs these scripts, too, on every node of an operation: take them away there (a name with a dot is passed over), or \
             import with --take-over",
        );
    }
    if pre {
        complain(
            "warning",
            "hooks of PHASE pre can refuse only operations that `gate_ops` in /etc/hookbus/ganeti-hook.toml names",
        );
    }
    match left_out {
        0 => Ok(()),
        left_out => Err(Failure::Work(format!("{left_out} scripts are left out"))),
    }
}

fn println(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    Ok(writeln!(anstream::stdout(), "{text}")?)
}

/// The scripts that Ganeti would run, by program and phase.
fn scripts(dir: &Path, left_out: &mut usize) -> Result<BTreeMap<(PathBuf, Phase), Script>, Failure> {
    let unreadable = |e: std::io::Error| Failure::Work(format!("cannot read {}: {e}", dir.display()));
    let mut directories: Vec<PathBuf> =
        fs::read_dir(dir).map_err(unreadable)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    directories.sort();
    let mut scripts: BTreeMap<_, Script> = BTreeMap::new();
    for directory in directories.iter().filter(|directory| directory.is_dir()) {
        let Some((operation, phase)) = operation(directory) else {
            let not_empty = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
            if not_empty {
                complain("warning", &format!("{} is of no operation; it is passed over", directory.display()));
            }
            continue;
        };
        let mut files: Vec<PathBuf> = match fs::read_dir(directory) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(e) => {
                *left_out += 1;
                complain("warning", &format!("cannot read {}: {e}", directory.display()));
                continue;
            }
        };
        files.sort();
        for file in files.into_iter().filter(|file| runs(file)) {
            // Where it is a link, what it leads to is the program.
            let program = fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
            if program.file_name().is_some_and(|name| name == PROGRAM) {
                continue;
            }
            let program = if file.is_symlink() { program } else { file.clone() };
            scripts.entry((program, phase)).or_default().places.push((operation.to_owned(), file));
        }
    }
    Ok(scripts)
}

/// The operation and the phase of a directory: `instance-start-post.d`.
fn operation(directory: &Path) -> Option<(&'static str, Phase)> {
    let name = directory.file_name()?.to_str()?.strip_suffix(".d")?;
    let (operation, phase) = name.rsplit_once('-')?;
    let phase = [Phase::Pre, Phase::Post].into_iter().find(|known| known.name() == phase)?;
    OPERATIONS.iter().find(|(known, _)| *known == operation).map(|(known, _)| (*known, phase))
}

/// Whether Ganeti runs it: a file that may be executed, with a name of letters, digits, `_` and `-`.
fn runs(file: &Path) -> bool {
    let legal = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    file.file_name().and_then(|name| name.to_str()).is_some_and(legal)
        && file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Creates the hook of a script, and takes the script over where that is wanted; answers what to tell.
async fn take(
    client: &Client,
    program: &Path,
    phase: Phase,
    script: &Script,
    take_over: bool,
) -> Result<String, String> {
    let text = program.to_str().ok_or("its path is no UTF-8")?;
    if text.contains(|c: char| !(c.is_alphanumeric() || "/._-+@%=:,".contains(c))) {
        return Err("its path has characters that a command can't have, such as blanks; move it".into());
    }
    let is_link = script.places.iter().all(|(_, place)| place.is_symlink());
    // Its new name is there before its hook is, and the old one goes when the hook runs.
    let moved = (take_over && !is_link).then(|| aside(program));
    if let Some(moved) = &moved {
        fs::hard_link(program, moved).map_err(|e| format!("cannot make {}: {e}", moved.display()))?;
    }
    let command = moved.as_deref().and_then(Path::to_str).unwrap_or(text);
    let operations: Vec<&str> = script.places.iter().map(|(operation, _)| operation.as_str()).collect();
    let file = script.places[0].1.file_name().and_then(|name| name.to_str()).unwrap_or("script");
    let name = match &operations[..] {
        [one] => format!("{one}-{phase}-{file}"),
        _ => format!("{file}-{phase}"),
    };
    let template = Template::from_pairs([
        ("NAME", name.as_str()),
        ("TYPE", "ganeti"),
        ("OPERATION", &operations.join(",")),
        ("PHASE", phase.name()),
        ("COMMAND", command),
    ]);
    let imported_before = hook_of(client, &name, text).await;
    let text_plain = [("content-type", "text/plain")];
    let answered = match &imported_before {
        Some(id) if moved.is_none() => Ok(json!({ "id": id }).to_string().into()),
        Some(id) => {
            let command = Template::from_pairs([("COMMAND", command)]).to_string();
            client.put(&format!("/v1/hooks/{id}?append=true"), &text_plain, command.into()).await
        }
        None => client.post("/v1/hooks", &text_plain, template.to_string().into()).await,
    };
    let created = match answered {
        Ok(answer) => understood(&answer).map_err(|_| "the daemon's answer makes no sense".to_owned()),
        Err(e) => Err(e.to_string()),
    };
    let answer = match created {
        Ok(answer) => answer,
        Err(why) => {
            if let Some(moved) = moved {
                let _ = fs::remove_file(moved);
            }
            return Err(why);
        }
    };
    // Such as that the daemon's user may not execute it.
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        complain("warning", &format!("{name}: {}", warning.as_str().unwrap_or_default()));
    }
    if take_over {
        for (_, place) in &script.places {
            let done = match &moved {
                Some(_) => fs::remove_file(place),
                None => fs::rename(place, aside(place)),
            };
            if let Err(e) = done {
                complain("warning", &format!("{} stays, and Ganeti runs it, too: {e}", place.display()));
            }
        }
    }
    let before = if imported_before.is_some() { ", as before" } else { "" };
    Ok(format!("ID: {} ({name}){before}", answer["id"]))
}

/// The id of the hook of that name, where it is in the store and runs that command.
async fn hook_of(client: &Client, name: &str, command: &str) -> Option<u64> {
    let answer = client.get(&format!("/v1/hooks/{name}")).await.ok()?;
    let hook = understood(&answer).ok()?;
    (hook["attributes"]["COMMAND"] == command).then(|| hook["id"].as_u64()).flatten()
}

fn aside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(TAKEN_OVER);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ganeti_would_run_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, mode: u32| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let own = put("instance-start-post.d/10-dns", 0o755);
        put("instance-start-post.d/20-off", 0o644);
        put("instance-start-post.d/dns.sh", 0o755);
        put("config-update-post.d/x", 0o755);
        let shared = put("lib/notify", 0o755);
        for operation in ["instance-add-pre.d", "instance-stop-pre.d"] {
            fs::create_dir_all(dir.path().join(operation)).unwrap();
            std::os::unix::fs::symlink(&shared, dir.path().join(operation).join("notify")).unwrap();
        }
        std::os::unix::fs::symlink(
            put("lib/hookbus-ganeti-hook", 0o755),
            dir.path().join("instance-add-pre.d/50-hookbus"),
        )
        .unwrap();
        let mut left_out = 0;
        let found = scripts(dir.path(), &mut left_out).unwrap();
        let shared = fs::canonicalize(shared).unwrap();
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), {
            let mut both = vec![(own, Phase::Post), (shared.clone(), Phase::Pre)];
            both.sort();
            both
        });
        assert_eq!(found[&(shared, Phase::Pre)].places.len(), 2);
        assert_eq!(left_out, 0);
    }
}
