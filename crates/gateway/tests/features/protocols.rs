//! HTTP/2 and TLS, in and out.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use onlyonce_testkit::{Gateway, Setup, Upstream};

use crate::peers::{Answer, Certificate, Peer, ask_http2};
use crate::{BIN, expect_executed, expect_replay, gateway, post, setup};

fn request(path: &str, key: Option<&str>, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("http://gateway.test{path}")).header("te", "trailers");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap()
}

fn one(gateway: &Gateway, request: Request<Full<Bytes>>) -> Answer {
    ask_http2(gateway.addr(), None, vec![request]).remove(0)
}

#[test]
fn http2_comes_in_by_prior_knowledge() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let first = one(&gateway, request("/x", Some("k"), "b"));
    assert_eq!(
        (first.status, first.header("onlyonce-status")),
        (200, Some("executed"))
    );
    let again = one(&gateway, request("/x", Some("k"), "b"));
    assert_eq!(
        (again.status, again.header("onlyonce-status")),
        (200, Some("replayed"))
    );
    assert_eq!(again.body, first.body);
    // An attempt over HTTP/1.1 is the same operation.
    let other = gateway.post("/x", "k", "b");
    other.expect_status(200).expect_mark("replayed");
    assert_eq!(other.text(), first.body);
    let mismatch = one(&gateway, request("/x", Some("k"), "c"));
    assert_eq!(mismatch.status, 422);
    assert!(mismatch.body.contains("key-reused"), "{}", mismatch.body);
    let passed = one(&gateway, request("/x", None, "b"));
    assert_eq!(
        (passed.status, passed.header("onlyonce-status")),
        (200, None)
    );
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn many_streams_of_one_connection_are_one_operation_and_many() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    let mut requests: Vec<_> = (0..50).map(|_| request("/x", Some("same"), "b")).collect();
    requests.extend((0..50).map(|n| request("/x", Some(&format!("k{n}")), "b")));
    let answers = ask_http2(gateway.addr(), None, requests);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(
        answers[..50]
            .iter()
            .all(|answer| answer.body == answers[0].body)
    );
    assert_eq!(upstream.hits(), 51);
}

#[test]
fn http2_goes_out_by_prior_knowledge() {
    let peer = Peer::start(None);
    let gateway = Setup::new(BIN, &format!("http://127.0.0.1:{}", peer.port()))
        .upstream("http2 = true")
        .start();
    let first = gateway.send(&post("/x", "k", "body").header("TE", "trailers"));
    expect_executed(&first);
    assert_eq!(first.text(), "1 HTTP/2.0 /x 4");
    assert_eq!(first.head.all("x-many"), ["1", "2"]);
    let again = gateway.send(&post("/x", "k", "body").header("TE", "trailers"));
    expect_replay(&again, &first);
    assert_eq!(again.trailers, first.trailers);
    // From end to end: beside a length, only HTTP/2 can carry trailers.
    let through = one(&gateway, request("/y", Some("k2"), "body"));
    assert_eq!(
        (through.status, through.body.as_str()),
        (200, "2 HTTP/2.0 /y 4")
    );
    assert_eq!(
        through
            .trailers
            .and_then(|t| t.get("x-sum").cloned())
            .unwrap(),
        "7"
    );
    let passed = one(&gateway, request("/z", None, "body"));
    assert_eq!(passed.body, "3 HTTP/2.0 /z 4");
    assert_eq!(peer.hits(), 3);
}

