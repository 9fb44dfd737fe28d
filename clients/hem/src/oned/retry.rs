//! [`Retry`]: oned wants a hook to run again, since somebody said `onehook retry`.
//!
//! ```text
//! key:     RETRY
//! content: base64 of <HOOK_MESSAGE><ARGUMENTS>base64 of the arguments</ARGUMENTS><HOOK_ID>7</HOOK_ID>
//!          [<REMOTE_HOST>node1</REMOTE_HOST>]</HOOK_MESSAGE>, and a blank
//! ```
//!
//! The arguments are those of the record, `$API` and `$TEMPLATE` replaced already; the command is the one that the hook has now.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use hookbus_bridges::opennebula::Document;
use thiserror::Error;

use super::{shown, text};

/// The key of the messages.
pub const RETRY_KEY: &str = "RETRY";

/// What is to run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The number of the hook.
    pub hook_id: i64,
    /// The arguments, expanded.
    pub arguments: String,
    /// The host that it ran on, where that was another one.
    pub remote_host: Option<String>,
}

/// Why a message is no retry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RetryError {
    /// The content, or the arguments in it, can't be decoded.
    #[error("RETRY: {0} is no base64; nothing runs")]
    Base64(&'static str),
    /// There is no number of a hook.
    #[error("RETRY: HOOK_ID is {0:?} and no number; nothing runs")]
    HookId(String),
    /// The arguments are missing. The hook would run without those that it needs.
    #[error("RETRY: hook {0} has no ARGUMENTS there; nothing runs")]
    NoArguments(i64),
    /// The arguments are no text, so they can't be given to a command as they were.
    #[error("RETRY: the arguments for hook {0} are no UTF-8; nothing runs")]
    Utf8(i64),
}

/// Takes base64 with its padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Retry {
    /// Reads the content of a message.
    ///
    /// # Errors
    /// When it is no retry.
    pub fn parse(content: &[u8]) -> Result<Retry, RetryError> {
        let word = content.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()).unwrap_or_default();
        let xml = LENIENT.decode(word).map_err(|_| RetryError::Base64("the content"))?;
        let document = Document::parse(&xml);
        let field = |name: &str| document.find(name).map(text);
        let id = field("HOOK_ID").unwrap_or_default();
        let Some(hook_id) = id.trim().parse().ok().filter(|id| *id >= 0) else {
            return Err(RetryError::HookId(shown(&id)));
        };
        let mut base64 = field("ARGUMENTS").ok_or(RetryError::NoArguments(hook_id))?;
        base64.retain(|c| !c.is_ascii_whitespace());
        let arguments = LENIENT.decode(base64).map_err(|_| RetryError::Base64("ARGUMENTS"))?;
        let arguments = String::from_utf8(arguments).map_err(|_| RetryError::Utf8(hook_id))?;
        let remote_host = field("REMOTE_HOST").filter(|host| !host.is_empty());
        Ok(Retry { hook_id, arguments, remote_host })
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn parse(xml: &str) -> Result<Retry, String> {
        Retry::parse(format!("{} ", BASE64_STANDARD.encode(xml)).as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn with_a_host_and_without() {
        let retry = |arguments: &str, host: Option<&str>| Retry {
            hook_id: 15,
            arguments: arguments.into(),
            remote_host: host.map(Into::into),
        };
        let head = "<HOOK_MESSAGE><ARGUMENTS>cmVtb3RlIHJ1bg==</ARGUMENTS><HOOK_ID>15</HOOK_ID>";
        assert_eq!(parse(&format!("{head}</HOOK_MESSAGE>")), Ok(retry("remote run", None)));
        assert_eq!(parse(&format!("{head}<REMOTE_HOST/></HOOK_MESSAGE>")), Ok(retry("remote run", None)));
        assert_eq!(
            parse(&format!("{head}<REMOTE_HOST>node1</REMOTE_HOST></HOOK_MESSAGE>")),
            Ok(retry("remote run", Some("node1")))
        );
        let empty = "<HOOK_MESSAGE><ARGUMENTS></ARGUMENTS><HOOK_ID>15</HOOK_ID></HOOK_MESSAGE>";
        assert_eq!(parse(empty), Ok(retry("", None)));
        let lines = "<HOOK_MESSAGE><ARGUMENTS>cmVtb3Rl\nIHJ1bg\n</ARGUMENTS><HOOK_ID>15</HOOK_ID></HOOK_MESSAGE>";
        assert_eq!(parse(lines), Ok(retry("remote run", None)));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (xml, expected) in [
            ("", "HOOK_ID is \"\" and no number"),
            ("<HOOK_MESSAGE><HOOK_ID>x</HOOK_ID></HOOK_MESSAGE>", "HOOK_ID is \"x\" and no number"),
            ("<HOOK_MESSAGE><HOOK_ID>-1</HOOK_ID></HOOK_MESSAGE>", "HOOK_ID is \"-1\" and no number"),
            ("<HOOK_MESSAGE><HOOK_ID>1</HOOK_ID></HOOK_MESSAGE>", "hook 1 has no ARGUMENTS"),
            ("<HOOK_MESSAGE><HOOK_ID>1</HOOK_ID><ARGUMENTS>!!</ARGUMENTS></HOOK_MESSAGE>", "ARGUMENTS is no base64"),
            ("<HOOK_MESSAGE><HOOK_ID>1</HOOK_ID><ARGUMENTS>/w==</ARGUMENTS></HOOK_MESSAGE>", "hook 1 are no UTF-8"),
        ] {
            let said = parse(xml).unwrap_err();
            assert!(said.contains(expected), "{xml}: {said}");
        }
        assert_eq!(Retry::parse(b"\xFF"), Err(RetryError::Base64("the content")));
        assert_eq!(Retry::parse(b""), Err(RetryError::HookId(String::new())));
    }

    proptest! {
        #[test]
        fn any_content_is_survived(content in any::<Vec<u8>>()) {
            let _ = Retry::parse(&content);
        }
    }
}
