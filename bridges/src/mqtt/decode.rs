//! Packets that we read: with rumqttc, save the codes in them.
//!
//! rumqttc knows each code as a name of an enum, and knows fewer than servers use. To a payload over its `message_size_limit`
//! mosquitto 2.0 answers PUBACK 0x95, which the standard doesn't list there: rumqttc says that the packet is malformed, the
//! connection would end, and the same letter would end the next one. A DISCONNECT of mosquitto has no properties, which the
//! standard allows: rumqttc waits for more to come, so that the server's reason is never seen. And a server that only knows 3.1.1
//! answers a CONNECT of version 5 with a CONNACK without properties: the same. So the code is read here, one byte at a fixed
//! place, and rumqttc is asked for what comes behind it.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::Error as Error4;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::Error as Error5;
use rumqttc::v5::mqttbytes::v5::{self, Packet, PacketType};
use thiserror::Error;

use super::config::Version;

/// What a server says to a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// The answer to CONNECT. 0 is welcome; the other codes are read by version.
    ConnAck { code: u8, limits: ServerLimits, said: Said },
    /// What has become of a PUBLISH at QoS 1; in 3.1.1 the code is always 0.
    PubAck { packet_id: u16, code: u8, said: Said },
    /// The answer to PINGREQ.
    PingResp,
    /// MQTT 5 only: the server hangs up, and says why.
    Disconnect { code: u8, said: Said },
}

/// What a server says in its own words, fit for a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) reason: Option<String>,
    /// Another server that is to be used.
    pub(super) reference: Option<String>,
}

/// What a server takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerLimits {
    pub(super) receive_maximum: Option<u16>,
    pub(super) packet_bytes: Option<u32>,
    /// Whether it takes QoS 0 only.
    pub(super) qos0_only: bool,
    /// Whether it keeps no retained messages.
    pub(super) no_retain: bool,
    pub(super) keep_alive_s: Option<u16>,
}

/// What comes in is no MQTT.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum ProtocolError {
    #[error("{0}")]
    Malformed(String),
    #[error("a packet that breaks off")]
    Short,
    #[error("a packet of type {0:?}, which no server sends to a publisher")]
    Unexpected(PacketType),
}

impl From<Error5> for ProtocolError {
    fn from(error: Error5) -> Self {
        ProtocolError::Malformed(error.to_string())
    }
}

impl From<Error4> for ProtocolError {
    fn from(error: Error4) -> Self {
        ProtocolError::Malformed(error.to_string())
    }
}

