//! A small JSON client for the control listener.

use std::net::SocketAddr;

use serde_json::Value;

use crate::client::{Client, Request, Response};
use crate::signal::eventually;

/// The control listener of a gateway.
#[derive(Clone)]
pub struct Control {
    addr: SocketAddr,
    token: Option<String>,
}

impl Control {
    /// The control listener at this address.
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, token: None }
    }

    /// Sends this token from here on.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    fn ask(&self, request: Request) -> Response {
        let request = match &self.token {
            Some(token) => request.header("Authorization", &format!("Bearer {token}")),
            None => request,
        };
        // It answers only to its own address, so that no web page can reach it by a name.
        let request = request
            .without("Host")
            .header("Host", &self.addr.to_string());
        Client::connect(self.addr).ask(&request.header("Connection", "close"))
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Response {
        self.ask(Request::get(path))
    }

    /// `GET path`, which must be a 200 with JSON.
    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        let response = self.get(path);
        assert_eq!(response.status(), 200, "{path}: {}", response.text());
        response.json()
    }

    /// `POST path` with JSON.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.ask(
            Request::post(path)
                .header("Content-Type", "application/json")
                .body(body.to_string()),
        )
    }

    /// Every operation with this key, as the list gives them.
    #[track_caller]
    pub fn operations(&self, key: &str) -> Vec<Value> {
        let page = self.json(&format!("/v1/operations?key={}", escape(key)));
        page["operations"]
            .as_array()
            .expect("a list of operations")
            .clone()
    }

    /// The only operation with this key.
    #[track_caller]
    pub fn operation(&self, key: &str) -> Value {
        let mut all = self.operations(key);
        assert_eq!(all.len(), 1, "operations of {key}: {all:?}");
        all.remove(0)
    }

    /// Waits until the only operation of this key is in this state. A completed one is waited for
    /// until nothing executes any more: the record is there a moment before those who follow the
    /// execution are told, and an attempt in between joins it.
    #[track_caller]
    pub fn wait_for_state(&self, key: &str, state: &str) {
        eventually(&format!("the operation of {key} is {state}"), || {
            self.operations(key).iter().any(|op| op["state"] == state)
                && (state != "completed" || self.metric("onlyonce_live_operations", "") < 1.0)
        });
    }

    /// Settles an operation by hand.
    pub fn resolve(&self, operation: &str, with: &Value) -> Response {
        self.post(&format!("/v1/operations/{operation}/resolve"), with)
    }

    /// One metric's value: the sum of all lines of that name whose labels contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        self.get("/metrics")
            .text()
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && line.contains(labels)
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                (b as char).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}
