//! `--check-config --connect`: whether what the configuration names is there and as it should be, one line
//! for each.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use peanut_proto::certificate::{Certificate, in_words};
use peanut_proto::clock::wall_clock_ms;
#[cfg(feature = "etcd")]
use peanut_proto::registry::{EtcdRegistry, Registry as _};
use peanut_proto::tls::TlsFiles;

use crate::group::Group;

/// An origin that has said nothing for so long is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// What there is to try.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Each endpoint alone: a registry is content with any of them.
    #[cfg(feature = "etcd")]
    pub(super) etcd: Vec<EtcdRegistry>,
    pub(super) prefix: String,
    pub(super) groups: Vec<Group>,
    /// By section of the configuration.
    pub(super) certificates: Vec<(&'static str, TlsFiles)>,
    /// What clients know this node by: one of these is to be in its certificate.
    pub(super) names: Vec<String>,
}

/// What was tried, and what came of it.
type Tried = (String, Result<String, String>);

impl Checks {
    /// Tries everything, tells each with a line, and says whether all is well.
    pub(crate) async fn run(self, mut tell: impl FnMut(&str)) -> bool {
        let mut all_is_well = true;
        let mut tell = |(what, came): Tried| {
            all_is_well &= came.is_ok();
            match came {
                Ok(said) if said.is_empty() => tell(&format!("{what}: ok")),
                Ok(said) => tell(&format!("{what}: ok, {said}")),
                Err(why) => tell(&format!("{what}: {}", why.trim().replace('\n', "; "))),
            }
        };
        #[cfg(feature = "etcd")]
        for registry in &self.etcd {
            let loaded = registry.load(&self.prefix).await;
            let what = format!("etcd {}", registry.endpoints().join(", "));
            tell((what, loaded.map(|_| String::new()).map_err(|error| error.to_string())));
        }
        #[cfg(not(feature = "etcd"))]
        let _ = &self.prefix;
        for group in &self.groups {
            let tried = timeout(PATIENCE, group.check_loader()).await;
            let came = match tried {
                Ok(came) => came.map(|()| String::new()).map_err(|error| error.to_string()),
                Err(_) => Err(format!("its origin did not answer within {PATIENCE:?}")),
            };
            tell((format!("group `{}`", group.name), came));
        }
        for (section, files) in &self.certificates {
            let names = if *section == "tls" { &self.names[..] } else { &[] };
            certificates(section, files, names).into_iter().for_each(&mut tell);
        }
        all_is_well
    }
}

/// The files of one section.
fn certificates(section: &str, files: &TlsFiles, names: &[String]) -> Vec<Tried> {
    let mut tried = Vec::new();
    let file = |kind: &str, path: &Path| format!("{section}.{kind} {}", path.display());
    if let Some(path) = &files.cert {
        let came = TlsFiles::certificates(path).map_err(|error| error.to_string()).and_then(|chain| {
            let said = all_are_good(&chain)?;
            if !names.is_empty() && !names.iter().any(|name| chain[0].names_host(name)) {
                let (has, needs) = (chain[0].names.join(", "), names.join(" or "));
                return Err(format!("it names {has}, and clients look for {needs}"));
            }
            Ok(said)
        });
        tried.push((file("cert", path), came));
    }
    if let (Some(_), Some(path)) = (&files.cert, &files.key) {
        // With the certificate: rustls takes no key that is another's.
        let own = TlsFiles { ca: None, crl: None, ..files.clone() };
        let came = own.server(b"h2").map(|_| String::new()).map_err(|error| error.to_string());
        tried.push((file("key", path), came));
    }
    if let Some(path) = &files.ca {
        let came = TlsFiles::certificates(path).map_err(|error| error.to_string());
        tried.push((file("ca", path), came.and_then(|all| all_are_good(&all))));
    }
    if let Some(path) = &files.crl {
        let came = TlsFiles::next_update_ms(path).map_err(|error| error.to_string());
        let now = wall_clock_ms();
        let came = came.map(|next| match next {
            Some(next) if next < now => "though past its next update".to_owned(),
            Some(next) => format!("its next update is due in {}", in_words(next - now)),
            None => String::new(),
        });
        tried.push((file("crl", path), came));
    }
    tried
}

/// Whether all of these are good now, and for how long still.
fn all_are_good(certificates: &[Certificate]) -> Result<String, String> {
    let now = wall_clock_ms();
    let mut left = u64::MAX;
    for certificate in certificates {
        if now < certificate.not_before_ms {
            return Err(format!("it is good only in {}", in_words(certificate.not_before_ms - now)));
        }
        if certificate.not_after_ms < now {
            return Err(format!("it expired {} ago", in_words(now - certificate.not_after_ms)));
        }
        left = left.min(certificate.not_after_ms - now);
    }
    Ok(format!("for {} still", in_words(left)))
}
