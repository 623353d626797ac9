//! The scripted upstream: it does what the key says, and keeps its own count of what it ran.

use std::collections::HashMap;
use std::io::{BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::client::{Head, read_body, read_head};
use super::script::{Run, Script};

/// One request that reached the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It ran, as the execution of this number.
    Ran(u64),
    /// It was answered "did not run".
    Declined,
}

/// What the upstream received, key by key, in order.
pub type Ledger = HashMap<String, Vec<Sent>>;

/// When the upstream had given each key's whole answer, as far as it could give it.
#[derive(Clone, Debug, Default)]
pub struct Answered(Arc<Mutex<HashMap<String, Instant>>>);

impl Answered {
    /// When that was; the last time, if it was more than once.
    pub fn at(&self, key: &str) -> Option<Instant> {
        lock(&self.0).get(key).copied()
    }

    /// It was given then.
    pub fn note(&self, key: &str, at: Instant) {
        lock(&self.0).insert(key.to_owned(), at);
    }
}

/// The upstream, until the process ends.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// Connections keep the ledger that was current when their request came.
    ledger: Mutex<Arc<Mutex<Ledger>>>,
    answered: Answered,
    connections: AtomicUsize,
    executions: AtomicU64,
}

impl Upstream {
    /// Listens on a free loopback port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            ledger: Mutex::default(),
            answered: Answered::default(),
            connections: AtomicUsize::new(0),
            executions: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                shared.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    // An error here is the gateway's going away, which is what campaigns do.
                    let _ = serve(&connection, &shared);
                    shared.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A copy of what it received so far.
    pub fn ledger(&self) -> Ledger {
        lock(&lock(&self.shared.ledger)).clone()
    }

    /// When it gave whole answers.
    pub fn answered(&self) -> Answered {
        self.shared.answered.clone()
    }

    /// Goes on from another history. Requests that run now still count for the old one.
    pub fn replace_ledger(&self, ledger: Ledger) {
        *lock(&self.shared.ledger) = Arc::new(Mutex::new(ledger));
    }

    /// Waits until every request of a gateway that was killed has been read and counted.
    pub fn wait_until_idle(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.shared.connections.load(Ordering::SeqCst) > 0 {
            if Instant::now() > deadline {
                bail!("the upstream still has connections from a gateway that is gone");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// A poisoned lock only says that another thread failed, and that thread says it itself.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(connection: &TcpStream, shared: &Shared) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    loop {
        let head = read_head(&mut reader)?;
        let ledger = Arc::clone(&lock(&shared.ledger));
        let Some(key) = key_of(&head) else {
            bail!("a request without a key")
        };
        let script = Script::of_key(&key);
        let number = shared.executions.fetch_add(1, Ordering::SeqCst);
        let sent = note(&ledger, &key, &script, number);
        read_body(&head, &mut reader)?;
        thread::sleep(script.delay);
        match sent {
            Sent::Declined => decline(connection)?,
            Sent::Ran(number) => {
                run(connection, &key, number, &script)?;
                // Bytes can also be written to a gateway that is gone.
                let at = Instant::now();
                if is_open(connection) {
                    shared.answered.note(&key, at);
                }
            }
        }
    }
}

/// Whether the other end is still there. It has sent nothing that is not read.
fn is_open(connection: &TcpStream) -> bool {
    let peeked = connection
        .set_nonblocking(true)
        .and_then(|()| connection.peek(&mut [0]));
    let blocks = connection.set_nonblocking(false);
    blocks.is_ok() && peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// The key stands in the path too: what the header says is the gateway's business.
fn key_of(head: &Head) -> Option<String> {
    let path = head.first_line.split(' ').nth(1)?;
    path.strip_prefix("/work/").map(ToString::to_string)
}

/// Counts a request the moment its head is here.
fn note(ledger: &Mutex<Ledger>, key: &str, script: &Script, number: u64) -> Sent {
    let mut ledger = lock(ledger);
    let sent = ledger.entry(key.to_string()).or_default();
    let declined = sent.iter().filter(|sent| **sent == Sent::Declined).count() as u64;
    let one = if declined < script.declines {
        Sent::Declined
    } else {
        Sent::Ran(number)
    };
    sent.push(one);
    one
}

const DATE: &str = "date: Mon, 02 Mar 2026 10:00:00 GMT";

fn decline(mut connection: &TcpStream) -> Result<()> {
    let text = b"did not run";
    write!(
        connection,
        "HTTP/1.1 503 Service Unavailable\r\n{DATE}\r\ncontent-length: {}\r\n\r\n",
        text.len()
    )?;
    connection.write_all(text)?;
    Ok(())
}

fn run(mut connection: &TcpStream, key: &str, number: u64, script: &Script) -> Result<()> {
    let (run, whole) = (&script.run, script.body(key, number));
    let head = format!(
        "HTTP/1.1 {} Scripted\r\n{DATE}\r\ncontent-type: application/json\r\nx-execution: {number}\r\n\
         x-list: one\r\nx-list: two\r\n",
        run.status()
    );
    match run {
        Run::Answer { .. } => {
            let mut answer = format!("{head}content-length: {}\r\n\r\n", whole.len()).into_bytes();
            answer.extend_from_slice(&whole);
            connection.write_all(&answer)?;
        }
        Run::Stream { chunks, pause, .. } => {
            write!(connection, "{head}transfer-encoding: chunked\r\n\r\n")?;
            for part in whole.chunks(whole.len().div_ceil(*chunks)) {
                thread::sleep(*pause);
                write_chunk(connection, part)?;
            }
            connection.write_all(b"0\r\n\r\n")?;
        }
        Run::Reset => bail!("the script says to go away"),
        Run::CutStream { .. } => {
            write!(connection, "{head}transfer-encoding: chunked\r\n\r\n")?;
            write_chunk(connection, &whole[..whole.len() / 2])?;
            bail!("the script says to go away");
        }
        Run::CutAnswer { .. } => {
            write!(connection, "{head}content-length: {}\r\n\r\n", whole.len())?;
            connection.write_all(&whole[..whole.len() - 1])?;
            bail!("the script says to go away");
        }
    }
    Ok(())
}

fn write_chunk(mut connection: &TcpStream, part: &[u8]) -> Result<()> {
    let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
    chunk.extend_from_slice(part);
    chunk.extend_from_slice(b"\r\n");
    connection.write_all(&chunk)?;
    Ok(())
}
