//! Reads anything as a segment: no panic, and what was read is written and read again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use peanut_server::segment::Header;

fuzz_target!(|bytes: &[u8]| {
    let Ok((header, records)) = Header::read(bytes) else { return };
    let records: Vec<_> = records.flatten().collect();
    let mut written = Vec::new();
    header.write(&mut written);
    records.iter().for_each(|record| record.write(&mut written));
    assert!(written.len() <= bytes.len());
    let (header_again, records_again) = Header::read(&written).expect("it was written just now");
    assert_eq!(header_again, header);
    assert!(records_again.map(|record| record.expect("so was this")).eq(records));
});
