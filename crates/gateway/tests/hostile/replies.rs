//! Cases 65 to 68 and 75 to 80: which parts of an answer are recorded, and which never.

use std::io;

use onlyonce_testkit::{Gateway, Response, Signal, Upstream, Wire};

use crate::{expect_executed, expect_replay, gateway, post, setup};

/// Two attempts before an upstream that answers with these bytes: the first and its replay.
#[track_caller]
fn executed_and_replayed(answer: &'static str, status: u16) -> (Response, Response) {
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        x.send(answer.as_bytes());
    });
    let gateway = gateway(&upstream);
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, status);
    let second = gateway.post("/x", "k", "b");
    expect_replay(&second, &first);
    assert_eq!(upstream.hits(), 1);
    (first, second)
}

/// Case: 100 and 103 before the answer. Answer: not recorded.
#[test]
fn hostile_065_interim_answers_are_not_recorded() {
    let (first, second) = executed_and_replayed(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
         HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\nmade",
        201,
    );
    for answer in [&first, &second] {
        assert_eq!(answer.text(), "made");
        assert_eq!(answer.header("link"), None);
    }
}

/// Case: the upstream switches protocols. Answer: 502 `outcome-unknown`.
#[test]
fn hostile_066_a_switch_of_protocols_is_refused() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        x.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nwild",
        );
    });
    let gateway = gateway(&upstream);
    for _ in 0..2 {
        let answer = gateway.post("/x", "k", "b");
        answer
            .expect_problem(502, "outcome-unknown")
            .expect_retry(false);
    }
    assert_eq!(upstream.hits(), 1);
}

/// Case: 204 and 304. Answer: replayed without a body.
#[test]
fn hostile_067_204_and_304_are_replayed_without_a_body() {
    for (status, line) in [(204, "204 No Content"), (304, "304 Not Modified")] {
        let upstream = Upstream::scripted(move |x| {
            x.read_body();
            x.send(format!("HTTP/1.1 {line}\r\nETag: \"1\"\r\n\r\n").as_bytes());
        });
        let gateway = gateway(&upstream);
        let mut client = gateway.connect();
        let first = client.ask(&post("/x", "k", "b"));
        expect_executed(&first, status);
        // On the same connection: a body that nobody announced would be read as the next head.
        for _ in 0..2 {
            let replay = client.ask(&post("/x", "k", "b"));
            expect_replay(&replay, &first);
            assert_eq!(replay.header("etag"), Some("\"1\""));
            assert_eq!(replay.header("transfer-encoding"), None);
        }
        assert_eq!(upstream.hits(), 1);
    }
}

/// Case: errors that do not say that nothing ran. Answer: recorded and replayed.
#[test]
fn hostile_068_errors_outside_the_release_list_are_recorded() {
    for status in [400_u16, 402, 404, 409, 422, 500, 501, 502, 504, 599] {
        let upstream = Upstream::scripted(move |x| {
            x.answer(status, &[], format!("error {}", x.number).as_bytes());
        });
        let gateway = gateway(&upstream);
        let first = gateway.post("/x", "k", "b");
        expect_executed(&first, status);
        assert_eq!(first.text(), "error 1");
        expect_replay(&gateway.post("/x", "k", "b"), &first);
        assert_eq!(upstream.hits(), 1, "{status}");
    }
}

/// Case: cookies in the answer. Answer: not in replays, unless the route allows it.
#[test]
fn hostile_075_cookies_are_not_in_replays() {
    let (first, second) = executed_and_replayed(
        "HTTP/1.1 200 OK\r\nSet-Cookie: session=one\r\nset-cookie: b=two\r\nContent-Length: 2\r\n\r\nok",
        200,
    );
    assert_eq!(first.head.all("set-cookie"), ["session=one", "b=two"]);
    assert!(
        second.head.all("set-cookie").is_empty(),
        "{:?}",
        second.head
    );
}

