//! `peanut certify`: certificates from an authority of the fleet's own, for fleets that have no other.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peanut_proto::address;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The authority's name.
const AUTHORITY: &str = "peanut fleet";
/// How long the authority itself is good for.
const AUTHORITY_DAYS: u32 = 3650;

/// Writes `NAME.pem` and `NAME.key`; and `ca.pem` and `ca.key` where there are none.
pub(crate) fn run(name: &str, hosts: &[String], dir: &Path, days: u32) -> Result<(), String> {
    if name == "ca" || name.contains(['/', '\\']) || name.is_empty() {
        return Err(format!("`{name}` is no name for a certificate"));
    }
    if let Some(bad) = hosts.iter().find(|host| !is_host(host)) {
        return Err(format!("`{bad}` is neither a host name nor an IP address; give it without a port"));
    }
    let (cert, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    for path in [&cert, &key_file] {
        // A link counts, wherever it leads: nothing is written through it.
        if path.symlink_metadata().is_ok() {
            return Err(format!("{} is there already; remove it for a new one", path.display()));
        }
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
    write_both((&key_file, &key.serialize_pem()), (&cert, &certificate.pem()))
}

/// Whether clients can look for a host by that: an IP address, or a DNS name, which may begin with a star.
fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok() || address::is_name(host.strip_prefix("*.").unwrap_or(host))
}

/// The authority in this directory, a new one where there is none.
fn authority(dir: &Path) -> Result<Issuer<'static, KeyPair>, String> {
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if key.symlink_metadata().is_ok() {
        let pem = fs::read_to_string(&key).map_err(|error| format!("{}: {error}", key.display()))?;
        warn_if_open(&key);
        let key = KeyPair::from_pem(&pem).map_err(|error| format!("{}: {error}", key.display()))?;
        check_authority(&cert, &key)?;
        return Ok(Issuer::new(params, key));
    }
    if cert.symlink_metadata().is_ok() {
        return Err(format!("{} is there and its key is not: it cannot sign", cert.display()));
    }
    good_for(&mut params, AUTHORITY_DAYS);
    let pair = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.self_signed(&pair).map_err(|error| error.to_string())?;
    write_both((&key, &pair.serialize_pem()), (&cert, &certificate.pem()))?;
    Ok(Issuer::new(params, pair))
}

/// Checks that the certificate beside a key is what this command has made with it: else what it signs would
/// come from nobody that is known.
fn check_authority(cert: &Path, key: &KeyPair) -> Result<(), String> {
    let pem = fs::read_to_string(cert).map_err(|error| format!("{}: {error}", cert.display()))?;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).map_err(|error| format!("{}: {error}", cert.display()))?;
    let has = |part: &[u8]| der.windows(part.len()).any(|window| window == part);
    if has(key.public_key_raw()) && has(AUTHORITY.as_bytes()) {
        return Ok(());
    }
    Err(format!("{} is of another key, or not made by this command: it cannot sign", cert.display()))
}

#[expect(clippy::disallowed_methods, reason = "certificates are dated by the wall clock")]
fn good_for(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    // Clocks differ.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
}

/// Says so where others than its owner may read a key.
fn warn_if_open(key: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(key).map_or(0, |metadata| metadata.permissions().mode() & 0o777);
        if mode & 0o077 != 0 {
            eprintln!("peanut: {} has the mode {mode:o}: others can read it; chmod 600 it", key.display());
        }
    }
    #[cfg(not(unix))]
    let _ = key;
}

/// Writes a key and its certificate, or neither.
fn write_both((key, secret): (&Path, &str), (cert, open): (&Path, &str)) -> Result<(), String> {
    write(key, secret, true)?;
    write(cert, open, false).inspect_err(|_| {
        // It was made just now, and is of no use alone.
        let _ = fs::remove_file(key);
    })
}

/// Writes a file where there is none, one that only its owner may read where it is secret. What is there
/// already, a link that leads nowhere included, is left alone (`O_EXCL`).
fn write(path: &Path, text: &str, is_secret: bool) -> Result<(), String> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(if is_secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = is_secret;
    let mut file = options.open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    file.write_all(text.as_bytes()).map_err(|error| {
        let _ = fs::remove_file(path);
        format!("{}: {error}", path.display())
    })
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        run("node", &["127.0.0.1".to_owned()], dir.path(), 1).unwrap();
        run("app", &[], dir.path(), 1).unwrap();
        for name in ["ca", "node", "app"] {
            assert_eq!(mode(&dir.path().join(format!("{name}.key"))), 0o600);
        }
    }

    #[test]
    fn nothing_is_written_over_or_through_a_link() {
        for (name, there) in
            [("node", "node.key"), ("node", "node.pem"), ("node", "ca.key"), ("node", "ca.pem")]
        {
            let dir = tempfile::tempdir().unwrap();
            let elsewhere = tempfile::tempdir().unwrap();
            let target = elsewhere.path().join("target");
            // One that leads to a file, and one that leads nowhere.
            for is_dangling in [false, true] {
                let link = dir.path().join(there);
                if !is_dangling {
                    fs::write(&target, "before").unwrap();
                }
                symlink(&target, &link).unwrap();
                run(name, &[], dir.path(), 1).unwrap_err();
                assert_eq!(
                    fs::read_to_string(&target).ok().as_deref(),
                    (!is_dangling).then_some("before"),
                    "{there}"
                );
                assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
                fs::remove_file(&link).unwrap();
                let _ = fs::remove_file(&target);
            }
            // A file that others may read does not become a key.
            let file = dir.path().join(there);
            fs::write(&file, "before").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            run(name, &[], dir.path(), 1).unwrap_err();
            assert_eq!(
                (fs::read_to_string(&file).unwrap(), mode(&file)),
                ("before".to_owned(), 0o644),
                "{there}"
            );
        }
    }

    #[test]
    fn an_authority_that_is_not_its_own_signs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        run("node", &[], dir.path(), 1).unwrap();
        let other = tempfile::tempdir().unwrap();
        run("node", &[], other.path(), 1).unwrap();
        let ca = dir.path().join("ca.pem");
        fs::copy(other.path().join("ca.pem"), &ca).unwrap();
        assert!(run("app", &[], dir.path(), 1).unwrap_err().contains("of another key"));
        fs::remove_file(&ca).unwrap();
        assert!(run("app", &[], dir.path(), 1).unwrap_err().contains("ca.pem"));
        assert!(!dir.path().join("app.pem").exists());
    }

    #[test]
    fn a_certificate_that_cannot_be_written_leaves_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let (key, cert) = (dir.path().join("a.key"), dir.path().join("missing/a.pem"));
        assert!(write_both((&key, "key"), (&cert, "certificate")).is_err() && !key.exists());
    }
}
