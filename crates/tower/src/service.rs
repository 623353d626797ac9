//! The service: which way a request goes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body;
use onlyonce_core::Key;
use onlyonce_http::{Place, Problem, ProblemContext, key_of, marks};
use onlyonce_store::Store;
use tower_service::Service;

use crate::kept::Continued;
use crate::shell::attached::{Attached, Stays};
use crate::shell::reply::Reply;
use crate::shell::telling::Marking;
use crate::{BoxError, Once, RequestBody, ResponseBody, Rules, keyed};

/// A service behind the contract. [`OnceLayer`](crate::OnceLayer) makes it.
///
/// It is always ready: a replay needs nothing of the service inside, and does not wait for it. What runs
/// waits until the service inside is ready, with its claim in hand.
pub struct OnceService<S: Store, I> {
    route: Arc<Route<S>>,
    inner: I,
}

/// What all requests through one layer share.
pub(crate) struct Route<S: Store> {
    pub(crate) once: Once<S>,
    pub(crate) rules: Rules,
}

impl<S: Store, I> OnceService<S, I> {
    pub(crate) fn new(route: Arc<Route<S>>, inner: I) -> Self {
        Self { route, inner }
    }
}

impl<S: Store, I: Clone> Clone for OnceService<S, I> {
    fn clone(&self) -> Self {
        Self {
            route: self.route.clone(),
            inner: self.inner.clone(),
        }
    }
}

impl<S, I, B, R> Service<Request<B>> for OnceService<S, I>
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    I::Future: Send,
    I::Error: Into<BoxError> + Send,
    B: Body<Data = Bytes> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = I::Error;
    type Future = OnceFuture<R, I::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (route, inner) = (self.route.clone(), self.inner.clone());
        let stays = Stays::default();
        OnceFuture(match route.way(&request) {
            Way::Pass => Attached::while_it_stays(stays, pass(route, inner, request)),
            Way::Keyed(key) => Attached::while_it_stays(stays.clone(), async move {
                Ok(keyed::answer(route, inner, key, request, stays).await)
            }),
            Way::Refuse(problem) => {
                let response = route.refuse(&problem, &Marking::default(), Asking::of(&request));
                Attached::while_it_stays(stays, std::future::ready(Ok(response)))
            }
        })
    }
}

/// The answer of a [`OnceService`]. Dropped before it is there, the caller has left; what it has begun
/// goes on.
pub struct OnceFuture<R: 'static, E: 'static>(Attached<Result<Response<ResponseBody<R>>, E>>);

impl<R, E> Future for OnceFuture<R, E> {
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// What of a request its refusal depends on.
#[derive(Clone, Copy)]
pub(crate) struct Asking {
    is_http1: bool,
    is_grpc: bool,
}

impl Asking {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let kind = request.headers().get(CONTENT_TYPE);
        Self {
            is_http1: request.version() <= Version::HTTP_11,
            is_grpc: kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")),
        }
    }
}

enum Way {
    /// Without a key.
    Pass,
    Keyed(Key),
    Refuse(Problem),
}

impl<S: Store> Route<S> {
    fn way<B>(&self, request: &Request<B>) -> Way {
        if let Some(continued) = request.extensions().get::<Continued>()
            && continued.scope.namespace == self.rules.namespace
        {
            return Way::Keyed(continued.key.clone());
        }
        // What a CONNECT carries is no body that could be collected.
        if request.method().is_safe() || *request.method() == Method::CONNECT {
            return Way::Pass;
        }
        let rules = &self.rules;
        match key_of(request.headers(), &rules.key_headers) {
            Err(error) => Way::Refuse(error.into()),
            Ok(None) if rules.require_key => Way::Refuse(Problem::no_key_in(&rules.key_headers[0])),
            Ok(None) => Way::Pass,
            Ok(Some(_)) if request.headers().contains_key(UPGRADE) => {
                Way::Refuse(Problem::UpgradeRefused)
            }
            Ok(Some(key)) => Way::Keyed(key),
        }
    }

    /// Notes for the handler that a request passes without a key.
    #[cfg(feature = "axum")]
    fn unkeyed<B>(&self, request: Request<B>) -> Request<B> {
        crate::extract::unkeyed(request, &self.rules.key_headers[0])
    }

    /// Without axum, nobody asks.
    #[cfg(not(feature = "axum"))]
    fn unkeyed<B>(&self, request: Request<B>) -> Request<B> {
        request
    }

    /// The layer's own answer, with the marks of the operation that it is about.
    pub(crate) fn refuse<R>(
        &self,
        problem: &Problem,
        marking: &Marking<'_>,
        asking: Asking,
    ) -> Response<ResponseBody<R>> {
        let context = ProblemContext {
            public_url: self.rules.public_url.as_deref(),
            operation: marking.ticket.map(|ticket| ticket.id),
            place: Place::Layer,
        };
        let mut response = match asking.is_grpc {
            false => problem.to_response(&context),
            true => problem.to_grpc_response(Place::Layer),
        };
        if asking.is_http1 && problem.closes_connection() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        marking.mark(response.headers_mut(), None, false);
        response.map(|document| ResponseBody::recorded(Reply::whole(document)))
    }
}

/// Lets a request pass, unprotected.
async fn pass<S, I, B, R>(
    route: Arc<Route<S>>,
    mut inner: I,
    request: Request<B>,
) -> Result<Response<ResponseBody<R>>, I::Error>
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>>,
{
    let request = route.unkeyed(request).map(RequestBody::passed);
    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
    let mut response = inner.call(request).await?;
    marks::strip(response.headers_mut());
    Ok(response.map(ResponseBody::passed))
}