#[test]
fn hostile_075_cookies_are_replayed_where_the_route_allows_it() {
    let upstream = Upstream::scripted(|x| {
        x.answer(200, &[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], b"ok");
    });
    let gateway = setup(&upstream).route("allow_set_cookie = true").start();
    let first = gateway.post("/x", "k", "b");
    expect_executed(&first, 200);
    let second = gateway.post("/x", "k", "b");
    expect_replay(&second, &first);
    assert_eq!(second.head.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(upstream.hits(), 1);
}

/// Case: hop-by-hop headers. Answer: neither stored nor forwarded.
#[test]
fn hostile_076_hop_by_hop_headers_are_never_stored() {
    let upstream = Upstream::scripted(|x| {
        x.answer(
            200,
            &[
                ("Connection", "keep-alive, X-Hop"),
                ("Keep-Alive", "timeout=5"),
                ("X-Hop", "1"),
                ("Proxy-Authenticate", "Basic"),
                ("Proxy-Connection", "keep-alive"),
                ("Upgrade", "h2c"),
                ("X-End", "2"),
            ],
            b"ok",
        );
    });
    let gateway = gateway(&upstream);
    let request = post("/x", "k", "b")
        .header("Connection", "X-Private")
        .header("X-Private", "1")
        .header("Proxy-Authorization", "Basic c2VjcmV0")
        .header("TE", "trailers")
        .header("Keep-Alive", "timeout=9");
    let first = gateway.send(&request);
    expect_executed(&first, 200);
    let second = gateway.send(&request);
    expect_replay(&second, &first);
    let hops = [
        "x-hop",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "upgrade",
    ];
    for answer in [&first, &second] {
        for name in hops {
            assert_eq!(answer.header(name), None, "{name} in {:?}", answer.head);
        }
        assert_eq!(answer.header("x-end"), Some("2"));
    }
    let id = first.header("onlyonce-operation").unwrap();
    let detail = gateway.control().json(&format!("/v1/operations/{id}"));
    let stored = detail["response_headers"].to_string().to_ascii_lowercase();
    for name in hops {
        assert!(
            !stored.contains(&format!("\"{name}\"")),
            "{name} in {stored}"
        );
    }
    assert!(stored.contains("\"x-end\""), "{stored}");
    // The same towards the upstream.
    let seen = upstream.seen().remove(0).head;
    for name in ["x-private", "proxy-authorization", "keep-alive"] {
        assert_eq!(seen.header(name), None, "{seen:?}");
    }
    assert_eq!(upstream.hits(), 1);
}

/// Case: many headers of one name. Answer: order and number stay.
#[test]
fn hostile_077_many_headers_of_one_name_keep_their_order_and_number() {
    let (first, second) = executed_and_replayed(
        "HTTP/1.1 200 OK\r\nX-Many: a\r\nX-Other: 1\r\nX-Many: c\r\nX-Many: b\r\nX-Many: a\r\n\
         X-Comma: a, b\r\nX-Empty:\r\nContent-Length: 2\r\n\r\nok",
        200,
    );
    for answer in [&first, &second] {
        assert_eq!(answer.head.all("x-many"), ["a", "c", "b", "a"]);
        assert_eq!(answer.head.all("x-comma"), ["a, b"]);
        assert_eq!(answer.head.all("x-empty"), [""]);
    }
}

/// Case: the gateway's own marks in the upstream's answer. Answer: taken out.
#[test]
fn hostile_078_our_marks_in_an_upstreams_answer_are_removed() {
    let (first, second) = executed_and_replayed(
        "HTTP/1.1 200 OK\r\nOnlyonce-Status: replayed\r\nIdempotent-Replayed: true\r\n\
         Onlyonce-Operation: op_forged\r\nOnlyonce-Attempt: 77\r\n\
         Onlyonce-Expires: 1999-01-01T00:00:00Z\r\nOnlyonce-Key: forged\r\nContent-Length: 2\r\n\r\nok",
        200,
    );
    for answer in [&first, &second] {
        assert_eq!(answer.head.all("onlyonce-status").len(), 1);
        assert_eq!(answer.head.all("onlyonce-operation").len(), 1);
        assert_eq!(answer.head.all("onlyonce-key").len(), 0);
        let head = format!("{:?}", answer.head);
        for forged in ["op_forged", "\"77\"", "1999-", "forged"] {
            assert!(!head.contains(forged), "{forged} in {head}");
        }
    }
    // An answer that passes through cannot carry them either.
    let upstream = Upstream::scripted(|x| {
        x.answer(
            200,
            &[
                ("Onlyonce-Status", "replayed"),
                ("Idempotent-Replayed", "true"),
            ],
            b"ok",
        );
    });
    let answer = gateway(&upstream).send(&onlyonce_testkit::Request::get("/x"));
    assert_eq!(
        (answer.mark(), answer.header("idempotent-replayed")),
        (None, None)
    );
}

/// Case: an answer before the request's body was taken. Answer: recorded, the connection closed.
#[test]
fn hostile_079_an_answer_before_the_body_was_read_is_recorded() {
    let upstream = Upstream::scripted(|x| {
        // Answers on the head alone and never reads the body.
        x.send(b"HTTP/1.1 413 Too Big\r\nContent-Length: 6\r\nConnection: close\r\n\r\ntoobig");
        x.wait_for_close();
    });
    let gateway = gateway(&upstream);
    let request = post("/x", "k", &"b".repeat(8 * 1024 * 1024));
    let first = gateway.send(&request);
    expect_executed(&first, 413);
    assert_eq!(first.text(), "toobig");
    expect_replay(&gateway.send(&request), &first);
    assert_eq!((upstream.hits(), upstream.connections()), (1, 1));
    // The next request takes a connection of its own.
    expect_executed(&gateway.post("/x", "k2", "b"), 413);
    assert_eq!((upstream.hits(), upstream.connections()), (2, 2));
}

/// Case: trailers. Answer: recorded and replayed.
#[test]
fn hostile_080_trailers_are_recorded_and_replayed() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(200, &[("Trailer", "Grpc-Status, X-Sum")]);
        x.chunk("body");
        x.send(b"0\r\nGrpc-Status: 0\r\nX-Sum: abc\r\nOnlyonce-Status: forged\r\n\r\n");
    });
    let gateway = gateway(&upstream);
    let request = post("/x", "k", "b").header("TE", "trailers");
    let first = gateway.send(&request);
    expect_executed(&first, 200);
    let names: Vec<_> = first
        .trailers
        .iter()
        .map(|(n, v)| (n.to_ascii_lowercase(), v.clone()))
        .collect();
    assert_eq!(
        names,
        [
            ("grpc-status".to_owned(), "0".to_owned()),
            ("x-sum".to_owned(), "abc".to_owned())
        ]
    );
    let second = gateway.send(&request);
    expect_replay(&second, &first);
    assert_eq!(upstream.hits(), 1);
}

