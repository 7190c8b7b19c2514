//! Answers a lane with anything: no panic, and each caller has one answer.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| peanut_client::fuzzing::answers(bytes));
