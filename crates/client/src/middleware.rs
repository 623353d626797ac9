//! The client as a middleware of `reqwest-middleware`.

use async_trait::async_trait;
use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body_util::BodyExt;
use reqwest::{Body, ResponseBuilderExt, Url};
use reqwest_middleware::{Error as MiddlewareError, Middleware, Next};

use crate::attempt::Got;
use crate::body::AnswerBody;
use crate::call::Call;
use crate::client::OnceClient;
use crate::error::{Error, chain};
use crate::keys::KeyStore;
use crate::layer::action_of;

/// The client as a middleware: [`OnceClient::middleware`].
///
/// The action comes with `with_extension` of the request's builder, and the [`Report`](crate::Report) in
/// the extensions of the response. An [`Error`] is the cause of a `reqwest_middleware::Error::Middleware`:
/// `downcast_ref` finds it. Add it before other middlewares, so that they see each attempt; each attempt
/// gets its own copy of the request's extensions.
#[derive(Debug)]
pub struct ClientMiddleware<K> {
    client: OnceClient<K>,
}

impl<K: KeyStore> OnceClient<K> {
    /// The middleware for `reqwest_middleware::ClientBuilder::with`.
    pub fn middleware(&self) -> ClientMiddleware<K> {
        ClientMiddleware {
            client: self.clone(),
        }
    }
}

#[async_trait]
impl<K: KeyStore> Middleware for ClientMiddleware<K> {
    async fn handle(
        &self,
        mut request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        let client = &self.client.inner;
        let Some(action) =
            action_of(client, request.method(), extensions).map_err(MiddlewareError::middleware)?
        else {
            return next.run(request, extensions).await;
        };
        let body = match request.body_mut().take() {
            None => Bytes::new(),
            Some(body) => match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => {
                    let source = error.into();
                    return Err(MiddlewareError::middleware(Error::Body { action, source }));
                }
            },
        };
        let head = head_of(&request).map_err(|error| {
            let source = error.into();
            MiddlewareError::middleware(Error::Body {
                action: action.clone(),
                source,
            })
        })?;
        let url = request.url().clone();
        let call = Call::begin(client, action, head, body)
            .await
            .map_err(MiddlewareError::middleware)?;
        let answered = call
            .run(|attempt| {
                let next = next.clone();
                let mut extensions = extensions.clone();
                let attempt = attempt_of(&request, attempt);
                async move {
                    let attempt = attempt?;
                    let response = next.run(attempt, &mut extensions).await;
                    response.map(Response::from).map_err(|error| failed(&error))
                }
            })
            .await;
        answered
            .map(|response| response_of(response, url))
            .map_err(MiddlewareError::middleware)
    }
}

fn head_of(request: &reqwest::Request) -> http::Result<http::request::Parts> {
    let mut head = Request::builder()
        .method(request.method().clone())
        .uri(request.url().as_str())
        .body(())?
        .into_parts()
        .0;
    head.headers.clone_from(request.headers());
    Ok(head)
}

/// The request with the body and the headers of `attempt`; what else was set on it, such as a time-out,
/// stays.
fn attempt_of(
    request: &reqwest::Request,
    attempt: Request<Bytes>,
) -> Result<reqwest::Request, Got> {
    // Its body was taken out, so nothing stands in the way.
    let copy = request.try_clone();
    let mut copy = copy.ok_or_else(|| Got::CannotBeSent("its body cannot be copied".to_owned()))?;
    let (head, body) = attempt.into_parts();
    *copy.headers_mut() = head.headers;
    if !body.is_empty() {
        *copy.body_mut() = Some(body.into());
    }
    Ok(copy)
}

fn response_of(response: Response<AnswerBody<Body>>, url: Url) -> reqwest::Response {
    let mut response = response.map(Body::wrap);
    // Its URL gets lost on the way and can only be told to a builder.
    if let Ok(built) = Response::builder().url(url).body(()) {
        response
            .extensions_mut()
            .extend(built.into_parts().0.extensions);
    }
    response.into()
}

fn failed(error: &MiddlewareError) -> Got {
    match error {
        MiddlewareError::Reqwest(error) if error.is_builder() => Got::CannotBeSent(chain(error)),
        MiddlewareError::Reqwest(error) if error.is_connect() => Got::NotConnected(chain(error)),
        MiddlewareError::Reqwest(error) => Got::Broke(chain(error)),
        MiddlewareError::Middleware(error) => Got::Broke(format!("{error:#}")),
    }
}
