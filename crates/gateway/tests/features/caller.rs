//! The client crate against the real gateway, before the sandbox: whatever happens to a caller, its
//! connection or its process, the provider's own count is one.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use onlyonce_client::{Action, AnswerBody, Error, KeyFolder, OnceClient, Report};
use onlyonce_testkit::{Between, Gateway, Setup, Staying};
use serde_json::Value;
use tempfile::TempDir;
use tower::{Layer, ServiceExt};

use crate::BIN;

const CHARGES: &str = "/v1/charges";

/// A sandbox, a gateway before it, and a caller's folder of keys.
struct World {
    sandbox: Staying,
    gateway: Gateway,
    folder: TempDir,
}

type Answer = Response<AnswerBody<hyper::body::Incoming>>;

impl World {
    fn start() -> Self {
        let sandbox = Staying::start(BIN, &["sandbox", "--listen", "127.0.0.1:0"], 1);
        let provider = format!("http://{}", sandbox.addresses()[0]);
        Self {
            gateway: Setup::new(BIN, &provider).start(),
            sandbox,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// As a process that has just started: its client opens the folder anew. The gateway is at `to`.
    async fn call(
        &self,
        to: SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, Error> {
        let keys = KeyFolder::open(self.folder.path()).unwrap();
        let client = OnceClient::builder(keys).random(|| 0.05).build();
        let http = Client::builder(TokioExecutor::new())
            .retry_canceled_requests(false)
            .build_http::<Full<Bytes>>()
            // The name of a service stays, whatever its address is today.
            .map_request(move |mut request: Request<Full<Bytes>>| {
                let path = request.uri().path();
                *request.uri_mut() = format!("http://{to}{path}").parse().unwrap();
                request
            });
        let mut request = Request::post(format!("http://gateway.example{path}"))
            .header("authorization", "Bearer sk-test")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::from("amount=4200&currency=usd"))
            .unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let action = Action::new("order-17/charge").unwrap();
        request.extensions_mut().insert(action);
        client.layer().layer(http).oneshot(request).await
    }

    /// A charge, straight at the gateway.
    async fn charge(&self, headers: &[(&'static str, &str)]) -> Result<Answer, Error> {
        self.call(self.gateway.addr(), CHARGES, headers).await
    }

    /// How often the provider ran something.
    fn executions(&self) -> u64 {
        let ledger = onlyonce_testkit::Client::connect(self.sandbox.addresses()[0])
            .ask(&onlyonce_testkit::Request::get("/_sandbox/ledger"));
        let ledger: Value = serde_json::from_slice(&ledger.body).unwrap();
        ledger["executions"].as_u64().unwrap()
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

fn report(answer: &Answer) -> Report {
    answer.extensions().get::<Report>().unwrap().clone()
}

async fn text(answer: Answer) -> String {
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[test]
fn i01_a_restarted_caller_gets_the_first_answer_and_the_provider_counts_one() {
    let world = World::start();
    run(async {
        let first = world.charge(&[]).await.unwrap();
        assert!(report(&first).is_new);
        let first = text(first).await;
        for _ in 0..3 {
            let again = world.charge(&[]).await.unwrap();
            assert_eq!(again.headers()["onlyonce-status"], "replayed");
            assert_eq!(text(again).await, first);
        }
    });
    assert_eq!(world.executions(), 1);
}

#[test]
fn hostile_059_a_connection_killed_under_the_answer_is_tried_again_and_the_provider_counts_one() {
    let world = World::start();
    let line = Between::start(world.gateway.addr().port());
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, line.port()));
    // The provider runs it, and not a byte of the answer arrives; then the connection dies.
    line.swallow_answers();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            onlyonce_testkit::eventually("an execution", || world.executions() == 1);
            line.mend();
        });
        let answer = run(world.call(to, CHARGES, &[])).unwrap();
        let report = report(&answer);
        assert!(report.attempts.len() > 1, "{report}");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["idempotent-replayed"], "true");
    });
    assert_eq!(world.executions(), 1);
}

#[test]
fn a_provider_that_did_not_run_it_is_asked_again_under_the_same_key() {
    let world = World::start();
    run(async {
        let busy = [
            ("x-sandbox-fault", "status:429"),
            ("x-sandbox-times", "1"),
            ("x-sandbox-tag", "busy"),
        ];
        let answer = world.charge(&busy).await.unwrap();
        let report = report(&answer);
        assert_eq!(
            (answer.status().as_u16(), report.attempts.len()),
            (200, 2),
            "{report}"
        );
        assert_eq!(answer.headers()["onlyonce-status"], "executed");
        assert_eq!(answer.headers()["onlyonce-attempt"], "2");
    });
}

#[test]
fn i08_an_unknown_outcome_is_told_once_and_for_all_and_runs_nothing_again() {
    let world = World::start();
    run(async {
        for _ in 0..2 {
            let lost = [("x-sandbox-fault", "reset-before-head")];
            let error = world.charge(&lost).await.map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Unknown { .. }), "{error}");
            assert_eq!(error.report().unwrap().attempts.len(), 1);
        }
    });
    assert_eq!(world.executions(), 1);
}

#[test]
fn hostile_020_an_action_with_another_path_never_reaches_the_gateway() {
    let world = World::start();
    run(async {
        world.charge(&[]).await.unwrap();
        let other = world.call(world.gateway.addr(), "/v1/customers", &[]).await;
        let error = other.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::ActionReused { .. }), "{error}");
    });
    assert_eq!(world.executions(), 1);
}

#[test]
fn hostile_094_a_gateway_that_is_killed_and_comes_back_answers_the_action_as_before() {
    let mut world = World::start();
    let first = run(async { text(world.charge(&[]).await.unwrap()).await });
    world.gateway.kill();
    let error = run(world.charge(&[])).map(|_| ()).unwrap_err();
    assert!(error.money().contains("may have run"), "{error}");
    world.gateway.start_again();
    let again = run(async { text(world.charge(&[]).await.unwrap()).await });
    assert_eq!(again, first);
    assert_eq!(world.executions(), 1);
}
