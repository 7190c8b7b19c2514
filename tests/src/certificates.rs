//! Certificates for a test: an authority, and whatever comes from it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
};
use tempfile::TempDir;

/// An authority with a directory for what it issues.
#[derive(Debug)]
pub struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    /// By name.
    serials: Mutex<HashMap<String, u64>>,
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority.
    ///
    /// # Panics
    /// Where there is no place for files.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory for certificates");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the test's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate");
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("the certificate is written");
        Authority { directory, issuer: Issuer::new(params, key), serials: Mutex::default() }
    }

    /// The file with its certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Issues a certificate with that common name, for servers of these names and addresses and for clients.
    /// One of the same file name is replaced.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Certificate {
        self.issue_for(name, hosts, Duration::from_secs(24 * 3600))
    }

    /// As [`issue`](Self::issue), one that is good for so long.
    ///
    /// # Panics
    /// Where it cannot be written.
    #[expect(clippy::disallowed_methods, reason = "certificates are dated by the wall clock")]
    pub fn issue_for(&self, name: &str, hosts: &[&str], life: Duration) -> Certificate {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("hosts are names or addresses");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // Dates have whole seconds.
        (params.not_before, params.not_after) =
            ((SystemTime::now() - Duration::from_secs(24 * 3600)).into(), (SystemTime::now() + life).into());
        let serial = fastrand::u64(1..1 << 62);
        self.serials.lock().expect("no test has failed with it").insert(name.to_owned(), serial);
        params.serial_number = Some(serial.into());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |kind| self.directory.path().join(format!("{name}.{kind}"));
        let issued = Certificate { cert: file("pem"), key: file("key") };
        std::fs::write(&issued.key, key.serialize_pem()).expect("the key is written");
        std::fs::write(&issued.cert, certificate.pem()).expect("the certificate is written");
        issued
    }

    /// Writes the list of revoked certificates, which are those of these names, and gives its file.
    ///
    /// # Panics
    /// Where it cannot be written, or one has not been issued.
    #[expect(clippy::disallowed_methods, reason = "revocations are dated by the wall clock")]
    pub fn revoke(&self, names: &[&str]) -> PathBuf {
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        let serials = self.serials.lock().expect("no test has failed with it");
        let revoked = names.iter().map(|name| RevokedCertParams {
            serial_number: serials[*name].into(),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: (now - day).into(),
            next_update: (now + day).into(),
            crl_number: fastrand::u64(1..1 << 62).into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list").pem().expect("PEM");
        let (path, new) = (self.directory.path().join("crl.pem"), self.directory.path().join("crl.new"));
        std::fs::write(&new, list).expect("the list is written");
        std::fs::rename(new, &path).expect("it is put in its place");
        path
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}
