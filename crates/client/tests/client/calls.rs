//! Calls over a scripted service, on tokio's paused clock: what is sent, when, and what is said of it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use onlyonce_client::{
    Action, BoxError, Budget, Builder, Error, KeyStore, NotConnected, OnceClient, Policy, Report,
    Said, Server, Stop,
};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Calendar, Memory, Shared, action, day};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Answered = Result<Response<Full<Bytes>>, BoxError>;

/// What an attempt comes to.
enum Step {
    Answer(Response<Full<Bytes>>),
    Fail(BoxError),
    Hang,
}

/// A service that does what it is told, attempt by attempt, and a client before it.
struct World {
    keys: Memory,
    calendar: Shared,
    steps: Arc<Mutex<VecDeque<Step>>>,
    /// When each attempt came, and its key.
    seen: Arc<Mutex<Vec<(Duration, String)>>>,
    began: Instant,
}

fn status(status: u16) -> Step {
    with(status, &[])
}

fn with(status: u16, headers: &[(&'static str, &str)]) -> Step {
    let mut response = Response::new(Full::from("body"));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    Step::Answer(response)
}

fn unknown() -> Step {
    let headers = [
        ("content-type", "application/problem+json"),
        ("onlyonce-operation", "op_1"),
    ];
    let Step::Answer(response) = with(502, &headers) else {
        unreachable!()
    };
    let body = r#"{"type": "/problems/outcome-unknown", "detail": "The connection broke."}"#;
    Step::Answer(response.map(|_| Full::from(body)))
}

fn reset() -> Step {
    Step::Fail(io::Error::from(io::ErrorKind::ConnectionReset).into())
}

fn refused() -> Step {
    Step::Fail(io::Error::from(io::ErrorKind::ConnectionRefused).into())
}

fn post(name: &str) -> Request<Full<Bytes>> {
    let mut request = Request::post("http://pay.example/charges")
        .body(Full::from("amount=1"))
        .unwrap();
    request.extensions_mut().insert(action(name));
    request
}

impl World {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            keys: Memory::default(),
            calendar: Shared(Arc::new(Calendar::new())),
            steps: Arc::new(Mutex::new(steps.into_iter().collect())),
            seen: Arc::default(),
            began: Instant::now(),
        }
    }

    fn builder(&self) -> Builder<Memory> {
        OnceClient::builder(self.keys.clone())
            .clock(self.calendar.clone())
            .random(|| 1.0)
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Result<Reply, Error> {
        self.call_with(&self.builder().build(), request).await
    }

    async fn call_with(
        &self,
        client: &OnceClient<Memory>,
        request: Request<Full<Bytes>>,
    ) -> Result<Reply, Error> {
        let (steps, seen, began) = (self.steps.clone(), self.seen.clone(), self.began);
        let service = service_fn(move |request: Request<Full<Bytes>>| {
            let key = request.headers().get("idempotency-key");
            let key = key.map_or("", |key| key.to_str().unwrap()).to_owned();
            seen.lock().unwrap().push((began.elapsed(), key));
            let step = steps.lock().unwrap().pop_front().expect("another attempt");
            async move {
                match step {
                    Step::Answer(response) => Answered::Ok(response),
                    Step::Fail(error) => Err(error),
                    Step::Hang => std::future::pending().await,
                }
            }
        });
        let response = client.layer().layer(service).oneshot(request).await?;
        let (head, body) = response.into_parts();
        Ok(Reply {
            status: head.status.as_u16(),
            report: head.extensions.get().cloned(),
            body: body.collect().await.unwrap().to_bytes(),
        })
    }

    /// When attempts came, in milliseconds.
    fn times(&self) -> Vec<u128> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(at, _)| at.as_millis()).collect()
    }

    /// The keys of all attempts, each once.
    fn keys_seen(&self) -> Vec<String> {
        let mut keys: Vec<_> = self
            .seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, key)| key.clone())
            .collect();
        keys.dedup();
        keys
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    report: Option<Report>,
    body: Bytes,
}

