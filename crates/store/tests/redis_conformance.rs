//! The Redis store does what a store must do: on one server, on a cluster, by a sentinel, encrypted,
//! and over TLS.

mod line;

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use onlyonce_core::Address;
use onlyonce_store::{
    RedisStore, Store,
    clock::ManualClock,
    conformance::{Fault, Faulty, Subject},
    embedded::EncryptionKeys,
    redis::Options,
};
use onlyonce_testkit::{Between, RedisCluster, RedisPair, RedisServer, SYNCED};

/// What the rules of one module share; gone with the last rule that runs.
struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    fn get(&self, start: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock().expect("no panic");
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(start());
            *shared = Arc::downgrade(&started);
            started
        })
    }
}

/// Servers under test.
trait Servers: Send + Sync + 'static {
    fn url(&self) -> String;
    fn each(&self) -> Vec<&RedisServer>;
}

impl Servers for RedisServer {
    fn url(&self) -> String {
        self.url()
    }

    fn each(&self) -> Vec<&RedisServer> {
        vec![self]
    }
}

impl Servers for RedisCluster {
    fn url(&self) -> String {
        self.url()
    }

    fn each(&self) -> Vec<&RedisServer> {
        self.nodes().iter().collect()
    }
}

impl Servers for RedisPair {
    fn url(&self) -> String {
        self.url()
    }

    fn each(&self) -> Vec<&RedisServer> {
        vec![&self.master]
    }
}

struct Redis<S> {
    servers: Arc<S>,
    options: Options,
    /// The field that a test damages.
    damaged: &'static str,
    stores: Vec<(Arc<RedisStore>, String)>,
}

impl<S: Servers> Redis<S> {
    fn new(servers: Arc<S>, options: Options, damaged: &'static str) -> Self {
        Self {
            servers,
            options: Options {
                // Other tests take the machine's time.
                response_timeout: Duration::from_secs(30),
                ..options
            },
            damaged,
            stores: Vec::new(),
        }
    }

    async fn open(&mut self, prefix: String, clock: ManualClock) -> Arc<RedisStore> {
        let url = self.servers.url();
        let sign = if url.contains('?') { '&' } else { '?' };
        let options = Options {
            clock: Some(Arc::new(clock)),
            ..self.options.clone()
        };
        let store = RedisStore::open(&format!("{url}{sign}prefix={prefix}"), options).await;
        let store = Arc::new(store.expect("it opens"));
        self.stores.push((store.clone(), prefix));
        store
    }

    fn damage_field(&self, store: &Arc<RedisStore>, address: Address, field: &str) {
        let prefix = self.prefix_of(store);
        let address = u128::from_be_bytes(*address.as_bytes());
        let pattern = format!("{prefix}:*:{address:032x}");
        let mut damaged = 0;
        for server in self.servers.each() {
            let keys = server.command(&["KEYS", &pattern]);
            for key in keys.lines() {
                let is_new = server.command(&["HSET", key, field, "1 damaged"]);
                assert_eq!(is_new, "0", "the field {field} was there");
                damaged += 1;
            }
        }
        assert_eq!(damaged, 1, "records at {pattern}");
    }

    fn prefix_of(&self, store: &Arc<RedisStore>) -> String {
        let held = self
            .stores
            .iter()
            .find(|(held, _)| Arc::ptr_eq(held, store));
        held.expect("a store of this subject").1.clone()
    }
}

impl<S: Servers> Subject for Redis<S> {
    type Store = RedisStore;

    async fn make(&mut self, clock: ManualClock) -> Arc<RedisStore> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.open(prefix, clock).await
    }

    async fn reopen(
        &mut self,
        store: Arc<RedisStore>,
        clock: ManualClock,
    ) -> Option<Arc<RedisStore>> {
        let prefix = self.prefix_of(&store);
        store.close().await.expect("it closes");
        Some(self.open(prefix, clock).await)
    }

    async fn damage(
        &mut self,
        store: Arc<RedisStore>,
        _: ManualClock,
        address: Address,
    ) -> Option<Arc<RedisStore>> {
        self.damage_field(&store, address, self.damaged);
        Some(store)
    }

    async fn damage_chunk(
        &mut self,
        store: Arc<RedisStore>,
        _: ManualClock,
        address: Address,
    ) -> Option<Arc<RedisStore>> {
        self.damage_field(&store, address, "c0");
        Some(store)
    }
}

mod one_server {
    use super::*;

    static SERVER: Shared<RedisServer> = Shared::new();

    onlyonce_store::conformance_tests!(Redis::new(
        SERVER.get(|| RedisServer::start(&SYNCED)),
        Options::default(),
        "h",
    ));
}

mod encrypted {
    use super::*;

    static SERVER: Shared<RedisServer> = Shared::new();

    onlyonce_store::conformance_tests!(Redis::new(
        SERVER.get(|| RedisServer::start(&["--requirepass", "sesame"])),
        Options {
            encryption: Some(EncryptionKeys {
                active: 1,
                keys: [(1, [7; 32])].into()
            }),
            ..Options::default()
        },
        "r",
    ));
}

mod a_cluster {
    use super::*;

    static CLUSTER: Shared<RedisCluster> = Shared::new();

    onlyonce_store::conformance_tests!(Redis::new(
        CLUSTER.get(|| RedisCluster::start(3, &SYNCED)),
        Options::default(),
        "h",
    ));
}

mod by_a_sentinel {
    use super::*;

    static PAIR: Shared<RedisPair> = Shared::new();

    onlyonce_store::conformance_tests!(Redis::new(
        PAIR.get(|| RedisPair::start(&[])),
        Options::default(),
        "r",
    ));
}

/// One server, and a line to it that a test can disturb. A cluster and sentinels name their servers'
/// own places, past any line.
struct Behind {
    server: Arc<RedisServer>,
    line: Between,
}

impl Servers for Behind {
    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.line.port())
    }

    fn each(&self) -> Vec<&RedisServer> {
        vec![&self.server]
    }
}

impl Redis<Behind> {
    fn behind_a_line(server: Arc<RedisServer>) -> Self {
        let line = Between::start(server.port());
        let servers = Arc::new(Behind { server, line });
        let mut behind = Self::new(servers, Options::default(), "h");
        behind.options.response_timeout = TIME_OUT;
        behind.options.connect_timeout = TIME_OUT;
        behind
    }
}

/// How long a call waits behind a line.
const TIME_OUT: Duration = Duration::from_secs(1);

impl Faulty for Redis<Behind> {
    fn time_out(&self) -> Duration {
        TIME_OUT
    }

    fn disturb(&self, fault: Fault) {
        line::disturb(&self.servers.line, fault);
    }

    fn heal(&self) {
        self.servers.line.let_go();
    }

    async fn beside(&mut self, clock: ManualClock) -> Option<Arc<RedisStore>> {
        let prefix = self.stores.last()?.1.clone();
        Some(self.open(prefix, clock).await)
    }
}

mod behind_a_line {
    use super::*;

    static SERVER: Shared<RedisServer> = Shared::new();

    onlyonce_store::fault_tests!(Redis::behind_a_line(
        SERVER.get(|| RedisServer::start(&SYNCED))
    ));
}
