//! The whole story: a front end asks for a paid report, its connection dies, and the server behind it is
//! killed wherever it can be. One report, one charge and one mail remain.
//!
//! The server is the one of the example `report`, in a process of its own, over the embedded store or over
//! PostgreSQL. Bank, press and post office are here, each with a ledger, and hold their answer where the
//! process is to be killed: before they have done anything, or right after. Between two steps, the server
//! says where it is, and waits.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

#[path = "../examples/report/service.rs"]
mod service;

use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onlyonce_store::{EmbeddedStore, PostgresStore, Store, embedded, postgres};
use onlyonce_testkit::{
    Client, Postgres, Request, Response, ServingExample, Signal, Upstream, eventually, example,
};
use onlyonce_tower::{Once, Settings};
use service::{Elsewhere, Service};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// How the child is told what it is.
const STORE: &str = "ONLYONCE_STORY_STORE";
const PLACES: &str = "ONLYONCE_STORY_PLACES";
const HONOURS: &str = "ONLYONCE_STORY_HONOURS";
const COMPLETES: &str = "ONLYONCE_STORY_COMPLETES";
const STOPS_AT: &str = "ONLYONCE_STORY_STOPS_AT";

const STEPS: [&str; 3] = ["charge", "make", "mail"];

#[test]
#[ignore = "it is the process that other tests start"]
fn child() {
    let Ok(store) = std::env::var(STORE) else {
        return;
    };
    Runtime::new().unwrap().block_on(async {
        if store.starts_with("postgres:") {
            let options = postgres::Options::default();
            let store = PostgresStore::connect(&store, options).await.unwrap();
            serve(store).await;
        } else {
            let options = embedded::Options::default();
            serve(EmbeddedStore::open(Path::new(&store), options).unwrap()).await;
        }
    });
}

