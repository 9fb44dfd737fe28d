//! The program as people call it, and in the worst surroundings: whatever is closed or missing, a run ends with 0.

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn hook() -> Command {
    let mut hook = Command::new(env!("CARGO_BIN_EXE_hookbus-ganeti-hook"));
    hook.env_clear().stdin(Stdio::null());
    hook
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = hook().args(args).output().expect("it can be started");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn people_get_help_and_usage_errors() {
    let (code, help, _) = run(&["--help"]);
    assert!(code == Some(0) && help.contains("Usage: hookbus-ganeti-hook [--config FILE]"), "{help}");
    let version = format!("hookbus-ganeti-hook {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["-V"]), (Some(0), version, String::new()));
    for (args, expected) in [(&["--config"][..], "--config needs a file"), (&["x"], "unexpected argument `x`")] {
        let (code, _, told) = run(args);
        assert!(code == Some(2) && told.contains(expected), "{told}");
    }
    let (code, out, told) = run(&["--config=/nonexistent"]);
    assert!((code, out.as_str()) == (Some(0), "") && told.contains("not started by Ganeti"), "{told}");
}

/// What can't be written to isn't written to.
#[test]
fn closed_and_full_outputs_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hook.toml");
    let spool = dir.path().join("file/spool");
    std::fs::write(dir.path().join("file"), "").unwrap();
    let text = format!(
        "socket = \"/nonexistent/s\"\nspool = {spool:?}\nunknown = 1\ngate_ops = [\"a\"]\ngate_default = \"deny\"\n"
    );
    std::fs::write(&config, text).unwrap();
    for (operation, code) in [("a", 1), ("b", 0)] {
        let environment = [("GANETI_HOOKS_PATH", operation), ("GANETI_HOOKS_PHASE", "pre")];
        let mut closed = Command::new("/bin/sh");
        closed.args(["-c", "exec \"$0\" --config \"$1\" <&- >&- 2>&-", env!("CARGO_BIN_EXE_hookbus-ganeti-hook")]);
        let status = closed.arg(&config).env_clear().envs(environment).status().unwrap();
        assert_eq!(status.code(), Some(code), "closed");
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let status = hook().arg("--config").arg(&config).envs(environment).stdout(full()).stderr(full()).status();
        assert_eq!(status.unwrap().code(), Some(code), "full");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let other = writer.try_clone().unwrap();
        let status = hook().arg("--config").arg(&config).envs(environment).stdout(writer).stderr(other).status();
        assert_eq!(status.unwrap().code(), Some(code), "nobody reads");
    }
}

/// As large as the kernel lets it be: it is spooled as it is.
#[test]
fn a_huge_environment_is_reported_whole() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hook.toml");
    let spool = dir.path().join("spool");
    std::fs::write(&config, format!("socket = \"/nonexistent/s\"\nspool = {spool:?}\n")).unwrap();
    let mut hook = hook();
    hook.arg("--config").arg(&config).env("GANETI_HOOKS_PATH", "x");
    let large = "\u{1}".repeat(120 << 10);
    for i in 0..10 {
        hook.env(format!("GANETI_{i}"), &large);
    }
    let output = hook.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let reports: Vec<_> = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path()).collect();
    let report = reports.iter().find(|path| path.extension().is_some_and(|extension| extension == "json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["env"]["GANETI_9"].as_str().unwrap(), large);
}
