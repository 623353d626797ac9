//! The PostgreSQL store does what a store must do, on a real server: in the clear, encrypted, and
//! without prepared statements.

mod line;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use onlyonce_core::Address;
use onlyonce_store::{
    PostgresStore, Store,
    clock::ManualClock,
    conformance::{Fault, Faulty, Subject},
    postgres::{EncryptionKeys, Options, migrate},
};
use onlyonce_testkit::{Between, Postgres};
use tokio::time::{sleep, timeout};

/// How long a call waits behind a line. Other tests take the machine's time.
const TIME_OUT: Duration = Duration::from_secs(1);
/// How long its connections may take behind a line, in pauses of so long.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// Every store is a schema of its own.
struct Schemas {
    options: Options,
    query: &'static str,
    /// What stands before the server, where it is to be disturbed.
    line: Option<Between>,
    made: Vec<(Arc<PostgresStore>, String)>,
}

impl Schemas {
    fn with(options: Options, query: &'static str) -> Self {
        Self {
            options,
            query,
            line: None,
            made: Vec::new(),
        }
    }

    /// Behind a line that a test can disturb.
    fn behind_a_line(query: &'static str) -> Self {
        let options = Options {
            timeout: TIME_OUT,
            connect_timeout: TIME_OUT,
            // Each kind of write has a connection, so that none waits for another that stalls.
            writers: 4,
            ..Options::default()
        };
        Self {
            line: Some(Between::start(Postgres::shared().port())),
            ..Self::with(options, query)
        }
    }

    fn line(&self) -> &Between {
        self.line.as_ref().expect("behind a line")
    }

    fn url(&self, schema: &str) -> String {
        let port = self.line.as_ref().map(Between::port);
        let port = port.unwrap_or_else(|| Postgres::shared().port());
        let query = self.query;
        format!("postgres://postgres@127.0.0.1:{port}/postgres?schema={schema}{query}")
    }

    fn options(&self, clock: ManualClock) -> Options {
        Options {
            clock: Some(Arc::new(clock)),
            ..self.options.clone()
        }
    }

    fn schema_of(&mut self, store: &Arc<PostgresStore>) -> String {
        let at = self
            .made
            .iter()
            .position(|(made, _)| Arc::ptr_eq(made, store));
        self.made.remove(at.expect("a store of this subject")).1
    }

    async fn open(&mut self, schema: String, clock: ManualClock) -> Arc<PostgresStore> {
        let url = self.url(&schema);
        let store = PostgresStore::connect(&url, self.options(clock)).await;
        let store = Arc::new(store.expect("it connects"));
        self.made.push((store.clone(), schema));
        store
    }
}

impl Subject for Schemas {
    type Store = PostgresStore;

    async fn make(&mut self, clock: ManualClock) -> Arc<PostgresStore> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let schema = format!("store_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let url = format!("{}?schema={schema}", Postgres::shared().url());
        migrate(&url, &self.options).await.expect("tables");
        let store = self.open(schema, clock).await;
        if self.line.is_some() {
            // A write that waits for its connection is in no doubt when the line stalls.
            let connected = async {
                while !store.is_fully_connected() {
                    sleep(PAUSE).await;
                }
            };
            timeout(CONNECTED_WITHIN, connected)
                .await
                .expect("it connects");
        }
        store
    }

    fn settle(&self) {
        Postgres::shared().settle();
    }

    async fn reopen(
        &mut self,
        store: Arc<PostgresStore>,
        clock: ManualClock,
    ) -> Option<Arc<PostgresStore>> {
        store.close().await.expect("it closes");
        let schema = self.schema_of(&store);
        drop(store);
        Some(self.open(schema, clock).await)
    }

    async fn damage(
        &mut self,
        store: Arc<PostgresStore>,
        clock: ManualClock,
        address: Address,
    ) -> Option<Arc<PostgresStore>> {
        let schema = self.schema_of(&store);
        let address = u128::from_be_bytes(*address.as_bytes());
        let flipped = |column| format!("set_byte({column}, 20, get_byte({column}, 20) # 64)");
        let (record, body) = (flipped("record"), flipped("body"));
        Postgres::shared().sql(&format!(
            "UPDATE {schema}.operations SET record = {record} WHERE address = '{address:032x}';
            UPDATE {schema}.records r SET body = {body} FROM {schema}.operations o
            WHERE o.address = '{address:032x}' AND r.period = o.period AND r.id = o.id"
        ));
        drop(store);
        Some(self.open(schema, clock).await)
    }

    async fn damage_chunk(
        &mut self,
        store: Arc<PostgresStore>,
        _: ManualClock,
        address: Address,
    ) -> Option<Arc<PostgresStore>> {
        let made = self.made.iter().find(|(made, _)| Arc::ptr_eq(made, &store));
        let schema = &made.expect("a store of this subject").1;
        let address = u128::from_be_bytes(*address.as_bytes());
        let damaged = Postgres::shared().sql(&format!(
            "UPDATE {schema}.chunks c SET bytes = set_byte(bytes, 20, get_byte(bytes, 20) # 64)
            FROM {schema}.operations o WHERE o.address = '{address:032x}' AND c.period = o.period
                AND c.id = o.id AND c.number = 0 RETURNING 'damaged'"
        ));
        assert_eq!(damaged, "damaged");
        Some(store)
    }
}

mod in_the_clear {
    use super::*;

    onlyonce_store::conformance_tests!(Schemas::with(Options::default(), ""));
}

mod encrypted {
    use super::*;

    onlyonce_store::conformance_tests!(Schemas::with(
        Options {
            encryption: Some(EncryptionKeys {
                active: 1,
                keys: [(1, [7; 32])].into()
            }),
            ..Options::default()
        },
        ""
    ));
}

mod without_prepared_statements {
    use super::*;

    onlyonce_store::conformance_tests!(Schemas::with(Options::default(), "&prepared=off"));
}

impl Faulty for Schemas {
    fn time_out(&self) -> Duration {
        TIME_OUT
    }

    fn sends_at_once(&self) -> bool {
        self.query.contains("prepared=off")
    }

    fn disturb(&self, fault: Fault) {
        line::disturb(self.line(), fault);
    }

    fn heal(&self) {
        self.line().let_go();
    }

    async fn beside(&mut self, clock: ManualClock) -> Option<Arc<PostgresStore>> {
        let schema = self.made.last()?.1.clone();
        Some(self.open(schema, clock).await)
    }
}

mod behind_a_line {
    use super::*;

    onlyonce_store::fault_tests!(Schemas::behind_a_line(""));
}

mod behind_a_line_without_prepared_statements {
    use super::*;

    onlyonce_store::fault_tests!(Schemas::behind_a_line("&prepared=off"));
}
