//! `hookbus config` and `hookbus completions`, from outside.

use std::fs;
use std::process::{Command, Output, Stdio};

use hookbus_tests::hookbus;
use tempfile::TempDir;

fn run(args: &[&str]) -> Output {
    Command::new(hookbus()).args(args).stdin(Stdio::null()).output().expect("hookbus can be started")
}

/// Standard output, standard error and the status of `hookbus config COMMAND` with a file of this text.
fn config(command: &str, text: &str) -> (String, String, Option<i32>) {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("hookbus.toml");
    fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let output = run(&["config", command, "--config", file]);
    let clean = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").replace(file, "FILE");
    (clean(output.stdout), clean(output.stderr), output.status.code())
}

#[test]
fn check_tells_each_problem_with_its_place() {
    let text = "[zeromq]\nhwn = 5\n[[bridge]]\nname = \"rabbit\"\ntype = \"amqp\"\nurl = \"amqp://guest:s3cr3t@h/%2f\"\nunroutable = \"drop\"\n";
    let (out, err, status) = config("check", text);
    assert_eq!(
        out,
        "FILE:2:1: error: unknown key `hwn` in [zeromq]; did you mean `hwm`?\n\
         FILE:7:14: error: bridge `rabbit`: unroutable: unknown variant `drop`, expected `ignore` or `dead-letter`\n\
         FILE: 2 errors, no warnings\n"
    );
    assert_eq!((&*err, status), ("", Some(2)));
    let harmless = "[http]\nhosts = [\"bus.example.com\"]\n";
    assert_eq!(config("check", harmless).0.lines().last(), Some("FILE: no errors, 1 warning"));
    assert_eq!(config("check", "[zeromq]\n"), ("FILE: no errors, no warnings\n".into(), String::new(), Some(0)));
}

#[test]
fn check_tells_where_there_is_no_file() {
    let output = run(&["config", "check", "--config", "/nonexistent/hookbus.toml"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.starts_with("/nonexistent/hookbus.toml: error: cannot read it: No such file or directory"), "{told}");
    assert_eq!(output.status.code(), Some(2));
    if fs::exists("/etc/hookbus/hookbus.toml").expect("it can be asked") {
        eprintln!("left out: this machine has a configuration");
        return;
    }
    let output = run(&["config", "check"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(told, "/etc/hookbus/hookbus.toml: there is no such file, so the defaults are used\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_is_shown_is_the_whole_configuration_without_secrets() {
    let text = "[zeromq]\nhwm = 7\n[[bridge]]\nname = \"b\"\ntype = \"amqp\"\nurl = \"amqp://u:s3cr3t@h\"\n";
    let (out, err, status) = config("show", text);
    assert_eq!((&*err, status), ("", Some(0)));
    for expected in ["hwm = 7\n", "max_bytes = \"512MiB\"\n", "concurrency = 10\n", "url = \"amqp://u:***@h\"\n"] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(!out.contains("s3cr3t"), "{out}");
    let (again, _, status) = config("show", &out.replace(":***@", "@"));
    assert_eq!((again, status), (out.replace(":***@", "@"), Some(0)), "it can be read again");

    let (out, err, status) = config("show", "[zeromp]\n");
    assert_eq!((&*out, status), ("", Some(2)));
    assert_eq!(err, "error: FILE:1:2: unknown key `zeromp`; did you mean `zeromq`?\n");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = Command::new(hookbus()).args(["completions", "bash"]).stdout(writer).status();
    assert!(status.expect("hookbus can be started").success());
}

#[test]
fn completions_are_ones_that_the_shell_takes() {
    let script = run(&["completions", "bash"]);
    assert!(script.status.success());
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("hookbus.bash");
    fs::write(&file, &script.stdout).expect("a file");
    let complete =
        "source \"$0\"; COMP_WORDS=(hookbus con); COMP_CWORD=1; _hookbus hookbus con hookbus; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-euc", complete]).arg(&file).output().expect("bash can be started");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "config\n", "{}", String::from_utf8_lossy(&output.stderr));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(!run(&["completions", shell]).stdout.is_empty(), "{shell}");
    }
    assert_eq!(run(&["completions", "tcsh"]).status.code(), Some(2));
}
