//! Counts the streams of each connection: a tower layer around all services.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

use super::Peer;
use crate::body::holding;

/// Has the streams of each connection counted.
#[derive(Clone, Copy, Debug)]
pub struct CountStreams;

impl<S> Layer<S> for CountStreams {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted(inner)
    }
}

/// A service whose streams are counted.
#[derive(Clone, Debug)]
pub struct Counted<S>(S);

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let stream = request.extensions().get::<Peer>().map(|peer| peer.presence().enter());
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match stream {
                // A stream lasts as long as the body of its answer.
                Some(stream) => answer.map(|body| holding(body, stream)),
                None => answer,
            })
        })
    }
}
