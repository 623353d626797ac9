//! The control listener over the memory store, and its description.

mod access;
mod console;
mod ledger;
mod live;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use onlyonce_core::{
    Basis, Cost, Fingerprint, Head, HeaderBlock, Key, Metered, OwnerId, RequestLine, Scope, Unit,
    UnknownReason, Usd,
};
use onlyonce_engine::{Begin, Execution, Reader};
use onlyonce_http::problem_pages::PAGES;
use onlyonce_store::MemoryStore;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::*;
use crate::config::{Config, Overrides, Source};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Fixture {
    shared: Arc<Shared<MemoryStore>>,
    phases: watch::Sender<Phase>,
    router: Router,
    token: Option<&'static str>,
    cookie: Option<String>,
}

struct Answer {
    status: StatusCode,
    kind: String,
    headers: axum::http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    /// A refusal says what to do.
    #[track_caller]
    fn expect_refusal(self, status: u16) -> Value {
        let answer = self.expect(status);
        assert_eq!(answer.kind, "application/problem+json");
        let body = answer.json();
        assert_eq!(body["status"], status);
        assert!(!body["next"].as_str().unwrap().is_empty());
        body
    }
}

fn fixture_with(server: &str) -> Fixture {
    let text = format!(
        "[server]\n{server}\n[store]\nurl = \"memory:\"\n[[upstream]]\nname = \"up\"\nurl = \
         \"http://localhost:1\"\n[[route]]\nupstream = \"up\"\nwindow = \"2h\"\n"
    );
    let source = Source {
        name: "test.toml",
        text: &text,
        env: &|_| None,
    };
    let config = Config::read(&source, &Overrides::default()).unwrap();
    let shared = Shared::new(config, MemoryStore::new(), OwnerId::new(1)).unwrap();
    let (phases, phase) = watch::channel(Phase::Serving);
    Fixture {
        router: router(Control::new(Arc::clone(&shared), phase)),
        shared,
        phases,
        token: None,
        cookie: None,
    }
}

fn fixture() -> Fixture {
    fixture_with("")
}

impl Fixture {
    async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header("host", "127.0.0.1:8788")
            .header("content-type", "application/json");
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        self.send_request(request.body(Body::from(body.to_owned())).unwrap())
            .await
    }

    /// What a form on a page of the console sends.
    async fn submit(&self, path: &str, body: &str) -> Answer {
        self.submit_from("http://127.0.0.1:8788", path, body).await
    }

    async fn submit_from(&self, origin: &str, path: &str, body: &str) -> Answer {
        let request = Request::post(path)
            .header("host", "127.0.0.1:8788")
            .header("origin", origin)
            .header("cookie", self.cookie.as_deref().unwrap_or_default())
            .header("content-type", "application/x-www-form-urlencoded");
        self.send_request(request.body(Body::from(body.to_owned())).unwrap())
            .await
    }

    async fn send_request(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let kind = response.headers().get("content-type");
        let kind = kind.map_or(String::new(), |kind| kind.to_str().unwrap().to_owned());
        let status = response.status();
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer {
            status,
            kind,
            headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &body.to_string()).await
    }

    async fn begin(&self, tenant: &str, key: &str) -> Begin<MemoryStore> {
        self.begin_asking(tenant, key, "").await
    }

    async fn begin_asking(&self, tenant: &str, key: &str, model: &str) -> Begin<MemoryStore> {
        let request = onlyonce_engine::Request {
            scope: Scope {
                tenant: tenant.into(),
                namespace: "up".into(),
            },
            key: Key::new(key).unwrap(),
            fingerprint: Fingerprint::from_bytes([1; 32]),
            line: RequestLine {
                route: "up".into(),
                method: "POST".into(),
                path: "/v1/x".into(),
                trace: None,
            },
            peer: "127.0.0.1:5".into(),
            asked_model: model.into(),
            sdk_retry_count: Some(2),
            trace: None,
        };
        let policy = self.shared.config.routes[0].engine_policy;
        self.shared.engine.begin(request, &policy).await.unwrap()
    }

    async fn claim(
        &self,
        tenant: &str,
        key: &str,
    ) -> (Execution<MemoryStore>, Reader<MemoryStore>) {
        self.claim_asking(tenant, key, "").await
    }

    async fn claim_asking(
        &self,
        tenant: &str,
        key: &str,
        model: &str,
    ) -> (Execution<MemoryStore>, Reader<MemoryStore>) {
        match self.begin_asking(tenant, key, model).await {
            Begin::Execute(execution, reader) => (execution, reader),
            _ => panic!("{key} is not new"),
        }
    }

    async fn replay(&self, tenant: &str, key: &str) {
        let begun = self.begin(tenant, key).await;
        assert!(matches!(begun, Begin::Replay(_)), "{key} is not completed");
    }

    /// A finished operation; its id.
    async fn completed(&self, tenant: &str, key: &str) -> String {
        self.completed_by(tenant, key, "gpt-5").await
    }

    async fn completed_by(&self, tenant: &str, key: &str, model: &str) -> String {
        let (mut execution, _reader) = self.claim(tenant, key).await;
        let id = execution.id().to_string();
        execution.meter(Metered {
            model: model.into(),
            ..metered()
        });
        let head = Head {
            status: 201,
            headers: HeaderBlock::pack([(&b"x-a"[..], &b"1"[..])]).unwrap(),
        };
        let body = format!("answer to {key}").into();
        execution
            .respond_whole(head, body, HeaderBlock::default())
            .await
            .unwrap();
        id
    }

    /// An operation of which nobody knows; its id.
    async fn unknown(&self, key: &str) -> String {
        self.unknown_of("acme", key).await
    }

    async fn unknown_of(&self, tenant: &str, key: &str) -> String {
        let (execution, _reader) = self.claim(tenant, key).await;
        let id = execution.id().to_string();
        execution.lose(UnknownReason::Broke).await.unwrap();
        id
    }
}

