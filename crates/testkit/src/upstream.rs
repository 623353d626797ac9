//! An upstream that a test scripts byte by byte and that counts what reached it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use socket2::{Domain, Socket, Type};

use crate::message::Head;
use crate::signal::eventually;
use crate::wire::Wire;

/// One request whose head reached the upstream whole: it counts as executed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The request head as it came.
    pub head: Head,
    /// The body, once the script has read it.
    pub body: Option<Vec<u8>>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

/// A listening upstream. Every connection has a thread; all end with the test's process.
pub struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

/// One exchange, as the script sees it.
pub struct Exchange {
    wire: Option<Wire>,
    /// The request head.
    pub head: Head,
    /// Which request this is, from 1, over all connections.
    pub number: usize,
    body: Option<Vec<u8>>,
    continue_sent: bool,
    keep: bool,
    shared: Arc<Shared>,
}

impl Upstream {
    /// Calls the script for every request whose head was read whole.
    pub fn scripted(script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> Self {
        Self::scripted_at(Ipv4Addr::LOCALHOST.into(), script)
    }

    /// As [`Upstream::scripted`], on another address of this machine.
    pub fn scripted_at(ip: IpAddr, script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> Self {
        Self::raw_counted(ip, move |shared, mut wire, _| {
            while let Ok(head) = wire.take_head() {
                let number = {
                    let mut seen = shared.seen.lock().expect("the list of requests");
                    seen.push(Seen {
                        head: head.clone(),
                        body: None,
                    });
                    seen.len()
                };
                let shared = Arc::clone(shared);
                let mut exchange = Exchange {
                    wire: Some(wire),
                    head,
                    number,
                    body: None,
                    continue_sent: false,
                    keep: true,
                    shared,
                };
                script(&mut exchange);
                if !exchange.keep {
                    return;
                }
                exchange.read_body();
                match exchange.wire.take() {
                    Some(same) => wire = same,
                    None => return,
                }
            }
        })
    }

    /// Answers 200 with a text that names the execution, so that a second one shows in the bytes.
    pub fn counting() -> Self {
        Self::scripted(|x| {
            let text = format!(
                "execution {} of {} {}",
                x.number,
                x.head.word(0),
                x.head.word(1)
            );
            x.answer(200, &[("Content-Type", "text/plain")], text.as_bytes());
        })
    }

    /// Hands each raw connection to the script, with its number from 1. Counts nothing itself.
    pub fn raw(script: impl Fn(Wire, usize) + Send + Sync + 'static) -> Self {
        let ip = Ipv4Addr::LOCALHOST.into();
        Self::raw_counted(ip, move |_, wire, number| script(wire, number))
    }

    fn raw_counted(
        ip: IpAddr,
        script: impl Fn(&Arc<Shared>, Wire, usize) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("a port for the upstream");
        let addr = listener.local_addr().expect("the upstream's address");
        let shared = Arc::new(Shared::default());
        let script = Arc::new(script);
        let accepted = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if accepted.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let number = accepted.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let (script, shared) = (Arc::clone(&script), Arc::clone(&accepted));
                thread::spawn(move || {
                    let mut wire = Wire::new(stream);
                    // An idle pooled connection stays until the gateway lets it go.
                    wire.patience(std::time::Duration::from_secs(120));
                    script(&shared, wire, number);
                });
            }
        });
        Self { addr, shared }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// How many requests were executed: their heads were read whole.
    pub fn hits(&self) -> usize {
        self.seen().len()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many requests were executed that a test cares for.
    pub fn hits_where(&self, wanted: impl Fn(&Seen) -> bool) -> usize {
        self.seen().iter().filter(|seen| wanted(seen)).count()
    }

    /// How many requests were executed for this path.
    pub fn hits_of(&self, path: &str) -> usize {
        self.hits_where(|seen| seen.head.word(1) == path)
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared
            .seen
            .lock()
            .expect("the list of requests")
            .clone()
    }

    /// Waits until so many requests were executed.
    #[track_caller]
    pub fn wait_for_hits(&self, hits: usize) {
        eventually(&format!("{hits} requests at the upstream"), || {
            self.hits() >= hits
        });
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread so that it sees the flag.
        let _ = TcpStream::connect(self.addr);
    }
}

/// An address where connections are refused for as long as this is held.
pub struct Refusing(Socket, SocketAddr);

impl Refusing {
    /// Takes a port and never listens on it.
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into()).expect("a port");
        let addr = socket
            .local_addr()
            .expect("an address")
            .as_socket()
            .expect("an IP address");
        Self(socket, addr)
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.1)
    }

    /// Where nobody listens.
    pub fn addr(&self) -> SocketAddr {
        self.1
    }

    /// Starts to listen at last: from here on the address accepts connections.
    pub fn listen(self) -> TcpListener {
        self.0.listen(16).expect("listening");
        self.0.into()
    }
}

