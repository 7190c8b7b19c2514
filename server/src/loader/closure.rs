//! Any async closure as a loader.

use bytes::Bytes;

use super::{LoadRequest, Loaded, Loader, LoaderError};

/// A loader from an async closure over the key.
///
/// ```
/// use peanut_server::{Loaded, loader_fn};
///
/// let loader = loader_fn(|key| async move {
///     Ok(Loaded::found([b"hello, ", &key[..]].concat()))
/// });
/// # let _ = loader;
/// ```
pub fn loader_fn<F, R>(load: F) -> LoaderFn<F>
where
    F: Fn(Bytes) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Loaded, LoaderError>> + Send + 'static,
{
    LoaderFn(load)
}

/// A closure as a loader; see [`loader_fn`].
#[derive(Clone, Debug)]
pub struct LoaderFn<F>(F);

impl<F, R> Loader for LoaderFn<F>
where
    F: Fn(Bytes) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Loaded, LoaderError>> + Send + 'static,
{
    fn load(&self, request: &LoadRequest) -> impl Future<Output = Result<Loaded, LoaderError>> + Send {
        (self.0)(request.key.clone())
    }
}
