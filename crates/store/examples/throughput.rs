//! How many operations a second the embedded store claims and completes, durably.
//!
//! ```text
//! cargo run --release -p onlyonce-store --example throughput -- [WAITING] [SECONDS] [FOLDER]
//! ```

use std::{
    env,
    error::Error,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlyonce_core::{
    Fingerprint, Got, Head, HeaderBlock, Key, OperationId, OwnerId, RequestLine, Scope,
    transition::{self, Claim, Response},
};
use onlyonce_store::{AttemptNote, EmbeddedStore, Store, Write, address, embedded::Options};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let waiting: u64 = args.next().map_or(Ok(64), |text| text.parse())?;
    let seconds: u64 = args.next().map_or(Ok(5), |text| text.parse())?;
    let folder = args
        .next()
        .map_or_else(|| PathBuf::from("./throughput-data"), PathBuf::from);
    let store = EmbeddedStore::open(&folder, Options::default())?;
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(seconds);
    let before = store.status();

    let threads: Vec<_> = (0..2u64)
        .map(|thread| {
            let (store, done) = (store.clone(), done.clone());
            std::thread::spawn(move || -> std::io::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let share = (waiting + thread) / 2;
                    let tasks = (0..share).map(|task| {
                        let (store, done) = (store.clone(), done.clone());
                        tokio::spawn(work(store, thread << 32 | task << 16, until, done))
                    });
                    for task in tasks.collect::<Vec<_>>() {
                        if let Err(panic) = task.await {
                            std::panic::resume_unwind(panic.into_panic());
                        }
                    }
                });
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a worker panicked")??;
    }

    let after = store.status();
    let operations = done.load(Ordering::Relaxed);
    let commits = (after.commits - before.commits).max(1);
    println!("{waiting} waiting: {} operations/s", operations / seconds);
    println!(
        "{} commits/s, {:.1} writes a commit",
        commits / seconds,
        (after.committed_writes - before.committed_writes) as f64 / commits as f64
    );
    println!(
        "{} bytes of log an operation",
        (after.bytes - before.bytes) / operations.max(1)
    );
    Ok(())
}

async fn work(store: EmbeddedStore, worker: u64, until: Instant, done: Arc<AtomicU64>) {
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
            },
            owner: OwnerId::new(1),
        };
        let Ok(record) = transition::claim(None, claim, now, Duration::from_secs(30)) else {
            return;
        };
        let attempt = AttemptNote {
            peer: "127.0.0.1:40000".into(),
            sdk_retry_count: None,
            got: Got::Executed,
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
        let write = Write {
            record: next,
            last_chunk: Some(body.clone()),
            attempt: None,
        };
        if let Err(error) = store.compare_and_set(at, Some(fence), write).await {
            eprintln!("complete: {error}");
            return;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}
