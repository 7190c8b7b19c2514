//! The gRPC services, as thin translations between messages and [`Cache`](crate::cache::Cache).

mod admin;
mod lane;
mod original;
mod unary;
