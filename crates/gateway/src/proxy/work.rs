//! Requests that axum answers: the operations API on the listener for requests, and all of the control
//! listener's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::ConnectInfo;
use http::header::CONNECTION;
use http::uri::PathAndQuery;
use http::{Extensions, HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use onlyonce_http::framing;
use onlyonce_http::problem::{Problem, ProblemContext};
use tower::ServiceExt;

use super::connection::Answers;
use super::reply::{Busy, Reply};
use super::watch::Watch;
use super::whole::Whole;

/// Answers `request` as the control listener would at `path`.
pub(super) async fn answer(
    router: &Router,
    peer: SocketAddr,
    path: String,
    mut request: Request<Whole>,
) -> Response<Reply> {
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    // The end of a path that was valid, from a slash on, and a query that was.
    *request.uri_mut() = PathAndQuery::try_from(path)
        .map(Uri::from)
        .unwrap_or_default();
    request.extensions_mut().insert(ConnectInfo(peer));
    by(router, request).await
}

async fn by(router: &Router, request: Request<Whole>) -> Response<Reply> {
    let answered = router.clone().oneshot(request).await;
    let response = answered.unwrap_or_else(|never| match never {});
    response.map(|body| Reply::streamed(body.map_err(Into::into)))
}

/// Answers the requests of one connection of the control listener.
pub(crate) struct Routed {
    router: Router,
    watch: Arc<Watch>,
    /// What each request brings along, of its connection.
    extensions: Extensions,
}

impl Routed {
    pub(crate) fn new(router: Router, watch: Arc<Watch>, extensions: Extensions) -> Self {
        Self {
            router,
            watch,
            extensions,
        }
    }
}

impl Answers for Routed {
    type Answer = Reply;

    fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    // Who waits or follows, and left, is to be forgotten at once.
    const OWES_HALF_CLOSED: bool = false;
}

impl hyper::service::Service<Request<Incoming>> for Routed {
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Reply>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = Busy::new(&self.watch);
        let (router, extensions) = (self.router.clone(), self.extensions.clone());
        let version = request.version();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            head.extensions.extend(extensions);
            let body = Whole::new(body, head.version);
            let response = match framing::check(&head, false) {
                Ok(()) => by(&router, Request::from_parts(head, body)).await,
                Err(error) => refuse(&error.into()),
            };
            Ok(Reply::until_answered(response, busy, version))
        })
    }
}

fn refuse(problem: &Problem) -> Response<Reply> {
    let mut response = problem.to_response(&ProblemContext::default());
    if problem.closes_connection() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response.map(Reply::whole)
}
