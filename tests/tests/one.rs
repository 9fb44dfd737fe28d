//! `hookbus one`: an oned.conf of the shipped kind is changed and comes back, and nothing breaks it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hookbus_tests::{Home, Launcher, hookbus, wait_until};
use tempfile::TempDir;

/// Written like the file that OpenNebula brings: comments that look like attributes, vectors in several styles, quoted values
/// over lines.
const ONED_CONF: &str = include_str!("../fixtures/oned.conf");

/// An oned.conf in a directory of its own.
struct Site {
    directory: TempDir,
}

impl Site {
    fn new() -> Self {
        Self::with(ONED_CONF)
    }

    fn with(text: &str) -> Self {
        let site = Site { directory: TempDir::new().expect("a temporary directory") };
        fs::write(site.file(), text).expect("oned.conf");
        site
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("oned.conf")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).expect("oned.conf")
    }

    /// `hookbus one COMMAND --file <oned.conf> MORE`
    fn one(&self, command: &str, more: &[&str]) -> Output {
        let mut one = Command::new(hookbus());
        one.args(["one", command, "--file"]).arg(self.file()).args(more).stdin(Stdio::null());
        one.output().expect("hookbus can be started")
    }

    fn backups(&self) -> Vec<PathBuf> {
        let entries =
            fs::read_dir(self.directory.path()).expect("the directory").map(|entry| entry.expect("an entry").path());
        entries.filter(|path| *path != self.file()).collect()
    }
}

/// The text of a run that must end like this.
fn text(output: &Output, status: i32) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    assert_eq!(output.status.code(), Some(status), "{text}");
    text
}

#[test]
fn enable_changes_the_driver_and_nothing_else_and_disable_takes_it_back() {
    let site = Site::new();
    fs::set_permissions(site.file(), fs::Permissions::from_mode(0o640)).expect("its mode");

    let told = text(&site.one("enable", &[]), 0);
    assert!(told.contains("systemctl restart opennebula"), "{told}");
    let enabled = site.text();
    let ours = format!(
        "\nHM_MAD = [\n    EXECUTABLE = \"{}\",\n    ARGUMENTS = \"hm -p 2101 -l 2102 -b 127.0.0.1\" ]\n",
        hookbus().display()
    );
    assert!(enabled.contains(&ours), "{enabled}");
    assert!(enabled.contains("\n#hookbus: HM_MAD = [\n#hookbus:     EXECUTABLE = \"one_hm\",\n"), "{enabled}");
    let (before, _) = ONED_CONF.split_once("HM_MAD = [\n    EXECUTABLE").expect("it is in the file");
    let (_, behind) = ONED_CONF.split_once("# as it came\n").expect("it is in the file");
    assert!(enabled.starts_with(before) && enabled.ends_with(behind), "{enabled}");
    assert_eq!(fs::metadata(site.file()).expect("it is there").mode() & 0o7777, 0o640);
    let backups = site.backups();
    assert_eq!(backups.len(), 1, "{backups:?}");
    assert!(backups[0].to_string_lossy().contains("oned.conf.hookbus-20"), "{backups:?}");
    assert_eq!(fs::read_to_string(&backups[0]).expect("the backup"), ONED_CONF);

    let again = text(&site.one("enable", &[]), 0);
    assert!(again.contains("already; nothing was changed"), "{again}");
    assert_eq!((site.text(), site.backups().len()), (enabled.clone(), 1));

    let status = text(&site.one("status", &[]), 0);
    assert!(status.contains(&format!("runs `{} hm -p 2101 -l 2102 -b 127.0.0.1`", hookbus().display())), "{status}");

    // The rest of the file may change meanwhile.
    fs::write(site.file(), format!("# first\n{}LAST = 1\n", enabled.replace("PORT = 2633", "PORT = 12633")))
        .expect("an edit");
    text(&site.one("disable", &[]), 0);
    assert_eq!(site.text(), format!("# first\n{}LAST = 1\n", ONED_CONF.replace("PORT = 2633", "PORT = 12633")));
    let again = text(&site.one("disable", &[]), 0);
    assert!(again.contains("not hookbus; nothing was changed"), "{again}");
}

#[test]
fn the_arguments_and_the_program_can_be_given_and_changed() {
    let site = Site::new();
    text(&site.one("enable", &["--", "-p", "3101", "-b", "0.0.0.0"]), 0);
    assert!(site.text().contains("ARGUMENTS = \"hm -p 3101 -b 0.0.0.0\" ]"), "{}", site.text());

    let program = site.directory.path().join("hookbus");
    fs::copy(hookbus(), &program).expect("a copy of the program");
    text(&site.one("enable", &["--executable", program.to_str().expect("UTF-8")]), 0);
    assert!(site.text().contains(&format!("EXECUTABLE = \"{}\"", program.display())), "{}", site.text());
    assert!(site.text().contains("ARGUMENTS = \"hm -p 3101 -b 0.0.0.0\" ]"), "it keeps them: {}", site.text());
    text(&site.one("disable", &[]), 0);
    assert_eq!(site.text(), ONED_CONF);
}