#[test]
fn tls_comes_in_with_either_protocol() {
    let upstream = Upstream::counting();
    let certificate = Certificate::new();
    let gateway = setup(&upstream)
        .extra(&format!(
            "[server.tls]\ncert = \"{}\"\nkey = \"{}\"",
            certificate.cert().display(),
            certificate.key().display()
        ))
        .start();
    let ask = |key: &str| {
        let client = certificate.client(&["h2"]);
        ask_http2(
            gateway.addr(),
            Some(client),
            vec![request("/x", Some(key), "b")],
        )
        .remove(0)
    };
    let first = ask("k");
    assert_eq!(
        (first.status, first.header("onlyonce-status")),
        (200, Some("executed"))
    );
    let again = ask("k");
    assert_eq!(
        (again.body.as_str(), again.header("onlyonce-status")),
        (&*first.body, Some("replayed"))
    );
    // HTTP/1.1 over TLS, with the bytes written by hand.
    let text = https_1_1(
        &gateway,
        &certificate,
        &post("/x", "k", "b").header("Connection", "close").bytes(),
    );
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(
        text.contains("onlyonce-status: replayed") && text.ends_with(&first.body),
        "{text}"
    );
    assert_eq!(upstream.hits(), 1);
    // Plain text is no TLS: the connection ends, and nothing is claimed.
    let mut plain = gateway.connect();
    plain.send(&post("/x", "plain", "b"));
    assert!(plain.try_read_head().is_err());
    assert!(gateway.control().operations("plain").is_empty());
}

fn https_1_1(gateway: &Gateway, certificate: &Certificate, bytes: &[u8]) -> String {
    use std::io::{Read, Write};
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let client = rustls::ClientConnection::new(certificate.client(&["http/1.1"]), name).unwrap();
    let stream = std::net::TcpStream::connect(gateway.addr()).unwrap();
    stream
        .set_read_timeout(Some(onlyonce_testkit::PATIENCE))
        .unwrap();
    let mut tls = rustls::StreamOwned::new(client, stream);
    tls.write_all(bytes).unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer)
        .expect("a clean end, close_notify included");
    answer
}

#[test]
fn tls_goes_out_to_roots_that_are_given() {
    let certificate = Certificate::new();
    for (protocols, version) in [
        (&["http/1.1"][..], "HTTP/1.1"),
        (&["h2", "http/1.1"], "HTTP/2.0"),
    ] {
        let peer = Peer::start(Some(certificate.server(protocols)));
        let gateway = Setup::new(BIN, &format!("https://localhost:{}", peer.port()))
            .upstream(&format!("tls_roots = \"{}\"", certificate.cert().display()))
            .start();
        let first = gateway.post("/x", "k", "body");
        expect_executed(&first);
        assert_eq!(first.text(), format!("1 {version} /x 4"));
        expect_replay(&gateway.post("/x", "k", "body"), &first);
        assert_eq!(peer.hits(), 1);
    }
}

#[test]
fn tls_goes_out_to_the_roots_of_the_system() {
    let certificate = Certificate::new();
    let peer = Peer::start(Some(certificate.server(&["http/1.1"])));
    let gateway = Setup::new(BIN, &format!("https://localhost:{}", peer.port()))
        .env("SSL_CERT_FILE", &certificate.cert().display().to_string())
        .start();
    expect_executed(&gateway.post("/x", "k", "body"));
    assert_eq!(peer.hits(), 1);
}

#[test]
fn an_upstream_whose_certificate_is_not_trusted_gets_nothing() {
    let (theirs, ours) = (Certificate::new(), Certificate::new());
    let peer = Peer::start(Some(theirs.server(&["h2", "http/1.1"])));
    let url = format!("https://localhost:{}", peer.port());
    let other_roots = format!("tls_roots = \"{}\"", ours.cert().display());
    // By other roots, by the system's, and by a name that is not the certificate's.
    let by_address = format!("https://127.0.0.1:{}", peer.port());
    let its_roots = format!("tls_roots = \"{}\"", theirs.cert().display());
    for (url, roots) in [
        (&url, other_roots.as_str()),
        (&url, ""),
        (&by_address, &its_roots),
    ] {
        let gateway = Setup::new(BIN, url).upstream(roots).start();
        let answer = gateway.post("/x", "k", "b");
        answer
            .expect_problem(502, "upstream-unreachable")
            .expect_retry(true);
        assert_eq!(gateway.control().operation("k")["state"], "released");
    }
    assert_eq!(peer.hits(), 0);
}
