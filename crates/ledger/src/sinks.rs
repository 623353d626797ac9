//! Who is told what the books say.

mod file;
mod lago;
mod openmeter;
mod stripe;
#[cfg(feature = "parquet")]
mod table;
#[cfg(test)]
mod tests;
mod value;
mod webhook;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Uri, header::CONTENT_TYPE, header::USER_AGENT,
};

pub use self::{
    file::{Files, Format, keep},
    lago::Lago,
    openmeter::OpenMeter,
    stripe::Stripe,
    value::{Customers, Value},
    webhook::{BadSecret, Webhook},
};

/// A `POST` of `body` to `url`.
fn post(
    url: &Uri,
    kind: &'static str,
    more: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: impl Into<Bytes>,
) -> Request<Bytes> {
    let mut request = Request::new(body.into());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.clone();
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let agent = concat!("onlyonce/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.extend(more);
    request
}

/// `Authorization: Bearer`, not to be logged; `None` where the token cannot stand in a header.
fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