#[test]
fn what_is_not_clear_is_refused_and_nothing_changes() {
    for (conf, command, more, status, expected) in [
        ("PORT = 1\n", "enable", &[][..], 1, "there is no HM_MAD in it"),
        ("HM_MAD = [ EXECUTABLE = a ]\nHM_MAD = [ EXECUTABLE = b ]\n", "enable", &[], 1, "2 times, in lines 1, 2"),
        ("HM_MAD = [ EXECUTABLE = \"/opt/mine\" ]\n", "enable", &[], 1, "neither one_hm nor hookbus"),
        ("HM_MAD = [ EXECUTABLE = \"one_hm\n", "enable", &[], 1, "a quote is not closed"),
        (ONED_CONF, "enable", &["--executable", "hookbus"], 2, "oned needs the whole path"),
        (ONED_CONF, "enable", &["--executable", "/nonexistent/hookbus"], 2, "No such file or directory"),
        (ONED_CONF, "enable", &["--executable", "/bin/sh"], 2, "a program called `hookbus` is expected"),
        (ONED_CONF, "enable", &["--", "--pubisher-port", "1"], 2, "did you mean `--publisher-port`?"),
        (ONED_CONF, "enable", &["--bogus"], 2, "unexpected argument"),
    ] {
        let site = Site::with(conf);
        let told = text(&site.one(command, more), status);
        assert!(told.contains(expected), "{conf} {more:?}: {told}");
        assert_eq!((site.text(), site.backups()), (conf.to_owned(), Vec::new()));
    }
    let missing = Command::new(hookbus()).args(["one", "status", "--file", "/nonexistent/oned.conf"]).output();
    let told = text(&missing.expect("hookbus can be started"), 1);
    assert!(told.contains("/nonexistent/oned.conf: No such file"), "{told}");
}

/// Runs a shell script with mounts of its own, as root of a namespace; nothing where that isn't allowed.
fn with_mounts(site: &Site, script: &str) -> Option<String> {
    let unshare = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--user", "--map-root-user", "sh", "-euc", script, "sh"]);
        unshare.arg(hookbus()).arg(site.directory.path()).output().expect("unshare is a part of util-linux")
    };
    if !unshare("mount -t tmpfs none \"$2\"").status.success() {
        eprintln!("left out: mounts in a namespace of one's own are not allowed here");
        return None;
    }
    let output = unshare(script);
    Some(text(&output, 0))
}

#[test]
fn a_full_disk_changes_nothing() {
    let site = Site::new();
    let fill = "
        mount -t tmpfs -o size=64k none \"$2\"; cd \"$2\"; cat >oned.conf <<'END'\n";
    let more = "END
        cp oned.conf old; cat /dev/zero >filler 2>/dev/null || true
        for command in enable disable; do
            \"$1\" one $command --file oned.conf 2>&1 && echo \"$command: unexpected success\" || echo \"$command: status $?\"
            cmp oned.conf old; ls -A
            rm filler; \"$1\" one enable --file oned.conf >/dev/null 2>&1; rm -f oned.conf.hookbus-*
            cp oned.conf old; cat /dev/zero >filler 2>/dev/null || true
        done
    ";
    let Some(told) = with_mounts(&site, &format!("{fill}{ONED_CONF}{more}")) else { return };
    for command in ["enable", "disable"] {
        assert!(told.contains(&format!("{command}: status 1\nfiller\nold\noned.conf\n")), "{told}");
    }
    assert_eq!(told.matches("No space left on device").count(), 2, "{told}");
    assert!(told.contains("nothing was changed"), "{told}");
}

#[test]
fn a_file_system_that_is_read_only_is_told() {
    let site = Site::new();
    let script = "
        mount -t tmpfs none \"$2\"; cd \"$2\"; printf 'HM_MAD = [ EXECUTABLE = \"one_hm\" ]\\n' >oned.conf
        mount -o remount,ro \"$2\"
        \"$1\" one enable --file oned.conf 2>&1 || echo \"status $?\"; ls -A
    ";
    let Some(told) = with_mounts(&site, script) else { return };
    assert!(told.contains("mounted read-only") && told.ends_with("status 1\noned.conf\n"), "{told}");
}

