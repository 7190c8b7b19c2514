//! An authority of the measurement's own, and a certificate for 127.0.0.1.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Files in a directory that goes with this.
pub(super) struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    pub(super) fn new() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let _ = default_provider().install_default();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("peanut-peers-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        let certificates = Certificates { directory };
        certificates.write().map_err(|error| format!("no certificates could be made: {error}"))?;
        Ok(certificates)
    }

    fn write(&self) -> Result<(), Box<dyn std::error::Error>> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        let certificate = params.signed_by(&key, &authority)?;
        std::fs::write(self.ca(), authority.pem())?;
        std::fs::write(self.cert(), certificate.pem())?;
        std::fs::write(self.key(), key.serialize_pem())?;
        Ok(())
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    pub(super) fn cert(&self) -> PathBuf {
        self.directory.join("node.pem")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.directory.join("node.key")
    }

    /// What a client trusts.
    pub(super) fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.ca()).expect("the authority's certificate");
        roots.add(ca).expect("an authority");
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
