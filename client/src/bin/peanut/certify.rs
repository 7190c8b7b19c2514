//! `peanut certify`: certificates from an authority of the fleet's own, for fleets that have no other.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the authority itself is good for.
const AUTHORITY_DAYS: u32 = 3650;

/// Writes `NAME.pem` and `NAME.key`; and `ca.pem` and `ca.key` where there are none.
pub(crate) fn run(name: &str, hosts: &[String], dir: &Path, days: u32) -> Result<(), String> {
    if name == "ca" || name.contains(['/', '\\']) || name.is_empty() {
        return Err(format!("`{name}` is no name for a certificate"));
    }
    let cert = dir.join(format!("{name}.pem"));
    if cert.exists() {
        return Err(format!("{} is there already; remove it for a new one", cert.display()));
    }
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let issuer = authority(dir)?;
    let mut sans = hosts.to_vec();
    // An id is a name like that of a host; a certificate for applications has no others.
    if !hosts.contains(&name.to_owned()) {
        sans.push(name.to_owned());
    }
    let mut params = CertificateParams::new(sans).map_err(|error| format!("{hosts:?}: {error}"))?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    good_for(&mut params, days);
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.signed_by(&key, &issuer).map_err(|error| error.to_string())?;
    write(&dir.join(format!("{name}.key")), &key.serialize_pem(), true)?;
    write(&cert, &certificate.pem(), false)
}

/// The authority in this folder, a new one where there is none.
fn authority(dir: &Path) -> Result<Issuer<'static, KeyPair>, String> {
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "peanut fleet");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if let Ok(pem) = fs::read_to_string(&key) {
        let key = KeyPair::from_pem(&pem).map_err(|error| format!("{}: {error}", key.display()))?;
        return Ok(Issuer::new(params, key));
    }
    if cert.exists() {
        return Err(format!("{} is there and its key is not: it cannot sign", cert.display()));
    }
    good_for(&mut params, AUTHORITY_DAYS);
    let pair = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.self_signed(&pair).map_err(|error| error.to_string())?;
    write(&key, &pair.serialize_pem(), true)?;
    write(&cert, &certificate.pem(), false)?;
    Ok(Issuer::new(params, pair))
}

#[expect(clippy::disallowed_methods, reason = "certificates are dated by the wall clock")]
fn good_for(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    // Clocks differ.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
}

/// Writes a file, one that only its owner may read where it is secret.
fn write(path: &Path, text: &str, is_secret: bool) -> Result<(), String> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(if is_secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = is_secret;
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("{}: {error}", path.display()))
}
