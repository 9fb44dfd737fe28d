//! Small helpers for text that goes into logs, records and keys.

/// The beginning of a text, of at most `max_bytes`, without a piece of a character.
pub(crate) fn beginning(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
