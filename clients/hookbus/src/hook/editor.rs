//! A template in the operator's editor, as `onehook update` does it.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::client::Failure;

/// Lets the operator edit a text; nothing where he changed nothing. What he wrote stays in a file until it is known that it was taken.
pub(super) fn edit(text: &str) -> Result<Option<String>, Failure> {
    let file = file();
    let failed = |e: std::io::Error| Failure::Work(format!("cannot edit {}: {e}", file.display()));
    // Somebody else's file of that name isn't followed.
    let _ = fs::remove_file(&file);
    let mut written = fs::OpenOptions::new();
    written.write(true).create_new(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut written, 0o600);
    written.open(&file).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)?;
    let editor =
        ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".into());
    // An editor may be a command with options, so a shell reads it; the file is an argument of its own.
    let status = Command::new("/bin/sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&file).status();
    let status = status.map_err(failed)?;
    let after = fs::read_to_string(&file).map_err(failed)?;
    if !status.success() || after == text {
        forget_what_was_written();
        return match status.success() {
            true => Ok(None),
            false => Err(Failure::Work(format!("the editor ({editor}) failed; nothing was changed"))),
        };
    }
    Ok(Some(after))
}

fn file() -> PathBuf {
    std::env::temp_dir().join(format!("hookbus-hook-{}.tmpl", std::process::id()))
}

/// Tells where the text is that the daemon didn't take.
pub(super) fn keep_what_was_written() {
    super::warn(&format!("what you wrote is kept in {}", file().display()));
}

/// Removes the file.
pub(super) fn forget_what_was_written() {
    let _ = fs::remove_file(file());
}
