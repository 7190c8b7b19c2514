//! Reads anything as a configuration: no panic, complaints of one line, and what is accepted is printed so
//! that it is accepted again.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Loaders may need a runtime when they are made.
    let runtime = runtime.expect("a runtime without threads");
    let _guard = runtime.enter();
    peanut_server::fuzzing::configuration(text);
});
