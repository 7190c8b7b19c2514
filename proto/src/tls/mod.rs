//! Certificates in files, for both sides: read, and read again when the files change.
//!
//! New connections have what is in the files. Those that stand keep what they were made with; the holder of
//! one can have the certificate of its other side verified again with what is in force now
//! ([`ServerTls::verify`]). Files that cannot be used leave the last good ones in force.

#[cfg_attr(not(feature = "tls"), path = "absent.rs")]
mod provider;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::audit::TARGET;

pub use self::provider::{Chain, ClientTls, ServerTls};
pub use crate::certificate::TlsError;

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
    /// The contents of a file of these.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
        std::fs::read(path).map_err(|e| TlsError::new(format!("{}: {e}", path.display())))
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
                tracing::info!(target: TARGET, files = ?self.files, "certificates were read again");
                (current.made, current.stamp) = (Arc::new(made), stamp);
            }
            // They may be half written; the stamp stays, so that they are tried again.
            Err(error) => {
                tracing::warn!(target: TARGET, %error, "certificates cannot be used; the last good ones stay");
            }
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
}
