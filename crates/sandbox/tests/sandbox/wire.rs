//! A sandbox of the test's own, and a client that speaks HTTP/1.1 by hand.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use onlyonce_sandbox::{Ledger, Sandbox, Snapshot};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Long enough for any machine; nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct Bench {
    pub addr: SocketAddr,
    pub ledger: Ledger,
    server: JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub async fn start() -> Bench {
    let sandbox = Sandbox::bind("127.0.0.1:0").await.unwrap();
    let (addr, ledger) = (sandbox.local_addr(), sandbox.ledger());
    Bench {
        addr,
        ledger,
        server: tokio::spawn(sandbox.serve(std::future::pending())),
    }
}

impl Bench {
    /// Sends one request, reads to the end of the connection.
    pub async fn send(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Received {
        let mut stream = self.open(line, headers, body).await;
        let mut bytes = Vec::new();
        let end = within_deadline(stream.read_to_end(&mut bytes)).await;
        Received {
            bytes,
            end: end.map(drop),
        }
    }

    /// Sends one request and leaves the answer to the caller.
    pub async fn open(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let mut head = format!("{line} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        stream
            .write_all(&[head.as_bytes(), body].concat())
            .await
            .unwrap();
        stream
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Received {
        self.send(&format!("POST {path}"), headers, body.as_bytes())
            .await
    }

    pub async fn get(&self, path: &str) -> Received {
        self.send(&format!("GET {path}"), &[], b"").await
    }

    /// Polls the ledger until `wanted` holds.
    pub async fn ledger_until(&self, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let started = Instant::now();
        loop {
            let snapshot = self.ledger.snapshot();
            if wanted(&snapshot) {
                return snapshot;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "the ledger stays at {snapshot:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub async fn within_deadline<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("done before the deadline")
}

/// Everything that came back, and how the connection ended.
#[derive(Debug)]
pub struct Received {
    pub bytes: Vec<u8>,
    pub end: io::Result<()>,
}

impl Received {
    pub fn was_reset(&self) -> bool {
        self.end
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }

    fn parts(&self) -> (&str, &[u8]) {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.expect("a whole head");
        (
            std::str::from_utf8(&self.bytes[..end]).unwrap(),
            &self.bytes[end + 4..],
        )
    }

    pub fn status(&self) -> u16 {
        self.parts().0.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts().0.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body bytes as they came, chunk marks included.
    pub fn raw_body(&self) -> &[u8] {
        self.parts().1
    }

    /// The chunks of a chunked body, and whether the last one (of length 0) was there.
    pub fn chunks(&self) -> (Vec<String>, bool) {
        assert_eq!(self.header("transfer-encoding"), Some("chunked"));
        let (mut rest, mut chunks) = (self.raw_body(), Vec::new());
        while !rest.is_empty() {
            let line = rest
                .windows(2)
                .position(|two| two == b"\r\n")
                .expect("a chunk line");
            let size = std::str::from_utf8(&rest[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                return (chunks, true);
            }
            let chunk = &rest[line + 2..line + 2 + size];
            chunks.push(String::from_utf8(chunk.to_vec()).unwrap());
            rest = &rest[line + 2 + size + 2..];
        }
        (chunks, false)
    }

    /// The body of a clean end, with or without chunks.
    pub fn body(&self) -> String {
        assert!(self.end.is_ok(), "{:?}", self.end);
        if self.header("transfer-encoding").is_some() {
            let (chunks, whole) = self.chunks();
            assert!(whole, "the last chunk is missing");
            return chunks.concat();
        }
        let length: usize = self
            .header("content-length")
            .expect("a length")
            .parse()
            .unwrap();
        assert_eq!(self.raw_body().len(), length);
        String::from_utf8(self.raw_body().to_vec()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body()).unwrap()
    }

    /// The events of a stream: name (empty where there is none) and data.
    pub fn events(&self) -> Vec<(String, String)> {
        assert_eq!(
            self.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        let body = self.body().replace("\r\n", "\n");
        let body = body.strip_suffix("\n\n").expect("the last event is ended");
        body.split("\n\n").map(event).collect()
    }
}

fn event(text: &str) -> (String, String) {
    let (mut name, mut data) = (String::new(), String::new());
    for line in text.lines() {
        match line.split_once(": ").expect("a field") {
            ("event", value) => name = value.to_owned(),
            ("data", value) => data = value.to_owned(),
            other => panic!("an unknown field {other:?}"),
        }
    }
    (name, data)
}
