//! A process that pays, and that a test may kill: this test's own binary, which runs the "test"
//! [`child`] alone.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use onlyonce_postgres::{Settings, Transactions};

use crate::bank::{Bank, pay};
use crate::drivers::Client;

const STORE: &str = "ONLYONCE_TEST_STORE";
const BUSINESS: &str = "ONLYONCE_TEST_BUSINESS";
const SCHEMA: &str = "ONLYONCE_TEST_SCHEMA";
const DRIVER: &str = "ONLYONCE_TEST_DRIVER";
const KEYS: &str = "ONLYONCE_TEST_KEYS";

/// A process that pays.
pub struct Paying {
    child: Child,
}

impl Paying {
    /// One that pays `keys`, one after the other, on a connection to `port`.
    pub fn start<C: Client>(bank: &Bank, port: u16, keys: &[String]) -> Self {
        let own = env::current_exe().unwrap();
        let child = Command::new(own)
            .args(["--exact", "child::child", "--ignored", "--nocapture"])
            .env(STORE, &bank.url)
            .env(BUSINESS, bank.business_url(port))
            .env(SCHEMA, &bank.schema)
            .env(DRIVER, C::NAME)
            .env(KEYS, keys.join(","))
            .stdout(Stdio::piped())
            // Killed, it has nothing to say there.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    /// Whether it has come to its end.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Kills it, and gives what it has said by then.
    pub fn kill_9(mut self) -> BTreeMap<String, i64> {
        self.child.kill().unwrap();
        self.all()
    }

    /// What it says up to its end: the letter of each key that was paid.
    pub fn all(mut self) -> BTreeMap<String, i64> {
        let lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        let mut paid = BTreeMap::new();
        for line in lines.map_while(Result::ok) {
            // The harness writes on the same lines, and the last one may be torn.
            let said = line
                .split_once("paid ")
                .and_then(|(_, said)| said.strip_suffix(" ."));
            if let Some((key, letter)) = said.and_then(|said| said.split_once(' ')) {
                paid.insert(key.to_owned(), letter.parse().unwrap());
            }
        }
        self.child.wait().unwrap();
        paid
    }
}

#[test]
#[ignore = "it is the process that other tests start"]
fn child() {
    let Ok(driver) = env::var(DRIVER) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match driver.as_str() {
        <sqlx::PgConnection as Client>::NAME => runtime.block_on(pays::<sqlx::PgConnection>()),
        _ => runtime.block_on(pays::<tokio_postgres::Client>()),
    }
}

async fn pays<C: Client>() {
    let said = |name| env::var(name).unwrap();
    let once = Transactions::open(&said(STORE), Settings::default())
        .await
        .unwrap();
    let mut client = C::connect(&said(BUSINESS)).await;
    for key in said(KEYS).split(',') {
        // What fails is tried again by another process.
        if let Ok(letter) = pay(&once, &said(SCHEMA), &mut client, key).await {
            println!("paid {key} {letter} .");
        }
    }
}
