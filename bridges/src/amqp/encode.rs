//! A letter as an AMQP message.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::delivery::{Letter, Rejection};

/// The delivery mode of messages that survive a restart of the server.
const PERSISTENT: u8 = 2;

/// The longest short string, in bytes.
const SHORT_BYTES: usize = 255;

/// A name or property; its length is checked here, because the library panics.
pub(super) fn short(what: &str, text: &str) -> Result<ShortString, Rejection> {
    ShortString::try_new(text).map_err(|_| {
        Rejection::Permanent(format!("{what} is {} bytes long; AMQP takes {SHORT_BYTES} at most", text.len()))
    })
}

/// The properties of a letter; its id comes ready-made, because it is needed besides.
pub(super) fn properties(letter: &Letter, id: ShortString, header_prefix: &str) -> Result<BasicProperties, Rejection> {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id)
        .with_timestamp(letter.event.time().as_millis() / 1000)
        .with_type(short("the type", beginning(&letter.kind))?)
        .with_app_id("hookbus".into());
    if !letter.content_type.is_empty() {
        properties = properties.with_content_type(short("the content type", &letter.content_type)?);
    }
    if !letter.attributes.is_empty() {
        let mut headers = FieldTable::default();
        for (name, value) in &letter.attributes {
            let name = short("the name of a header", &format!("{header_prefix}{name}"))?;
            headers.insert(name, AMQPValue::LongString(LongString::from(&**value)));
        }
        properties = properties.with_headers(headers);
    }
    Ok(properties)
}

/// As much of a text as a short string takes. The whole type is among the attributes.
fn beginning(text: &str) -> &str {
    let mut end = text.len().min(SHORT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_refused_and_long_types_cut() {
        assert!(short("the routing key", &"x".repeat(255)).is_ok());
        let Err(Rejection::Permanent(said)) = short("the routing key", &"x".repeat(256)) else {
            panic!("it is too long")
        };
        assert_eq!(said, "the routing key is 256 bytes long; AMQP takes 255 at most");
        assert_eq!(beginning(&"ä".repeat(200)).len(), 254);
        assert_eq!(beginning("org.hookbus.custom"), "org.hookbus.custom");
    }
}
