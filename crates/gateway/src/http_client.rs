//! The gateway's own requests to services beside the upstreams.

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Scheme};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::failure::Failure;
use crate::proxy;

/// Bytes of an answer that are read; what is said to the gateway is short.
const MOST: usize = 64 << 10;

/// A client that keeps its connections, over TLS where a URL says so. It sends nothing twice.
#[derive(Clone)]
pub(crate) struct HttpClient(Bare);

/// The client itself, for requests with bodies of one kind.
pub(crate) type Bare<B = Full<Bytes>> = Client<HttpsConnector<HttpConnector>, B>;

impl HttpClient {
    /// A client for `url`, which stands in the setting `setting`. For `https`, certificates are trusted
    /// that the system's roots vouch for.
    pub(crate) fn for_url(url: &Uri, setting: &str) -> Result<Self, Failure> {
        bare(url, setting).map(Self)
    }

    /// Sends `request` and reads the answer; an error says what happened.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, String> {
        let response = self
            .0
            .request(request)
            .await
            .map_err(|error| whole(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MOST).collect().await;
        let body = body.map_err(|error| whole(&*error))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

/// As [`HttpClient::for_url`], for whoever reads answers as they come.
pub(crate) fn bare<B>(url: &Uri, setting: &str) -> Result<Bare<B>, Failure>
where
    B: Body<Data: Send> + Send,
{
    let is_https = url.scheme() == Some(&Scheme::HTTPS);
    let tls = proxy::service_tls(is_https.then_some(setting))?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new())
        .retry_canceled_requests(false)
        .build(connector))
}

/// An error with what caused it.
pub(crate) fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A number from 0 to 1, so that gateways do not come back together.
pub(crate) fn random() -> f64 {
    let random = uuid::Uuid::now_v7().as_u64_pair().1 & 0xffff;
    // At most 16 bits: exact.
    f64::from(u16::try_from(random).unwrap_or(u16::MAX)) / f64::from(u16::MAX)
}
