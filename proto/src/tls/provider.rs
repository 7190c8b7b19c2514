//! Certificates and keys as rustls and x509-parser read them.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use super::TlsFiles;
use crate::certificate::{Certificate, TlsError};
use crate::clock::wall_clock_ms;

/// A certificate, and those between it and its authority.
pub type Chain = Vec<CertificateDer<'static>>;
/// What a client uses.
pub type ClientTls = ClientConfig;

impl TlsFiles {
    /// What a server of this protocol (by its ALPN name; empty: it has none) uses. With `ca`, clients need a
    /// certificate from there.
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
        config.alpn_protocols = Some(protocol.to_vec()).filter(|name| !name.is_empty()).into_iter().collect();
        Ok(ServerTls { config: Arc::new(config), own, verifier })
    }

    /// What a client uses. Without `ca` nobody is trusted, so it is needed; with `cert` the client shows one.
    ///
    /// # Errors
    /// Where `ca` is missing, only one of `cert` and `key` is given, or a file cannot be used.
    pub fn client(&self, protocol: &[u8]) -> Result<ClientTls, TlsError> {
        let Some(ca) = &self.ca else {
            return Err(TlsError::new("`ca` is needed, to know the other side by".to_owned()));
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
            let list = next_update_ms(&list);
            let list = list.map_err(|error| TlsError::new(format!("{}: {error}", path.display())))?;
            next = next.into_iter().chain(list).min();
        }
        Ok(next)
    }
}

impl Certificate {
    /// Reads a certificate in DER. That is not to say that it can be trusted.
    ///
    /// # Errors
    /// Where it is none.
    pub fn read(der: &[u8]) -> Result<Self, TlsError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| TlsError::new(format!("no certificate: {error}")))?;
        let mut names = Vec::new();
        if let Ok(Some(extension)) = certificate.subject_alternative_name() {
            names.extend(extension.value.general_names.iter().filter_map(name));
        }
        let validity = certificate.validity();
        Ok(Certificate {
            names,
            not_before_ms: ms(validity.not_before.timestamp()),
            not_after_ms: ms(validity.not_after.timestamp()),
            is_authority: certificate.is_ca(),
        })
    }
}

/// What a server uses.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    own: Certificate,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl ServerTls {
    /// The server's own certificate.
    pub fn own(&self) -> &Certificate {
        &self.own
    }

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

/// When a list of revoked certificates is due to be replaced, where it says.
fn next_update_ms(der: &[u8]) -> Result<Option<u64>, TlsError> {
    let (_, list) = CertificateRevocationList::from_der(der)
        .map_err(|error| TlsError::new(format!("no list of revoked certificates: {error}")))?;
    Ok(list.next_update().map(|time| ms(time.timestamp())))
}

fn ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        GeneralName::RFC822Name(mail) => Some((*mail).to_owned()),
        GeneralName::IPAddress(bytes) => {
            if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
                return Some(IpAddr::from(four).to_string());
            }
            Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_told() {
        assert!(Certificate::read(b"nonsense").unwrap_err().to_string().contains("no certificate"));
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