/// What each completed answer has told.
fn metered() -> Metered {
    Metered {
        provider: "openai".into(),
        operation: "chat".into(),
        model: "gpt-5".into(),
        usage: [(Unit::Input, 12), (Unit::Output, 345)]
            .into_iter()
            .collect(),
        source: onlyonce_core::metered::Source::Provider,
        cost: Some(Cost {
            amount: Usd::from_nanos(3_465_000),
            basis: Basis::Table,
            version: "prices 1".into(),
        }),
        ..Metered::default()
    }
}

fn names(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn openapi() -> Value {
    serde_json::from_str(pages::OPENAPI).unwrap()
}

#[tokio::test]
async fn the_description_lists_what_is_served_and_nothing_else() {
    let described = openapi()["paths"].clone();
    // The console is for people, and its page of the documentation describes it.
    let (pages, served): (BTreeSet<_>, BTreeSet<_>) = endpoints::<MemoryStore>()
        .iter()
        .map(|endpoint| endpoint.path.to_owned())
        .partition(|path| {
            path == "/" || super::console::is_page(&path.parse().unwrap_or_default())
        });
    assert_eq!(names(&described), served);
    assert!(pages.len() > 10, "{pages:?}");
    // A name is one of a problem, and of a sink.
    let fixture = fixture_with(
        "[[ledger.sink]]\nname = \"key-reused\"\nkind = \"openmeter\"\nurl = \"http://localhost:1\"",
    );
    for (path, item) in described.as_object().unwrap() {
        let real = path.replace("{name}", "key-reused").replace("{id}", "op_x");
        for method in ["get", "post", "put", "delete", "patch"] {
            let answer = fixture.send(&method.to_uppercase(), &real, "{").await;
            let served = answer.status != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(
                served,
                item.get(method).is_some(),
                "{method} {path}: {}",
                answer.text
            );
            assert_ne!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
        }
    }
    assert_eq!(
        fixture.get("/openapi.json").await.expect(200).json(),
        openapi()
    );
}

#[tokio::test]
async fn the_description_names_every_field_of_an_operation() {
    let fixture = fixture();
    let id = fixture.completed("acme", "k").await;
    let schemas = openapi()["components"]["schemas"].clone();
    let described = |name: &str| names(&schemas[name]["properties"]);
    let page = fixture.get("/v1/operations").await.expect(200).json();
    assert_eq!(names(&page), described("OperationPage"));
    assert_eq!(names(&page["operations"][0]), described("Operation"));
    let detail = fixture
        .get(&format!("/v1/operations/{id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(names(&detail), described("OperationDetail"));
    assert_eq!(names(&detail["attempts_log"][0]), described("Attempt"));
    assert_eq!(names(&detail["metered"]), described("Metered"));
    assert_eq!(names(&detail["metered"]["cost"]), described("Cost"));
    let words = |of: &str, field: &str| schemas[of]["properties"][field]["enum"].clone();
    assert_eq!(
        words("Metered", "source"),
        json!(
            onlyonce_core::metered::Source::ALL
                .iter()
                .map(|s| s.as_str())
                .collect::<Vec<_>>()
        )
    );
    assert_eq!(
        words("Cost", "basis"),
        json!(Basis::ALL.iter().map(|b| b.as_str()).collect::<Vec<_>>())
    );
    let refusal = fixture.get("/nowhere").await.expect_refusal(404);
    assert_eq!(names(&refusal), described("Refusal"));
    let purged = fixture
        .post("/v1/purge", &json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(names(&purged), described("Purged"));
    let problems: BTreeSet<_> = PAGES.iter().map(|page| page.name).collect();
    let listed = schemas["ProblemName"]["enum"].as_array().unwrap();
    assert_eq!(
        listed
            .iter()
            .filter_map(Value::as_str)
            .collect::<BTreeSet<_>>(),
        problems
    );
    let states = schemas["Operation"]["properties"]["state"]["enum"]
        .as_array()
        .unwrap();
    let all = onlyonce_core::StateName::ALL.map(onlyonce_core::StateName::as_str);
    assert!(states.iter().filter_map(Value::as_str).eq(all));
}

#[tokio::test]
async fn a_completed_operation_shows_its_life() {
    let fixture = fixture();
    let id = fixture.completed("acme", "k-1").await;
    let shown = fixture
        .get(&format!("/v1/operations/{id}"))
        .await
        .expect(200)
        .json();
    for (name, value) in [
        ("id", json!(id)),
        ("tenant", json!("acme")),
        ("namespace", json!("up")),
        ("key", json!("k-1")),
        ("state", json!("completed")),
        ("status", json!(201)),
        ("response_bytes", json!("answer to k-1".len())),
        ("attempts", json!(1)),
        ("route", json!("up")),
        ("method", json!("POST")),
        ("path", json!("/v1/x")),
        ("reason", Value::Null),
        ("lease_until", Value::Null),
        ("response_headers", json!([["x-a", "1"]])),
        (
            "metered",
            json!({
                "source": "provider",
                "provider": "openai",
                "operation": "chat",
                "model": "gpt-5",
                "request_model": "",
                "response_id": "",
                "tier": "",
                "usage": { "input": 12, "output": 345 },
                "cost": { "usd": "0.003465", "basis": "table", "version": "prices 1" },
            }),
        ),
    ] {
        assert_eq!(shown[name], value, "{name}");
    }
    let moment = |name: &str| humantime::parse_rfc3339(shown[name].as_str().unwrap()).unwrap();
    let window = moment("expires_at")
        .duration_since(moment("completed_at"))
        .unwrap();
    assert_eq!(window, Duration::from_secs(7200));
    assert!(moment("created_at") <= moment("completed_at"));
    let attempt = &shown["attempts_log"][0];
    assert_eq!(
        (
            &attempt["number"],
            &attempt["peer"],
            &attempt["sdk_retry_count"],
            &attempt["got"]
        ),
        (
            &json!(1),
            &json!("127.0.0.1:5"),
            &json!(2),
            &json!("executed")
        )
    );
}

#[tokio::test]
async fn a_list_is_filtered_and_comes_in_pages() {
    let fixture = fixture();
    for number in 0..5 {
        let tenant = if number % 2 == 0 { "even" } else { "odd" };
        fixture.completed(tenant, &format!("k{number}")).await;
    }
    fixture.unknown("lost").await;
    let keys = |page: &Value| -> Vec<String> {
        let all = page["operations"].as_array().unwrap();
        all.iter()
            .map(|one| one["key"].as_str().unwrap().to_owned())
            .collect()
    };
    let list = async |query: &str| {
        let answer = fixture.get(&format!("/v1/operations{query}")).await;
        keys(&answer.expect(200).json())
    };
    assert_eq!(list("?key=k3").await, ["k3"]);
    assert_eq!(list("?state=unknown").await, ["lost"]);
    assert_eq!(list("?tenant=odd").await.len(), 2);
    assert_eq!(list("?since=1h").await.len(), 6);
    assert_eq!(list("?until=1h").await.len(), 0);
    assert_eq!(
        list("?since=2000-01-01T00:00:00Z&state=completed")
            .await
            .len(),
        5
    );
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/operations?limit=2{cursor}");
        let page = fixture.get(&path).await.expect(200).json();
        all.extend(keys(&page));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    all.sort();
    assert_eq!(all, ["k0", "k1", "k2", "k3", "k4", "lost"]);
}

#[tokio::test]
async fn a_wrong_question_is_refused_with_what_to_ask() {
    let fixture = fixture();
    for (path, word) in [
        ("/v1/operations?stat=unknown", "stat"),
        ("/v1/operations?state=complete", "completed"),
        ("/v1/operations?limit=0", "limit"),
        ("/v1/operations?since=yesterday", "since"),
        ("/v1/operations?cursor=3", "op_"),
        ("/v1/operations?key=", "empty"),
        ("/v1/operations/nothing", "op_"),
        ("/v1/operations/nothing/recording", "op_"),
    ] {
        let refusal = fixture.get(path).await.expect_refusal(400).to_string();
        assert!(refusal.contains(word), "{path}: {refusal}");
    }
    let nobody = "/v1/operations/op_00000000-0000-7000-8000-000000000000";
    fixture.get(nobody).await.expect_refusal(404);
    fixture
        .get(&format!("{nobody}/recording"))
        .await
        .expect_refusal(404);
    let released = json!({ "outcome": "released" });
    fixture
        .post(&format!("{nobody}/resolve"), &released)
        .await
        .expect_refusal(404);
    fixture.get("/problems/key-reusd").await.expect_refusal(404);
}

#[tokio::test]
async fn a_recording_is_given_from_any_byte_and_followed_while_it_grows() {
    let fixture = fixture();
    let id = fixture.completed("acme", "k").await;
    let whole = fixture
        .get(&format!("/v1/operations/{id}/recording"))
        .await
        .expect(200);
    assert_eq!(
        (whole.text.as_str(), &*whole.kind),
        ("answer to k", "application/octet-stream")
    );
    let rest = fixture
        .get(&format!("/v1/operations/{id}/recording?from=7"))
        .await
        .expect(200);
    assert_eq!(rest.text, "to k");
    let end = fixture
        .get(&format!("/v1/operations/{id}/recording?from=11"))
        .await
        .expect(200);
    assert_eq!(end.text, "");
    let beyond = fixture
        .get(&format!("/v1/operations/{id}/recording?from=12"))
        .await;
    beyond.expect_refusal(416);

    let (mut execution, _reader) = fixture.claim("acme", "live").await;
    let path = format!("/v1/operations/{}/recording", execution.id());
    let head = Head {
        status: 200,
        headers: HeaderBlock::default(),
    };
    execution
        .head(head, onlyonce_engine::Kind::Executed)
        .await
        .unwrap();
    execution.push("one ".into()).await.unwrap();
    let router = fixture.router.clone();
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"one ");
    execution.push("two".into()).await.unwrap();
    execution.complete(HeaderBlock::default()).await.unwrap();
    assert_eq!(&body.collect().await.unwrap().to_bytes()[..], b"two");
}

#[tokio::test]
async fn a_recording_that_breaks_is_never_a_clean_end() {
    let fixture = fixture();
    let (mut execution, _reader) = fixture.claim("acme", "k").await;
    let path = format!("/v1/operations/{}/recording", execution.id());
    let head = Head {
        status: 200,
        headers: HeaderBlock::default(),
    };
    execution
        .head(head, onlyonce_engine::Kind::Executed)
        .await
        .unwrap();
    execution.push("one".into()).await.unwrap();
    let request = Request::get(&path).body(Body::empty()).unwrap();
    let response = fixture.router.clone().oneshot(request).await.unwrap();
    execution.lose(UnknownReason::Broke).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    let after = fixture.get(&path).await;
    assert!(after.status.is_client_error(), "{}", after.text);
}

#[tokio::test]
async fn an_unknown_operation_is_resolved_and_no_other() {
    let fixture = fixture();
    let path = |id: &str| format!("/v1/operations/{id}/resolve");
    let id = fixture.unknown("ran").await;
    let ran = json!({
        "outcome": "completed",
        "status": 200,
        "headers": [["content-type", "text/plain"]],
        "body_base64": "aGVsbG8=",
        "reason": "the provider's dashboard shows it",
    });
    let resolved = fixture.post(&path(&id), &ran).await.expect(200).json();
    assert_eq!(
        (&resolved["state"], &resolved["status"]),
        (&json!("completed"), &json!(200))
    );
    let body = fixture
        .get(&format!("/v1/operations/{id}/recording"))
        .await
        .expect(200);
    assert_eq!(body.text, "hello");
    fixture.post(&path(&id), &ran).await.expect_refusal(409);

    let id = fixture.unknown("did-not-run").await;
    let released = json!({ "outcome": "released", "reason": "asked them" });
    let resolved = fixture.post(&path(&id), &released).await.expect(200).json();
    assert_eq!(resolved["state"], "released");
    assert!(resolved["reason"].as_str().unwrap().contains("operator"));
    // The key is free again.
    let _claimed_again = fixture.claim("acme", "did-not-run").await;
}

#[tokio::test]
async fn a_resolution_that_cannot_be_is_refused() {
    let fixture = fixture();
    let id = fixture.unknown("k").await;
    let path = format!("/v1/operations/{id}/resolve");
    for (body, status) in [
        (json!({ "outcome": "completed", "status": 100 }), 400),
        (
            json!({ "outcome": "completed", "status": 200, "body_base64": "!" }),
            400,
        ),
        (
            json!({ "outcome": "completed", "status": 200, "headers": [["a b", "c"]] }),
            400,
        ),
        (
            json!({ "outcome": "completed", "status": 200, "headers": [["a", "b\nc"]] }),
            400,
        ),
        (
            json!({ "outcome": "completed", "status": 200, "headers": [["Content-Length", "1"]] }),
            400,
        ),
        (json!({ "outcome": "maybe" }), 400),
        (json!({ "outcome": "released", "reasn": "typo" }), 400),
    ] {
        fixture.post(&path, &body).await.expect_refusal(status);
    }
    fixture.send("POST", &path, "{").await.expect_refusal(400);
    let form = Request::post(&path)
        .header("content-type", "text/plain")
        .body(Body::from("{\"outcome\":\"released\"}"))
        .unwrap();
    fixture.send_request(form).await.expect_refusal(415);
    let shown = fixture.get(&format!("/v1/operations/{id}")).await.json();
    assert_eq!(shown["state"], "unknown", "nothing of that changed it");
}

#[tokio::test]
async fn a_purge_removes_what_it_names_and_nothing_in_flight() {
    let fixture = fixture();
    fixture.completed("acme", "a").await;
    fixture.completed("other", "b").await;
    fixture.unknown("c").await;
    let (_execution, _reader) = fixture.claim("acme", "d").await;
    let purge = async |body: Value| {
        let answer = fixture.post("/v1/purge", &body).await.expect(200).json();
        answer["purged"].as_u64().unwrap()
    };
    assert_eq!(purge(json!({ "before": "1h" })).await, 0);
    assert_eq!(purge(json!({ "tenant": "other" })).await, 1);
    assert_eq!(
        purge(json!({ "state": "unknown", "tenant": null })).await,
        1
    );
    assert_eq!(purge(json!({})).await, 1);
    let in_flight = json!({ "state": "in_flight" });
    fixture
        .post("/v1/purge", &in_flight)
        .await
        .expect_refusal(409);
    fixture
        .post("/v1/purge", &json!({ "tenants": "x" }))
        .await
        .expect_refusal(400);
    let left = fixture.get("/v1/operations").await.json();
    assert_eq!(left["operations"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn with_a_token_only_its_bearer_sees_operations() {
    let mut fixture = fixture_with(&format!("control_token = \"{TOKEN}\""));
    for endpoint in endpoints::<MemoryStore>() {
        let path = endpoint
            .path
            .replace("{name}", "key-reused")
            .replace("{id}", "op_x");
        let statuses = [
            fixture.get(&path).await.status,
            fixture.post(&path, &json!({})).await.status,
        ];
        let refused = statuses.contains(&StatusCode::UNAUTHORIZED);
        assert_eq!(refused, !endpoint.open, "{path}: {statuses:?}");
    }
    for wrong in [
        "",
        "0123456789abcdef0123456789abcdeX",
        "0123456789abcdef0123456789abcdef0",
    ] {
        fixture.token = Some(wrong);
        fixture.get("/v1/operations").await.expect_refusal(401);
    }
    fixture.token = Some(TOKEN);
    fixture.get("/v1/operations").await.expect(200);
    fixture.get("/metrics").await.expect(200);
}

#[tokio::test]
async fn without_a_token_a_foreign_host_name_is_refused() {
    let fixture = fixture_with("public_url = \"https://once.example\"");
    let with_host = async |fixture: &Fixture, host: &str| {
        let request = Request::get("/v1/operations").header("host", host);
        fixture
            .send_request(request.body(Body::empty()).unwrap())
            .await
            .status
    };
    for host in [
        "127.0.0.1:8788",
        "localhost:1",
        "[::1]:8788",
        "10.0.0.1",
        "once.example",
        "gateway",
        "gateway.internal:1",
    ] {
        assert_eq!(with_host(&fixture, host).await, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:8788",
        "internal.example",
        "localhost.evil.example",
        "",
    ] {
        assert_eq!(with_host(&fixture, host).await, 403, "{host}");
    }
}

#[tokio::test]
async fn readiness_follows_the_store_and_the_drain() {
    let fixture = fixture();
    fixture.get("/healthz").await.expect(200);
    assert_eq!(
        fixture.get("/readyz").await.expect(200).json()["status"],
        "ready"
    );
    fixture.phases.send_replace(Phase::Draining);
    let body = fixture.get("/readyz").await.expect(503).json();
    assert_eq!(body["reason"], "the gateway is draining");
    fixture.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn every_problem_has_its_page() {
    let fixture = fixture();
    let index = fixture.get("/problems").await.expect(200);
    assert!(index.kind.starts_with("text/html"));
    for page in &PAGES {
        assert!(index.text.contains(&format!("/problems/{}", page.name)));
        let shown = fixture
            .get(&format!("/problems/{}", page.name))
            .await
            .expect(200);
        assert!(shown.text.contains(page.title));
    }
}

#[tokio::test]
async fn the_metrics_are_prometheus_text() {
    use crate::metrics::Answer;
    let fixture = fixture();
    let route = &fixture.shared.config.routes[0];
    let metrics = &fixture.shared.metrics;
    metrics.answered(route, Answer::Marked(onlyonce_http::Status::Replayed));
    metrics.answered(route, Answer::Passed);
    metrics.answered(route, Answer::Passed);
    metrics.observer().unknown(UnknownReason::TimedOut);
    metrics.problem("key-reused");
    metrics.executed(route, Duration::from_millis(20));
    let (_execution, _reader) = fixture.claim("acme", "k").await;
    let text = fixture.get("/metrics").await.expect(200).text;
    for line in [
        "onlyonce_requests_total{status=\"replayed\",route=\"up\"} 1",
        "onlyonce_requests_total{status=\"passed\",route=\"up\"} 2",
        "onlyonce_requests_total{status=\"executed\",route=\"up\"} 0",
        "onlyonce_unknown_total{reason=\"timed_out\"} 1",
        "onlyonce_problems_total{problem=\"key-reused\"} 1",
        "onlyonce_execution_seconds_count{route=\"up\"} 1",
        "onlyonce_live_operations 1",
        "onlyonce_connections 0",
        "onlyonce_store_healthy 1",
        "onlyonce_store_records 1",
    ] {
        assert!(
            text.lines().any(|one| one == line),
            "{line} is not in\n{text}"
        );
    }
}
