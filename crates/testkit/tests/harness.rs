//! The harness itself: a client that cannot tell a broken body from a whole one proves nothing.

use std::net::TcpStream;

use onlyonce_testkit::{Client, End, Refusing, Request, Signal, Upstream};

fn ask(upstream: &Upstream, request: &Request) -> onlyonce_testkit::Response {
    Client::connect(upstream.addr()).ask(request)
}

#[test]
fn an_upstream_counts_what_it_executes() {
    let upstream = Upstream::counting();
    let mut client = Client::connect(upstream.addr());
    let first = client.ask(&Request::post("/a").key("k").body("one"));
    let second = client.ask(&Request::post("/b").body("two"));
    assert_eq!(first.text(), "execution 1 of POST /a");
    assert_eq!(second.text(), "execution 2 of POST /b");
    assert_eq!((upstream.hits(), upstream.connections()), (2, 1));
    assert_eq!(upstream.hits_of("/a"), 1);
    assert_eq!(upstream.seen()[0].body.as_deref(), Some(&b"one"[..]));
    assert_eq!(upstream.seen()[0].head.header("IDEMPOTENCY-KEY"), Some("k"));
}

#[test]
fn a_body_that_breaks_is_never_taken_for_whole() {
    let upstream = Upstream::scripted(|x| {
        match x.path().to_owned().as_str() {
            "/short" => {
                x.send_head(200, &[("Content-Length", "10")]);
                x.send(b"five.");
                x.close();
            }
            "/chunks" => {
                x.start_chunked(200, &[]);
                x.chunk("five.");
                x.close();
            }
            "/inside" => {
                x.start_chunked(200, &[]);
                x.send(b"a\r\nfive.");
                x.close();
            }
            _ => {
                x.send_head(200, &[]);
                x.send(b"five.");
                x.reset();
            }
        };
    });
    for path in ["/short", "/chunks", "/inside", "/reset"] {
        let response = ask(&upstream, &Request::get(path));
        assert!(
            matches!(response.end, End::Broken(_)),
            "{path}: {response:?}"
        );
        assert!(!response.whole());
    }
}

#[test]
fn trailers_are_read() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(200, &[("Trailer", "X-Sum")]);
        x.chunk("a");
        x.chunk("b");
        x.send(b"0\r\nX-Sum: 2\r\n\r\n");
    });
    let response = ask(&upstream, &Request::get("/"));
    assert_eq!((response.text().as_str(), response.end), ("ab", End::Whole));
    assert_eq!(response.trailers, [("X-Sum".to_owned(), "2".to_owned())]);
}

#[test]
fn a_body_can_be_followed_while_it_grows() {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[]);
        x.chunk("one");
        wait.wait();
        x.chunk("two");
        x.end_chunks();
    });
    let mut client = Client::connect(upstream.addr());
    client.send(&Request::get("/")).read_head();
    client.read_until("one");
    go.fire();
    assert_eq!(client.finish().text(), "onetwo");
}

#[test]
fn a_refusing_address_refuses() {
    let refusing = Refusing::new();
    assert!(TcpStream::connect(refusing.addr()).is_err());
    let listener = refusing.listen();
    assert!(TcpStream::connect(listener.local_addr().unwrap()).is_ok());
}
