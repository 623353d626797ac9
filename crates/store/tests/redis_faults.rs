//! The Redis store on servers that are not as they should be, and on servers that fail.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use onlyonce_core::{
    Address, Count, Fingerprint, Got, Head, HeaderBlock, Key, OperationId, OwnerId, Record,
    ReleaseReason, RequestLine, Scope, State, StateName, Timestamp, UnknownReason,
    transition::{self, Claim, Response},
};
use onlyonce_store::{
    AttemptNote, Books, Query, RedisStore, Seen, Shown, Store, StoreError, Swap, Write,
    books::{Advance, Begin, DeadLetter, EntryQuery, Grain, Hold, Of, SumsQuery},
    clock::ManualClock,
    embedded::EncryptionKeys,
    redis::{OpenError, Options, Refusal},
};
use onlyonce_testkit::{
    Between, PATIENCE, RedisCluster, RedisPair, RedisServer, SYNCED, eventually, eventually_within,
};
use tokio::runtime::Handle;

const LEASE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(3600);

async fn open(url: &str) -> RedisStore {
    open_with(url, Duration::from_secs(10)).await
}

async fn open_with(url: &str, response_timeout: Duration) -> RedisStore {
    let options = Options {
        response_timeout,
        ..Options::default()
    };
    RedisStore::open(url, options).await.expect("it opens")
}

async fn refused(url: &str) -> OpenError {
    let opened = RedisStore::open(url, Options::default()).await;
    let error = opened.expect_err("it must not open");
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    error
}

struct Kept {
    address: Address,
    record: Record,
}

fn new_claim(store: &RedisStore, key: &str) -> Kept {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let scope = Scope {
        tenant: "acme".into(),
        namespace: "openai".into(),
    };
    let key = Key::new(key).expect("a key");
    let address = onlyonce_store::address(store.secret(), &scope, &key);
    let claim = Claim {
        id: OperationId::new(store.now().as_millis(), &random),
        scope,
        key,
        fingerprint: Fingerprint::from_bytes([7; 32]),
        request: RequestLine::default(),
        owner: OwnerId::new(number),
        raise: std::num::NonZero::<u32>::MIN,
    };
    let record = transition::claim(None, claim, store.now(), LEASE).expect("a new key");
    Kept { address, record }
}

fn owner(kept: &Kept) -> OwnerId {
    match kept.record.state {
        State::InFlight { owner, .. } => owner,
        ref state => panic!("{state:?} has no owner"),
    }
}

async fn put_claim(store: &RedisStore, kept: &Kept) -> Result<Swap, StoreError> {
    let attempt = AttemptNote {
        peer: "192.0.2.7:4711".into(),
        sdk_retry_count: None,
        trace: None,
        got: Got::Executed,
        at: None,
    };
    let write = Write {
        record: kept.record.clone(),
        last_chunk: None,
        attempt: Some(attempt),
    };
    store.compare_and_set(kept.address, None, write).await
}

async fn claim(store: &RedisStore, key: &str) -> Result<Kept, StoreError> {
    let kept = new_claim(store, key);
    match put_claim(store, &kept).await? {
        Swap::Done { .. } => Ok(kept),
        Swap::Lost => panic!("{key} was claimed before"),
    }
}

async fn complete(store: &RedisStore, kept: &Kept, body: Bytes) -> Result<Record, StoreError> {
    let response = Response {
        head: Head::default(),
        trailers: HeaderBlock::default(),
        body_len: body.len() as u64,
        chunks: 1,
    };
    let (held, fence) = (Some(&kept.record), kept.record.fence());
    let mut next =
        transition::complete(held, fence, response, store.now(), WINDOW).expect("running");
    next.metered = Some(Box::default());
    let write = Write {
        record: next.clone(),
        last_chunk: Some(body),
        attempt: None,
    };
    match store
        .compare_and_set(kept.address, Some(fence), write)
        .await?
    {
        Swap::Done { .. } => Ok(next),
        Swap::Lost => panic!("{} was overtaken", kept.record.id),
    }
}

/// The completed operations that the books sum up.
async fn operations(store: &RedisStore) -> i64 {
    let query = SumsQuery {
        grain: Grain::Day,
        since: Timestamp::from_millis(0),
        until: store.now().after(Duration::from_secs(2 * 86_400)),
        of: Of::All,
    };
    let cells = store.sums(query).await.expect("sums");
    let operations = cells.iter().map(|cell| cell.sums.get(Count::Operations));
    operations.sum()
}

async fn lose(store: &RedisStore, kept: &Kept) -> Result<Swap, StoreError> {
    let (held, fence) = (Some(&kept.record), kept.record.fence());
    let next = transition::lose(held, fence, UnknownReason::Broke, store.now()).expect("running");
    let write = Write {
        record: next,
        last_chunk: None,
        attempt: None,
    };
    store
        .compare_and_set(kept.address, Some(fence), write)
        .await
}

/// Bytes that do not pack.
fn noise(len: usize) -> Bytes {
    let mut state = 1u64;
    let step = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(step).take(len).collect()
}

