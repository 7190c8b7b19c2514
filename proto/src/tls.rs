//! Certificates in files, for both sides: read, and read again when the files change.
//!
//! New connections have what is in the files. Those that stand keep what they were made with; the holder of
//! one can have the certificate of its other side verified again with what is in force now
//! ([`ServerTls::verify`]). Files that cannot be used leave the last good ones in force.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::time::Instant;

use crate::certificate::Certificate;
pub use crate::certificate::TlsError;
use crate::clock::wall_clock_ms;

/// Files are looked at this often at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Certificates and keys, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that the other side's certificate must come from.
    pub ca: Option<PathBuf>,
    /// This side's certificate, and those between it and its authority.
    pub cert: Option<PathBuf>,
    /// The key of `cert`: PKCS#8, PKCS#1 or SEC1.
    pub key: Option<PathBuf>,
    /// Lists of revoked certificates, one of each authority in `ca` and below: a certificate whose authority
    /// has no list there is not trusted. A list that is past its next update is still used.
    pub crl: Option<PathBuf>,
}

impl TlsFiles {
    /// What a server of this protocol (by its ALPN name) uses. With `ca`, clients need a certificate from
    /// there.
    ///
    /// # Errors
    /// Where there is no certificate or key, or a file cannot be used.
    pub fn server(&self, protocol: &[u8]) -> Result<ServerTls, TlsError> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            return Err(TlsError::new("a server needs both `cert` and `key`".to_owned()));
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::new(e.to_string()))?;
        let verifier = match (&self.ca, &self.crl) {
            (None, None) => None,
            (None, Some(_)) => return Err(TlsError::new("`crl` is of use with `ca` only".to_owned())),
            (Some(ca), crl) => {
                let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider)
                    .with_crls(crl.as_deref().map(revocations).transpose()?.unwrap_or_default());
                Some(builder.build().map_err(|e| TlsError::new(format!("{}: {e}", ca.display())))?)
            }
        };
        let builder = match &verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        };
        let chain = certificates(cert)?;
        let own =
            Certificate::read(&chain[0]).map_err(|e| TlsError::new(format!("{}: {e}", cert.display())))?;
        let mut config = builder
            .with_single_cert(chain, private_key(key)?)
            .map_err(|e| TlsError::new(format!("{} and {}: {e}", cert.display(), key.display())))?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(ServerTls { config: Arc::new(config), own, verifier })
    }

    /// What a client uses. Without `ca` nobody is trusted, so it is needed; with `cert` the client shows one.
    ///
    /// # Errors
    /// Where `ca` is missing, only one of `cert` and `key` is given, or a file cannot be used.
    pub fn client(&self, protocol: &[u8]) -> Result<ClientConfig, TlsError> {
        let Some(ca) = &self.ca else {
            return Err(TlsError::new("`ca` is needed, to know the nodes by".to_owned()));
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::new(e.to_string()))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider)
            .with_crls(self.crl.as_deref().map(revocations).transpose()?.unwrap_or_default())
            .build()
            .map_err(|e| TlsError::new(format!("{}: {e}", ca.display())))?;
        let builder = builder.with_webpki_verifier(verifier);
        let mut config = match (&self.cert, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .map_err(|e| TlsError::new(format!("{} and {}: {e}", cert.display(), key.display())))?,
            _ => return Err(TlsError::new("of `cert` and `key` only one is given".to_owned())),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }

    /// The contents of a file of these.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
        std::fs::read(path).map_err(|e| TlsError::new(format!("{}: {e}", path.display())))
    }

    /// The certificates in a file of them.
    ///
    /// # Errors
    /// Where it cannot be read, or has none in it.
    pub fn certificates(path: &Path) -> Result<Vec<Certificate>, TlsError> {
        let read = |der: &CertificateDer<'_>| Certificate::read(der);
        let read: Result<_, _> = certificates(path)?.iter().map(read).collect();
        read.map_err(|error| TlsError::new(format!("{}: {error}", path.display())))
    }

    /// When the first of the lists of revoked certificates in this file is due to be replaced, in
    /// milliseconds since 1970, where they say.
    ///
    /// # Errors
    /// Where it cannot be read, or has none in it.
    pub fn next_update_ms(path: &Path) -> Result<Option<u64>, TlsError> {
        let mut next = None;
        for list in revocations(path)? {
            let list = crate::certificate::next_update_ms(&list);
            let list = list.map_err(|error| TlsError::new(format!("{}: {error}", path.display())))?;
            next = next.into_iter().chain(list).min();
        }
        Ok(next)
    }

    /// Changes when a file does.
    fn stamp(&self) -> Vec<Option<(SystemTime, u64)>> {
        let stamp = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        [&self.ca, &self.cert, &self.key, &self.crl].into_iter().flatten().map(stamp).collect()
    }
}

