//! The gRPC services, as thin translations between messages and [`Cache`](crate::cache::Cache).

mod admin;
mod lane;
mod original;
mod unary;

use std::time::Duration;

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
