//! Servers for a store, each with a store of its own.

use onlyonce_testkit::{Postgres, RedisServer, SYNCED, run_to_exit};

use crate::BIN;

/// A real server that a test may harm.
pub trait Server {
    /// The URL of the store.
    fn url(&self) -> String;
    /// `kill -9`.
    fn kill(&mut self);
    /// Starts it again, on what it has kept.
    fn restart(&mut self);
    /// `SIGSTOP`: it is there, and answers nothing.
    fn pause(&self);
    /// `SIGCONT`.
    fn resume(&self);
}

pub struct OnPostgres(Postgres);

impl OnPostgres {
    pub fn start() -> Self {
        let server = Self(Postgres::start(&[]));
        let made = run_to_exit(BIN, &["store", "migrate", &server.url()], &[]);
        assert_eq!(made.code, Some(0), "{made:?}");
        server
    }
}

impl Server for OnPostgres {
    fn url(&self) -> String {
        self.0.url()
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
}

pub struct OnRedis(RedisServer);

impl OnRedis {
    pub fn start() -> Self {
        Self(RedisServer::start(&SYNCED))
    }
}

impl Server for OnRedis {
    fn url(&self) -> String {
        self.0.url()
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
}
