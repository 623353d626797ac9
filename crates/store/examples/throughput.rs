//! How many operations a second a store claims and completes, durably, and how many it replays.
//!
//! ```text
//! cargo run --release -p onlyonce-store --example throughput -- [WAITING] [SECONDS] [FOLDER | URL] [books]
//! ```
//!
//! With `books`, each operation has an entry, and they are booked every second.

use std::{
    env,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlyonce_core::{
    Address, Basis, Cost, Fingerprint, Got, Head, HeaderBlock, Key, Metered, OperationId, OwnerId,
    Record, RequestLine, Scope, Source, Unit, Usd,
    transition::{self, Claim, Response},
};
use onlyonce_store::{AttemptNote, EmbeddedStore, Store, Write, address, embedded::Options};
use parking_lot::Mutex;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let waiting: u64 = args.next().map_or(Ok(64), |text| text.parse())?;
    let seconds: u64 = args.next().map_or(Ok(5), |text| text.parse())?;
    let place = args.next().unwrap_or("./throughput-data".into());
    let books = args.next().is_some_and(|arg| arg == "books");
    if place.starts_with("postgres://") {
        return run_postgres(&place, waiting, seconds, books);
    }
    let store = EmbeddedStore::open(place.as_ref(), Options::default())?;
    run(&Arc::new(store), waiting, seconds, books)
}

#[cfg(feature = "postgres")]
fn run_postgres(url: &str, waiting: u64, seconds: u64, books: bool) -> Result<(), Box<dyn Error>> {
    use onlyonce_store::postgres::{self, Options, PostgresStore};

    let store = runtime()?.block_on(async {
        postgres::migrate(url, &Options::default()).await?;
        PostgresStore::connect(url, Options::default()).await
    })?;
    run(&Arc::new(store), waiting, seconds, books)
}

#[cfg(not(feature = "postgres"))]
fn run_postgres(_: &str, _: u64, _: u64, _: bool) -> Result<(), Box<dyn Error>> {
    Err("build it with --features postgres".into())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// New keys first, then answers to them again.
fn run<S: Store>(
    store: &Arc<S>,
    waiting: u64,
    seconds: u64,
    books: bool,
) -> Result<(), Box<dyn Error>> {
    let before = store.status();
    let keys = Arc::new(Mutex::new(Vec::new()));
    let until = Instant::now() + Duration::from_secs(seconds);
    on_two_threads(waiting, |worker| {
        work(store.clone(), worker, until, keys.clone(), books)
    })?;
    let after = store.status();
    let operations = keys.lock().len() as u64;
    let commits = (after.commits - before.commits).max(1);
    println!("{waiting} waiting: {} operations/s", operations / seconds);
    println!(
        "{} commits/s, {:.1} writes a commit",
        commits / seconds,
        (after.committed_writes - before.committed_writes) as f64 / commits as f64
    );
    println!(
        "{} bytes an operation",
        (after.bytes - before.bytes) / operations.max(1)
    );

    let replays = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(seconds);
    on_two_threads(waiting, |worker| {
        replay(store.clone(), worker, until, keys.clone(), replays.clone())
    })?;
    let replays = replays.load(Ordering::Relaxed);
    println!("{waiting} waiting: {} replays/s", replays / seconds);
    Ok(())
}

fn on_two_threads<F: Future<Output = ()> + Send + 'static>(
    tasks: u64,
    task: impl Fn(u64) -> F + Sync,
) -> Result<(), Box<dyn Error>> {
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|thread| {
            let task = &task;
            scope.spawn(move || -> std::io::Result<()> {
                let share = (tasks + thread) / 2;
                let tasks = (0..share).map(|number| task(thread << 32 | number << 16));
                runtime()?.block_on(async {
                    for task in tasks.map(tokio::spawn).collect::<Vec<_>>() {
                        if let Err(panic) = task.await {
                            std::panic::resume_unwind(panic.into_panic());
                        }
                    }
                });
                Ok(())
            })
        });
        for thread in threads {
            thread.join().map_err(|_| "a worker panicked")??;
        }
        Ok(())
    })
}

type Keys = Arc<Mutex<Vec<(Address, OperationId)>>>;

