//! Events as oned writes them, for tests that need others than the recorded ones.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::Message;

/// A line from oned, and what is to be published for it.
#[derive(Debug, Clone)]
pub struct Event {
    /// The line, with its line feed.
    pub line: Vec<u8>,
    /// One message for each key, in the order of the contract.
    pub messages: Vec<Message>,
}

impl Event {
    fn new(keys: &[String], xml: &str) -> Self {
        let content = BASE64_STANDARD.encode(xml);
        Self {
            line: format!("EXECUTE  -1 {content}\n").into_bytes(),
            messages: keys.iter().map(|key| Message::new(key.as_str(), content.as_str())).collect(),
        }
    }
}

/// A successful API call.
#[must_use]
pub fn api(call: &str) -> Event {
    let xml = format!(
        "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>{call}</CALL><CALL_INFO><RESULT>1</RESULT><PARAMETERS><PARAMETER>\
         <POSITION>1</POSITION><TYPE>IN</TYPE><VALUE>****</VALUE></PARAMETER></PARAMETERS><EXTRA/></CALL_INFO></HOOK_MESSAGE>"
    );
    Event::new(&[format!("EVENT API {call} 1")], &xml)
}

/// A virtual machine has reached a state. `note` is in its user template, to tell events apart or to make them large.
#[must_use]
pub fn vm(id: u32, state: &str, lcm_state: &str, note: &str) -> Event {
    let xml = format!(
        "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>{state}</STATE>\
         <LCM_STATE>{lcm_state}</LCM_STATE><RESOURCE_ID>{id}</RESOURCE_ID><REMOTE_HOST>node1</REMOTE_HOST><VM><ID>{id}</ID>\
         <NAME>vm-{id}</NAME><USER_TEMPLATE><NOTE><![CDATA[{note}]]></NOTE></USER_TEMPLATE></VM></HOOK_MESSAGE>"
    );
    Event::new(
        &[format!("EVENT VM {id}/{state}/{lcm_state} "), format!("EVENT STATE VM/{state}/{lcm_state}/{id} ")],
        &xml,
    )
}

/// A retry of a hook's execution. Its content has one blank behind the base64, as the original's has.
#[must_use]
pub fn retry(text: &str) -> Event {
    let content = BASE64_STANDARD.encode(text);
    Event {
        line: format!("RETRY  -1 {content}\n").into_bytes(),
        messages: vec![Message::new("RETRY", format!("{content} "))],
    }
}
