//! Requests of workers: the operations API, on the listener for requests.

use axum::Router;
use axum::extract::ConnectInfo;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tower::ServiceExt;

use super::reply::Reply;
use super::service::Caller;

/// Answers `request` as the control listener would at `path`.
pub(super) async fn answer(
    router: &Router,
    caller: &Caller,
    path: String,
    mut request: Request<Incoming>,
) -> Response<Reply> {
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    // The end of a path that was valid, from a slash on, and a query that was.
    *request.uri_mut() = PathAndQuery::try_from(path)
        .map(Uri::from)
        .unwrap_or_default();
    request.extensions_mut().insert(ConnectInfo(caller.peer));
    let answered = router.clone().oneshot(request).await;
    let response = answered.unwrap_or_else(|never| match never {});
    response.map(|body| Reply::streamed(body.map_err(Into::into)))
}
