//! The client as a tower layer.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, Method, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt};

use crate::Action;
use crate::attempt::Got;
use crate::body::AnswerBody;
use crate::call::Call;
use crate::client::{Inner, OnceClient};
use crate::error::{BoxError, Error, chain};
use crate::keys::KeyStore;

/// Gives each request with an [`Action`] its key, and tries again by the client's policy.
///
/// Every attempt waits for the inner service to be ready by itself, on a clone of it.
#[derive(Debug)]
pub struct ClientLayer<K> {
    client: OnceClient<K>,
}

/// The service of [`ClientLayer`].
#[derive(Debug)]
pub struct ClientService<S, K> {
    inner: S,
    client: OnceClient<K>,
}

/// An error of an inner service that could not connect, so that no byte of the request was sent. A
/// service that knows that wraps its error in this, and the client can say so to the caller. It knows by
/// itself of connections that were refused.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct NotConnected(pub BoxError);

impl<K> ClientLayer<K> {
    pub(crate) fn new(client: OnceClient<K>) -> Self {
        Self { client }
    }
}

impl<K> Clone for ClientLayer<K> {
    fn clone(&self) -> Self {
        Self::new(self.client.clone())
    }
}

impl<S: Clone, K> Clone for ClientService<S, K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            client: self.client.clone(),
        }
    }
}

impl<S, K> Layer<S> for ClientLayer<K> {
    type Service = ClientService<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        ClientService {
            inner,
            client: self.client.clone(),
        }
    }
}

impl<S, K, B, R> Service<Request<B>> for ClientService<S, K>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    K: KeyStore,
    B: Body<Data = Bytes> + From<Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<AnswerBody<R>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { inner, client } = self.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let Some(action) = action_of(&client.inner, &head.method, &mut head.extensions)? else {
                let sent = inner.oneshot(Request::from_parts(head, body)).await;
                return match sent {
                    Ok(response) => Ok(response.map(AnswerBody::passing)),
                    Err(error) => Err(Error::Passed {
                        source: error.into(),
                    }),
                };
            };
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => {
                    let source = error.into();
                    return Err(Error::Body { action, source });
                }
            };
            let call = Call::begin(&client.inner, action, head, body).await?;
            call.run(move |request| {
                let sent = inner.clone().oneshot(request.map(B::from));
                async { sent.await.map_err(|error| failed(&*error.into())) }
            })
            .await
        })
    }
}

/// The action of a request, taken out of its extensions. A method that changes nothing needs none.
pub(crate) fn action_of<K>(
    client: &Inner<K>,
    method: &Method,
    extensions: &mut Extensions,
) -> Result<Option<Action>, Error> {
    let action = extensions.remove::<Action>();
    if action.is_some() || method.is_safe() || client.passes_without_action {
        return Ok(action);
    }
    Err(Error::NoAction {
        method: method.clone(),
    })
}

fn failed(error: &(dyn StdError + 'static)) -> Got {
    let text = chain(error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<NotConnected>() || is_refused(error) {
            return Got::NotConnected(text);
        }
        cause = error.source();
    }
    Got::Broke(text)
}

/// Only `connect` gets this, so that nothing can have been sent.
fn is_refused(error: &(dyn StdError + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
