//! What may stand in the journal's files, fed with anything: it must not panic, and what is taken for a record must be one.
//!
//! The first byte chooses whether the checksum is put right first (one that is right takes for ever to find by chance).

#![no_main]

use hookbus_broker::fuzzing;
use libfuzzer_sys::fuzz_target;

const SALT: u32 = 0x5eed;

fuzz_target!(|data: &[u8]| {
    let [choice, input @ ..] = data else { return };
    let mut bytes = input.to_vec();
    if choice & 1 != 0 {
        fuzzing::seal(&mut bytes, SALT);
    }
    fuzzing::headers(&bytes);
    if let Some((message, size)) = fuzzing::record(&bytes, SALT) {
        assert!(size <= bytes.len());
        // It comes out as it would be written.
        let Some(written) = message else { return };
        let again = fuzzing::record(&written, SALT).expect("we wrote it");
        assert_eq!(again.0.as_deref(), Some(&written[..]));
        assert_eq!(again.1, written.len());
    }
});
