//! What the original was recorded reporting, and the scripts that were hooks there.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::{Rig, fixture};

/// What one execution came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Result {
    pub(crate) arguments: String,
    pub(crate) command: String,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) code: String,
    /// Where it ran, if that was another host.
    pub(crate) host: Option<String>,
}

impl Result {
    /// Takes a request to the driver's logger port apart: the number of the hook, and the text that was never escaped, so it is cut up as text.
    fn of(request: &str) -> (u32, Result, String) {
        let between = |text: &str, name: &str| {
            let (start, end) = (format!("<{name}>"), format!("</{name}>"));
            let from = text.find(&start).unwrap() + start.len();
            text[from..from + text[from..].find(&end).unwrap()].to_owned()
        };
        let output = |text: &str, name: &str| {
            let base64: String = between(text, name).split_whitespace().collect();
            BASE64_STANDARD.decode(base64).unwrap()
        };
        let mut words = request.splitn(3, ' ').skip(1);
        let hook = words.next().unwrap().parse().unwrap();
        let text = String::from_utf8(BASE64_STANDARD.decode(words.next().unwrap()).unwrap()).unwrap();
        let result = Result {
            arguments: between(&text, "ARGUMENTS"),
            command: between(&text, "COMMAND"),
            stdout: output(&text, "STDOUT"),
            stderr: String::from_utf8_lossy(&output(&text, "STDERR")).into_owned(),
            code: between(&text, "CODE"),
            host: text.contains("<REMOTE_HOST>").then(|| between(&text, "REMOTE_HOST")),
        };
        (hook, result, text)
    }

    /// The same of ours, as if the hooks were where the original's were.
    pub(crate) fn of_ours(request: &str, base_path: &str) -> (u32, Result, bool) {
        let (hook, mut result, text) = Result::of(request);
        let there = "/opt/one/var/remotes/hooks";
        result.command = result.command.replace(base_path, there);
        result.stderr = result.stderr.replace(base_path, there);
        (hook, result, text.contains("<RETRY>yes</RETRY>"))
    }
}

/// What the original reported, where `wanted` says so of the text.
pub(crate) fn reported(wanted: impl Fn(&str) -> bool) -> Vec<(u32, Result)> {
    let replies = String::from_utf8(fixture("replies.jsonl.zst")).unwrap();
    let requests = replies.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let taken_apart = requests.map(|line| Result::of(line["request"].as_str().unwrap()));
    taken_apart.filter(|(_, _, text)| wanted(text)).map(|(hook, result, _)| (hook, result)).collect()
}

const SCRIPTS: &[(&str, &str)] = &[
    (
        "rec_ok.sh",
        "echo \"hello from rec_ok argc=$#\"\ni=0\nfor a in \"$@\"; do i=$((i+1)); printf 'arg%d len=%d head=%.60s\\n' $i ${#a} \"$a\"; done",
    ),
    ("rec_stdin.sh", "echo \"argc=$# stdin_bytes=$(wc -c)\""),
    ("rec_fail.sh", "echo partial output; echo 'ERROR: it went wrong' >&2; exit 3"),
    ("rec_empty.sh", ""),
    ("rec_slow.sh", "exec sleep 1000"),
    ("rec_env.sh", "env"),
    ("rec_rc255.sh", "exit 255"),
    ("rec_sig.sh", "echo about to die by a signal; kill -KILL $$"),
    ("rec_bg.sh", "echo before; sleep 1000 &"),
    ("rec_catstdin.sh", "cat"),
    (
        "rec_bin.sh",
        "printf '\\000\\001\\002\\377\\376 <&>\"\\047 \\303\\251 \\303 end\\n'; printf 'stderr \\377\\n' >&2",
    ),
    (
        "rec_big.sh",
        "i=0; while [ $i -lt 500 ]; do printf 'line %06d of a rather long output of a hook, 0123456789 \
         abcdefghijklmnopqrstuvwxyz\\n' $i; i=$((i+1)); done; echo done >&2",
    ),
];

impl Rig {
    /// Writes the scripts that were hooks, so that they say what those said.
    pub(crate) fn recorded_scripts(&self) {
        for (name, body) in SCRIPTS {
            self.script(name, &format!("#!/bin/sh\n{body}\n"));
        }
        std::fs::create_dir(self.path("sub")).unwrap();
        for copy in ["rec_\u{fc}n\u{ef}.sh", "sub/rec_sub.sh"] {
            std::fs::copy(self.path("rec_ok.sh"), self.path(copy)).unwrap();
        }
        std::fs::write(self.path("rec_noexec.txt"), "").unwrap();
    }
}
