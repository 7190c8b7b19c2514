//! A client process for tests that reads keys from near copies until it is ended.
//!
//! `holder NODE GROUP KEY...` says on stderr of each read when it began, in nanoseconds of the machine's
//! uptime, which key it was, what came of it, and whether it was a near copy: `<uptime> <key> <value> near`,
//! or `far`; an error is `<uptime> <key> - far`.

use std::time::Duration;

use peanut_client::{Client, Error, NearCache, NearKeys, Source};
use peanut_proto::clock::uptime_nanos;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [node, group, keys @ ..] = &args[..] else { panic!("usage: holder NODE GROUP KEY...") };
    let near = NearCache::bytes(4 << 20).keys(NearKeys::All);
    let client = Client::builder().nodes([node]).near_cache(near).build().await?;
    let group = client.group(group);
    loop {
        for key in keys {
            let begun = uptime_nanos();
            let read = group.get_detailed(key).await.ok();
            let value = read.as_ref().and_then(|read| read.value.as_deref()).unwrap_or(b"-");
            let near =
                if read.as_ref().is_some_and(|read| read.source == Source::Near) { "near" } else { "far" };
            eprintln!("{begun} {key} {} {near}", String::from_utf8_lossy(value));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
