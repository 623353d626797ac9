//! Several upstreams, chosen by host or path; presets; who is told about the caller.

use onlyonce_testkit::{Request, Setup, Upstream};

use crate::{BIN, expect_executed, expect_replay, post, setup};

fn upstream_and_route(name: &str, url: &str, route: &str) -> String {
    format!(
        "[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\n[[route]]\nupstream = \"{name}\"\n{route}\n"
    )
}

#[test]
fn the_longest_prefix_and_the_host_choose_the_upstream() {
    let ups: Vec<Upstream> = (0..4).map(|_| Upstream::counting()).collect();
    let gateway = Setup::new(BIN, &ups[0].url())
        .extra(&upstream_and_route(
            "a",
            &ups[1].url(),
            "path_prefix = \"/a\"",
        ))
        .extra(&upstream_and_route(
            "ab",
            &ups[2].url(),
            "path_prefix = \"/a/b\"\nstrip_prefix = true",
        ))
        .extra(&upstream_and_route(
            "host",
            &ups[3].url(),
            "host = \"api.test\"",
        ))
        .start();
    let get = |path: &str, host: &str| {
        let request = Request::get(path).without("Host").header("Host", host);
        gateway.send(&request).expect_status(200).clone()
    };
    get("/", "h");
    get("/ab", "h");
    get("/a", "h");
    get("/a/c?d", "h");
    get("/a/b", "h");
    get("/a/b/c?d=e", "h");
    get("/a/b", "API.test:8787");
    let paths = |n: usize| -> Vec<String> {
        ups[n]
            .seen()
            .iter()
            .map(|seen| seen.head.word(1).to_owned())
            .collect()
    };
    assert_eq!(paths(0), ["/", "/ab"]);
    assert_eq!(paths(1), ["/a", "/a/c?d"]);
    assert_eq!(paths(2), ["/", "/c?d=e"]);
    assert_eq!(paths(3), ["/a/b"]);
}

#[test]
fn a_request_that_no_route_takes_is_told_so() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("path_prefix = \"/v1\"").start();
    gateway
        .post("/v2/x", "k", "b")
        .expect_problem(404, "route-not-found")
        .expect_retry(false);
    gateway
        .send(&Request::get("/"))
        .expect_problem(404, "route-not-found");
    assert_eq!(upstream.hits(), 0);
    expect_executed(&gateway.post("/v1/x", "k", "b"));
}

#[test]
fn the_path_of_an_upstreams_address_comes_first() {
    let upstream = Upstream::counting();
    let gateway = Setup::new(BIN, &format!("{}/base/", upstream.url())).start();
    let first = gateway.post("/x?y=z", "k", "b");
    expect_executed(&first);
    expect_replay(&gateway.post("/x?y=z", "k", "b"), &first);
    assert_eq!(upstream.seen()[0].head.word(1), "/base/x?y=z");
}

#[test]
fn routes_of_one_namespace_share_their_keys() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream)
        .route("path_prefix = \"/a\"\nnamespace = \"shared\"")
        .extra("[[route]]\nupstream = \"up\"\npath_prefix = \"/b\"\nnamespace = \"shared\"")
        .extra("[[route]]\nupstream = \"up\"\npath_prefix = \"/c\"\nnamespace = \"own\"")
        .start();
    expect_executed(&gateway.post("/a", "k", "b"));
    gateway
        .post("/b", "k", "b")
        .expect_problem(422, "key-reused");
    expect_executed(&gateway.post("/c", "k", "b"));
    assert_eq!(upstream.hits(), 2);
}

#[test]
fn the_callers_address_is_told_only_where_asked() {
    for (choice, name, value) in [
        ("none", "x-forwarded-for", None),
        ("none", "forwarded", None),
        (
            "x-forwarded",
            "x-forwarded-for",
            Some("203.0.113.9, 127.0.0.1"),
        ),
        ("x-forwarded", "x-forwarded-proto", Some("http")),
        ("x-forwarded", "x-forwarded-host", Some("gateway.test")),
    ] {
        let upstream = Upstream::counting();
        let gateway = setup(&upstream)
            .server(&format!("forwarded = \"{choice}\""))
            .start();
        let request = post("/x", "k", "b")
            .header("X-Forwarded-For", "203.0.113.9")
            .header("Forwarded", "for=203.0.113.9");
        expect_executed(&gateway.send(&request));
        let seen = upstream.seen().remove(0).head;
        let got = seen.header(name);
        match value {
            // What a caller claims is passed on only behind a chain that the operator trusts.
            Some("203.0.113.9, 127.0.0.1") => {
                assert!(
                    got.is_some_and(|v| v.ends_with("127.0.0.1")),
                    "{choice} {name}: {got:?}"
                );
            }
            value => assert_eq!(got, value, "{choice}: {name}"),
        }
    }
}

#[test]
fn the_forwarded_header_of_rfc_7239_is_written() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).server("forwarded = \"forwarded\"").start();
    expect_executed(&gateway.post("/x", "k", "b"));
    let seen = upstream.seen().remove(0).head;
    let value = seen
        .header("forwarded")
        .expect("a Forwarded header")
        .to_ascii_lowercase();
    assert!(
        value.contains("for=127.0.0.1") || value.contains("for=\"127.0.0.1"),
        "{value}"
    );
    assert!(value.contains("proto=http"), "{value}");
    assert_eq!(seen.header("x-forwarded-for"), None);
}

#[test]
fn a_preset_of_ones_own_builds_on_another() {
    let upstream = Upstream::scripted(|x| x.answer(418, &[], b"a teapot"));
    let gateway = setup(&upstream)
        .upstream("preset = \"teapot\"")
        .extra("[[preset]]\nname = \"teapot\"\nextends = \"anthropic\"\nrelease = [418]\nforward_key = \"X-Tea\"")
        .start();
    gateway
        .post("/x", "k", "b")
        .expect_status(418)
        .expect_mark("released");
    assert_eq!(upstream.seen()[0].head.header("x-tea"), Some("k"));
}
