//! Redis by the crate rustis: one multiplexed connection.

use rustis::client::{Client, Config, IntoConfig as _, TlsConfig};
use rustis::commands::StringCommands as _;
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::Caller;
use super::tls::Certificates;

#[derive(Clone)]
pub(super) struct Rustis(Client);

impl Rustis {
    pub(super) async fn connect(addr: &str, tls: Option<&Certificates>) -> Self {
        let mut config: Config = format!("redis://{addr}").as_str().into_config().expect("a URL");
        config.tls_config = tls.map(|tls| TlsConfig::new(tls.client_config()));
        Rustis(Client::connect(config).await.expect("a connection to Redis"))
    }
}

/// The length of a value, which is borrowed from the answer: as little as an application can do with it.
struct Length(Option<usize>);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfBytes;
        impl Visitor<'_> for OfBytes {
            type Value = Length;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Length, E> {
                // Other clients give the application a value that it can keep.
                Ok(Length(Some(bytes::Bytes::copy_from_slice(bytes).len())))
            }

            fn visit_none<E>(self) -> Result<Length, E> {
                Ok(Length(None))
            }

            fn visit_unit<E>(self) -> Result<Length, E> {
                Ok(Length(None))
            }
        }
        deserializer.deserialize_bytes(OfBytes)
    }
}

impl Caller for Rustis {
    async fn get(&mut self, key: &str) -> Option<usize> {
        self.0.get::<Length>(key).await.ok()?.0
    }

    async fn get_many(&mut self, keys: &[&str], value_bytes: usize) -> usize {
        let values: Vec<Length> = self.0.mget(keys).await.unwrap_or_default();
        values.iter().filter(|value| value.0 == Some(value_bytes)).count()
    }

    async fn set(&mut self, key: &str, value: &str) -> bool {
        self.0.set(key, value).await.is_ok()
    }

    async fn set_many(&mut self, keys: &[&str], value: &str) -> bool {
        let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (*key, value)).collect();
        self.0.mset(pairs).await.is_ok()
    }
}
