//! The connections of one worker to one upstream.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::uri::{Parts, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Uri};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::lane::{Lane, One};
use super::lines::Dial;
use super::outgoing::Outgoing;
use super::shared::Shared;
use super::transport::{Counted, Stream};
use crate::config::Upstream;
use crate::room::{self, Whose};

/// How long a connection may lie idle and still be used without another look at its socket.
const FRESH: Duration = Duration::from_millis(500);
/// The most bytes of a head that an upstream may answer with. (Header fields: 100, by hyper.)
const MAX_HEAD_BYTES: usize = 256 * 1024;
/// What an upstream may send ahead in one HTTP/2 stream, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Who reads an answer. An HTTP/2 connection is shared only by answers of one kind, so that a caller who stops reading
/// takes neither the room nor the streams of what is recorded (L5).
#[derive(Clone, Copy)]
pub(super) enum ReadBy {
    /// The recording, whatever its callers do.
    Recording,
    /// The caller.
    Caller,
}

impl ReadBy {
    /// What an upstream may send ahead in all streams of a connection, in bytes.
    fn connection_window(self) -> u32 {
        match self {
            // As much as there is: each stream is read.
            Self::Recording => (1 << 31) - 1,
            Self::Caller => 32 * 1024 * 1024,
        }
    }
}

/// The connections of one worker to one upstream.
pub(super) struct Pool {
    upstream: Arc<Upstream>,
    dial: Dial,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    host: HeaderValue,
    // Boxed as a lane holds it: it goes in and out without being moved or allocated again.
    #[allow(clippy::vec_box)]
    idle: Mutex<Vec<Box<One>>>,
    recorded: Shared,
    passed: Shared,
}

