//! Connections to the control listener: peers that send nothing, too slowly, or what cannot be read in one
//! way only.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use onlyonce_testkit::{Client, Control, Gateway, Request, Setup, Upstream};
use serde_json::json;

use crate::setup;

const TOKEN: &str = "worker-token-worker-token-worker-token";

/// A token, and the operations API on both listeners.
fn workers(setup: Setup) -> Setup {
    setup
        .extra("[[route]]\nkind = \"work\"\npath_prefix = \"/w\"")
        .extra("[[server.token]]\nname = \"worker\"\ntoken = \"env:WORKER\"\nrights = [\"work\", \"read\"]")
        .env("WORKER", TOKEN)
}

/// Connections that send nothing. Some may be closed at once.
fn idle(addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connected = (0..count).map(|_| TcpStream::connect_timeout(&addr, Duration::from_secs(5)));
    connected.collect::<Result<_, _>>().unwrap()
}

fn healthz(gateway: &Gateway) -> u16 {
    let mut client = Client::connect(gateway.control_addr());
    client.ask(&Request::get("/healthz")).status()
}

#[test]
fn hostile_034_to_042_the_control_listener_takes_no_more_than_the_gate_of_requests_does() {
    // It took bare line feeds, two lengths that agree, and two hosts.
    let upstream = Upstream::counting();
    let gateway = workers(setup(&upstream)).start();
    let rest = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
    let body = json!({"key": "k"}).to_string();
    let len = body.len();
    for head in [
        format!(
            "POST /v1/work HTTP/1.1\nHost: h\n{}Content-Length: {len}\n\n",
            rest.replace('\r', "")
        ),
        format!(
            "POST /v1/work HTTP/1.1\r\nHost: h\r\n{rest}Content-Length: {len}\r\nContent-Length: {len}\r\n\r\n"
        ),
        format!(
            "POST /v1/work HTTP/1.1\r\nHost: h\r\n{rest}Content-Length: {len}\r\nTransfer-Encoding: chunked\r\n\r\n"
        ),
        format!(
            "POST /v1/work HTTP/1.1\r\nHost: a\r\nHost: b\r\n{rest}Content-Length: {len}\r\n\r\n"
        ),
        format!("POST /v1/work HTTP/1.1\r\n{rest}Content-Length: {len}\r\n\r\n"),
        format!("POST /v1/work HTTP/1.1\r\nHost: h\r\n{rest}Content-Length : {len}\r\n\r\n"),
    ] {
        let mut client = Client::connect(gateway.control_addr());
        let answer = client
            .try_send_bytes(format!("{head}{body}").as_bytes())
            .response();
        assert_eq!(answer.status(), 400, "{head:?}: {}", answer.text());
        assert!(client.closed(), "{head:?}: the connection stays open");
    }
    let control = gateway.control().with_token(TOKEN);
    assert_eq!(control.json("/v1/operations")["operations"], json!([]));
}

#[test]
fn hostile_053_and_054_slow_heads_and_bodies_are_not_waited_for_on_either_listener() {
    // A half-sent head at the control listener, and a half-sent body of a worker anywhere, were waited for
    // without end.
    let upstream = Upstream::counting();
    let deadlines = "header_timeout = \"200ms\"\nbody_timeout = \"300ms\"";
    let gateway = workers(setup(&upstream).server(deadlines)).start();
    let mut client = Client::connect(gateway.control_addr());
    client.send_bytes(b"GET /healthz HTTP/1.1\r\nHost:");
    let answer = client.response();
    answer.expect_problem(408, "request-timeout");
    assert!(client.closed());
    for (addr, path) in [
        (gateway.control_addr(), "/v1/work"),
        (gateway.addr(), "/w/v1/work"),
    ] {
        let mut client = Client::connect(addr);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
        );
        client.send_bytes(head.as_bytes());
        let answer = client.response();
        assert_eq!(answer.status(), 408, "{}", answer.text());
        assert!(
            answer.text().contains("server.body_timeout"),
            "{}",
            answer.text()
        );
        assert!(client.closed());
    }
}

