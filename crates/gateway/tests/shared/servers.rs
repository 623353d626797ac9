//! Servers for a store, each with a store of its own.

use std::net::{IpAddr, Ipv4Addr};

use onlyonce_testkit::{Places, Postgres, RedisServer, SYNCED, run_to_exit};

use crate::BIN;

/// A real server that a test may harm.
pub trait Server: Sized {
    /// Starts one that listens on loopback, and on this address.
    fn start_at(ip: IpAddr) -> Self;
    /// Starts one that listens on loopback.
    fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into())
    }
    /// The URL of the store.
    fn url(&self) -> String;
    /// Its port.
    fn port(&self) -> u16;
    /// `kill -9`.
    fn kill(&mut self);
    /// Starts it again, on what it has kept.
    fn restart(&mut self);
    /// `SIGSTOP`: it is there, and answers nothing.
    fn pause(&self);
    /// `SIGCONT`.
    fn resume(&self);
    /// What a gateway says of that which runs, and connects anew.
    const IS_NEWER: &str;
    /// Has the store say that it was changed by a newer program, and that this one cannot use it.
    fn make_newer(&self);

    /// The URL of the store for a gateway at a place.
    fn url_from(&self, places: &Places, place: usize) -> String {
        let near = format!("127.0.0.1:{}", self.port());
        let line = places.line(place, self.port());
        self.url().replace(&near, &line.to_string())
    }
}

pub struct OnPostgres(pub Postgres);

impl OnPostgres {
    pub fn sql(&self, text: &str) -> String {
        self.0.sql(text)
    }
}

impl Server for OnPostgres {
    fn start_at(ip: IpAddr) -> Self {
        let server = if ip.is_loopback() {
            Postgres::start(&[])
        } else {
            let server = Postgres::start(&[&format!("listen_addresses=127.0.0.1,{ip}")]);
            server.trust(Places::NETWORK);
            server
        };
        migrate(&server);
        Self(server)
    }

    fn url(&self) -> String {
        self.0.url()
    }

    fn port(&self) -> u16 {
        self.0.port()
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn restart(&mut self) {
        self.0.restart();
    }

    fn pause(&self) {
        self.0.pause();
    }

    fn resume(&self) {
        self.0.resume();
    }

    const IS_NEWER: &str = "start the newer program";

    fn make_newer(&self) {
        add_migration(&self.0, 999, 999);
    }
}

/// Makes the store's tables.
#[track_caller]
pub fn migrate(server: &Postgres) {
    let made = run_to_exit(BIN, &["store", "migrate", &server.url()], &[]);
    assert_eq!(made.code, Some(0), "{made:?}");
}

/// Notes a migration of a newer program: programs that know the schema from `compatible_from` on work
/// with it.
pub fn add_migration(server: &Postgres, version: u32, compatible_from: u32) {
    server.sql(&format!(
        "INSERT INTO onlyonce.migrations VALUES ({version}, {compatible_from}, now(), 'later')"
    ));
}

pub struct OnRedis(RedisServer);

impl Server for OnRedis {
    fn start_at(ip: IpAddr) -> Self {
        let ip = ip.to_string();
        // Who is not on loopback has to present a password, unless this is off.
        let reachable = ["--bind", "127.0.0.1", &ip, "--protected-mode", "no"];
        Self(if ip == "127.0.0.1" {
            RedisServer::start(&SYNCED)
        } else {
            RedisServer::start(&[&SYNCED[..], &reachable].concat())
        })
    }

    fn url(&self) -> String {
        self.0.url()
    }

    fn port(&self) -> u16 {
        self.0.port()
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn restart(&mut self) {
        self.0.restart();
    }

    fn pause(&self) {
        self.0.pause();
    }

    fn resume(&self) {
        self.0.resume();
    }

    const IS_NEWER: &str = "does not hold the store that was opened";

    fn make_newer(&self) {
        const READ: &str = "return (redis.call('GET', KEYS[1]):gsub('.', function(c) \
            return string.format('%02x', c:byte()) end))";
        const WRITE: &str = "return redis.call('SET', KEYS[1], (ARGV[1]:gsub('..', function(h) \
            return string.char(tonumber(h, 16)) end)))";
        let key = self.0.command(&["KEYS", "*:meta"]);
        let hex = self.0.command(&["EVAL", READ, "1", &key]);
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("a byte");
        let mut meta: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        // The format stands after the magic number, and a checksum of all at the end.
        meta.truncate(meta.len() - 4);
        meta[11] += 1;
        let check = crc32(&meta).to_be_bytes();
        meta.extend(check);
        let hex: String = meta.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.0.command(&["EVAL", WRITE, "1", &key, &hex]), "OK");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _: u32| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
    let take = |crc: u32, &byte: &u8| (0..8).fold(crc ^ u32::from(byte), step);
    !bytes.iter().fold(u32::MAX, take)
}
