//! A client process for tests: reads one key many times at once and prints what came back.
//!
//! `reader ETCD GROUP KEY COUNT` prints a line `<answers> <errors> <different values>`, having waited for a
//! line on stdin before the first get.

use std::collections::BTreeSet;
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use futures_util::future::join_all;
use peanut_client::{Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [etcd, group, key, count] = &args[..] else { panic!("usage: reader ETCD GROUP KEY COUNT") };
    let client = Client::builder().etcd([etcd]).deadline(Duration::from_secs(20)).build().await?;
    println!("ready");
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().lock().lines().next();
    let group = client.group(group);
    let count: usize = count.parse().expect("COUNT is a number");
    let answers = join_all((0..count).map(|_| group.get(key))).await;
    let errors = answers.iter().filter(|answer| answer.is_err()).count();
    let values: BTreeSet<_> = answers.iter().flatten().collect();
    println!("{} {errors} {}", answers.len() - errors, values.len());
    Ok(())
}