/// What a caller of HTTP/1.0 gets, which knows no chunks, and how that ends.
fn asked_by_http_1_0(gateway: &Gateway, has_begun: &Signal) -> (String, io::Result<()>) {
    let mut wire = Wire::connect(gateway.addr());
    wire.send(
        b"POST /x HTTP/1.0\r\nHost: h\r\nAuthorization: Bearer t\r\nIdempotency-Key: k\r\n\
          Content-Length: 1\r\n\r\nb",
    )
    .unwrap();
    let head = wire.take_through(b"part of it").unwrap();
    has_begun.fire();
    let ended = loop {
        match wire.fill() {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let came = [head, wire.take_buffered()].concat();
    (String::from_utf8(came).unwrap(), ended)
}

/// A caller of HTTP/1.0 can tell a break by a reset alone: proxies that speak it to their upstreams would make a whole
/// answer of what ends in order.
#[test]
fn hostile_069_i05_a_caller_of_http_1_0_sees_a_reset_where_an_answer_breaks_off() {
    for is_whole in [true, false] {
        let has_begun = Signal::new();
        let go = has_begun.clone();
        let upstream = Upstream::scripted(move |x| {
            x.start_chunked(200, &[]);
            x.chunk("part of it");
            go.wait();
            if is_whole {
                x.end_chunks();
            } else {
                x.close();
            }
        });
        let gateway = gateway(&upstream);
        let (came, ended) = asked_by_http_1_0(&gateway, &has_begun);
        assert!(came.contains("onlyonce-status: executed"), "{came}");
        match is_whole {
            true => {
                ended.unwrap();
                assert!(came.ends_with("\r\n\r\npart of it"), "{came}");
            }
            false => assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset),
        }
    }
}