impl Reply {
    fn report(&self) -> &Report {
        self.report.as_ref().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_tried_until_it_is_answered_with_one_key_and_tells_of_it() {
    let world = World::new([reset(), status(503), status(200)]);
    let reply = world.call(post("order-17/charge")).await.unwrap();
    assert_eq!((reply.status, &*reply.body), (200, &b"body"[..]));
    assert_eq!(world.times(), [0, 500, 1500]);
    let keys = world.keys_seen();
    assert_eq!(keys.len(), 1);
    let report = reply.report();
    assert_eq!(report.key.as_str(), keys[0]);
    assert!(report.is_new);
    assert_eq!(report.stopped, Some(Stop::Answered));
    assert_eq!(
        report.to_string(),
        format!(
            "order-17/charge: it broke (connection reset), waited 500ms; 503, waited 1s; 200; \
             3 attempts with new key {} in 1s 500ms",
            keys[0]
        )
    );
    let note = world
        .keys
        .kept(&action("order-17/charge"))
        .unwrap()
        .note
        .unwrap();
    assert_eq!(note.said, Said::Answer(StatusCode::OK));
}

#[tokio::test(start_paused = true)]
async fn the_key_is_kept_before_the_first_byte_is_sent() {
    let world = World::new([]);
    let keys = world.keys.clone();
    let service = service_fn(move |request: Request<Full<Bytes>>| {
        let kept = keys.kept(&action("a")).expect("a kept key").entry.key;
        assert_eq!(request.headers()["idempotency-key"], kept.as_str());
        async { Answered::Ok(Response::new(Full::default())) }
    });
    let client = world.builder().build();
    client
        .layer()
        .layer(service)
        .oneshot(post("a"))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_later_call_sends_the_same_key_and_another_action_another() {
    let world = World::new([status(200), status(200), status(200)]);
    world.call(post("a")).await.unwrap();
    let again = world.call(post("a")).await.unwrap();
    assert!(!again.report().is_new);
    assert_eq!(world.keys_seen().len(), 1);
    world.call(post("b")).await.unwrap();
    assert_eq!(world.keys_seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn hostile_022_an_action_with_another_request_is_refused_and_nothing_is_sent() {
    let world = World::new([status(200)]);
    world.call(post("a")).await.unwrap();
    let other = post("a").map(|_| Full::from("amount=2"));
    let error = world.call(other).await.unwrap_err();
    assert!(matches!(error, Error::ActionReused { .. }), "{error}");
    assert!(error.to_string().contains("sent nothing"), "{error}");
    assert_eq!(world.times().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_an_error_of_its_own_and_ends_the_call() {
    let world = World::new([reset(), unknown(), status(200)]);
    let error = world.call(post("a")).await.unwrap_err();
    let Error::Unknown {
        report,
        operation,
        detail,
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (report.attempts.len(), report.stopped),
        (2, Some(Stop::Unknown))
    );
    assert_eq!(
        (operation.as_deref(), &**detail),
        (Some("op_1"), "The connection broke.")
    );
    for words in ["may have run", "once at most", "op_1"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    let is_said = |error: &Error| error.to_string().matches("under this key").count();
    assert_eq!(is_said(&error), 1, "{error}");
    let of_a_gateway = Error::Unknown {
        report: report.clone(),
        operation: operation.clone(),
        detail: "Nothing further is run under this key.".into(),
    };
    assert_eq!(is_said(&of_a_gateway), 1, "{of_a_gateway}");
    assert_eq!(world.times().len(), 2);
    let kept = world.keys.kept(&action("a")).unwrap();
    assert_eq!(kept.note.unwrap().said, Said::Unknown);
    // To ask again is the caller's to do: somebody may have settled it.
    assert_eq!(world.call(post("a")).await.unwrap().status, 200);
    assert_eq!(world.keys_seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stays_an_error_is_handed_on_with_its_report() {
    let world = World::new((0..6).map(|_| status(503)));
    let reply = world.call(post("a")).await.unwrap();
    assert_eq!(reply.status, 503);
    assert_eq!(reply.report().stopped, Some(Stop::RetriesSpent));
    assert_eq!(world.times(), [0, 500, 1500, 3500, 7500, 15500]);
    // It is not the last word, and not kept as one.
    assert_eq!(world.keys.kept(&action("a")).unwrap().note, None);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_error_says_whether_it_may_have_run() {
    let world = World::new((0..6).map(|_| refused()));
    let error = world.call(post("a")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sent nothing and costs nothing"), "{text}");
    assert!(text.contains("2026-11-25T23:59:00.000Z"), "{text}");

    let wrapped = NotConnected("no such name".into());
    let world = World::new([Step::Fail(wrapped.into()), reset()]);
    let client = world
        .builder()
        .policy(Policy {
            retries: 1,
            ..Policy::default()
        })
        .build();
    let error = world.call_with(&client, post("a")).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("may have run and may be billed, once at most"),
        "{text}"
    );
    // An earlier call may have sent it, whatever happens to this one.
    world.steps.lock().unwrap().extend([refused(), refused()]);
    let error = world.call_with(&client, post("a")).await.unwrap_err();
    assert!(error.money().contains("may have run"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_left_and_the_deadline_holds_for_all() {
    let world = World::new([Step::Hang, Step::Hang, Step::Hang]);
    let client = world.builder().deadline(130 * SECOND).build();
    let error = world.call_with(&client, post("a")).await.unwrap_err();
    assert_eq!(world.began.elapsed(), 130 * SECOND);
    let report = error.report().unwrap();
    assert_eq!(report.stopped, Some(Stop::DeadlinePassed));
    let took: Vec<_> = report
        .attempts
        .iter()
        .map(|attempt| attempt.took.as_millis())
        .collect();
    assert_eq!(took, [60_000, 60_000, 8_500]);
}

#[tokio::test(start_paused = true)]
async fn the_server_sets_the_pace() {
    let date = httpdate::fmt_http_date(day() + 30 * SECOND);
    let world = World::new([
        with(429, &[("retry-after", "7")]),
        with(503, &[("retry-after", &date)]),
        with(200, &[("x-should-retry", "true")]),
    ]);
    world.call(post("a")).await.unwrap();
    assert_eq!(world.times(), [0, 7_500, 30_500]);

    let world = World::new([with(429, &[("retry-after", "3600")])]);
    let reply = world.call(post("a")).await.unwrap();
    assert_eq!(reply.report().stopped, Some(Stop::DeadlinePassed));
    assert_eq!(world.began.elapsed(), Duration::ZERO);

    for (name, value, attempts) in [
        ("x-should-retry", "false", 1),
        ("stripe-should-retry", "false", 1),
        ("x-should-retry", "maybe", 2),
    ] {
        let world = World::new([with(500, &[(name, value)]), status(200)]);
        world.call(post("a")).await.unwrap();
        assert_eq!(world.times().len(), attempts, "{name}: {value}");
    }
    let world = World::new([with(418, &[("stripe-should-retry", "true")]), status(200)]);
    assert_eq!(world.call(post("a")).await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn hostile_081_and_082_nothing_is_sent_once_the_window_may_be_over() {
    let world = World::new([reset(), status(200)]);
    let once = world
        .builder()
        .policy(Policy {
            retries: 0,
            ..Policy::default()
        })
        .build();
    world.call_with(&once, post("a")).await.unwrap_err();
    world.calendar.0.forward(24 * HOUR - 61 * SECOND);
    assert_eq!(world.call(post("a")).await.unwrap().status, 200);
    world.calendar.0.forward(2 * SECOND);
    let error = world.call(post("a")).await.unwrap_err();
    assert!(matches!(error, Error::WindowOver { .. }), "{error}");
    for words in [
        "window ends at 2026-11-26T00:00:00.000Z",
        "last answer was 200 OK",
        "second time",
    ] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(world.times().len(), 2);
    // Forgotten, it is a new action.
    world.steps.lock().unwrap().push_back(status(201));
    assert!(world.builder().build().forget(&action("a")).await.unwrap());
    assert!(world.call(post("a")).await.unwrap().report().is_new);
    assert_eq!(world.keys_seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_servers_own_end_of_the_window_counts() {
    let until = |text| with(200, &[("onlyonce-expires", text)]);
    let world = World::new([until("2026-11-25T02:00:00Z"), until("2026-11-25T02:00:00Z")]);
    world.call(post("a")).await.unwrap();
    world.calendar.0.forward(HOUR);
    world.call(post("a")).await.unwrap();
    world.calendar.0.forward(HOUR);
    let error = world.call(post("a")).await.unwrap_err();
    assert!(
        error.to_string().contains("2026-11-25T02:00:00.000Z"),
        "{error}"
    );
    assert_eq!(world.times().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_of_a_call_comes_after_the_window_either() {
    let world = World::new([status(503), status(503), status(503), status(200)]);
    let client = world.builder().window(3 * SECOND).build();
    let error = world.call_with(&client, post("a")).await.unwrap_err();
    assert!(matches!(error, Error::WindowOver { .. }), "{error}");
    assert_eq!(error.report().unwrap().stopped, Some(Stop::WindowOver));
    assert_eq!(world.times(), [0, 500, 1500]);
    assert!(error.money().contains("may have run"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn hostile_095_a_clock_that_went_back_sends_nothing() {
    let world = World::new([status(200)]);
    world.call(post("a")).await.unwrap();
    world.calendar.0.back(HOUR);
    let error = world.call(post("a")).await.unwrap_err();
    assert!(matches!(error, Error::ClockWentBack { .. }), "{error}");
    assert!(error.to_string().contains("Set the clock right"), "{error}");
    world.calendar.0.forward(30 * 24 * HOUR);
    let error = world.call(post("a")).await.unwrap_err();
    assert!(matches!(error, Error::WindowOver { .. }), "{error}");
    assert_eq!(world.times().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_through_the_window_sends_nothing_when_it_wakes() {
    let world = World::new([status(503), status(200)]);
    let calendar = world.calendar.clone();
    // Its monotonic clock stood still meanwhile; here it is the wait for the second attempt.
    let asleep = async {
        tokio::time::sleep(SECOND / 4).await;
        calendar.0.forward(48 * HOUR);
    };
    let (result, ()) = tokio::join!(world.call(post("a")), asleep);
    let error = result.unwrap_err();
    assert!(matches!(error, Error::WindowOver { .. }), "{error}");
    assert_eq!(world.times().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_action_in_flight_is_waited_for_and_costs_no_retry() {
    let in_flight = || with(409, &[("retry-after", "2")]);
    let world = World::new((0..20).map(|_| in_flight()).chain([status(200)]));
    let client = world
        .builder()
        .server(Server::stripe())
        .budget(Budget::new(0))
        .build();
    let reply = world.call_with(&client, post("a")).await.unwrap();
    assert_eq!((reply.status, world.times().len()), (200, 21));
}

#[tokio::test(start_paused = true)]
async fn all_calls_share_a_budget_that_an_outage_spends() {
    let world = World::new((0..100).map(|_| status(503)));
    let client = world.builder().budget(Budget::new(7)).build();
    for name in ["a", "b", "c", "d"] {
        let reply = world.call_with(&client, post(name)).await.unwrap();
        let stopped = reply.report().stopped.unwrap();
        let expected = if name == "a" {
            Stop::RetriesSpent
        } else {
            Stop::BudgetSpent
        };
        assert_eq!(stopped, expected, "{name}");
    }
    // 5 and 2 retries, and a first attempt each.
    assert_eq!(world.times().len(), 11);
}

#[tokio::test(start_paused = true)]
async fn what_is_done_is_not_noted_as_refused_by_what_a_later_call_is_told() {
    let world = World::new([status(200), status(401)]);
    world.call(post("a")).await.unwrap();
    assert_eq!(world.call(post("a")).await.unwrap().status, 401);
    let note = world.keys.kept(&action("a")).unwrap().note.unwrap();
    assert_eq!(note.said, Said::Answer(StatusCode::OK));
}

#[tokio::test(start_paused = true)]
async fn hostile_001_a_request_that_forgot_its_action_is_refused() {
    let world = World::new([status(200), reset(), status(200)]);
    let bare = |method: &str| {
        let request = Request::builder().method(method).uri("http://pay.example/");
        request.body(Full::<Bytes>::default()).unwrap()
    };
    let error = world.call(bare("POST")).await.unwrap_err();
    assert!(matches!(error, Error::NoAction { .. }), "{error}");
    assert!(world.times().is_empty());
    let reply = world.call(bare("GET")).await.unwrap();
    assert!(reply.report.is_none());
    // Those that are let through are sent once.
    let open = world.builder().pass_without_action().build();
    let error = world.call_with(&open, bare("POST")).await.unwrap_err();
    assert!(matches!(error, Error::Passed { .. }), "{error}");
    assert_eq!(world.keys_seen(), [""]);
}

#[tokio::test(start_paused = true)]
async fn hostile_010_a_request_with_a_key_of_its_own_and_an_action_is_refused() {
    let world = World::new([]);
    let mut request = post("a");
    request
        .headers_mut()
        .insert("idempotency-key", "own".parse().unwrap());
    let error = world.call(request).await.unwrap_err();
    assert!(matches!(error, Error::KeyPresent { .. }), "{error}");
    assert!(world.keys.kept(&action("a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_keep_a_key_sends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let keys = onlyonce_client::KeyFolder::open(folder.path()).unwrap();
    let client = OnceClient::builder(keys.clone()).build();
    let service = service_fn(|_: Request<Full<Bytes>>| async {
        panic!("nothing may be sent");
        #[expect(unreachable_code)]
        Answered::Ok(Response::default())
    });
    std::fs::write(keys.key_file(&action("a")), "{}").unwrap();
    let sent = client.layer().layer(service).oneshot(post("a")).await;
    let error = sent.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Keys { .. }), "{error}");
    for words in ["is damaged", "sent nothing", "could run the action twice"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_although_it_cannot_be_noted() {
    /// Keys that can be taken and not noted.
    struct Unnoted(Memory);
    impl KeyStore for Unnoted {
        type Error = io::Error;
        async fn take(
            &self,
            action: &Action,
            fresh: onlyonce_client::Entry,
        ) -> io::Result<onlyonce_client::Taken> {
            Ok(self.0.take(action, fresh).await.unwrap())
        }
        async fn note(
            &self,
            _: &Action,
            _: &onlyonce_client::Key,
            _: onlyonce_client::Note,
        ) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        async fn forget(&self, action: &Action) -> io::Result<bool> {
            Ok(self.0.forget(action).await.unwrap())
        }
    }
    let service = service_fn(|_: Request<Full<Bytes>>| async {
        Answered::Ok(Response::new(Full::from("paid")))
    });
    let client = OnceClient::builder(Unnoted(Memory::default())).build();
    let response = client
        .layer()
        .layer(service)
        .oneshot(post("a"))
        .await
        .unwrap();
    let report: &Report = response.extensions().get().unwrap();
    assert!(report.not_noted.is_some());
    assert!(report.to_string().contains("not noted"), "{report}");
}
