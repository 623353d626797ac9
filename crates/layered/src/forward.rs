//! The handler: forwards a request to the upstream of its route.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderName, Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use onlyonce_gateway::config::Route;
use onlyonce_http::headers::{ForwardRules, InboundHop, to_upstream};
use onlyonce_tower::{BoxError, NotSent, Operation, RequestBody};
use tower::Service;

/// Forwards the requests of one route.
#[derive(Clone)]
pub struct Forwarding {
    client: Client<HttpConnector, RequestBody<Incoming>>,
    route: Arc<Route>,
}

impl Forwarding {
    pub fn new(route: &Arc<Route>) -> Self {
        let mut client = Client::builder(TokioExecutor::new());
        // What may have run is never sent again.
        client.retry_canceled_requests(false);
        Self {
            client: client.build_http(),
            route: route.clone(),
        }
    }

    async fn forward(
        self,
        mut request: Request<RequestBody<Incoming>>,
    ) -> Result<Response<Incoming>, BoxError> {
        let rules = ForwardRules {
            key_headers: self.route.policy.key_headers.clone(),
            forward_key: Some(HeaderName::from_static("idempotency-key")),
            ..ForwardRules::default()
        };
        let hop = InboundHop {
            peer: std::net::Ipv4Addr::LOCALHOST.into(),
            host: None,
            tls: false,
        };
        let operation = request.extensions().get::<Operation>().cloned();
        let key = operation.as_ref().map(Operation::key);
        to_upstream(request.headers_mut(), key, &rules, &hop);
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let prefix = match self.route.strip_prefix {
            true => &*self.route.matcher.path_prefix,
            false => "",
        };
        let path = path.strip_prefix(prefix).unwrap_or(path);
        let upstream = &self.route.upstream;
        *request.uri_mut() = format!("http://{}{path}", upstream.authority).parse()?;
        *request.version_mut() = Version::HTTP_11;
        self.client
            .request(request)
            .await
            .map_err(|error| match error.is_connect() {
                true => NotSent {
                    why: error.to_string(),
                }
                .into(),
                false => error.into(),
            })
    }
}

impl Service<Request<RequestBody<Incoming>>> for Forwarding {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<Incoming>>) -> Self::Future {
        Box::pin(self.clone().forward(request))
    }
}
