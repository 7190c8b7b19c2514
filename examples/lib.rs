//! Programs that use Peanut: `cargo run --example scores`, `custom_loader`, `local_fleet` or `web`. The
//! library itself is empty, but for the code blocks of the documents, which the tests run.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
#[cfg(doctest)]
#[doc = include_str!("../docs/getting-started.md")]
mod getting_started {}
#[cfg(doctest)]
#[doc = include_str!("../docs/near-cache.md")]
mod near_cache {}
#[cfg(doctest)]
#[doc = include_str!("../docs/operations.md")]
mod operations {}