impl Pool {
    /// A pool without a connection; `tls` is there where the upstream is reached over TLS.
    pub(super) fn new(
        upstream: Arc<Upstream>,
        dial: Dial,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> io::Result<Self> {
        let tls = match tls {
            Some(config) => {
                let name = ServerName::try_from(upstream.host.to_string())
                    .map_err(|error| io::Error::other(error.to_string()))?;
                Some((TlsConnector::from(config), name))
            }
            None => None,
        };
        let host = HeaderValue::from_str(upstream.authority.as_str()).map_err(io::Error::other)?;
        Ok(Self {
            upstream,
            dial,
            tls,
            host,
            idle: Mutex::new(Vec::new()),
            recorded: Shared::default(),
            passed: Shared::default(),
        })
    }

    /// Writes the target and the host as HTTP/1.1 has them: path and query, and `Host`.
    pub(super) fn address_http1(&self, request: &mut Request<Outgoing>) {
        if request.uri().scheme().is_some()
            && let Some(target) = request.uri().path_and_query()
        {
            *request.uri_mut() = Uri::from(target.clone());
        }
        request.headers_mut().insert(HOST, self.host.clone());
    }

    /// Writes them as HTTP/2 has them: in the target alone (RFC 9113 section 8.3.1).
    pub(super) fn address_http2(&self, request: &mut Request<Outgoing>) {
        let mut parts = Parts::default();
        parts.scheme = Some(match self.tls {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        });
        parts.authority = Some(self.upstream.authority.clone());
        parts.path_and_query = request.uri().path_and_query().cloned();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        request.headers_mut().remove(HOST);
    }

    /// An idle connection, where there is one that still stands.
    pub(super) async fn idle(&self) -> Option<Lane> {
        loop {
            let mut one = self.idle.lock().pop()?;
            let age = one.idle_since().elapsed();
            if age > self.upstream.idle_timeout {
                continue;
            }
            if age > FRESH {
                // What the upstream said in the meantime (that it closed, most of all) lies with
                // the runtime until it has looked at its sockets once more.
                tokio::task::yield_now().await;
            }
            if one.is_alive() {
                return Some(Lane::One(one));
            }
        }
    }

    /// A stream of an HTTP/2 connection, or an HTTP/1.1 connection: an idle one where there is one
    /// and `fresh` does not forbid it, else a new one. The error says why none could be had.
    pub(super) async fn lane(
        &self,
        read_by: ReadBy,
        limit: Duration,
        fresh: bool,
    ) -> Result<Lane, String> {
        if !fresh && let Some(lane) = self.idle().await {
            return Ok(lane);
        }
        let connecting = async {
            match &self.tls {
                _ if self.upstream.http2 => self.share(read_by, fresh).await,
                None => self.connect(read_by).await,
                Some(_) => self.share_or_connect(read_by, fresh).await,
            }
        };
        match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(lane)) => Ok(lane),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it did not answer within {limit:?}")),
        }
    }

    /// Keeps a connection for the next exchange.
    pub(super) fn give_back(&self, one: Box<One>) {
        let mut idle = self.idle.lock();
        if idle.len() < self.upstream.max_idle_per_worker {
            idle.push(one);
        }
    }

    /// Lets go of connections that have ended or lain idle for too long.
    pub(super) fn tidy(&self) {
        let limit = self.upstream.idle_timeout;
        self.idle
            .lock()
            .retain_mut(|one| one.idle_since().elapsed() <= limit && one.is_alive());
        self.recorded.tidy();
        self.passed.tidy();
    }

    fn shared(&self, read_by: ReadBy) -> &Shared {
        match read_by {
            ReadBy::Recording => &self.recorded,
            ReadBy::Caller => &self.passed,
        }
    }

    /// A stream of an HTTP/2 connection, which is opened where none has one left.
    async fn share(&self, read_by: ReadBy, fresh: bool) -> io::Result<Lane> {
        let shared = self.shared(read_by);
        let mut turn = pin!(shared.opening.lock());
        // Who comes meanwhile shares the connection that is being opened; whose turn it is to open one, does.
        let _opening = loop {
            let changed = shared.changed();
            if !fresh && let Some(stream) = shared.stream() {
                return Ok(Lane::Two(stream));
            }
            tokio::select! {
                biased;
                () = changed, if !fresh => {}
                opening = &mut turn => break opening,
            }
        };
        match shared.stream().filter(|_| !fresh) {
            Some(stream) => Ok(Lane::Two(stream)),
            None => self.connect(read_by).await,
        }
    }

    /// The same where only the handshake tells which protocol it will be: as long as none was for HTTP/2, connections
    /// are opened side by side, since most of them may be HTTP/1.1.
    async fn share_or_connect(&self, read_by: ReadBy, fresh: bool) -> io::Result<Lane> {
        match self.shared(read_by).has_any() {
            true => self.share(read_by, fresh).await,
            false => self.connect(read_by).await,
        }
    }

    async fn connect(&self, read_by: ReadBy) -> io::Result<Lane> {
        let (stream, http2) = self.open().await?;
        let (counted, written) = Counted::new(stream);
        let io = TokioIo::new(counted);
        if http2 {
            let shared = self.shared(read_by);
            let telling = shared.telling();
            let (sender, connection) = http2::Builder::new(telling.clone())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(read_by.connection_window())
                .keep_alive_interval(Some(Duration::from_secs(30)))
                .max_header_list_size(64 * 1024)
                // Until it says how many it takes, it may take no more.
                .initial_max_send_streams(1)
                .handshake(io)
                .await
                .map_err(io::Error::other)?;
            return Ok(Lane::Two(shared.add(sender, connection, telling, written)));
        }
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        Ok(Lane::One(Box::new(One::new(sender, connection, written))))
    }

    /// A new stream to the upstream, and whether it is for HTTP/2.
    async fn open(&self) -> io::Result<(Stream, bool)> {
        if let Dial::With(lines) = &self.dial {
            let upstream = &self.upstream;
            let line = lines.open(&upstream.host, upstream.port).await?;
            return Ok((Stream::Made(line), upstream.http2));
        }
        let tcp = self.connect_tcp().await?;
        match &self.tls {
            None => Ok((Stream::Plain(tcp), self.upstream.http2)),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await?;
                let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                Ok((Stream::Opened(Box::new(tls)), http2))
            }
        }
    }

    /// Tries the addresses of the upstream's host, one after the other.
    async fn connect_tcp(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::other("its name has no address");
        for address in lookup_host((&*self.upstream.host, self.upstream.port)).await? {
            match TcpStream::connect(address).await {
                Ok(tcp) if room::has(&tcp, Whose::Upstream) => {
                    tcp.set_nodelay(true)?;
                    return Ok(tcp);
                }
                Ok(_) => {
                    room::say("a request was not sent");
                    return Err(io::Error::other("the gateway has too many files open"));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The path and query of a request as this upstream gets them: its own base path first, and
    /// without `strip`.
    pub(super) fn target(&self, target: &PathAndQuery, strip: &str) -> Option<PathAndQuery> {
        let base = &*self.upstream.base_path;
        if base.is_empty() && strip.is_empty() {
            return Some(target.clone());
        }
        let rest = target.as_str().strip_prefix(strip)?;
        let slash = if rest.starts_with('/') { "" } else { "/" };
        format!("{base}{slash}{rest}").parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::super::lines::{Opening, Upstreams};
    use super::*;
    use crate::config::{Config, Overrides, Source};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Opens one line; who asks for another one waits.
    struct OneLine(Mutex<Option<DuplexStream>>);

    impl Upstreams for OneLine {
        fn open(&self, _: &str, _: u16) -> Opening {
            let end = self.0.lock().take();
            Box::pin(async {
                match end {
                    Some(end) => Ok(Box::new(end) as _),
                    None => std::future::pending().await,
                }
            })
        }
    }

    /// A pool with one line to an HTTP/2 upstream, and the upstream's end of it.
    fn pool_with_one_line() -> (Pool, DuplexStream) {
        let text = "[[upstream]]\nname = \"up\"\nurl = \"http://127.0.0.1:1\"\nhttp2 = true\n";
        let source = Source {
            name: "onlyonce.toml",
            text,
            env: &|_| None,
        };
        let config = Config::read(&source, &Overrides::default()).expect("a configuration");
        let upstream = config.upstreams.into_iter().next().expect("an upstream");
        let (near, far) = duplex(64 << 10);
        let dial = Dial::With(Arc::new(OneLine(Mutex::new(Some(near)))));
        (Pool::new(upstream, dial, None).expect("a pool"), far)
    }

    /// Settings by which an upstream takes `most` streams at a time (RFC 9113 section 6.5.2).
    fn settings(most: u8) -> [u8; 15] {
        [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, most]
    }

    /// Waits until they are acknowledged.
    async fn have_settings(upstream: &mut DuplexStream) {
        let mut preface = [0; 24];
        upstream.read_exact(&mut preface).await.expect("a client");
        loop {
            let mut head = [0; 9];
            upstream.read_exact(&mut head).await.expect("a frame");
            let mut payload = vec![0; usize::from(head[2])];
            upstream.read_exact(&mut payload).await.expect("all of it");
            if head[3..5] == [4, 1] {
                return;
            }
        }
    }

    #[tokio::test]
    async fn l5_who_waits_for_a_new_connection_takes_a_stream_that_the_upstream_allows() {
        let (pool, mut upstream) = pool_with_one_line();
        let lane = || pool.lane(ReadBy::Recording, PATIENCE, false);
        let first = lane().await;
        // It opens another one, which takes its time.
        let mut opens = pin!(lane());
        let (mut second, mut third) = (pin!(lane()), pin!(lane()));
        assert!((&mut opens).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        upstream.write_all(&settings(3)).await.expect("room");
        let (second, third) = (second.await, third.await);
        assert!(matches!(second, Ok(Lane::Two(_))) && matches!(third, Ok(Lane::Two(_))));
        assert!(lane().now_or_never().is_none(), "three are held");
        drop(first);
    }

    #[tokio::test]
    async fn l5_who_waits_for_a_new_connection_takes_a_stream_that_comes_free() {
        let (pool, mut upstream) = pool_with_one_line();
        upstream.write_all(&settings(1)).await.expect("room");
        let lane = || pool.lane(ReadBy::Recording, PATIENCE, false);
        let first = lane().await;
        have_settings(&mut upstream).await;
        let (mut opens, mut second) = (pin!(lane()), pin!(lane()));
        assert!((&mut opens).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!(matches!(second.await, Ok(Lane::Two(_))));
    }
}
