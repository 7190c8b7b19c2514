//! `[[token]]`: who may do what, read again when the file or a secret's file changes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt as _};
use peanut_proto::audit::TARGET;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use toml::Spanned;

use super::{Token, Tokens};
use crate::documented;
use crate::settings::{ConfigError, Source};

/// Files are looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

documented! {
    /// One token.
    #[derive(Clone, Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct TokenSettings {
        /// Its name, for logs
        name: Spanned<String>,
        /// Files with one secret in each, any of which makes a caller known
        #[serde(default)]
        secret_files: Vec<PathBuf>,
        /// Names in clients' certificates, any of which makes a caller known
        #[serde(default)]
        certificates: Vec<String>,
        /// Scopes in which keys may be read: a group, group:key, group:prefix*, or *
        #[serde(default)]
        read: Vec<String>,
        /// Scopes in which keys may be set, deleted and filled, and groups cleared
        #[serde(default)]
        write: Vec<String>,
        /// Scopes in which keys may be set, but not deleted
        #[serde(default)]
        set: Vec<String>,
        /// Scopes in which keys may be deleted, but not set
        #[serde(default)]
        delete: Vec<String>,
        /// Groups that may be cleared
        #[serde(default)]
        clear: Vec<String>,
        /// Whether the page, metrics, and `peanut stat`, `top`, `nodes` and `hotkeys` are allowed; `drain`
        /// and `remove` need rights in etcd [default: false]
        #[serde(default)]
        admin: bool,
    }
}

impl TokenSettings {
    /// The token. Where the node runs already, a secret whose file is gone is one that is not good any more.
    fn build(self, is_running: bool) -> Result<Token, ConfigError> {
        let mut token = Token::new(self.name.get_ref())
            .read(self.read)
            .write(self.write)
            .set(self.set)
            .delete(self.delete)
            .clear(self.clear);
        if self.admin {
            token = token.admin();
        }
        for name in self.certificates {
            token = token.certificate(name);
        }
        let mut withdrawn = 0;
        for file in &self.secret_files {
            match std::fs::read_to_string(file) {
                Ok(text) => token = token.secret(text.trim_end()),
                Err(error) if is_running && error.kind() == std::io::ErrorKind::NotFound => {
                    tracing::warn!(target: TARGET, token = self.name.get_ref(), file = %file.display(), "a secret's file is gone, and the secret with it");
                    withdrawn += 1;
                }
                Err(error) => return Err(ConfigError::new(file.display().to_string(), error)),
            }
        }
        // So that it stands in the way of nobody else's, and opens nothing.
        if withdrawn > 0 && withdrawn == self.secret_files.len() {
            let nobodys = format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..));
            token = token.secret(nobodys);
        }
        Ok(token)
    }
}

/// The tokens of one source.
///
/// # Errors
/// What is wrong with one of them, and where.
pub fn build(list: Vec<TokenSettings>, source: &Source) -> Result<Vec<Token>, ConfigError> {
    let mut tokens = Vec::new();
    for settings in list {
        let at = settings.name.span();
        let token = settings.build(false)?;
        // One by one, so that what is wrong has its line; what they have in common is looked at with the
        // server.
        Tokens::new(std::slice::from_ref(&token), true).map_err(|error| source.error(Some(at), error))?;
        tokens.push(token);
    }
    Ok(tokens)
}

/// The files that tokens come from.
#[derive(Debug)]
pub struct TokenFiles {
    config: PathBuf,
    looked: Option<Vec<Stamp>>,
    /// What was wrong the last time, so that it is told once.
    trouble: Option<String>,
}

/// Changes when a file does.
type Stamp = (PathBuf, Option<(SystemTime, u64, u64)>);

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok();
    #[cfg(unix)]
    let number = |metadata: &std::fs::Metadata| std::os::unix::fs::MetadataExt::ino(metadata);
    #[cfg(not(unix))]
    let number = |_: &std::fs::Metadata| 0;
    let stamp = metadata.and_then(|it| Some((it.modified().ok()?, it.len(), number(&it))));
    (path.to_owned(), stamp)
}

/// What of the file is read again; the rest is for the next start.
#[derive(Deserialize)]
struct OnlyTokens {
    #[serde(default)]
    token: Vec<TokenSettings>,
}

impl TokenFiles {
    /// The tokens in this file, which has been read once.
    pub fn new(config: &Path) -> Self {
        TokenFiles { config: config.to_owned(), looked: None, trouble: None }
    }

    /// The tokens with which a process begins whose file has nothing but tokens.
    ///
    /// # Errors
    /// Where one of them cannot be used, a secret's file is missing, or there is none at all: everybody would
    /// be let in.
    pub fn first(&self) -> Result<Vec<Token>, ConfigError> {
        let source = Source::of_file(&self.config)?;
        let OnlyTokens { token } = source.read()?;
        if token.is_empty() {
            return Err(source.error(None, "there is no [[token]], so everybody would be let in"));
        }
        build(token, &source)
    }

    /// Looks at the files for ever, every half a second, and reads them where one has changed, and whenever
    /// `again` yields. `set` puts tokens in force, and says whether they differ. What cannot be used changes
    /// nothing, with a warning.
    pub async fn watch<E: fmt::Display>(
        mut self,
        mut set: impl FnMut(&[Token]) -> Result<bool, E>,
        again: impl Stream<Item = ()>,
    ) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut again = std::pin::pin!(again);
        loop {
            let anyway = tokio::select! {
                _ = look.tick() => false,
                Some(()) = again.next() => true,
            };
            self.look(&mut set, anyway);
        }
    }

    /// Puts the tokens of now in force by `set`, which says whether they differ, where a file has changed
    /// since the last look, or `anyway`. What cannot be used changes nothing.
    fn look<E: fmt::Display>(&mut self, set: impl FnOnce(&[Token]) -> Result<bool, E>, anyway: bool) {
        let as_before = |looked: &Vec<Stamp>| looked.iter().all(|(path, before)| stamp(path).1 == *before);
        if !anyway && self.looked.as_ref().is_some_and(as_before) {
            return;
        }
        let read = self.read();
        let replaced = read.and_then(|tokens| {
            set(&tokens).map_err(|error| ConfigError::new(self.config.display().to_string(), error))
        });
        match replaced {
            Ok(is_new) => {
                if is_new {
                    tracing::info!(target: TARGET, "tokens were read again");
                }
                self.trouble = None;
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(target: TARGET, "tokens cannot be used; the last good ones stay: {trouble}");
                }
                self.trouble = Some(trouble);
            }
        }
    }

    /// Reads the files and remembers what they looked like before that.
    fn read(&mut self) -> Result<Vec<Token>, ConfigError> {
        let mut looked = vec![stamp(&self.config)];
        let name = self.config.display().to_string();
        let list = std::fs::read_to_string(&self.config)
            .map_err(|error| ConfigError::new(&name, error))
            .and_then(|text| Source { name, text: Arc::from(text) }.read::<OnlyTokens>());
        let list = match list {
            Ok(OnlyTokens { token }) => token,
            Err(error) => {
                // The secrets' files are those of before.
                let secrets = self.looked.take().into_iter().flatten().skip(1);
                self.looked = Some(looked.into_iter().chain(secrets).collect());
                return Err(error);
            }
        };
        looked.extend(list.iter().flat_map(|token| &token.secret_files).map(|file| stamp(file)));
        self.looked = Some(looked);
        list.into_iter().map(|settings| settings.build(true)).collect()
    }
}