/// What a server uses.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    /// The server's own certificate.
    pub own: Certificate,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl ServerTls {
    /// Verifies a client's certificates, its own first, as they would be verified if it connected now.
    ///
    /// # Errors
    /// Why it would not be let in: expired, revoked, of an authority that is not trusted any more.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        let (Some(verifier), Some((own, between))) = (&self.verifier, chain.split_first()) else {
            return Ok(());
        };
        let now = UnixTime::since_unix_epoch(Duration::from_millis(wall_clock_ms()));
        let verified = verifier.verify_client_cert(own, between, now);
        verified.map(drop).map_err(|error| TlsError::new(error.to_string()))
    }
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    all_of(path, "list of revoked certificates")
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    all_of(path, "certificate")
}

/// All of one kind in a PEM file, of which there has to be one.
fn all_of<T: PemObject>(path: &Path, what: &str) -> Result<Vec<T>, TlsError> {
    let bytes = TlsFiles::read(path)?;
    let read: Result<Vec<_>, _> = T::pem_slice_iter(&bytes).collect();
    match read {
        Ok(list) if list.is_empty() => {
            Err(TlsError::new(format!("{}: there is no {what} in it", path.display())))
        }
        Ok(list) => Ok(list),
        Err(error) => Err(TlsError::new(format!("{}: {error}", path.display()))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = TlsFiles::read(path)?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| TlsError::new(format!("{}: {error}", path.display())))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::new(format!("{}: {error}", path.display())))?;
    }
    Ok(roots)
}

type Make<C> = dyn Fn(&TlsFiles) -> Result<C, TlsError> + Send + Sync;

/// What is made of files, made anew when they change.
pub struct Reloading<C> {
    files: TlsFiles,
    make: Box<Make<C>>,
    current: Mutex<Current<C>>,
}

struct Current<C> {
    made: Arc<C>,
    stamp: Vec<Option<(SystemTime, u64)>>,
    looked: Instant,
}

impl<C> Reloading<C> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Where they cannot be used.
    pub fn new(
        files: TlsFiles,
        make: impl Fn(&TlsFiles) -> Result<C, TlsError> + Send + Sync + 'static,
        now: Instant,
    ) -> Result<Self, TlsError> {
        let (stamp, made) = (files.stamp(), Arc::new(make(&files)?));
        let current = Mutex::new(Current { made, stamp, looked: now });
        Ok(Reloading { files, make: Box::new(make), current })
    }

    /// What is in force; files that have changed are read again, looked at once a second at most.
    pub fn current(&self, now: Instant) -> Arc<C> {
        let mut current = self.current.lock();
        if now.saturating_duration_since(current.looked) >= LOOK_EVERY {
            current.looked = now;
            if self.files.stamp() != current.stamp {
                self.read_again(&mut current);
            }
        }
        current.made.clone()
    }

    /// Reads the files again whether or not they seem to have changed.
    pub fn reload(&self) {
        self.read_again(&mut self.current.lock());
    }

    fn read_again(&self, current: &mut Current<C>) {
        // Before the files: what changes meanwhile is seen the next time.
        let stamp = self.files.stamp();
        match (self.make)(&self.files) {
            Ok(made) => {
                tracing::info!(files = ?self.files, "certificates were read again");
                (current.made, current.stamp) = (Arc::new(made), stamp);
            }
            // They may be half written; the stamp stays, so that they are tried again.
            Err(error) => tracing::warn!(%error, "certificates cannot be used; the last good ones stay"),
        }
    }
}

impl<C> fmt::Debug for Reloading<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("files", &self.files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn files_that_change_are_read_again_and_bad_ones_change_nothing() {
        let dir = std::env::temp_dir().join(format!("peanut-tls-{:016x}", fastrand::u64(..)));
        std::fs::create_dir(&dir).unwrap();
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, "one").unwrap();
        let files = TlsFiles { ca: Some(ca.clone()), ..TlsFiles::default() };
        let read = |files: &TlsFiles| {
            let text = TlsFiles::read(files.ca.as_ref().unwrap())?;
            if text == b"bad" { Err(TlsError::new("bad".to_owned())) } else { Ok(text) }
        };
        let mut now = Instant::now();
        let reloading = Reloading::new(files, read, now).unwrap();
        for (text, expected) in [("longer", "longer"), ("bad", "longer"), ("mended", "mended")] {
            std::fs::write(&ca, text).unwrap();
            let before = reloading.current(now);
            now += LOOK_EVERY;
            assert_eq!(*reloading.current(now), expected.as_bytes());
            assert_ne!(*before, text.as_bytes(), "not looked at twice in a second");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        let files = TlsFiles { cert: Some("no/such.pem".into()), ..TlsFiles::default() };
        assert!(files.server(b"h2").unwrap_err().to_string().contains("`cert` and `key`"));
        assert!(files.client(b"h2").unwrap_err().to_string().contains("`ca`"));
        let files = TlsFiles { key: files.cert.clone(), ..files };
        assert!(files.server(b"h2").unwrap_err().to_string().starts_with("no/such.pem: "));
    }
}