/// Claims new keys until one is taken.
async fn resumes(store: &RedisStore, name: &str) {
    let start = Instant::now();
    for number in 0.. {
        match claim(store, &format!("{name}-{number}")).await {
            Ok(_) => return,
            Err(error) => assert!(start.elapsed() < PATIENCE, "not resumed: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

mod opening {
    use super::*;

    #[tokio::test]
    async fn a_server_that_drops_keys_is_refused() {
        let server = RedisServer::start(&["--maxmemory-policy", "allkeys-lru"]);
        let error = refused(&server.url()).await;
        assert!(matches!(error, OpenError::Server(Refusal::Evicting { .. })));
        assert!(error.to_string().contains("allkeys-lru"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_begins_to_drop_keys_is_refused_when_it_is_next_connected_to() {
        let server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
        server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        let claimed = (claim(&store, "k").await).map(drop);
        let error = match claimed {
            // What was under way when the connection broke.
            Err(StoreError::InDoubt(_)) => claim(&store, "k2").await.map(drop),
            other => other,
        };
        let error = error.expect_err("it evicts");
        assert!(error.to_string().contains("volatile-ttl"), "{error}");
    }

    #[tokio::test]
    async fn a_replica_is_refused() {
        let master = RedisServer::start(&[]);
        let of = format!("127.0.0.1 {}", master.port());
        let replica = RedisServer::start(&["--replicaof", &of]);
        let error = refused(&replica.url()).await;
        assert!(matches!(error, OpenError::Server(Refusal::Replica { .. })));
    }

    #[tokio::test]
    async fn a_wrong_password_is_one_clear_line() {
        let server = RedisServer::start(&["--requirepass", "sesame"]);
        let place = format!("127.0.0.1:{}", server.port());
        for url in [
            format!("redis://{place}"),
            format!("redis://:mustard@{place}"),
            format!("redis://nobody:mustard@{place}"),
        ] {
            let error = refused(&url).await;
            let login = matches!(error, OpenError::Server(Refusal::Login { .. }));
            assert!(login, "{url}: {error}");
            assert!(!error.to_string().contains("mustard"), "{error}");
        }
        open(&server.url()).await;
    }

    #[tokio::test]
    async fn a_missing_right_is_one_clear_line() {
        let server = RedisServer::start(&[]);
        server.command(&[
            "ACL", "SETUSER", "weak", "on", ">pw", "~*", "+get", "+hello",
        ]);
        let url = format!("redis://weak:pw@127.0.0.1:{}", server.port());
        let error = refused(&url).await;
        let login = matches!(error, OpenError::Server(Refusal::Login { .. }));
        assert!(login, "{error}");
    }

    #[tokio::test]
    async fn nobody_there_is_one_clear_line() {
        let mut server = RedisServer::start(&[]);
        let url = server.url();
        server.kill();
        for url in [
            url.clone(),
            url.replace("redis://", "redis+cluster://"),
            url.replace("redis://", "redis+sentinel://") + "?master=main",
        ] {
            let error = refused(&url).await;
            let unreachable = matches!(error, OpenError::Server(Refusal::Unreachable { .. }));
            assert!(unreachable, "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_one_clear_line() {
        let server = RedisServer::start(&[]);
        server.pause();
        let start = Instant::now();
        let options = Options {
            connect_timeout: Duration::from_millis(300),
            ..Options::default()
        };
        let opened = RedisStore::open(&server.url(), options).await;
        let error = opened.expect_err("it does not answer").to_string();
        assert!(error.contains("in time"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
        server.resume();
    }

    #[tokio::test]
    async fn a_cluster_and_a_server_are_not_taken_for_each_other() {
        let server = RedisServer::start(&[]);
        let error = refused(&server.url().replace("redis:", "redis+cluster:")).await;
        let told = matches!(error, OpenError::Server(Refusal::NotInCluster { .. }));
        assert!(told, "{error}");

        let node = RedisServer::start(&["--cluster-enabled", "yes"]);
        let error = refused(&node.url()).await;
        let told = matches!(error, OpenError::Server(Refusal::InCluster { .. }));
        assert!(told, "{error}");
    }

    #[tokio::test]
    async fn a_master_that_no_sentinel_knows_is_one_clear_line() {
        let pair = RedisPair::start(&[]);
        let error = refused(&pair.url().replace("=main", "=minor")).await;
        let told =
            matches!(&error, OpenError::Server(Refusal::NoMaster { master }) if master == "minor");
        assert!(told, "{error}");
    }

    #[tokio::test]
    async fn what_is_not_synced_is_warned_of() {
        let warned = async |server: &RedisServer, url: &str, of: &str| {
            let store = open(url).await;
            let [warning] = store.warnings() else {
                panic!("{:?}", store.warnings());
            };
            assert!(warning.contains(of), "{warning}");
            assert!(warning.contains("appendfsync"), "{warning}");
            assert!(!server.log().is_empty());
        };
        let unlogged = RedisServer::start(&[]);
        warned(&unlogged, &unlogged.url(), "keeps no log").await;
        let lazy = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
        warned(&lazy, &lazy.url(), "before it syncs").await;
        let options = [&SYNCED[..], &["--no-appendfsync-on-rewrite", "yes"]].concat();
        let now_and_then = RedisServer::start(&options);
        warned(&now_and_then, &now_and_then.url(), "before it syncs").await;

        // As managed services have it.
        let synced = RedisServer::start(&SYNCED);
        assert!(open(&synced.url()).await.warnings().is_empty());
        synced.command(&[
            "ACL", "SETUSER", "tenant", "on", ">pw", "~*", "&*", "+@all", "-config",
        ]);
        let url = format!("redis://tenant:pw@127.0.0.1:{}", synced.port());
        warned(&synced, &url, "does not tell").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_rights_that_the_page_names_are_enough() {
        let page = include_str!("../../../docs/redis.md");
        let rights = page.lines().find(|line| line.starts_with("ACL SETUSER"));
        let rights: Vec<&str> = rights.expect("a line of rights").split(' ').collect();
        let server = RedisServer::start(&SYNCED);
        assert_eq!(server.command(&rights), "OK");
        let url = format!("redis://onlyonce:PASSWORD@127.0.0.1:{}", server.port());
        let store = open(&url).await;
        assert!(store.warnings().is_empty(), "{:?}", store.warnings());

        let kept = claim(&store, "k").await.expect("claimed");
        let (address, id) = (kept.address, kept.record.id);
        let recording = kept.record.recording();
        let chunk = noise(100);
        store
            .append(address, recording, 0, chunk.clone())
            .await
            .expect("appended");
        let follows = store.clone();
        let owner = owner(&kept);
        let following = tokio::spawn(async move {
            let seen = Seen::default();
            follows
                .follow(address, recording, owner, seen, PATIENCE)
                .await
        });
        assert_eq!(store.followed(owner).await.expect("asked"), [address]);
        let shown = Shown {
            in_chunks: 100,
            bytes: noise(10),
            from: 100,
            ..Shown::default()
        };
        store
            .show(address, recording, shown.clone())
            .await
            .expect("shown");
        let seen = following.await.expect("no panic");
        assert_eq!(seen.expect("an answer"), Some(shown));
        assert!(!server.command(&["PUBSUB", "SHARDCHANNELS"]).is_empty());
        assert_eq!(
            store.read(address, recording, 0).await.expect("a chunk"),
            chunk
        );
        let note = AttemptNote {
            peer: "".into(),
            sdk_retry_count: None,
            trace: None,
            got: Got::Joined,
            at: None,
        };
        assert_eq!(
            store.note_attempt(address, id, note).await.expect("noted"),
            2
        );
        assert_eq!(store.attempts(address, id).await.expect("a list").len(), 2);
        assert_eq!(store.find(id).await.expect("an answer"), Some(address));
        store.overdue(10).await.expect("a list");
        let record = complete(&store, &kept, noise(10)).await.expect("completed");
        let query = Query {
            limit: 10,
            ..Query::default()
        };
        assert_eq!(store.list(query).await.expect("a page").records.len(), 1);
        use_the_books(&store).await;
        store.sweep().await.expect("a sweep");
        assert!(
            store
                .remove(address, record.fence())
                .await
                .expect("removed")
        );
    }

    /// All that can be done with books that hold one entry, which is not booked yet.
    async fn use_the_books(store: &RedisStore) {
        assert_eq!(store.book().await.expect("booked").entries, 1);
        assert_eq!(store.book().await.expect("booked").entries, 0);
        let feed = store.feed(None, 10).await.expect("a feed");
        let query = EntryQuery {
            limit: 10,
            ..EntryQuery::default()
        };
        let page = store.entries(query).await.expect("a page");
        assert_eq!(page.entries, [feed[0].1.clone()]);
        store
            .post(vec![page.entries[0].posting()])
            .await
            .expect("posted");
        assert_eq!(operations(store).await, 2);
        let hold = Hold {
            sink: "a".into(),
            owner: OwnerId::new(1),
            lease: LEASE,
            begin: Begin::Start,
        };
        assert!(store.hold(hold).await.expect("an answer").is_some());
        let step = Advance {
            sink: "a".into(),
            owner: OwnerId::new(1),
            from: None,
            to: feed[0].0,
            bury: vec![DeadLetter {
                entry: feed[0].1.clone(),
                since: store.now(),
                tries: 1,
                why: "gone".into(),
            }],
        };
        assert!(store.advance(step.clone()).await.expect("an answer"));
        assert_eq!(store.dead("a", None, 10).await.expect("a list"), step.bury);
        let forgotten = store.forget_dead("a", &[feed[0].1.id]).await;
        assert_eq!(forgotten.expect("forgotten"), 1);
        let later = store.now().after(Duration::from_secs(2 * 86_400));
        assert_eq!(store.trim(later).await.expect("trimmed").records, 1);
        assert_eq!(operations(store).await, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_is_loading_is_waited_for() {
        // A millisecond a key, and connections are served in between.
        let mut server = RedisServer::start(&[
            "--key-load-delay",
            "1000",
            "--loading-process-events-interval-bytes",
            "1024",
        ]);
        let store = open(&server.url()).await;
        for number in 0..500 {
            claim(&store, &format!("k{number}")).await.expect("claimed");
        }
        assert_eq!(server.command(&["SAVE"]), "OK");
        let (url, port) = (server.url(), server.port());
        server.kill();
        let opened = tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| server.restart());
                eventually("it is loading", || {
                    ping(port).is_ok_and(|answer| answer.starts_with("-LOADING"))
                });
                Handle::current().block_on(RedisStore::open(&url, Options::default()))
            })
        });
        assert_eq!(opened.expect("it waits").status().records, 500);
    }

    fn ping(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"PING\r\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    }

    #[tokio::test]
    async fn a_store_without_its_secret_is_refused() {
        let server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        claim(&store, "k").await.expect("claimed");
        let meta = server.command(&["KEYS", "*:meta"]);
        for spoil in [&["SET", &meta, "1ONCERED, or so"][..], &["DEL", &meta]] {
            server.command(spoil);
            let error = refused(&server.url()).await;
            assert!(matches!(error, OpenError::Meta(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn gateways_that_start_at_once_share_one_secret() {
        let server = RedisServer::start(&[]);
        let url = server.url();
        let stores = join_all((0..20).map(|_| open(&url))).await;
        assert!(stores.iter().all(|one| one.secret() == stores[0].secret()));
        let other = open(&format!("{url}?prefix=another")).await;
        assert_ne!(other.secret(), stores[0].secret());
    }

    #[tokio::test]
    async fn it_speaks_tls_and_trusts_nobody_else() {
        let authority =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
        std::fs::write(&cert, authority.cert.pem()).expect("a file");
        std::fs::write(&key, authority.signing_key.serialize_pem()).expect("a file");
        let (cert, key) = (cert.to_str().expect("text"), key.to_str().expect("text"));
        let server = RedisServer::start_tls(cert, key);
        let url = format!("rediss://127.0.0.1:{}", server.tls_port());
        let error = refused(&url).await;
        let distrusts = matches!(error, OpenError::Server(Refusal::Unreachable { .. }));
        assert!(distrusts, "{error}");

        let options = Options {
            root_certificates: Some(authority.cert.pem().into_bytes()),
            ..Options::default()
        };
        let store = RedisStore::open(&url, options).await.expect("it opens");
        claim(&store, "k").await.expect("claimed");
    }
}

mod failing {
    use super::*;

    #[tokio::test]
    async fn hostile_089_a_full_server_takes_no_claim_and_works_again_when_there_is_space() {
        let server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        let running = claim(&store, "running").await.expect("claimed");
        let to_remove = claim(&store, "remove").await.expect("claimed");
        server.command(&["CONFIG", "SET", "maxmemory", "4mb"]);
        let mut number = 0;
        let error = loop {
            number += 1;
            assert!(number < 1_000, "it is never full");
            let filled = match claim(&store, &format!("k{number}")).await {
                Ok(kept) => complete(&store, &kept, noise(100_000)).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = filled {
                break error;
            }
        };
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        assert!(error.to_string().contains("maxmemory"), "{error}");
        // What was refused gave its own memory back: take that away too.
        server.command(&["CONFIG", "SET", "maxmemory", "1mb"]);
        let records = store.status().records;
        let claimed = claim(&store, "new").await.map(drop);
        assert!(matches!(claimed, Err(StoreError::Full(_))), "{claimed:?}");
        assert!(
            store
                .load(new_claim(&store, "new").address)
                .await
                .expect("an answer")
                .is_none()
        );
        assert_eq!(store.status().records, records);

        // What ends, or gives space back, is written all the same.
        let lost = lose(&store, &running).await;
        assert!(matches!(lost, Ok(Swap::Done { .. })), "{lost:?}");
        let removed = store
            .remove(to_remove.address, to_remove.record.fence())
            .await;
        assert!(removed.expect("removed"));

        server.command(&["CONFIG", "SET", "maxmemory", "0"]);
        let kept = claim(&store, "new").await.expect("there is space");
        complete(&store, &kept, noise(100))
            .await
            .expect("completed");
    }

    #[tokio::test]
    async fn i15_limits_are_kept_and_there_is_room_again_after_a_sweep() {
        let server = RedisServer::start(&[]);
        let limited = async |max_records, max_tenant_records| {
            let options = Options {
                max_records,
                max_tenant_records,
                ..Options::default()
            };
            let store = RedisStore::open(&server.url(), options).await;
            store.expect("it opens")
        };
        let one = limited(10, u64::MAX).await;
        let other = limited(u64::MAX, 5).await;
        let mut kept = Vec::new();
        for number in 0..5 {
            kept.push(claim(&other, &format!("k{number}")).await.expect("room"));
        }
        let over = claim(&other, "over").await.map(drop);
        let limit = matches!(over, Err(StoreError::OverLimit("tenant_records")));
        assert!(limit, "{over:?}");
        // What one gateway wrote, the other learns when it sweeps.
        one.sweep().await.expect("a sweep");
        for number in 5..10 {
            kept.push(claim(&one, &format!("k{number}")).await.expect("room"));
        }
        let over = claim(&one, "over").await.map(drop);
        assert!(matches!(over, Err(StoreError::Full(_))), "{over:?}");
        for kept in kept.drain(..7) {
            let removed = other.remove(kept.address, kept.record.fence()).await;
            assert!(removed.expect("removed"));
        }
        for store in [&one, &other] {
            store.sweep().await.expect("a sweep");
            assert_eq!(store.status().records, 3);
        }
        kept.push(claim(&one, "room").await.expect("room"));
        kept.push(claim(&other, "too").await.expect("room"));
    }

    #[tokio::test]
    async fn what_is_over_leaves_no_member_in_an_index() {
        let server = RedisServer::start(&[]);
        let clock = ManualClock::default();
        let options = Options {
            clock: Some(Arc::new(clock.clone())),
            ..Options::default()
        };
        let store = RedisStore::open(&server.url(), options).await;
        let store = store.expect("it opens");
        for key in ["released", "removed", "taken", "completed"] {
            let mut kept = claim(&store, key).await.expect("claimed");
            let (held, fence) = (Some(&kept.record), kept.record.fence());
            let reason = ReleaseReason::NotSent;
            let next = match key {
                "completed" => {
                    complete(&store, &kept, noise(10)).await.expect("completed");
                    continue;
                }
                "removed" => transition::lose(held, fence, UnknownReason::Broke, store.now()),
                _ => transition::release(held, fence, reason, store.now(), WINDOW),
            };
            let write = Write {
                record: next.expect("running"),
                last_chunk: None,
                attempt: None,
            };
            kept.record = write.record.clone();
            let swap = store.compare_and_set(kept.address, Some(fence), write);
            assert!(matches!(swap.await, Ok(Swap::Done { .. })));
            if key == "removed" {
                let removed = store.remove(kept.address, kept.record.fence()).await;
                assert!(removed.expect("removed"));
            }
        }
        clock.advance(WINDOW);
        // One makes room for a new claim, the others are swept.
        let taken = claim(&store, "taken").await.expect("claimed");
        assert_eq!(store.sweep().await.expect("a sweep").records, 2);
        complete(&store, &taken, noise(10))
            .await
            .expect("completed");
        clock.advance(WINDOW);
        assert_eq!(store.sweep().await.expect("a sweep").records, 1);
        for index in ["ids", "leases", "ends", "others"] {
            let left = server.command(&["KEYS", &format!("*:{index}")]);
            assert_eq!(left, "", "{index}");
        }
    }

    /// A page looks at so many operations only, and the next one goes on behind them.
    #[tokio::test]
    async fn a_page_ends_after_many_that_are_not_wanted() {
        let server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        let kept = claim(&store, "k").await.expect("claimed");
        complete(&store, &kept, noise(10)).await.expect("completed");
        // Of another tenant, newer than that.
        let ids = server.command(&["KEYS", "*:ids"]);
        let fill = "for n = 1, 30000 do redis.call('ZADD', KEYS[1], 0, \
            string.rep('\\255', 8) .. struct.pack('>I8', n) .. string.rep('x', 20)) end";
        server.command(&["EVAL", fill, "1", &ids]);
        let page = async |older_than| {
            let query = Query {
                tenant: Some("acme".into()),
                older_than,
                limit: 10,
                ..Query::default()
            };
            let page = store.list(query).await.expect("a page");
            (page.records.len(), page.next)
        };
        let (found, next) = page(None).await;
        assert_eq!(found, 0);
        assert!(next.is_some(), "the page is the last one");
        assert_eq!(page(next).await, (1, None));
    }

    /// What was acknowledged of one key.
    #[derive(Clone)]
    enum Acked {
        Claimed(Record),
        Completed(Record),
    }

    /// Claims and completes keys until it is told to stop; gives what was acknowledged.
    async fn load(
        store: RedisStore,
        name: String,
        stop: Arc<AtomicBool>,
    ) -> HashMap<Address, Acked> {
        let mut acked = HashMap::new();
        for number in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let Ok(kept) = claim(&store, &format!("{name}-{number}")).await else {
                tokio::task::yield_now().await;
                continue;
            };
            acked.insert(kept.address, Acked::Claimed(kept.record.clone()));
            if let Ok(record) = complete(&store, &kept, noise(500)).await {
                acked.insert(kept.address, Acked::Completed(record));
            }
        }
        acked
    }

    async fn assert_kept(store: &RedisStore, acked: &HashMap<Address, Acked>) {
        for (address, acked) in acked {
            let stored = store.load(*address).await.expect("an answer");
            let stored = stored.expect("what was acknowledged is there").record;
            match acked {
                Acked::Completed(record) => assert_eq!(*stored, *record),
                // Its completion may have been written without a word.
                Acked::Claimed(record) => {
                    assert_eq!(stored.recording(), record.recording());
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn i03_nothing_acknowledged_is_lost_when_a_synced_server_is_killed() {
        let mut server = RedisServer::start(&SYNCED);
        let store = open(&server.url()).await;
        let mut total = 0;
        for round in 0..5 {
            let stop = Arc::new(AtomicBool::new(false));
            let tasks: Vec<_> = (0..16)
                .map(|task| {
                    let load = load(store.clone(), format!("{round}-{task}"), stop.clone());
                    tokio::spawn(load)
                })
                .collect();
            let before = store.status().records;
            while store.status().records < before + 300 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            server.kill();
            stop.store(true, Ordering::SeqCst);
            let ends = join_all(tasks).await;
            server.restart();
            resumes(&store, &format!("after-{round}")).await;
            for acked in ends {
                let acked = acked.expect("no panic");
                total += acked.len();
                assert_kept(&store, &acked).await;
            }
        }
        assert!(total >= 1_000, "only {total} were acknowledged");
    }

    #[tokio::test]
    async fn hostile_083_a_paused_server_bounds_every_call_and_makes_no_late_claim() {
        let timeout = Duration::from_millis(400);
        let server = RedisServer::start(&[]);
        let store = open_with(&server.url(), timeout).await;
        let running = claim(&store, "running").await.expect("claimed");
        server.pause();
        let start = Instant::now();
        let kept = new_claim(&store, "k");
        let (claimed, loaded) = tokio::join!(put_claim(&store, &kept), store.load(running.address));
        assert!(
            matches!(claimed, Err(StoreError::InDoubt(_))),
            "{claimed:?}"
        );
        assert!(
            matches!(loaded, Err(StoreError::Unavailable(_))),
            "{loaded:?}"
        );
        assert!(start.elapsed() < 5 * timeout, "{:?}", start.elapsed());
        server.resume();

        // It read the claim, and did not make it: its writer had given up.
        resumes(&store, "resumed").await;
        assert!(store.load(kept.address).await.expect("an answer").is_none());
        let claimed = put_claim(&store, &kept).await;
        assert!(matches!(claimed, Ok(Swap::Done { .. })), "{claimed:?}");
        let stored = store.load(running.address).await.expect("an answer");
        assert_eq!(*stored.expect("held").record, running.record);
    }

    #[tokio::test]
    async fn i14_a_claim_whose_acknowledgement_is_lost_is_in_doubt_and_read_back() {
        let server = RedisServer::start(&[]);
        let between = Between::start(server.port());
        let url = format!("redis://127.0.0.1:{}", between.port());
        let store = open_with(&url, Duration::from_millis(500)).await;
        claim(&store, "before").await.expect("claimed");
        between.swallow_answers();
        let kept = new_claim(&store, "k");
        let claimed = put_claim(&store, &kept).await;
        assert!(
            matches!(claimed, Err(StoreError::InDoubt(_))),
            "{claimed:?}"
        );
        between.let_go();
        resumes(&store, "mended").await;
        let stored = store.load(kept.address).await.expect("an answer");
        assert_eq!(*stored.expect("it was written").record, kept.record);
        // Whoever claims it now loses.
        let again = put_claim(&store, &new_claim(&store, "k")).await;
        assert_eq!(again.expect("an answer"), Swap::Lost);
    }

    #[tokio::test]
    async fn a_server_that_lost_what_it_held_is_refused() {
        let mut server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        claim(&store, "k").await.expect("claimed");
        // It keeps nothing over a restart.
        server.restart();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            let error = claim(&store, "k").await.map(drop);
            let error = error
                .expect_err("the claim of before would run again")
                .to_string();
            if error.contains("does not hold the store") {
                return;
            }
        }
        panic!("it was never told");
    }

    #[tokio::test]
    async fn i13_a_completed_record_without_its_last_chunk_is_unknown() {
        let server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        for (key, spoil) in [("damaged", "HSET"), ("missing", "HDEL")] {
            let kept = claim(&store, key).await.expect("claimed");
            let record = complete(&store, &kept, noise(10)).await.expect("completed");
            let address = u128::from_be_bytes(*kept.address.as_bytes());
            let name = server.command(&["KEYS", &format!("*:{address:032x}")]);
            let spoil = match spoil {
                "HSET" => server.command(&["HSET", &name, "l", "damaged"]),
                _ => server.command(&["HDEL", &name, "l"]),
            };
            assert!(!spoil.starts_with('-'), "{spoil}");
            let unknown = record.without_recording();
            assert_eq!(unknown.state.name(), StateName::Unknown);
            // For another gateway, too.
            for store in [&store, &open(&server.url()).await] {
                let stored = store.load(kept.address).await.expect("an answer");
                assert_eq!(*stored.expect("held").record, unknown);
            }
            assert_eq!(server.command(&["PTTL", &name]), "-1", "unknown is kept");
        }
    }

    #[tokio::test]
    async fn scripts_that_a_server_forgot_are_taught_again() {
        let server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        for number in 0..3 {
            server.command(&["SCRIPT", "FLUSH"]);
            let kept = claim(&store, &format!("k{number}")).await.expect("claimed");
            server.command(&["SCRIPT", "FLUSH"]);
            complete(&store, &kept, noise(10)).await.expect("completed");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_gateways_share_one_truth() {
        let server = RedisServer::start(&[]);
        let gateways = [open(&server.url()).await, open(&server.url()).await];
        let claims = (0..200).flat_map(|key| {
            gateways.iter().map(move |store| {
                let store = store.clone();
                tokio::spawn(async move {
                    let kept = new_claim(&store, &format!("k{key}"));
                    put_claim(&store, &kept).await.expect("an answer") != Swap::Lost
                })
            })
        });
        let won: Vec<bool> = join_all(claims)
            .await
            .into_iter()
            .map(|won| won.expect("no panic"))
            .collect();
        for (key, pair) in won.chunks(2).enumerate() {
            assert_ne!(pair[0], pair[1], "key {key}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn i08_gateways_that_book_at_once_book_each_entry_once() {
        let server = RedisServer::start(&[]);
        let gateways = [open(&server.url()).await, open(&server.url()).await];
        let mut booked = 0;
        for round in 0..20 {
            for key in 0..10 {
                let store = &gateways[key % 2];
                let kept = claim(store, &format!("k{round}-{key}")).await;
                let kept = kept.expect("claimed");
                complete(store, &kept, noise(10)).await.expect("completed");
            }
            let books = gateways.iter().map(|store| store.book());
            for one in join_all(books).await {
                booked += one.expect("booked").entries;
            }
        }
        booked += gateways[0].book().await.expect("booked").entries;
        assert_eq!(booked, 200);
        let feed = gateways[1].feed(None, 1_000).await.expect("a feed");
        assert_eq!(feed.len(), 200);
        assert_eq!(operations(&gateways[1]).await, 200);
    }

    /// As it is while a new key is rolled out: the old process cannot read what the new one has sealed.
    #[tokio::test]
    async fn i08_an_entry_that_one_gateway_cannot_read_is_booked_by_one_that_can() {
        let server = RedisServer::start(&[]);
        let with = |active: u32, ids: &[u32]| Options {
            encryption: Some(EncryptionKeys {
                active,
                keys: ids.iter().map(|&id| (id, [id as u8; 32])).collect(),
            }),
            ..Options::default()
        };
        let open = async |options| {
            let opened = RedisStore::open(&server.url(), options).await;
            opened.expect("it opens")
        };
        let old = open(with(1, &[1])).await;
        let new = open(with(2, &[1, 2])).await;
        for key in 0..20 {
            let kept = claim(&new, &format!("k{key}")).await.expect("claimed");
            complete(&new, &kept, noise(10)).await.expect("completed");
        }
        let kept = claim(&old, "old").await.expect("claimed");
        complete(&old, &kept, noise(10)).await.expect("completed");
        for _ in 0..2 {
            assert!(old.book().await.is_err(), "it can read them all");
        }
        new.book().await.expect("booked");
        assert_eq!(new.feed(None, 1_000).await.expect("a feed").len(), 21);
        assert_eq!(operations(&new).await, 21);

        // Its own is old enough to go, where nothing that it cannot read stands before that.
        let before = old.now().after(Duration::from_secs(1));
        old.trim(before).await.expect("trimmed");
        let left = new.feed(None, 1_000).await.expect("a feed").len();
        assert!(left >= 20, "{left} are left");
        let later = new.now().after(Duration::from_secs(1));
        new.trim(later).await.expect("trimmed");
        assert!(new.feed(None, 1_000).await.expect("a feed").is_empty());
    }

    /// As it is when a failover took the inbox back, and the next server's clock is behind.
    #[tokio::test]
    async fn an_entry_is_booked_though_its_inbox_is_behind_its_mark() {
        let server = RedisServer::start(&[]);
        let store = open(&server.url()).await;
        let kept = claim(&store, "k").await.expect("claimed");
        let shard = kept.address.as_bytes()[0].to_string();
        let ahead = store.now().as_millis() + 3_600_000;
        let mark = format!("{ahead}-7");
        server.command(&["HSET", "onlyonce:{460}:folded", &shard, &mark]);
        assert_eq!(store.book().await.expect("booked").entries, 0);
        complete(&store, &kept, noise(10)).await.expect("completed");
        assert_eq!(store.book().await.expect("booked").entries, 1);
        assert_eq!(store.book().await.expect("booked").entries, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_shown_elsewhere_is_seen_at_once() {
        let server = RedisServer::start(&[]);
        let [here, there] = [open(&server.url()).await, open(&server.url()).await];
        let mut waits = Vec::new();
        for number in 0..20 {
            let kept = claim(&there, &format!("k{number}")).await.expect("claimed");
            let (address, recording) = (kept.address, kept.record.recording());
            let owner = owner(&kept);
            let start = Instant::now();
            let store = here.clone();
            let following = tokio::spawn(async move {
                let seen = Seen::default();
                let shown = store
                    .follow(address, recording, owner, seen, PATIENCE)
                    .await;
                shown.expect("an answer").expect("something")
            });
            let asked = there.followed(owner).await.expect("an answer");
            assert_eq!(asked, [address]);
            let shown = Shown {
                bytes: noise(100),
                ..Shown::default()
            };
            there.show(address, recording, shown).await.expect("shown");
            assert_eq!(following.await.expect("no panic").bytes, noise(100));
            waits.push(start.elapsed());
        }
        waits.sort();
        // Whoever was not told would look a second later.
        assert!(waits[10] < Duration::from_millis(500), "{waits:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_outcome_elsewhere_is_heard_of_at_once() {
        let server = RedisServer::start(&[]);
        let [here, there] = [open(&server.url()).await, open(&server.url()).await];
        let mut waits = Vec::new();
        for number in 0..20 {
            let kept = claim(&there, &format!("k{number}")).await.expect("claimed");
            let (address, recording) = (kept.address, kept.record.recording());
            let (store, owner) = (here.clone(), owner(&kept));
            let following = tokio::spawn(async move {
                let seen = Seen::default();
                store
                    .follow(address, recording, owner, seen, PATIENCE)
                    .await
            });
            eventually("somebody listens", || {
                let channels = server.command(&["PUBSUB", "SHARDCHANNELS"]);
                channels.lines().count() > number
            });
            let start = Instant::now();
            complete(&there, &kept, noise(10)).await.expect("completed");
            let shown = following.await.expect("no panic").expect("an answer");
            assert_eq!(shown, None, "the record tells it");
            waits.push(start.elapsed());
        }
        waits.sort();
        assert!(waits[10] < Duration::from_millis(500), "{waits:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sentinels_lead_to_the_next_master() {
        let mut pair = RedisPair::start(&SYNCED);
        let store = open(&pair.url()).await;
        let mut kept = Vec::new();
        for number in 0..50 {
            let claimed = claim(&store, &format!("k{number}")).await.expect("claimed");
            let record = complete(&store, &claimed, noise(100))
                .await
                .expect("completed");
            kept.push((claimed.address, record));
        }
        let held = pair.master.command(&["DBSIZE"]);
        eventually("the replica has caught up", || {
            pair.replica.command(&["DBSIZE"]) == held
        });
        pair.master.kill();
        eventually_within(2 * PATIENCE, "the replica is promoted", || {
            // Its connections are cut while its role changes.
            let info = pair.replica.try_command(&["INFO", "replication"]);
            info.is_ok_and(|info| info.contains("role:master"))
        });
        resumes(&store, "resumed").await;
        for (address, record) in kept {
            let stored = store.load(address).await.expect("an answer");
            assert_eq!(*stored.expect("held").record, record);
        }
    }

    /// What is not where its slot was any more is asked for where it goes.
    async fn while_a_slot_moves(masters: &[RedisServer], store: &RedisStore) {
        let keys = |server: &RedisServer| server.command(&["KEYS", "*:meta"]);
        let at = masters.iter().position(|one| !keys(one).is_empty());
        let from = &masters[at.expect("the secret is somewhere")];
        let to = &masters[(at.expect("somewhere") + 1) % masters.len()];
        let slot = from.command(&["CLUSTER", "KEYSLOT", &keys(from)]);
        let set = |server: &RedisServer, how: &[&str]| {
            let command = [&["CLUSTER", "SETSLOT", slot.as_str()], how].concat();
            assert_eq!(server.command(&command), "OK");
        };
        let ids = [from, to].map(|one| one.command(&["CLUSTER", "MYID"]));
        set(to, &["IMPORTING", &ids[0]]);
        set(from, &["MIGRATING", &ids[1]]);
        // It lies in the shard of the secret.
        let absent = Address::from_bytes([0; 16]);
        assert!(store.load(absent).await.expect("an answer").is_none());
        set(from, &["STABLE"]);
        set(to, &["STABLE"]);
    }

    /// The weaker promise, measured: what is acknowledged before the replica has it may be gone.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failover_forgets_at_most_the_last_moments() {
        const MOMENTS: Duration = Duration::from_secs(1);
        let mut pair = RedisPair::start(&SYNCED);
        let store = open_with(&pair.url(), Duration::from_secs(1)).await;
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..16)
            .map(|task| tokio::spawn(load(store.clone(), format!("{task}"), stop.clone())))
            .collect();
        while store.status().records < 500 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pair.master.kill();
        let killed = store.now();
        stop.store(true, Ordering::SeqCst);
        let ends = join_all(tasks).await;
        eventually_within(2 * PATIENCE, "the replica is promoted", || {
            let info = pair.replica.try_command(&["INFO", "replication"]);
            info.is_ok_and(|info| info.contains("role:master"))
        });
        resumes(&store, "resumed").await;
        let (mut total, mut forgotten) = (0, 0);
        for (address, acked) in ends.into_iter().flat_map(|acked| acked.expect("no panic")) {
            let (Acked::Claimed(record) | Acked::Completed(record)) = acked;
            total += 1;
            let stored = store.load(address).await.expect("an answer");
            if stored.is_none_or(|stored| stored.record.epoch < record.epoch) {
                forgotten += 1;
                let before = killed.since(record.claimed_at);
                assert!(
                    before < MOMENTS,
                    "{} was forgotten after {before:?}",
                    record.id
                );
            }
        }
        println!("the failover forgot {forgotten} of {total} acknowledged operations");
        assert!(total >= 500, "only {total} were acknowledged");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_moves_within_a_cluster_is_followed() {
        let cluster = RedisCluster::start(3, &SYNCED);
        let store = open(&cluster.url()).await;
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..8)
            .map(|task| tokio::spawn(load(store.clone(), format!("{task}"), stop.clone())))
            .collect();
        while store.status().records < 300 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let masters = cluster.nodes();
        while_a_slot_moves(masters, &store).await;
        let to = masters[1].command(&["CLUSTER", "MYID"]);
        let moved = tokio::task::spawn_blocking({
            let place = format!("127.0.0.1:{}", masters[0].port());
            move || {
                std::process::Command::new("redis-cli")
                    .args(["--cluster", "reshard", &place, "--cluster-from", "all"])
                    .args([
                        "--cluster-to",
                        &to,
                        "--cluster-slots",
                        "1000",
                        "--cluster-yes",
                    ])
                    .output()
                    .expect("redis-cli")
            }
        });
        let moved = moved.await.expect("no panic");
        assert!(moved.status.success(), "{moved:?}");
        stop.store(true, Ordering::SeqCst);
        let mut total = 0;
        for acked in join_all(tasks).await {
            let acked = acked.expect("no panic");
            total += acked.len();
            assert_kept(&store, &acked).await;
            // Neither a claim nor a completion was left in doubt.
            let incomplete = acked
                .values()
                .filter(|one| matches!(one, Acked::Claimed(_)));
            assert!(incomplete.count() <= 1, "more than the last one");
        }
        assert!(total >= 300, "only {total} were acknowledged");
        let query = onlyonce_store::Query {
            state: Some(StateName::Completed),
            limit: 100,
            ..onlyonce_store::Query::default()
        };
        let page = store.list(query).await.expect("a page");
        assert_eq!(page.records.len(), 100);
        let completed =
            |one: &onlyonce_store::Stored| matches!(one.record.state, State::Completed(_));
        assert!(page.records.iter().all(completed));
    }
}
