//! What the hook of Ganeti reads as the daemon's answer: nothing panics, it doesn't matter in which pieces it comes, and what is said of reports is taken only
//! where it fits.

#![no_main]

use hookbus_ganeti_hook::exchange::fuzzing::read_pieces;
use hookbus_ganeti_hook::spool::Receipt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&size, bytes)) = input.split_first() else { return };
    let whole: Vec<&[u8]> = bytes.chunks(16 << 10).collect();
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(size) + 1).collect();
    let answer = read_pieces(&whole);
    assert_eq!(answer.is_ok(), read_pieces(&pieces).is_ok());
    let Ok(answer) = answer else { return };
    assert_eq!(Ok(&answer), read_pieces(&pieces).as_ref());
    // Those from 100 to 199 only come before the answer.
    assert!(answer.status / 100 != 1 && answer.body.len() <= bytes.len());
    if let Ok(receipt) = serde_json::from_slice::<Receipt>(&answer.body) {
        let ids = ["0".repeat(32), "1".repeat(32)];
        if receipt.check(ids.iter().map(String::as_str)).is_ok() {
            assert_eq!(receipt.accepted + receipt.refused.len() as u64, 2);
        }
    }
});
