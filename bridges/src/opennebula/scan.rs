//! The tolerant scan. To come: it finds nothing yet.

use super::header::Header;

pub(crate) fn header(_text: &[u8], _scratch: &mut Vec<u8>) -> Header {
    Header::default()
}