impl Default for Refusing {
    fn default() -> Self {
        Self::new()
    }
}

impl Exchange {
    /// The connection.
    pub fn wire(&mut self) -> &mut Wire {
        self.wire.as_mut().expect("the connection is still there")
    }

    /// The idempotency key that was forwarded.
    pub fn key(&self) -> Option<&str> {
        self.head.header("idempotency-key")
    }

    /// The path of the request.
    pub fn path(&self) -> &str {
        self.head.word(1)
    }

    /// Reads the request body, once; what came of it if it broke.
    pub fn read_body(&mut self) -> Vec<u8> {
        if let Some(body) = &self.body {
            return body.clone();
        }
        let expects = self.head.header("expect").is_some();
        if expects && !self.continue_sent {
            self.continue_sent = true;
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let (chunked, length) = (self.head.chunked(), self.head.content_length().unwrap_or(0));
        let body = if chunked {
            read_chunks(self.wire()).unwrap_or_default()
        } else {
            self.wire().take(length).unwrap_or_default()
        };
        self.body = Some(body.clone());
        let mut seen = self.shared.seen.lock().expect("the list of requests");
        seen[self.number - 1].body = Some(body.clone());
        body
    }

    /// Sends bytes; a gateway that hung up is not the script's worry.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.wire().send(bytes).is_ok()
    }

    /// Sends a response head. `Date` and `Content-Length` are for the caller to add.
    pub fn send_head(&mut self, status: u16, headers: &[(&str, &str)]) -> bool {
        let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes())
    }

    /// Reads the request body and answers with a counted body.
    pub fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        self.read_body();
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        all.push(("Content-Length", &length));
        let mut head = format!("HTTP/1.1 {status} Scripted\r\n").into_bytes();
        for (name, value) in all {
            head.extend(format!("{name}: {value}\r\n").bytes());
        }
        head.extend(b"\r\n");
        head.extend(body);
        self.send(&head);
    }

    /// Reads the request body and starts a chunked answer.
    pub fn start_chunked(&mut self, status: u16, headers: &[(&str, &str)]) {
        self.read_body();
        let mut all = headers.to_vec();
        all.push(("Transfer-Encoding", "chunked"));
        self.send_head(status, &all);
    }

    /// Sends one chunk.
    pub fn chunk(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend(bytes);
        chunk.extend(b"\r\n");
        self.send(&chunk)
    }

    /// Ends a chunked answer.
    pub fn end_chunks(&mut self) -> bool {
        self.send(b"0\r\n\r\n")
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        self.keep = false;
        if let Some(wire) = self.wire.take() {
            wire.reset();
        }
    }

    /// Closes the connection in an orderly way.
    pub fn close(&mut self) {
        self.keep = false;
        if let Some(wire) = self.wire.take() {
            wire.half_close();
        }
    }

    /// Waits until the gateway closes the connection.
    pub fn wait_for_close(&mut self) {
        self.keep = false;
        while matches!(self.wire().fill(), Ok(true)) {}
    }
}

fn read_chunks(wire: &mut Wire) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = wire.take_through(b"\r\n")?;
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        let size = usize::from_str_radix(line.split(';').next().unwrap_or(""), 16)
            .map_err(|_| io::Error::other("a chunk size"))?;
        if size == 0 {
            while wire.take_through(b"\r\n")? != b"\r\n" {}
            return Ok(body);
        }
        body.extend(wire.take(size)?);
        wire.take(2)?;
    }
}