async fn replay<S: Store>(
    store: Arc<S>,
    worker: u64,
    until: Instant,
    keys: Keys,
    replays: Arc<AtomicU64>,
) {
    let keys = keys.lock().clone();
    let mut at = worker as usize;
    while Instant::now() < until && !keys.is_empty() {
        // A prime step visits them all.
        at = (at + 7_919) % keys.len();
        let (address, id) = keys[at];
        let note = AttemptNote {
            peer: "127.0.0.1:40000".into(),
            sdk_retry_count: None,
            trace: None,
            got: Got::Replayed,
            at: None,
        };
        let loaded = store.load(address).await;
        let noted = store.note_attempt(address, id, note).await;
        if let (Ok(Some(_)), Ok(_)) = (&loaded, &noted) {
            replays.fetch_add(1, Ordering::Relaxed);
        } else {
            eprintln!("replay: {:?} {noted:?}", loaded.err());
            return;
        }
    }
}

/// Books every second.
async fn book<S: Store>(store: Arc<S>, until: Instant) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    while Instant::now() < until {
        every.tick().await;
        loop {
            match store.book().await {
                Ok(booked) if booked.more => {}
                Ok(_) => break,
                Err(error) => return eprintln!("book: {error}"),
            }
        }
    }
}

/// What an answer of a model has used.
fn metered() -> Metered {
    Metered {
        provider: "openai".into(),
        model: "gpt-5-mini-2025-08-07".into(),
        request_model: "gpt-5-mini".into(),
        response_id: "chatcmpl-CgJ0yqYpQdQ1Xw5N7aVbKc2eR3tU4".into(),
        operation: "chat".into(),
        usage: [(Unit::Input, 1_234), (Unit::Output, 345)]
            .into_iter()
            .collect(),
        source: Source::Provider,
        cost: Some(Cost {
            amount: Usd::from_nanos(998_500),
            basis: Basis::Table,
            version: "2026-11-01".into(),
        }),
        ..Metered::default()
    }
}

async fn work<S: Store>(store: Arc<S>, worker: u64, until: Instant, keys: Keys, books: bool) {
    if books && worker == 0 {
        tokio::spawn(book(store.clone(), until));
    }
    let started = store.now().as_millis();
    // Half of what stands in an answer repeats, as in JSON, and half does not.
    let body: String = (0..40)
        .map(|line: u64| {
            format!(
                "{{\"token\":\"{:016x}\"}},",
                line.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            )
        })
        .collect();
    let body = Bytes::from(body).slice(..1000);
    for number in 0u64.. {
        if Instant::now() >= until {
            return;
        }
        let mut random = [0; 10];
        random[..8].copy_from_slice(&(worker << 20 | number).to_be_bytes());
        let now = store.now();
        let scope = Scope {
            tenant: "cred_0123456789abcdef0123456789abcdef".into(),
            namespace: "default".into(),
        };
        let Ok(key) = Key::new(&format!("{started:016x}-{worker:010x}-{number:08x}")) else {
            return;
        };
        let at = address(store.secret(), &scope, &key);
        let claim = Claim {
            id: OperationId::new(now.as_millis(), &random),
            scope,
            key,
            fingerprint: Fingerprint::from_bytes([7; 32]),
            request: RequestLine {
                route: "default".into(),
                method: "POST".into(),
                path: "/v1/chat/completions".into(),
                trace: None,
            },
            owner: OwnerId::new(1),
            raise: std::num::NonZero::<u32>::MIN,
        };
        let Ok(record) = transition::claim(None, claim, now, Duration::from_secs(30)) else {
            return;
        };
        let attempt = AttemptNote {
            peer: "127.0.0.1:40000".into(),
            sdk_retry_count: None,
            trace: None,
            got: Got::Executed,
            at: None,
        };
        let write = Write {
            record: record.clone(),
            last_chunk: None,
            attempt: Some(attempt),
        };
        if let Err(error) = store.compare_and_set(at, None, write).await {
            eprintln!("claim: {error}");
            return;
        }
        let headers = HeaderBlock::pack([
            (&b"content-type"[..], &b"application/json"[..]),
            (b"content-length", b"1000"),
            (b"date", b"Wed, 25 Nov 2026 03:00:00 GMT"),
            (b"server", b"nginx/1.22.1"),
        ]);
        let head = Head {
            status: 200,
            headers: headers.unwrap_or_default(),
        };
        let response = Response {
            head,
            trailers: HeaderBlock::default(),
            body_len: 1000,
            chunks: 1,
        };
        let window = Duration::from_secs(86400);
        let fence = record.fence();
        let Ok(next) = transition::complete(Some(&record), fence, response, store.now(), window)
        else {
            return;
        };
        let next = Record {
            metered: books.then(|| Box::new(metered())),
            ..next
        };
        let write = Write {
            record: next,
            last_chunk: Some(body.clone()),
            attempt: None,
        };
        if let Err(error) = store.compare_and_set(at, Some(fence), write).await {
            eprintln!("complete: {error}");
            return;
        }
        keys.lock().push((at, record.id));
    }
}