/// Takes the next packet out of what has come, if it has come whole.
pub(super) fn read(
    buffer: &mut BytesMut,
    version: Version,
    limit_bytes: u32,
) -> Result<Option<Incoming>, ProtocolError> {
    // What is no MQTT may look like a packet that is still to come. Only PUBLISH has flags, and nobody sends us any.
    if let Some(&first) = buffer.first()
        && first & 0x0F != 0
        && first >> 4 != 3
    {
        return Err(ProtocolError::Malformed(format!("it begins with {first:#04x}, which is no packet of a server's")));
    }
    // The frame is the same in both versions.
    let header = match v5::check(buffer.iter(), Some(limit_bytes)) {
        Ok(header) => header,
        Err(Error5::InsufficientBytes(more)) => {
            buffer.reserve(more);
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    let packet_type = header.packet_type()?;
    let packet = buffer.split_to(header.frame_length()).freeze();
    // The type, then a length of which each byte but the last has its upper bit set.
    let length_bytes = packet[1..].iter().take_while(|&&byte| byte & 0x80 != 0).count() + 1;
    let body = packet.slice(1 + length_bytes..);
    match (packet_type, version) {
        (PacketType::PubAck, _) => puback(packet, &body, version).map(Some),
        (PacketType::ConnAck, _) => connack(packet, &body, version).map(Some),
        (PacketType::PingResp, _) => Ok(Some(Incoming::PingResp)),
        (PacketType::Disconnect, Version::V5) => disconnect(packet, &body).map(Some),
        (other, _) => Err(ProtocolError::Unexpected(other)),
    }
}

fn connack(packet: Bytes, body: &Bytes, version: Version) -> Result<Incoming, ProtocolError> {
    let [_session_present, code, properties @ ..] = &body[..] else { return Err(ProtocolError::Short) };
    let code = *code;
    let (mut limits, mut said) = (ServerLimits::default(), Said::default());
    match version {
        Version::V311 if code == 0 => {
            v4::Packet::read(&mut BytesMut::from(packet), usize::MAX)?;
        }
        Version::V5 if !properties.is_empty() => match v5::Packet::read(&mut BytesMut::from(packet), None) {
            Ok(Packet::ConnAck(v5::ConnAck { properties: Some(properties), .. })) => {
                limits = ServerLimits {
                    receive_maximum: properties.receive_max,
                    packet_bytes: properties.max_packet_size,
                    qos0_only: properties.max_qos == Some(0),
                    no_retain: properties.retain_available == Some(0),
                    keep_alive_s: properties.server_keep_alive,
                };
                said = Said::new(properties.reason_string, properties.server_reference);
            }
            Ok(_) => {}
            // What is refused is refused, however it is said.
            Err(_) if code != 0 => {}
            Err(e) => return Err(e.into()),
        },
        _ => {}
    }
    Ok(Incoming::ConnAck { code, limits, said })
}

fn puback(packet: Bytes, body: &Bytes, version: Version) -> Result<Incoming, ProtocolError> {
    let [high, low, rest @ ..] = &body[..] else { return Err(ProtocolError::Short) };
    let packet_id = u16::from_be_bytes([*high, *low]);
    let (mut code, mut said) = (0, Said::default());
    if version == Version::V5
        && let Some((&first, properties)) = rest.split_first()
    {
        code = first;
        // Only who refuses has something to say, and nothing of it decides.
        if code >= 0x80
            && !properties.is_empty()
            && let Ok(Packet::PubAck(v5::PubAck { properties: Some(properties), .. })) =
                v5::Packet::read(&mut BytesMut::from(packet), None)
        {
            said = Said::new(properties.reason_string, None);
        }
    }
    Ok(Incoming::PubAck { packet_id, code, said })
}

fn disconnect(packet: Bytes, body: &Bytes) -> Result<Incoming, ProtocolError> {
    let code = body.first().copied().unwrap_or(0);
    let mut said = Said::default();
    if body.len() > 1
        && let Ok(Packet::Disconnect(v5::Disconnect { properties: Some(properties), .. })) =
            v5::Packet::read(&mut BytesMut::from(packet), None)
    {
        said = Said::new(properties.reason_string, properties.server_reference);
    }
    Ok(Incoming::Disconnect { code, said })
}

impl Said {
    fn new(reason: Option<String>, reference: Option<String>) -> Self {
        // One line, not long.
        let printable = |text: String| text.chars().take(200).collect::<String>().escape_debug().to_string();
        Said { reason: reason.map(printable), reference: reference.map(printable) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8], version: Version) -> Result<Vec<Incoming>, ProtocolError> {
        let (mut buffer, mut packets) = (BytesMut::from(bytes), Vec::new());
        while let Some(packet) = read(&mut buffer, version, 65_536)? {
            packets.push(packet);
        }
        Ok(packets)
    }

    fn silent() -> Said {
        Said::default()
    }

    /// What mosquitto 2.0.11 was seen to send.
    #[test]
    fn what_a_real_server_sends_is_read() {
        let bytes = [
            &[0x20, 0x0E, 0, 0, 0x0B, 0x22, 0, 0x0A, 0x27, 0, 0, 0x13, 0x88, 0x21, 0, 0x14][..],
            &[0x40, 3, 0, 1, 0x10, 0x40, 3, 0, 2, 0x87, 0x40, 3, 0, 3, 0x95, 0x40, 2, 0, 4, 0xD0, 0, 0xE0, 1, 0x95],
        ]
        .concat();
        let limits = ServerLimits { receive_maximum: Some(20), packet_bytes: Some(5000), ..ServerLimits::default() };
        let puback = |packet_id, code| Incoming::PubAck { packet_id, code, said: silent() };
        let expected = [
            Incoming::ConnAck { code: 0, limits, said: silent() },
            puback(1, 0x10),
            puback(2, 0x87),
            puback(3, 0x95),
            puback(4, 0),
            Incoming::PingResp,
            Incoming::Disconnect { code: 0x95, said: silent() },
        ];
        assert_eq!(all(&bytes, Version::V5).unwrap(), expected);
        // In pieces, too.
        for cut in 0..bytes.len() {
            let (mut buffer, mut packets) = (BytesMut::new(), Vec::new());
            for piece in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(piece);
                while let Some(packet) = read(&mut buffer, Version::V5, 65_536).unwrap() {
                    packets.push(packet);
                }
            }
            assert_eq!(packets, expected, "cut at {cut}");
        }
        let old = [0x20, 2, 0, 0, 0x40, 2, 0, 1];
        let expected = [Incoming::ConnAck { code: 0, limits: ServerLimits::default(), said: silent() }, puback(1, 0)];
        assert_eq!(all(&old, Version::V311).unwrap(), expected);
    }

    #[test]
    fn a_server_of_version_3_is_understood_when_it_refuses_version_5() {
        let expected = Incoming::ConnAck { code: 1, limits: ServerLimits::default(), said: silent() };
        assert_eq!(all(&[0x20, 2, 0, 1], Version::V5).unwrap(), [expected]);
    }

    #[test]
    fn reasons_in_words_are_kept_short_and_printable() {
        let text = format!("no\n{}", "x".repeat(300));
        let mut bytes = vec![0x40, 0, 0, 0, 1, 0x97];
        bytes.extend([0xB2, 0x02, 0x1F, 1, 0x2F]);
        bytes.extend(text.as_bytes());
        let remaining = bytes.len() - 3;
        bytes[1] = (remaining % 128) as u8 | 0x80;
        bytes[2] = (remaining / 128) as u8;
        // The length takes two bytes here, so the id begins one further on.
        bytes.splice(3..6, [0, 1, 0x97]);
        let read = all(&bytes, Version::V5).unwrap();
        let [Incoming::PubAck { packet_id: 1, code: 0x97, said }] = &read[..] else { panic!("{read:?}") };
        let reason = said.reason.as_deref().unwrap();
        assert!(reason.starts_with("no\\nxxx") && reason.len() < 210, "{reason}");
    }

    #[test]
    fn what_is_no_mqtt_is_an_error() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            &[0x20, 0xFF, 0xFF, 0xFF, 0xFF],
            &[0x20, 0xFF, 0xFF, 0x7F],
            &[0x20, 1, 0],
            &[0x40, 1, 0],
            &[0x00, 0],
            &[0x30, 3, 0, 1, b'x'],
        ] {
            assert!(all(bytes, Version::V5).is_err(), "{bytes:?}");
        }
        assert!(all(&[0xE0, 0], Version::V311).is_err());
    }

    proptest! {
        /// Whatever a server sends, it is read, waited for or refused, and nothing panics.
        #[test]
        fn anything_is_read(bytes in prop::collection::vec(any::<u8>(), 0..200), v5: bool) {
            let _ = all(&bytes, if v5 { Version::V5 } else { Version::V311 });
        }

        #[test]
        fn anything_in_a_frame_is_read(
            kind in prop::sample::select(vec![0x20u8, 0x40, 0xD0, 0xE0]), body in prop::collection::vec(any::<u8>(), 0..127), v5: bool
        ) {
            let bytes = [&[kind, body.len() as u8][..], &body].concat();
            let _ = all(&bytes, if v5 { Version::V5 } else { Version::V311 });
        }
    }
}
