//! Unary answers on their way out: what a value holds of its connection's budget is given back when its body has been sent, or
//! dropped.

use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use crate::body::holding;
use crate::budget::Held;

/// What an answer holds until it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Sending {
    pub(crate) held: Arc<Held>,
}

/// A service whose answers hold what they hold for as long as their bodies live.
#[derive(Clone, Debug)]
pub(crate) struct UntilSent<S>(pub(crate) S);

impl<S: NamedService> NamedService for UntilSent<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for UntilSent<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<http::Response<Body>, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answered = self.0.call(request);
        Box::pin(async move {
            let mut response = answered.await?;
            let Some(sending) = response.extensions_mut().remove::<Sending>() else { return Ok(response) };
            Ok(response.map(|body| holding(body, sending.held)))
        })
    }
}
