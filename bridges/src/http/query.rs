//! Query strings whose values may be any bytes: a prefix is bytes, and need not be UTF-8.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// The parameters of a query string (`application/x-www-form-urlencoded`), in order.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (String::from_utf8_lossy(&decoded(name)).into_owned(), decoded(value))
    })
}

fn decoded(text: &str) -> Vec<u8> {
    let spaced: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    percent_decode(spaced.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_be_any_bytes() {
        let read: Vec<_> = parameters("prefix=EVENT+VM%20&prefix=%ff%2B&&flag&a=b=c").collect();
        let expected: [(&str, &[u8]); 4] =
            [("prefix", b"EVENT VM "), ("prefix", b"\xff+"), ("flag", b""), ("a", b"b=c")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(parameters("").count(), 0);
    }
}
