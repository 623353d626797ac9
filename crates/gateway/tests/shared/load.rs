//! Clients that retry until they have an outcome, and what they were told against what the upstream
//! ran.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use onlyonce_testkit::{Client, Signal, Upstream, Wire, eventually};

use crate::post;

/// How long a client waits for an answer before it asks another gateway.
const CLIENT_PATIENCE: Duration = Duration::from_secs(1);
/// How long a key may take to have an outcome.
const OUTCOME_LIMIT: Duration = Duration::from_secs(30);
/// How long a client waits before it asks again.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the upstream works, so that something is always under way.
const WORK: Duration = Duration::from_millis(15);

/// An upstream that names the execution and its key. What is asked under a key that begins with
/// `held` ends once `go` is fired.
pub fn working_upstream(ip: IpAddr, go: &Signal) -> Upstream {
    let go = go.clone();
    Upstream::scripted_at(ip, move |exchange| {
        exchange.read_body();
        let key = exchange.key().unwrap_or_default().to_owned();
        let text = answer_of(exchange.number, &key);
        if key.starts_with("held") {
            exchange.start_chunked(200, &[("content-type", "text/plain")]);
            exchange.chunk(text);
            go.wait_at_most(OUTCOME_LIMIT);
            exchange.end_chunks();
        } else {
            thread::sleep(WORK);
            exchange.answer(200, &[("content-type", "text/plain")], text.as_bytes());
        }
    })
}

fn answer_of(number: usize, key: &str) -> String {
    format!("execution {number} of {key}")
}

/// Where the gateways are, which changes when they are started again.
#[derive(Clone)]
pub struct Targets(Arc<Mutex<Vec<SocketAddr>>>);

impl Targets {
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Mutex::new(addresses)))
    }

    /// A gateway is somewhere else now.
    pub fn moved(&self, gateway: usize, to: SocketAddr) {
        self.0.lock().unwrap()[gateway] = to;
    }

    fn at(&self, number: usize) -> SocketAddr {
        let addresses = self.0.lock().unwrap();
        addresses[number % addresses.len()]
    }
}

/// What a client was told of a key in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A whole answer, with this text.
    Answer(String),
    /// That the outcome is unknown.
    Unknown,
    /// Something that does not belong, or nothing within the limit.
    Wrong(String),
    /// It was told to stop before it had an outcome.
    Nothing,
}

/// A key, what was told of it, each time that it was asked, and when it was told first.
pub struct Asked {
    pub key: String,
    pub told: Vec<Told>,
    pub at: Instant,
}

impl Asked {
    /// The first whole answer.
    pub fn answer(&self) -> Option<&str> {
        self.told.iter().find_map(|told| match told {
            Told::Answer(text) => Some(&**text),
            _ => None,
        })
    }
}

/// Clients that ask for one key after the other, each key twice, on whatever gateway comes next.
pub struct Load {
    targets: Targets,
    stop: Signal,
    abandon: Signal,
    told: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<Asked>>>,
}

impl Load {
    pub fn start(targets: &Targets, clients: usize) -> Self {
        let mut load = Self {
            targets: targets.clone(),
            stop: Signal::new(),
            abandon: Signal::new(),
            told: Arc::default(),
            clients: Vec::new(),
        };
        load.clients = (0..clients).map(|client| load.client(client)).collect();
        load
    }

    fn client(&self, client: usize) -> JoinHandle<Vec<Asked>> {
        let (targets, told) = (self.targets.clone(), self.told.clone());
        let (stop, abandon) = (self.stop.clone(), self.abandon.clone());
        thread::spawn(move || {
            let mut all = Vec::new();
            for number in 0.. {
                if stop.fired() {
                    break;
                }
                let key = format!("k-{client}-{number}");
                let first = ask(&targets, client + number, &key, &abandon);
                let at = Instant::now();
                told.fetch_add(1, Ordering::SeqCst);
                let again = ask(&targets, client + number + 1, &key, &abandon);
                let told = vec![first, again];
                all.push(Asked { key, told, at });
            }
            all
        })
    }

    /// Waits until so many more keys have an outcome.
    #[track_caller]
    pub fn goes_on(&self, keys: usize) {
        let wanted = self.told.load(Ordering::SeqCst) + keys;
        eventually("the load goes on", || {
            self.told.load(Ordering::SeqCst) >= wanted
        });
    }

    /// Lets every client have its outcome, and no new key.
    pub fn stop(self) -> Vec<Asked> {
        self.stop.fire();
        let clients = self.clients.into_iter();
        clients.flat_map(|client| client.join().unwrap()).collect()
    }

    /// Stops every client where it is.
    pub fn abandon(self) -> Vec<Asked> {
        self.abandon.fire();
        self.stop()
    }
}

