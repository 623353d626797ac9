//! The layer before a real tonic server, asked by a real tonic client: trailers are recorded and replayed.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::stream::{self, Iter};
use http::uri::PathAndQuery;
use http_body::Body;
use onlyonce_store::MemoryStore;
use onlyonce_tower::{BoxError, Once, OnceLayer, Rules};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use tower::Service;

/// Messages that are texts.
#[derive(Clone, Copy, Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// What a generated server would be.
#[derive(Clone, Default)]
struct Charges {
    runs: Arc<AtomicUsize>,
}

type Answering<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

struct Charge(usize);

impl UnaryService<String> for Charge {
    type Response = String;
    type Future = Answering<String>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let run = self.0;
        Box::pin(async move {
            let asked = request.into_inner();
            match asked.as_str() {
                "declined" => Err(Status::failed_precondition(format!("run {run}"))),
                _ => Ok(Response::new(format!("run {run} of {asked}"))),
            }
        })
    }
}

struct Report(usize);

impl ServerStreamingService<String> for Report {
    type Response = String;
    type ResponseStream = Iter<std::vec::IntoIter<Result<String, Status>>>;
    type Future = Answering<Self::ResponseStream>;

    fn call(&mut self, _: Request<String>) -> Self::Future {
        let run = self.0;
        Box::pin(async move {
            let mut end = Status::resource_exhausted("the report is long");
            end.metadata_mut().insert("x-pages", 3.into());
            let pages = (1..=3).map(|page| Ok(format!("run {run} page {page}")));
            let pages: Vec<_> = pages.chain([Err(end)]).collect();
            Ok(Response::new(stream::iter(pages)))
        })
    }
}

impl<B> Service<http::Request<B>> for Charges
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let run = self.runs.fetch_add(1, SeqCst) + 1;
        Box::pin(async move {
            let mut grpc = Grpc::new(Text);
            Ok(match request.uri().path() {
                "/test.Charges/Charge" => grpc.unary(Charge(run), request).await,
                _ => grpc.server_streaming(Report(run), request).await,
            })
        })
    }
}

impl NamedService for Charges {
    const NAME: &'static str = "test.Charges";
}

/// A server with the layer, and a channel to it.
async fn served(runs: &Arc<AtomicUsize>, rules: Rules) -> (Once<MemoryStore>, Channel) {
    let once = Once::in_memory();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = incoming.local_addr().unwrap();
    let charges = Charges { runs: runs.clone() };
    let server = Server::builder()
        .layer(OnceLayer::new(once.clone(), rules))
        .add_service(charges);
    tokio::spawn(server.serve_with_incoming(incoming));
    let channel = Channel::from_shared(format!("http://{addr}")).unwrap();
    (once, channel.connect().await.unwrap())
}

fn asked(text: &str, key: &str) -> Request<String> {
    let mut request = Request::new(text.to_owned());
    let metadata = request.metadata_mut();
    metadata.insert("idempotency-key", key.parse().unwrap());
    metadata.insert("authorization", "Bearer me".parse().unwrap());
    request
}

async fn charge(channel: &Channel, request: Request<String>) -> Result<Response<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Charges/Charge");
    grpc.unary(request, path, Text).await
}

#[tokio::test]
async fn a_unary_call_runs_once_and_its_answer_is_replayed() {
    let runs = Arc::default();
    let (once, channel) = served(&runs, Rules::default()).await;
    for mark in ["executed", "replayed", "replayed"] {
        let answer = charge(&channel, asked("7 EUR", "k")).await.unwrap();
        assert_eq!(answer.metadata().get("onlyonce-status").unwrap(), mark);
        assert_eq!(answer.into_inner(), "run 1 of 7 EUR");
    }
    assert_eq!(runs.load(SeqCst), 1);
    once.shutdown(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_status_is_an_answer_and_is_replayed() {
    let runs = Arc::default();
    let (once, channel) = served(&runs, Rules::default()).await;
    for _ in 0..2 {
        let status = charge(&channel, asked("declined", "k")).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::FailedPrecondition, "run 1")
        );
    }
    assert_eq!(runs.load(SeqCst), 1);
    once.shutdown(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn hostile_080_the_trailers_of_a_stream_are_recorded_and_replayed() {
    let runs = Arc::default();
    let (once, channel) = served(&runs, Rules::default()).await;
    for mark in ["executed", "replayed"] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Charges/Report");
        let answer = grpc
            .server_streaming(asked("all", "k"), path, Text)
            .await
            .unwrap();
        assert_eq!(answer.metadata().get("onlyonce-status").unwrap(), mark);
        let mut pages = answer.into_inner();
        for page in 1..=3 {
            let text = pages.message().await.unwrap().unwrap();
            assert_eq!(text, format!("run 1 page {page}"));
        }
        let end = pages.message().await.unwrap_err();
        assert_eq!(end.code(), Code::ResourceExhausted);
        assert_eq!(end.metadata().get("x-pages").unwrap(), "3");
    }
    assert_eq!(runs.load(SeqCst), 1);
    once.shutdown(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_a_status_that_tells_what_happened() {
    let runs = Arc::default();
    let (once, channel) = served(&runs, Rules::default().require_key()).await;
    charge(&channel, asked("7 EUR", "k")).await.unwrap();
    let reused = charge(&channel, asked("8 EUR", "k")).await.unwrap_err();
    assert_eq!(reused.code(), Code::InvalidArgument);
    assert!(reused.message().contains("key"), "{reused:?}");
    assert_eq!(reused.metadata().get("x-should-retry").unwrap(), "false");
    let unkeyed = charge(&channel, Request::new("7 EUR".to_owned()))
        .await
        .unwrap_err();
    assert_eq!(unkeyed.code(), Code::InvalidArgument);
    let mut nobody = asked("7 EUR", "k2");
    nobody.metadata_mut().remove("authorization");
    let nobody = charge(&channel, nobody).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    assert_eq!(runs.load(SeqCst), 1);
    once.shutdown(Duration::ZERO).await.unwrap();
    let late = charge(&channel, asked("9 EUR", "k3")).await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable);
    assert_eq!(late.metadata().get("x-should-retry").unwrap(), "true");
}
