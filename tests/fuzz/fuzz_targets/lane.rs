//! Says anything on a lane to a node: no panic, answers that can be read, and nothing held when the lane is
//! over.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without threads").block_on(peanut_server::fuzzing::lane(bytes));
});