/// Asks one gateway after the other until there is an outcome.
pub fn ask(targets: &Targets, first: usize, key: &str, abandon: &Signal) -> Told {
    let started = Instant::now();
    let mut last = String::new();
    for number in first.. {
        if abandon.fired() {
            return Told::Nothing;
        }
        if started.elapsed() > OUTCOME_LIMIT {
            break;
        }
        match attempt(targets.at(number), key) {
            Ok(Some(told)) => return told,
            Ok(None) => last = "it was asked to come again".to_owned(),
            Err(error) => last = error.to_string(),
        }
        abandon.wait_at_most(PAUSE);
    }
    Told::Wrong(format!("no outcome within {OUTCOME_LIMIT:?}: {last}"))
}

/// Nothing where it is to be tried again.
fn attempt(to: SocketAddr, key: &str) -> io::Result<Option<Told>> {
    let stream = TcpStream::connect_timeout(&to, CLIENT_PATIENCE)?;
    let mut client = Client::over(Wire::new(stream));
    client.patience(CLIENT_PATIENCE);
    client.try_send_bytes(&post(key).bytes());
    while client.try_read_head()?.status() < 200 {}
    let answer = client.finish();
    if !answer.whole() {
        return Ok(None);
    }
    Ok(match answer.status() {
        200 => Some(Told::Answer(answer.text())),
        _ if answer
            .problem()
            .is_some_and(|is| is.ends_with("outcome-unknown")) =>
        {
            Some(Told::Unknown)
        }
        _ if answer.header("x-should-retry") == Some("true") => None,
        _ => Some(Told::Wrong(format!("{answer:?}"))),
    })
}

/// The executions of each key, in order, as the upstream counted them.
pub fn executions(upstream: &Upstream) -> HashMap<String, Vec<usize>> {
    let mut executions: HashMap<String, Vec<usize>> = HashMap::new();
    for (before, seen) in upstream.seen().iter().enumerate() {
        let key = seen.head.header("idempotency-key").unwrap_or_default();
        executions
            .entry(key.to_owned())
            .or_default()
            .push(before + 1);
    }
    executions
}

/// What came of a load, by the upstream's ledger.
#[derive(Debug, Default)]
pub struct Verdict {
    pub keys: usize,
    pub answered: usize,
    pub unknown: usize,
    /// Keys that ran more than once.
    pub doubles: Vec<String>,
    /// Answers of no execution of their key, or of two, and answers that were taken back.
    pub wrong: Vec<String>,
}

impl Verdict {
    pub fn of(upstream: &Upstream, asked: &[Asked]) -> Self {
        let executions = executions(upstream);
        let mut verdict = Self {
            keys: asked.len(),
            ..Self::default()
        };
        let twice = executions.iter().filter(|(_, runs)| runs.len() > 1);
        verdict.doubles = twice
            .map(|(key, runs)| format!("{key}: {runs:?}"))
            .collect();
        for one in asked {
            let runs = executions.get(&one.key).map_or(&[][..], |runs| runs);
            match one.answer() {
                Some(_) => verdict.answered += 1,
                None if one.told.contains(&Told::Unknown) => verdict.unknown += 1,
                None => {}
            }
            if let Some(what) = fault(one, runs) {
                verdict.wrong.push(format!("{}: {what}", one.key));
            }
        }
        verdict
    }

    /// Nothing ran twice, nothing was answered wrong, and all had an outcome.
    #[track_caller]
    pub fn expect_clean(&self) -> &Self {
        assert!(self.doubles.is_empty(), "ran twice: {:?}", self.doubles);
        assert!(self.wrong.is_empty(), "answered wrong: {:?}", self.wrong);
        assert!(self.answered > 0, "nothing was tested");
        self
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} keys: {} answered, {} unknown; {} ran twice, {} answered wrong",
            self.keys,
            self.answered,
            self.unknown,
            self.doubles.len(),
            self.wrong.len()
        )
    }
}

fn fault(one: &Asked, runs: &[usize]) -> Option<String> {
    let mut answer = None;
    for told in &one.told {
        match told {
            Told::Answer(text) => {
                if !runs.iter().any(|&run| *text == answer_of(run, &one.key)) {
                    return Some(format!("`{text}`, and it ran as {runs:?}"));
                }
                if answer.replace(text).is_some_and(|before| before != text) {
                    return Some(format!("two answers: {:?}", one.told));
                }
            }
            Told::Unknown if answer.is_some() => return Some("it was answered before".to_owned()),
            Told::Wrong(what) => return Some(what.clone()),
            Told::Unknown | Told::Nothing => {}
        }
    }
    None
}