#[test]
fn l2_a_peer_that_does_nothing_is_closed_after_the_idle_time_and_a_stream_is_not() {
    let upstream = Upstream::counting();
    let gateway = workers(setup(&upstream).server("idle_timeout = \"300ms\"")).start();
    let control = gateway.control().with_token(TOKEN);
    let mut follower = Follower::of(&control, gateway.control_addr());
    let began = Instant::now();
    for _ in 0..2 {
        let mut client = Client::connect(gateway.control_addr());
        assert!(client.closed());
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    follower.settle(&control);
}

#[test]
fn l5_peers_that_do_nothing_at_the_control_listener_keep_nobody_out() {
    let upstream = Upstream::counting();
    let limits = "max_control_connections = 4\nidle_timeout = \"1h\"";
    let gateway = workers(setup(&upstream).server(limits)).start();
    let control = gateway.control().with_token(TOKEN);
    let mut follower = Follower::of(&control, gateway.control_addr());
    let held = idle(gateway.control_addr(), 20);
    assert_eq!(healthz(&gateway), 200);
    // Those who began to log in and never go on are no better.
    let mut slow = idle(gateway.control_addr(), 20);
    for peer in &mut slow {
        let head = "POST /console/login HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\
                    Content-Type: application/x-www-form-urlencoded\r\n\r\n";
        // It may have made room already.
        let _ = peer.write_all(head.as_bytes());
    }
    assert_eq!(healthz(&gateway), 200);
    follower.settle(&control);
    drop((held, slow));
}

/// One that follows an operation of a worker by events.
struct Follower {
    id: String,
    claim: String,
    lines: BufReader<TcpStream>,
}

impl Follower {
    fn of(control: &Control, addr: SocketAddr) -> Self {
        let begun = control.post("/v1/work", &json!({"key": "followed", "lease": "1h"}));
        let begun = begun.json();
        let text = |name: &str| begun[name].as_str().unwrap().to_owned();
        let (id, claim) = (text("operation"), text("claim"));
        let mut stream = TcpStream::connect(addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        write!(
            stream,
            "GET /v1/work/{id} HTTP/1.1\r\nHost: {addr}\r\nAccept: text/event-stream\r\n\
             Authorization: Bearer {TOKEN}\r\n\r\n"
        )
        .unwrap();
        let mut follower = Self {
            id,
            claim,
            lines: BufReader::new(stream),
        };
        follower.until("event: state");
        follower
    }

    /// Reads up to a line with this text.
    fn until(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(
                self.lines.read_line(&mut line).unwrap() > 0,
                "it was cut off"
            );
        }
    }

    /// Completes the operation, and sees it.
    fn settle(&mut self, control: &Control) {
        let path = format!("/v1/work/{}/complete", self.id);
        let completed = control.post(&path, &json!({"claim": self.claim, "result": 1}));
        assert_eq!(completed.status(), 200, "{}", completed.text());
        self.until("event: result");
    }
}

/// A gateway that may have few files open.
fn cramped(upstream: &Upstream) -> Gateway {
    setup(upstream)
        .server("idle_timeout = \"1h\"")
        .store("segment_bytes = \"1MiB\"")
        .under(&["sh", "-c", "ulimit -n 160; exec \"$0\" \"$@\""])
        .start()
}

/// An upstream whose answers cannot be packed.
fn noisy() -> Upstream {
    Upstream::scripted(|x| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(x.number as u64);
        let body = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        let body: Vec<u8> = body.take(8_000).flatten().collect();
        x.answer(200, &[("Content-Type", "application/octet-stream")], &body);
    })
}

/// Executes so much that the log goes on in another file, several times.
fn executes(gateway: &Gateway, client: &mut Client, round: &str) {
    for number in 0..40 {
        let request = Request::post("/x").key(&format!("{round}-{number}"));
        let answer = client.ask(&request);
        assert_eq!(answer.status(), 200, "{round}: {}", answer.text());
        assert!(answer.whole());
    }
    assert_eq!(healthz(gateway), 200);
}

#[test]
fn l5_i15_idle_peers_leave_files_for_callers_and_for_the_store() {
    // 150 of them at the control listener, without a token, took every file that the process may open: no
    // caller was answered, and the log could not go on in its next file.
    let upstream = noisy();
    let gateway = cramped(&upstream);
    let mut before = gateway.connect();
    executes(&gateway, &mut before, "alone");
    let at_control = idle(gateway.control_addr(), 150);
    executes(&gateway, &mut before, "control");
    executes(&gateway, &mut gateway.connect(), "new");
    // The same at the listener for requests: who was there before goes on.
    let at_requests = idle(gateway.addr(), 150);
    executes(&gateway, &mut before, "requests");
    drop((at_control, at_requests));
    let answer = gateway.post("/x", "after", "body");
    answer.expect_status(200);
}
