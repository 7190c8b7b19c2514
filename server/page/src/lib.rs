//! The page that operators look at: of one node, which serves it on its admin port, or of a whole fleet,
//! which a proxy serves.
//!
//! Both ask nodes for a [`StatusResponse`](peanut_proto::v1::StatusResponse) once a second, keep what they
//! need of it in [`Histories`], and send [`Figures`] to the page, which only draws. All that is computed is
//! computed here, of numbers and times that are arguments. [`Hosts`] keeps pages of other sites from reading
//! it.

mod figures;
mod history;
mod hosts;

pub use figures::{Figures, Member, Ring, Scope};
pub use history::{Counts, Histories, Rates};
pub use hosts::{Hosts, check_host};

use axum::http::header;
use axum::response::{Html, IntoResponse};

/// The page itself. It loads nothing from elsewhere, and nobody may frame it.
pub async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'; form-action 'none'; base-uri 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(include_str!("page.html")))
}