async fn serve<S: Store>(store: S) {
    let settings = Settings {
        // A dead process is found out soon.
        lease: Duration::from_secs(1),
        ..Settings::default()
    };
    let once = Once::new(store, settings);
    let honours = std::env::var(HONOURS).unwrap() == "true";
    let places = std::env::var(PLACES).unwrap();
    let mut places = places
        .split(' ')
        .map(|address| Elsewhere::at(address.parse().unwrap(), honours));
    let mut next = || places.next().unwrap();
    let service = Service::new(next(), next(), next(), |place| {
        Box::pin(async move {
            if std::env::var(STOPS_AT).is_ok_and(|stop| stop == place) {
                println!("at {place}");
                std::future::pending::<()>().await;
            }
        })
    });
    let completes = std::env::var(COMPLETES).unwrap() == "true";
    let app = service::app(&once, service, completes);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening {}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

/// The server, in a process of its own.
struct Server {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    addr: SocketAddr,
}

impl Server {
    fn start(case: &Case, elsewhere: &[Place; 3], stops_at: &str, completes: bool) -> Self {
        let places = elsewhere.each_ref().map(|place| place.addr().to_string());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(STORE, &case.store)
            .env(PLACES, places.join(" "))
            .env(HONOURS, case.honours.to_string())
            .env(COMPLETES, completes.to_string())
            .env(STOPS_AT, stops_at)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut server = Self {
            process,
            lines,
            addr: ([127, 0, 0, 1], 0).into(),
        };
        server.addr = server.hears("listening ").parse().unwrap();
        server
    }

    /// What it says next after `word`.
    fn hears(&mut self, word: &str) -> String {
        for line in &mut self.lines {
            // The harness writes on the same lines.
            if let Some((_, said)) = line.unwrap().split_once(word) {
                return said.to_owned();
            }
        }
        panic!("the server ended before it said {word:?}");
    }

    fn kill_9(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn ask(&self) -> Response {
        ask(self.addr)
    }

    /// A caller that asks, and reads nothing.
    fn begin(&self) -> Client {
        begin(self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn begin(addr: SocketAddr) -> Client {
    let mut caller = Client::connect(addr);
    caller.send(&order());
    caller
}

fn ask(addr: SocketAddr) -> Response {
    begin(addr).response()
}

/// Asks as a front end does, which obeys `x-should-retry`.
fn ask_until_told(addr: SocketAddr) -> Response {
    let mut answer = None;
    eventually("an answer that stands", || {
        let response = ask(addr);
        let stands = response.header("x-should-retry") != Some("true");
        answer = stands.then_some(response);
        stands
    });
    answer.unwrap()
}

/// Settles a step: `None` where it did not run.
fn settle(addr: SocketAddr, id: &str, result: Option<usize>) {
    let body = result.map(|result| result.to_string()).unwrap_or_default();
    let request = Request::post(&format!("/settle/{id}")).body(body);
    Client::connect(addr).ask(&request).expect_status(204);
}

/// The step that `answer` says may have run: its operation's id.
fn unknown_step(answer: &Response, step: &str) -> String {
    answer
        .expect_problem(502, "outcome-unknown")
        .expect_retry(false);
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains(&format!("the step {step} may have run")),
        "{detail}"
    );
    let from = detail.find("op_").expect("its id");
    detail[from..from + 39].to_owned()
}

#[track_caller]
fn expect_the_report(answer: &Response) {
    answer.expect_status(200);
    assert_eq!(
        answer.json(),
        serde_json::json!({"month": "October", "charge": 1, "report": 1, "mail": 1})
    );
}

fn order() -> Request {
    Request::post("/reports")
        .key("order-17")
        .header("Authorization", "Bearer front-end")
        .header("Content-Type", "application/json")
        .body(r#"{"month":"October","cents":1999}"#)
}

/// A place elsewhere, with a ledger.
struct Place {
    upstream: Upstream,
    books: Arc<Mutex<Books>>,
}

#[derive(Default)]
struct Books {
    /// The keys of what was done.
    ledger: Vec<String>,
    stop: Option<Stop>,
}

/// Where the next request is held.
#[derive(Clone)]
struct Stop {
    when: When,
    /// It is held.
    held: Signal,
    /// Let it go.
    go: Signal,
    /// Whether it is answered after that.
    answers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Before,
    After,
}

impl Place {
    fn open(honours_keys: bool) -> Self {
        let books = Arc::new(Mutex::new(Books::default()));
        let theirs = books.clone();
        let upstream = Upstream::scripted(move |x| {
            let key = x.key().unwrap().to_owned();
            x.read_body();
            let stop = theirs.lock().unwrap().stop.take();
            let hold = |when| match &stop {
                Some(stop) if stop.when == when => {
                    stop.held.fire();
                    stop.go.wait();
                    !stop.answers
                }
                _ => false,
            };
            if hold(When::Before) {
                return x.reset();
            }
            let number = {
                let ledger = &mut theirs.lock().unwrap().ledger;
                let before = ledger.iter().position(|known| *known == key);
                match before.filter(|_| honours_keys) {
                    Some(before) => before + 1,
                    None => {
                        ledger.push(key);
                        ledger.len()
                    }
                }
            };
            if hold(When::After) {
                return x.reset();
            }
            let json = [("Content-Type", "application/json")];
            x.answer(200, &json, number.to_string().as_bytes());
        });
        Self { upstream, books }
    }

    fn addr(&self) -> SocketAddr {
        self.upstream.addr()
    }

    /// Holds the next request.
    fn hold(&self, when: When, answers: bool) -> Stop {
        let stop = Stop {
            when,
            held: Signal::new(),
            go: Signal::new(),
            answers,
        };
        self.books.lock().unwrap().stop = Some(stop.clone());
        stop
    }

    fn done(&self) -> usize {
        self.books.lock().unwrap().ledger.len()
    }
}

/// Where the process is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    Between(&'static str),
    Within(usize, When),
}

const KILLS: [Kill; 10] = [
    Kill::Between("begun"),
    Kill::Within(0, When::Before),
    Kill::Within(0, When::After),
    Kill::Between("charged"),
    Kill::Within(1, When::Before),
    Kill::Within(1, When::After),
    Kill::Between("made"),
    Kill::Within(2, When::Before),
    Kill::Within(2, When::After),
    Kill::Between("mailed"),
];

/// One way through the story.
#[derive(Clone, Debug)]
struct Case {
    store: String,
    kill: Kill,
    /// Whether those elsewhere honour keys.
    honours: bool,
    /// Who goes on: the completer, or else the front end, which asks again.
    completes: bool,
}

fn done(places: &[Place; 3]) -> [usize; 3] {
    places.each_ref().map(Place::done)
}

impl Case {
    fn play(&self) {
        println!("{self:?}");
        let places = [(); 3].map(|()| Place::open(self.honours));
        self.kill(&places);
        let server = Server::start(self, &places, "", self.completes);
        match self.kill {
            Kill::Within(step, when) if !self.honours => self.settled(&server, &places, step, when),
            _ => self.continued(&server, &places),
        }
    }

    /// Up to the moment when the process is killed: the server is there, its caller waits.
    fn reach(&self, places: &[Place; 3]) -> (Server, Client, Option<Stop>) {
        match self.kill {
            Kill::Between(place) => {
                let mut server = Server::start(self, places, place, false);
                let caller = server.begin();
                assert_eq!(server.hears("at "), place);
                (server, caller, None)
            }
            Kill::Within(step, when) => {
                let stop = places[step].hold(when, false);
                let server = Server::start(self, places, "", false);
                let caller = server.begin();
                stop.held.wait();
                (server, caller, Some(stop))
            }
        }
    }

    fn kill(&self, places: &[Place; 3]) {
        let (server, _caller, stop) = self.reach(places);
        server.kill_9();
        if let Some(stop) = stop {
            stop.go.fire();
        }
    }

    /// It goes on, and each thing is done once.
    fn continued(&self, server: &Server, places: &[Place; 3]) {
        // Where all was done already, the front end may be the first to ask for the answer.
        let is_left = done(places) != [1, 1, 1];
        if self.completes {
            // Nobody asks.
            eventually("the completer has gone on", || done(places) == [1, 1, 1]);
        }
        let report = ask_until_told(server.addr);
        expect_the_report(&report);
        if self.completes && is_left {
            assert_ne!(
                report.mark(),
                Some("executed"),
                "the completer has executed it"
            );
        }
        let again = server.ask();
        again.expect_status(200).expect_mark("replayed");
        assert_eq!(again.text(), report.text());
        assert_eq!(done(places), [1, 1, 1]);
    }

    /// Nobody can say whether the step ran, so it stops there until somebody has looked.
    fn settled(&self, server: &Server, places: &[Place; 3], step: usize, when: When) {
        let mut so_far = [0, 1, 2].map(|at| usize::from(at < step));
        so_far[step] = usize::from(when == When::After);
        let mut id = String::new();
        for _ in 0..3 {
            id = unknown_step(&ask_until_told(server.addr), STEPS[step]);
            assert_eq!(done(places), so_far);
        }
        let ran = (when == When::After).then_some(1);
        settle(server.addr, &id, ran);
        self.continued(server, places);
    }
}

/// Every way through the story, a few at a time. `store` gives each a store of its own.
fn play_all(ways: &[(bool, bool)], store: impl Fn(usize) -> String + Sync) {
    let cases = ways.iter().flat_map(|way| KILLS.map(|kill| (kill, *way)));
    let cases: Vec<_> = cases.enumerate().collect();
    let store = &store;
    std::thread::scope(|scope| {
        for cases in cases.chunks(cases.len().div_ceil(4)) {
            scope.spawn(move || {
                for (number, (kill, (honours, completes))) in cases {
                    let case = Case {
                        store: store(*number),
                        kill: *kill,
                        honours: *honours,
                        completes: *completes,
                    };
                    case.play();
                }
            });
        }
    });
}

#[test]
fn i01_a_front_end_whose_connection_died_gets_the_first_report_and_one_charge() {
    let folder = tempfile::tempdir().unwrap();
    let places = [(); 3].map(|()| Place::open(false));
    let case = Case {
        store: folder.path().join("data").display().to_string(),
        kill: Kill::Between("begun"),
        honours: false,
        completes: false,
    };
    let server = Server::start(&case, &places, "", false);
    let press = places[1].hold(When::After, true);
    let first = server.begin();
    press.held.wait();
    first.reset();
    let mut again = server.begin();
    press.go.fire();
    let report = again.response();
    expect_the_report(&report);
    assert_ne!(report.mark(), Some("executed"));
    assert_eq!(done(&places), [1, 1, 1]);
}

#[test]
fn i01_one_order_outlives_dropped_connections_and_a_kill_at_every_step_and_between() {
    let folder = tempfile::tempdir().unwrap();
    let places = [(); 3].map(|()| Place::open(true));
    let case = |kill| Case {
        store: folder.path().join("data").display().to_string(),
        kill,
        honours: true,
        completes: false,
    };
    for kill in KILLS {
        println!("{kill:?}");
        let (server, caller, stop) = case(kill).reach(&places);
        // The connection dies, the front end asks again with its key, and then the server dies under it.
        caller.reset();
        let _again = server.begin();
        server.kill_9();
        if let Some(stop) = stop {
            stop.go.fire();
        }
    }
    let start = || Server::start(&case(Kill::Between("")), &places, "", false);
    let server = start();
    let mut caller = server.begin();
    let first = caller.read_head();
    // In the middle of the answer.
    caller.reset();
    let report = server.ask();
    expect_the_report(&report);
    report.expect_mark("replayed");
    let operation = first.header("onlyonce-operation");
    assert!(operation.is_some());
    assert_eq!(report.header("onlyonce-operation"), operation);
    server.kill_9();

    let again = start().ask();
    again.expect_mark("replayed");
    assert_eq!(again.text(), report.text());
    assert_eq!(done(&places), [1, 1, 1]);
}

/// The numbers of lines in the ledgers of the example `report`.
fn ledgers(folder: &Path) -> [usize; 3] {
    STEPS.map(|step| {
        let ledger = std::fs::read_to_string(folder.join(format!("{step}.ledger")));
        ledger.map_or(0, |ledger| ledger.lines().count())
    })
}

#[test]
fn the_example_report_dies_in_each_step_and_its_ledgers_have_each_thing_once() {
    let report = |folder: &Path, words: &[&str]| {
        let mut command = example("report");
        command.arg("127.0.0.1:0").arg("--folder").arg(folder);
        ServingExample::start(command.args(words))
    };
    for (number, step) in STEPS.into_iter().enumerate() {
        for keyless in [&[][..], &["--keyless"]] {
            println!("{step} {keyless:?}");
            let folder = tempfile::tempdir().unwrap();
            let dying = report(folder.path(), &[keyless, &["--die-in", step]].concat());
            let _caller = begin(dying.addr);
            assert_eq!(dying.died().code(), None, "it was to abort");
            let so_far = [0, 1, 2].map(|at| usize::from(at <= number));
            assert_eq!(ledgers(folder.path()), so_far);

            let server = report(folder.path(), keyless);
            if !keyless.is_empty() {
                let id = unknown_step(&ask_until_told(server.addr), step);
                settle(server.addr, &id, Some(1));
            }
            expect_the_report(&ask_until_told(server.addr));
            assert_eq!(ledgers(folder.path()), [1, 1, 1]);
        }
    }
}

#[test]
fn hostile_094_killed_anywhere_one_report_one_charge_and_one_mail_remain() {
    let folder = tempfile::tempdir().unwrap();
    let ways = [(true, true), (true, false), (false, true), (false, false)];
    play_all(&ways, |number| {
        folder.path().join(number.to_string()).display().to_string()
    });
}

#[test]
fn hostile_094_killed_anywhere_over_postgres_one_report_one_charge_and_one_mail_remain() {
    let server = Postgres::start(&[]);
    let runtime = Runtime::new().unwrap();
    play_all(&[(true, true), (false, false)], |number| {
        let url = format!("{}?schema=story_{number}", server.url());
        let options = postgres::Options::default();
        runtime.block_on(postgres::migrate(&url, &options)).unwrap();
        url
    });
}