/// Wherever it is killed, the file is the old or the new one, and the next run works.
#[test]
fn a_kill_leaves_a_whole_file() {
    let site = Site::new();
    text(&site.one("enable", &[]), 0);
    let enabled = site.text();
    text(&site.one("disable", &[]), 0);
    let mut random = fastrand::Rng::with_seed(3);
    let (mut killed, mut changed) = (0, 0);
    for _ in 0..40 {
        let before = site.text();
        let command = if before == ONED_CONF { "enable" } else { "disable" };
        let mut one = Command::new(hookbus());
        one.args(["one", command, "--file"]).arg(site.file()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = one.spawn().expect("hookbus can be started");
        // Somewhere between its start and its end; which of them is left to luck, and any is right.
        std::thread::sleep(std::time::Duration::from_micros(random.u64(0..15_000)));
        let _ = child.kill();
        killed += u32::from(!child.wait().expect("it ended").success());
        let after = site.text();
        changed += u32::from(before != after);
        assert!(after == ONED_CONF || after == enabled, "after {killed} kills: {after}");
    }
    eprintln!("{killed} were killed, {changed} had changed the file");
    let last = if site.text() == ONED_CONF { "enable" } else { "disable" };
    text(&site.one(last, &[]), 0);
    assert!(!site.directory.path().join(".oned.conf.hookbus-new").exists(), "what was left behind is gone");
}

#[test]
fn an_ordinary_user_is_told_to_be_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can become somebody else");
        return;
    }
    let site = Site::new();
    fs::set_permissions(site.directory.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let path = site.file();
    // The launcher makes it nobody's.
    let mut program = Launcher::new(&["hookbus", "one", "enable", "--file", path.to_str().expect("UTF-8")]).spawn();
    assert_eq!(program.wait("it may not write").code(), Some(1));
    assert_eq!((site.text(), site.backups()), (ONED_CONF.to_owned(), Vec::new()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    let mut program = Launcher::new(&["hookbus", "one", "status", "--file", path.to_str().expect("UTF-8")]).spawn();
    assert_eq!(program.wait("it may not read").code(), Some(1));
}

/// A process by the name of oned that has started the driver, as `/proc` shows it.
#[test]
fn status_tells_which_driver_a_running_oned_has() {
    let site = Site::new();
    let script = "import os, subprocess, sys\n\
        open('/proc/self/comm', 'w').write('oned')\n\
        child = subprocess.Popen([sys.argv[1], 'hm -p 0 -l 0 --config ' + sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n\
        child.stdin.write(b'INIT\\n'); child.stdin.flush(); child.stdout.read(31)\n\
        print('ready', flush=True); sys.stdin.read(); child.stdin.close(); child.wait()\n";
    // So that it meddles with nothing that runs on this machine.
    let config = site.directory.path().join("hookbus.toml");
    let of_its_own = |name: &str| site.directory.path().join(name);
    let text_of_config =
        format!("state_dir = {:?}\n[http]\nsocket = {:?}\n", of_its_own("state"), of_its_own("socket"));
    fs::write(&config, text_of_config).expect("a configuration");
    let mut oned = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(hookbus())
        .arg(&config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 can be started");
    let status = wait_until("oned and its driver in the status", || {
        let status = text(&site.one("status", &[]), 0);
        let line = format!("oned (pid {}) runs hookbus (pid ", oned.id());
        if status.contains(&line) { Ok(status) } else { Err(status) }
    });
    assert!(
        status.contains("HM_MAD in line") && status.contains("runs `one_hm -p 2101 -l 2102 -b 127.0.0.1`"),
        "{status}"
    );
    assert!(
        status.contains("What runs isn't what is configured. To make it so:  systemctl restart opennebula"),
        "{status}"
    );
    drop(oned.stdin.take());
    assert!(oned.wait().expect("it ends").success());
}

/// The text of a driver's arguments that was made is one that `hm` takes from oned without complaint.
#[test]
fn oned_can_start_what_is_written() {
    let site = Site::new();
    text(&site.one("enable", &["--", "-p", "0", "-l", "0"]), 0);
    let text = site.text();
    let (_, ours) = text.split_once("\nHM_MAD = [").expect("our block");
    let value = |name: &str| {
        let (_, behind) = ours.split_once(&format!("    {name} = \"")).expect("our block");
        behind.split('"').next().expect("a value").to_owned()
    };
    assert_eq!(Path::new(&value("EXECUTABLE")), hookbus());
    let arguments = value("ARGUMENTS");
    let mut hm = Launcher::new(&["hookbus", &arguments]).spawn();
    hm.write(b"INIT\nFINALIZE\n");
    assert!(hm.wait("FINALIZE").success());
    let written = String::from_utf8_lossy(hm.stdout.seen()).into_owned();
    assert!(written.starts_with("INIT SUCCESS - -") && !written.contains("LOG E"), "{written}");
}

/// Beside a service the driver has to hand events over: that is said, with the command, until it does.
#[test]
fn a_service_on_the_machine_is_noticed() {
    let (site, home) = (Site::new(), Home::default());
    let serve = home.serve();
    let config = home.path().join("hookbus.toml");
    let config = ["--config", config.to_str().expect("UTF-8")];
    let told = text(&site.one("enable", &config), 0);
    let command = format!("--forward {}", home.path().join("hookbus.sock").display());
    let line = told.lines().find(|line| line.ends_with(&command)).unwrap_or_else(|| panic!("{told}"));
    assert!(text(&site.one("status", &config), 0).contains(line));

    let arguments = line.split_once(" -- ").expect("the arguments").1;
    let told = text(&site.one("enable", &[&config[..], &["--", arguments]].concat()), 0);
    assert!(!told.contains("hookbus serve"), "{told}");
    assert!(site.text().contains(&command), "{}", site.text());
    assert!(site.text().contains("-p 2101 -l 2102"), "the others are kept: {}", site.text());
    serve.stop();
    assert!(!text(&site.one("status", &config), 0).contains("hookbus serve"));
}
