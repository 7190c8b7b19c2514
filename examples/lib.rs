//! Programs that use Peanut: `cargo run --example scores`, `custom_loader` or `local_fleet`. The library
//! itself is empty.
