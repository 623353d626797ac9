//! A client and an upstream that speak HTTP/2 and TLS, built on hyper and rustls, and the
//! certificates for them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A self-signed certificate for `localhost` in PEM files.
pub struct Certificate {
    folder: TempDir,
}

impl Certificate {
    /// A new one.
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
            .expect("a certificate");
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).expect("writing it");
        std::fs::write(
            folder.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )
        .expect("writing its key");
        Self { folder }
    }

    /// The PEM file of the certificate.
    pub fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// The PEM file of its private key.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// A client that trusts it alone and offers these protocols.
    pub fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).expect("a root");
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A server that presents it and takes these protocols.
    pub fn server(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from_pem_file(self.key()).expect("the key");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(vec![self.der()], key)
            .expect("a certificate and its key");
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.cert()).expect("the certificate")
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// An upstream that speaks what the connection opens with, over TLS where given.
pub struct Peer {
    addr: SocketAddr,
    hits: Arc<AtomicUsize>,
}

impl Peer {
    /// Listens. It answers with the number of the execution, the version of HTTP and the path,
    /// in a body with trailers.
    pub fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket for tokio");
        let addr = listener.local_addr().expect("an address");
        let hits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&hits);
        thread::spawn(move || {
            runtime().block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        return;
                    };
                    let (hits, tls) = (Arc::clone(&counted), tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            None => serve(stream, hits).await,
                            Some(tls) => {
                                if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                                    serve(stream, hits).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        Self { addr, hits }
    }

    /// Its port on this machine.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// How many requests it executed.
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    hits: Arc<AtomicUsize>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let number = hits.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            let text = format!("{number} {:?} {}", request.version(), request.uri().path());
            let sent = request.into_body().collect().await.map(|b| b.to_bytes());
            let text = format!("{text} {}", sent.map_or(0, |sent| sent.len()));
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("7"));
            let body =
                Full::new(Bytes::from(text)).with_trailers(async move { Some(Ok(trailers)) });
            let response = Response::builder()
                .header("x-many", "1")
                .header("x-many", "2");
            Ok::<_, Infallible>(response.body(body).expect("a response"))
        }
    });
    // The gateway may hang up, which is no failure of the upstream.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// What a client got.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Sends requests over one HTTP/2 connection, all at once, and reads the answers in their order.
pub fn ask_http2(
    to: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    requests: Vec<Request<Full<Bytes>>>,
) -> Vec<Answer> {
    runtime().block_on(async move {
        let stream = TcpStream::connect(to).await.expect("a connection");
        match tls {
            None => exchange(stream, requests).await,
            Some(tls) => {
                let name = ServerName::try_from("localhost").expect("a name");
                let stream = TlsConnector::from(tls)
                    .connect(name, stream)
                    .await
                    .expect("TLS");
                exchange(stream, requests).await
            }
        }
    })
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    requests: Vec<Request<Full<Bytes>>>,
) -> Vec<Answer> {
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("an HTTP/2 connection");
    tokio::spawn(connection);
    let asked: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                sender.ready().await.expect("a connection");
                let response = sender.send_request(request).await.expect("a response");
                let (head, body) = response.into_parts();
                let body = body.collect().await.expect("a whole body");
                let trailers = body.trailers().cloned();
                let body = String::from_utf8(body.to_bytes().to_vec()).expect("text");
                Answer {
                    status: head.status.as_u16(),
                    headers: head.headers,
                    body,
                    trailers,
                }
            })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.expect("an answer"));
    }
    answers
}
