//! Topics that hold the current state of an object.

use super::outbound::REPLAY;
use crate::cloudevents;
use crate::delivery::Letter;
use crate::opennebula::{Document, Element};

/// What a letter means for the topic of its object's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateTopic {
    pub(super) topic: String,
    /// Whether the object is gone, so that nothing is to be kept.
    pub(super) gone: bool,
}

/// The calls by which an object goes that has no state for it, with its name in topics.
const DELETIONS: [(&[u8], &str); 3] = [
    (b"EVENT API one.host.delete 1", "host"),
    (b"EVENT API one.image.delete 1", "image"),
    (b"EVENT API one.vn.delete 1", "net"),
];

/// States after which an object is gone. Of an image it says that it is being deleted; should that fail, the state that follows
/// brings it back.
const LAST_STATES: [(&str, &str); 3] = [("vm", "DONE"), ("net", "DONE"), ("image", "DELETE")];

impl StateTopic {
    /// What a letter means, if it means anything. An operator's retry doesn't: its state may be long past.
    ///
    /// The keys decide, since only OpenNebula's own sources can publish these; the parts of the name are taken for the topic,
    /// since they are encoded already.
    pub(super) fn of(letter: &Letter) -> Option<Self> {
        if letter.id.contains(REPLAY) {
            return None;
        }
        let parts: Vec<&str> = letter.name.parts().collect();
        for key in letter.event.keys() {
            if key.starts_with(b"EVENT STATE ") {
                let [root @ .., "opennebula", "state", object, state, _lcm_state, id] = parts.as_slice() else {
                    return None;
                };
                return Some(StateTopic {
                    topic: topic(root, object, id),
                    gone: LAST_STATES.contains(&(object, state)),
                });
            }
            if let Some((_, object)) = DELETIONS.iter().find(|(call, _)| *call == key) {
                let [root @ .., "opennebula", "api", _call, _result] = parts.as_slice() else { return None };
                let id = object_of_call(&cloudevents::raw(&letter.event))?;
                return Some(StateTopic { topic: topic(root, object, &id), gone: true });
            }
        }
        None
    }
}

/// Where the state of an object is kept: beside the events, not below them.
fn topic(root: &[&str], object: &str, id: &str) -> String {
    format!("{}-state/opennebula/{object}/{id}", root.join("/"))
}

/// The number of the object that a call was about: its second parameter, behind the session.
fn object_of_call(xml: &[u8]) -> Option<String> {
    let document = Document::parse(xml);
    // Parameters come before anything that a user can write into the document.
    let parameters = document.root()?.child("CALL_INFO")?.child("PARAMETERS")?;
    let text = |parameter: Element<'_>, name| parameter.child(name).map(|field| field.text().into_owned());
    let second = parameters.children().find(|&parameter| {
        text(parameter, "POSITION").as_deref() == Some(b"2") && text(parameter, "TYPE").as_deref() == Some(b"IN")
    })?;
    let id = text(second, "VALUE")?;
    let is_number = !id.is_empty() && id.len() <= 20 && id.iter().all(u8::is_ascii_digit);
    is_number.then(|| String::from_utf8_lossy(&id).into_owned())
}

#[cfg(test)]
mod tests {
    use super::object_of_call;

    #[test]
    fn the_object_of_a_call_is_its_second_parameter() {
        let call = |value: &str| {
            let xml = format!(
                "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>one.host.delete</CALL><CALL_INFO><RESULT>1</RESULT><PARAMETERS>\
                 <PARAMETER><POSITION>1</POSITION><TYPE>IN</TYPE><VALUE>****</VALUE></PARAMETER>\
                 <PARAMETER><POSITION>2</POSITION><TYPE>IN</TYPE><VALUE>{value}</VALUE></PARAMETER>\
                 <PARAMETER><POSITION>2</POSITION><TYPE>OUT</TYPE><VALUE>9</VALUE></PARAMETER></PARAMETERS></CALL_INFO>\
                 </HOOK_MESSAGE>"
            );
            object_of_call(xml.as_bytes())
        };
        assert_eq!(call("3").as_deref(), Some("3"));
        for wrong in ["", "-1", "3/4", "123456789012345678901"] {
            assert_eq!(call(wrong), None, "{wrong}");
        }
        assert_eq!(object_of_call(b"<HOOK_MESSAGE>"), None);
        assert_eq!(object_of_call(b""), None);
    }
}
