//! The description of the control API, as the real binary serves it, against what it answers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use onlyonce_testkit::{Client, Gateway, Request, Response, Signal, Upstream};
use serde_json::{Value, json};

use crate::faults::Faults;
use crate::{gateway, noise, post, setup};

const TOKEN: &str = "a-token-of-more-than-thirty-two-characters";

/// Well formed, and the id of nothing.
const NOBODY: &str = "op_01890a5d-ac96-774b-bcce-b302099a8057";

const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
];

/// What is described and not provoked here: a store that cannot be read, and one that a settling write
/// waits for.
const NOT_SHOWN: [&str; 21] = [
    "GET /v1/ledger 503",
    "GET /v1/ledger/entries 503",
    "GET /v1/operations 503",
    "GET /v1/operations/{id} 503",
    "GET /v1/operations/{id}/recording 503",
    "GET /v1/overview 503",
    "GET /v1/sinks 503",
    "GET /v1/sinks/{name}/dead 503",
    "GET /v1/unknown 503",
    "GET /v1/work/{id} 503",
    "POST /v1/exec/{id}/output 503",
    "POST /v1/exec/{id}/output 507",
    "POST /v1/sinks/{name}/resend 503",
    "POST /v1/work/{id}/complete 503",
    "POST /v1/work/{id}/complete 507",
    "POST /v1/work/{id}/fail 503",
    "POST /v1/work/{id}/fail 507",
    "POST /v1/work/{id}/heartbeat 503",
    "POST /v1/work/{id}/heartbeat 507",
    "POST /v1/work/{id}/release 503",
    "POST /v1/work/{id}/release 507",
];

/// The served description, and which of its answers came.
struct Described {
    document: Value,
    seen: BTreeSet<String>,
}

impl Described {
    fn by(gateway: &Gateway) -> Self {
        Self {
            document: gateway.control().json("/openapi.json"),
            seen: BTreeSet::new(),
        }
    }

    /// Every answer that is described, as `GET /path 200`.
    fn answers(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (path, item) in members(&self.document["paths"]) {
            for (method, operation) in members(item) {
                for (status, _) in members(&operation["responses"]) {
                    all.insert(format!("{} {path} {status}", method.to_uppercase()));
                }
            }
        }
        all
    }

    /// Notes an answer to `method` on the described `path`, and compares it to what is described.
    #[track_caller]
    fn note(&mut self, method: &str, path: &str, answer: &Response) {
        let status = answer.status();
        let what = format!("{method} {path} {status}");
        let responses = &self.document["paths"][path][method.to_lowercase()]["responses"];
        let response = self.resolve(&responses[status.to_string()]);
        assert!(
            response.is_object(),
            "{what} is not described: {}",
            answer.text()
        );
        let sent = answer.header("content-type").unwrap_or("none");
        let sent = sent.split(';').next().unwrap_or(sent);
        let schema = &response["content"][sent]["schema"];
        assert!(schema.is_object(), "{what} is {sent}, which it should not");
        if sent.ends_with("json") {
            self.check(&what, schema, &answer.json());
        } else {
            assert_eq!(schema["type"], "string", "{what}");
        }
        assert!(answer.whole(), "{what} broke off");
        self.seen.insert(what);
    }

    fn resolve<'a>(&'a self, of: &'a Value) -> &'a Value {
        match of["$ref"].as_str() {
            Some(link) => {
                let pointer = link.strip_prefix('#').expect("a link within the document");
                self.document.pointer(pointer).expect("what a link names")
            }
            None => of,
        }
    }

    /// Panics unless `value` is what `schema` says, and has nothing that it does not name.
    #[track_caller]
    fn check(&self, what: &str, schema: &Value, value: &Value) {
        let schema = self.resolve(schema);
        for (keyword, rule) in members(schema) {
            match keyword.as_str() {
                "type" => assert!(is_of_type(value, rule), "{what}: {value} is no {rule}"),
                "enum" => {
                    let allowed = rule.as_array().expect("a list");
                    assert!(allowed.contains(value), "{what}: {value} is not in {rule}");
                }
                "required" => {
                    for name in rule.as_array().expect("a list") {
                        let name = name.as_str().expect("a name");
                        assert!(value.get(name).is_some(), "{what}: no {name} in {value}");
                    }
                }
                "properties" => {
                    for (name, one) in members(value) {
                        assert!(
                            rule.get(name).is_some(),
                            "{what}: {name} is not described: {value}"
                        );
                        self.check(&format!("{what}: {name}"), &rule[name], one);
                    }
                }
                "additionalProperties" => {
                    for (name, one) in members(value) {
                        self.check(&format!("{what}: {name}"), rule, one);
                    }
                }
                // Something or null.
                "anyOf" => {
                    let mut rules = rule.as_array().expect("a list").iter();
                    let fits = |rule: &&Value| (rule["type"] == "null") == value.is_null();
                    let rule = rules.find(fits);
                    let rule =
                        rule.unwrap_or_else(|| panic!("{what}: {value} is none of {rule:?}"));
                    self.check(what, rule, value);
                }
                "items" => {
                    for one in value.as_array().into_iter().flatten() {
                        self.check(what, rule, one);
                    }
                }
                "minItems" | "maxItems" => {
                    let length = value.as_array().map_or(0, Vec::len) as u64;
                    let bound = rule.as_u64().expect("a number");
                    let fits = (keyword == "minItems" && length >= bound)
                        || (keyword == "maxItems" && length <= bound);
                    assert!(fits, "{what}: {length} items");
                }
                "format" if rule == "date-time" => {
                    let moment = value.as_str().map(humantime::parse_rfc3339);
                    assert!(
                        value.is_null() || moment.is_some_and(|moment| moment.is_ok()),
                        "{what}: {value} is no moment"
                    );
                }
                "format" | "description" => {}
                other => panic!("{what}: this check does not know {other}"),
            }
        }
    }
}

fn members(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of.as_object().into_iter().flatten()
}

fn is_of_type(value: &Value, rule: &Value) -> bool {
    let is = |name: &Value| match name.as_str().expect("the name of a type") {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the type {other}"),
    };
    match rule.as_array() {
        Some(names) => names.iter().any(is),
        None => is(rule),
    }
}

/// One control listener, asked by the paths of its description.
struct Asked<'a> {
    described: &'a mut Described,
    addr: SocketAddr,
    token: Option<&'a str>,
    host: String,
}

impl<'a> Asked<'a> {
    fn of(described: &'a mut Described, gateway: &Gateway) -> Self {
        let addr = gateway.control_addr();
        Self {
            described,
            addr,
            token: None,
            host: addr.to_string(),
        }
    }

    /// Asks, and compares the answer to the description. `path` is the described one, of which
    /// `{id}` or `{name}` becomes `name`; `query` comes behind it.
    #[track_caller]
    fn ask(
        &mut self,
        method: &str,
        path: &str,
        (name, query): (&str, &str),
        body: &str,
    ) -> Response {
        let real = path.replace("{id}", name).replace("{name}", name) + query;
        let request = Request::new(method, &real).body(body);
        let request = match method {
            "POST" => request.header("Content-Type", "application/json"),
            _ => request,
        };
        self.send(path, method, request)
    }

    #[track_caller]
    fn send(&mut self, path: &str, method: &str, request: Request) -> Response {
        let request = match self.token {
            Some(token) => request.header("Authorization", &format!("Bearer {token}")),
            None => request,
        };
        let request = request.without("Host").header("Host", &self.host);
        let answer = Client::connect(self.addr).ask(&request.header("Connection", "close"));
        self.described.note(method, path, &answer);
        answer
    }

    #[track_caller]
    fn get(&mut self, path: &str, name: &str, status: u16) -> Response {
        let answer = self.ask("GET", path, (name, ""), "");
        assert_eq!(answer.status(), status, "{path}: {}", answer.text());
        answer
    }

    #[track_caller]
    fn post(&mut self, path: &str, name: &str, body: &Value, status: u16) -> Response {
        let answer = self.ask("POST", path, (name, ""), &body.to_string());
        assert_eq!(answer.status(), status, "{path}: {}", answer.text());
        answer
    }
}

const OPERATIONS: &str = "/v1/operations";
const OPERATION: &str = "/v1/operations/{id}";
const RECORDING: &str = "/v1/operations/{id}/recording";
const RESOLVE: &str = "/v1/operations/{id}/resolve";
const PURGE: &str = "/v1/purge";
const WORK: &str = "/v1/work";
const WORK_OPERATION: &str = "/v1/work/{id}";
const HEARTBEAT: &str = "/v1/work/{id}/heartbeat";
const COMPLETE: &str = "/v1/work/{id}/complete";
const RELEASE: &str = "/v1/work/{id}/release";
const FAIL: &str = "/v1/work/{id}/fail";
const EXEC: &str = "/v1/exec";
const EXEC_CLAIM: &str = "/v1/exec/claim";
const EXEC_OUTPUT: &str = "/v1/exec/{id}/output";
const SETTLE: [&str; 4] = [HEARTBEAT, COMPLETE, RELEASE, FAIL];
const DEAD: &str = "/v1/sinks/{name}/dead";
const RESEND: &str = "/v1/sinks/{name}/resend";

/// A sink that nobody answers for.
const SINK: &str = "[[ledger.sink]]\nname = \"hook\"\nkind = \"openmeter\"\n\
                    url = \"http://127.0.0.1:9/events\"";

/// A gateway with an operation in each state, and their ids: completed, released, unknown and in
/// flight, for as long as the signal is not fired.
fn each_state() -> (Upstream, Gateway, [String; 4], Client, Signal) {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| match x.path() {
        "/completed" => x.answer(200, &[("X-A", "1")], b"answer"),
        "/released" => x.answer(429, &[], b"no"),
        "/unknown" => x.reset(),
        _ => {
            wait.wait();
            x.answer(200, &[], b"late");
        }
    });
    let gateway = setup(&upstream)
        .route("first_byte_timeout = \"1s\"\nlate_answer = \"0s\"")
        .extra(SINK)
        .start();
    for path in ["completed", "released", "unknown"] {
        gateway.post(&format!("/{path}"), path, "b");
    }
    let retry = post("/completed", "completed", "b").header("X-Stainless-Retry-Count", "1");
    gateway.send(&retry).expect_status(200);
    let running = gateway.begin(&post("/in_flight", "in_flight", "b"));
    upstream.wait_for_hits(4);
    let ids = ["completed", "released", "unknown", "in_flight"].map(|key| {
        let id = &gateway.control().operation(key)["id"];
        id.as_str().unwrap().to_owned()
    });
    (upstream, gateway, ids, running, go)
}

#[test]
fn every_answer_is_described_and_every_described_answer_comes() {
    let (_upstream, gateway, ids, mut running, go) = each_state();
    let mut described = Described::by(&gateway);
    looking(&mut described, &gateway, &ids);
    go.fire();
    // By now the caller may have been told that it took too long.
    running.response();
    working(&mut described, &gateway);
    settling(&mut described, &gateway, &ids[2]);
    guarded(&mut described);
    poisoned(&mut described);
    full(&mut described);

    let seen: BTreeSet<_> = described.seen.iter().map(String::as_str).collect();
    let answers = described.answers();
    let not_seen: Vec<_> = answers
        .iter()
        .filter(|one| !seen.contains(&***one))
        .collect();
    assert_eq!(not_seen, NOT_SHOWN, "described, and not seen");
}

/// Everything that only looks.
fn looking(described: &mut Described, gateway: &Gateway, ids: &[String; 4]) {
    let names = described.document["components"]["schemas"]["ProblemName"]["enum"].clone();
    let mut asked = Asked::of(described, gateway);
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/problems",
        "/openapi.json",
        OPERATIONS,
        "/v1/overview",
        "/v1/ledger",
        "/v1/ledger/entries",
        "/v1/unknown",
        "/v1/suspects",
        "/v1/health",
        "/v1/config",
        "/v1/sinks",
    ] {
        asked.get(path, "", 200);
    }
    for name in names.as_array().unwrap() {
        let name = name.as_str().unwrap();
        let page = asked.get("/problems/{name}", name, 200);
        assert!(page.text().contains(name), "{name}");
    }
    asked.get("/problems/{name}", "no-such-problem", 404);
    asked.get("/problems/{name}", "%FF", 400);

    // Every described parameter is taken, and no other one.
    for query in [
        "?key=completed",
        "?tenant=anonymous",
        "?state=in_flight",
        "?model=gpt-5",
        "?since=1h",
        "?until=2999-01-01T00:00:00Z",
        "?limit=1",
        &format!("?cursor={}", ids[0]),
    ] {
        let page = asked.ask("GET", OPERATIONS, ("", query), "");
        assert_eq!(page.status(), 200, "{query}: {}", page.text());
    }
    let parameters = asked.described.document["paths"][OPERATIONS]["get"]["parameters"].clone();
    assert_eq!(parameters.as_array().unwrap().len(), 8);
    let states = parameters[2]["schema"]["enum"].as_array().unwrap().clone();
    for state in states {
        let query = format!("?state={}", state.as_str().unwrap());
        let page = asked.ask("GET", OPERATIONS, ("", &query), "").json();
        assert_eq!(page["operations"][0]["state"], state);
    }
    let wrong = asked.ask("GET", OPERATIONS, ("", "?stat=unknown"), "");
    assert_eq!(wrong.status(), 400);
    for (path, query) in [
        ("/v1/unknown", "?limit=0"),
        ("/v1/ledger", "?by=colour"),
        ("/v1/ledger/entries", "?limit=0"),
        ("/v1/overview", "?range=1y"),
    ] {
        let wrong = asked.ask("GET", path, ("", query), "");
        assert_eq!(wrong.status(), 400, "{path}");
    }
    for query in [
        "?by=tenant,model",
        "?tenant=anonymous",
        "?since=7d",
        "?until=1h",
    ] {
        let report = asked.ask("GET", "/v1/ledger", ("", query), "");
        assert_eq!(report.status(), 200, "{query}: {}", report.text());
    }
    for query in [
        "?tenant=anonymous",
        "?route=default",
        "?model=gpt-5",
        "?since=7d",
        "?until=1h",
        "?limit=1",
    ] {
        let page = asked.ask("GET", "/v1/ledger/entries", ("", query), "");
        assert_eq!(page.status(), 200, "{query}: {}", page.text());
    }

    asked.get(DEAD, "hook", 200);
    asked.get(DEAD, "nobody", 404);
    asked.get(DEAD, "%FF", 400);
    for id in ids {
        asked.get(OPERATION, id, 200);
    }
    for path in [OPERATION, RECORDING] {
        asked.get(path, NOBODY, 404);
        asked.get(path, "%FF", 400);
        asked.get(path, "nothing", 400);
    }
    asked.get(RECORDING, &ids[0], 200);
    let beyond = asked.ask("GET", RECORDING, (&ids[0], "?from=7"), "");
    assert_eq!(beyond.status(), 416);
    // It waits for an answer that does not come.
    asked.get(RECORDING, &ids[3], 409);
}

/// A claim for a command.
fn claim(asked: &mut Asked<'_>, key: &str, command: char) -> Response {
    let command = command.to_string().repeat(64);
    let path = format!("{EXEC_CLAIM}?command={command}&nonce=n-{key}");
    asked.send(EXEC_CLAIM, "POST", Request::post(&path).key(key))
}

/// A run of a command that writes `output`, and exits unless it is `cut`. The status of the answer to its
/// claim where that is refused, or is a run.
fn exec(asked: &mut Asked<'_>, key: &str, command: char, output: &[u8], cut: bool) -> u16 {
    let claimed = claim(asked, key, command);
    if claimed.status() != 200 || claimed.header("content-type") != Some("application/json") {
        return claimed.status();
    }
    let mut run = Vec::new();
    for piece in output.chunks(1 << 15) {
        run.push(1);
        run.extend_from_slice(&u32::try_from(piece.len()).unwrap().to_be_bytes());
        run.extend_from_slice(piece);
    }
    if !cut {
        run.extend_from_slice(&[3, 0, 0, 0, 1, 0]);
    }
    let granted = claimed.json();
    let operation = granted["operation"].as_str().unwrap();
    let request = Request::post(&EXEC_OUTPUT.replace("{id}", operation))
        .header("Onlyonce-Claim", granted["claim"].as_str().unwrap())
        .header("Content-Type", "application/vnd.onlyonce.exec")
        .body(run);
    asked.send(EXEC_OUTPUT, "POST", request).status()
}

/// Everything that a worker does.
fn working(described: &mut Described, gateway: &Gateway) {
    let mut asked = Asked::of(described, gateway);
    let begin = json!({
        "key": "w", "tenant": "acme", "namespace": "reports", "name": "report", "input": {"a": 1},
        "lease": "10s", "wait": "1ms", "nonce": "n-1", "on_unknown": "report",
    });
    let begun = asked.post(WORK, "", &begin, 200).json();
    assert_eq!(begun["decision"], "execute");
    let id = begun["operation"].as_str().unwrap().to_owned();
    let claim = &begun["claim"];
    let mut other = begin.clone();
    other["nonce"] = json!("n-2");
    let running = asked.post(WORK, "", &other, 200).json();
    assert_eq!(running["decision"], "in_flight");
    other["input"] = json!(2);
    asked.post(WORK, "", &other, 422);
    asked.post(WORK, "", &json!({"key": ""}), 400);
    asked.post(WORK, "", &json!({}), 400);
    asked.post(WORK, "", &json!({"key": "w", "unknown": 1}), 400);
    asked.get(WORK_OPERATION, &id, 200);
    asked.get(WORK_OPERATION, NOBODY, 404);
    asked.get(WORK_OPERATION, "nothing", 400);

    let used = json!({
        "provider": "openai", "model": "gpt-5", "operation": "chat", "request_model": "gpt-5",
        "response_id": "r", "tier": "default", "usage": {"input": 1},
    });
    for path in SETTLE {
        let mut guess = claim.as_str().unwrap().to_owned();
        let last = guess.pop().unwrap();
        guess.push(if last == '0' { '1' } else { '0' });
        let body = match path {
            COMPLETE => json!({"claim": guess, "result": 1}),
            _ => json!({"claim": guess}),
        };
        asked.post(path, NOBODY, &body, 404);
        asked.post(path, &id, &body, 409);
        let mut wrong = body.clone();
        wrong["claim"] = json!("x");
        asked.post(path, &id, &wrong, 400);
        asked.post(path, &id, &json!({}), 400);
        let untyped = Request::post(&path.replace("{id}", &id)).body(body.to_string());
        assert_eq!(asked.send(path, "POST", untyped).status(), 415);
    }
    for (key, command, cut, status) in [
        ("e", 'a', false, 200),
        ("e", 'a', false, 200),
        ("e", 'b', false, 422),
        ("f", 'a', true, 409),
        ("f", 'a', false, 409),
        ("e", '?', false, 400),
    ] {
        assert_eq!(exec(&mut asked, key, command, b"out", cut), status);
    }
    let outdated = Request::post(&format!("{EXEC}?command={}", "a".repeat(64))).body("x");
    assert_eq!(asked.send(EXEC, "POST", outdated).status(), 410);
    for (id, kind, claim, status) in [
        (
            NOBODY,
            "application/vnd.onlyonce.exec",
            &*"a".repeat(64),
            404,
        ),
        (NOBODY, "application/vnd.onlyonce.exec", "x", 400),
        (NOBODY, "application/json", &*"a".repeat(64), 415),
    ] {
        let output = Request::post(&EXEC_OUTPUT.replace("{id}", id))
            .header("Content-Type", kind)
            .header("Onlyonce-Claim", claim);
        assert_eq!(asked.send(EXEC_OUTPUT, "POST", output).status(), status);
    }
    let untyped = Request::post(WORK).body(begin.to_string());
    assert_eq!(asked.send(WORK, "POST", untyped).status(), 415);
    let beat = json!({"claim": claim, "lease": "20s"});
    asked.post(HEARTBEAT, &id, &beat, 200);
    let done = json!({
        "claim": claim, "result": {"pages": 3}, "window": "1h", "metered": used,
    });
    asked.post(COMPLETE, &id, &done, 200);
    let replayed = asked.post(WORK, "", &begin, 200).json();
    assert_eq!(replayed["decision"], "replay");
    assert_eq!(replayed["result"], json!({"pages": 3}));
    let mut begin_anew = |key: &str| {
        let begun = asked.post(WORK, "", &json!({"key": key}), 200).json();
        (
            begun["operation"].as_str().unwrap().to_owned(),
            begun["claim"].clone(),
        )
    };
    let (freed, free) = begin_anew("released-work");
    let (lost, lose) = begin_anew("lost-work");
    asked.post(RELEASE, &freed, &json!({"claim": free}), 200);
    let failed = json!({"claim": lose, "metered": used});
    asked.post(FAIL, &lost, &failed, 200);
    asked.post(WORK, "", &json!({"key": "lost-work"}), 409);
    for id in [&id, &freed, &lost] {
        asked.get(WORK_OPERATION, id, 200);
        let events = Request::get(&WORK_OPERATION.replace("{id}", id));
        let events = asked.send(
            WORK_OPERATION,
            "GET",
            events.header("Accept", "text/event-stream"),
        );
        assert!(events.text().starts_with("event: state\n"));
    }
}

/// Everything that changes something.
fn settling(described: &mut Described, gateway: &Gateway, unknown: &str) {
    let mut asked = Asked::of(described, gateway);
    let released = json!({"outcome": "released", "reason": "not in their log"});
    asked.post(RESOLVE, NOBODY, &released, 404);
    asked.post(RESOLVE, "%FF", &released, 400);
    asked.post(
        RESOLVE,
        unknown,
        &json!({"outcome": "completed", "status": 99}),
        400,
    );
    // Each member that the description requires is required.
    for short in [json!({}), json!({"outcome": "completed"})] {
        asked.post(RESOLVE, unknown, &short, 400);
    }
    asked.post(
        RESOLVE,
        unknown,
        &json!({"outcome": "released", "why": "?"}),
        400,
    );
    for (path, name) in [(RESOLVE, unknown), (PURGE, ""), (RESEND, "hook")] {
        let real = path.replace("{id}", name).replace("{name}", name);
        let untyped = Request::post(&real).body(released.to_string());
        assert_eq!(asked.send(path, "POST", untyped).status(), 415);
        let not_json = asked.ask("POST", path, (name, ""), "{");
        assert_eq!(not_json.status(), 400);
    }
    let found = json!({
        "outcome": "completed", "status": 201, "headers": [["x-found", "yes"]],
        "body_base64": STANDARD.encode("found"), "reason": "in their log",
    });
    let resolved = asked.post(RESOLVE, unknown, &found, 200);
    assert_eq!(resolved.json()["state"], "completed");
    asked.post(RESOLVE, unknown, &released, 409);

    asked.post(RESEND, "hook", &json!({"all": true}), 200);
    asked.post(RESEND, "hook", &json!({}), 400);
    asked.post(RESEND, "hook", &json!({"some": true}), 400);
    asked.post(RESEND, "nobody", &json!({"all": true}), 404);
    asked.post(PURGE, "", &json!({"tenants": "x"}), 400);
    asked.post(PURGE, "", &json!({"before": "yesterday"}), 400);
    asked.post(PURGE, "", &json!({"state": "in_flight"}), 409);
    let all = json!({"tenant": null, "state": null, "before": null});
    // What is unknown goes only where that is asked for.
    let purged = [all, json!({"state": "unknown"})].map(|which| {
        let purged = asked.post(PURGE, "", &which, 200).json();
        purged["purged"].as_u64().unwrap()
    });
    assert!(purged[0] > 0 && purged[1] > 0, "{purged:?}");
    assert_eq!(purged.iter().sum::<u64>(), 9);
}

/// Who has no token, or comes by a name that is not the listener's. Open paths are open.
fn guarded(described: &mut Described) {
    let upstream = Upstream::counting();
    let open: Vec<String> = members(&described.document["paths"])
        .filter(|(_, item)| members(item).all(|(_, one)| one["security"] == json!([])))
        .map(|(path, _)| path.clone())
        .collect();
    let paths = described.document["paths"].clone();
    let guarded = setup(&upstream)
        .server("control_token = \"env:TOKEN\"")
        .env("TOKEN", TOKEN)
        .start();
    let foreign = gateway(&upstream);
    for (gateway, host, refused) in [(&guarded, None, 401), (&foreign, Some("evil.example"), 403)] {
        let mut asked = Asked::of(described, gateway);
        if let Some(host) = host {
            host.clone_into(&mut asked.host);
        }
        for (path, item) in members(&paths) {
            for (method, _) in members(item) {
                let method = method.to_uppercase();
                let name = if path.contains("{name}") {
                    "key-reused"
                } else {
                    NOBODY
                };
                let answer = asked.ask(&method, path, (name, ""), "{}");
                let expected = if open.contains(path) { 200 } else { refused };
                assert_eq!(answer.status(), expected, "{method} {path}");
            }
        }
    }
    let mut asked = Asked::of(described, &guarded);
    asked.token = Some(TOKEN);
    asked.get(OPERATIONS, "", 200);
    asked.token = Some("a-token-of-more-than-thirty-two-charactorS");
    asked.get(OPERATIONS, "", 401);
    // Who guesses on is told to wait, wherever.
    let mut guess = || asked.ask("GET", OPERATIONS, ("", ""), "").status();
    assert!((0..10).any(|_| guess() == 429));
    for (path, item) in members(&paths).filter(|(path, _)| !open.contains(path)) {
        for (method, _) in members(item) {
            let answer = asked.ask(&method.to_uppercase(), path, (NOBODY, ""), "{}");
            assert_eq!(answer.status(), 429, "{method} {path}");
        }
    }
}

/// A store that takes no more writes.
fn poisoned(described: &mut Described) {
    let upstream = Upstream::scripted(|x| x.reset());
    let faults = Faults::new();
    let gateway = faults.on(setup(&upstream)).start();
    gateway.post("/x", "k", "b").expect_status(502);
    let id = gateway.control().operation("k")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    faults.set("fsync");
    gateway.post("/x", "k2", "b").expect_status(503);
    let mut asked = Asked::of(described, &gateway);
    assert_eq!(asked.get("/readyz", "", 503).json()["status"], "not ready");
    asked.get("/healthz", "", 200);
    asked.post(RESOLVE, &id, &json!({"outcome": "released"}), 503);
    asked.post(PURGE, "", &json!({"state": "unknown"}), 503);
    asked.post(WORK, "", &json!({"key": "w"}), 503);
    assert_eq!(exec(&mut asked, "e", 'a', b"out", false), 503);
}

/// Bodies over a limit, and a disk without room.
fn full(described: &mut Described) {
    let upstream = Upstream::scripted(|x| match x.path() {
        "/reset" => x.reset(),
        size => {
            let size = size[1..].parse().unwrap();
            x.answer(200, &[], &noise(size));
        }
    });
    let faults = Faults::new();
    let gateway = faults
        .on(setup(&upstream))
        .limits("response_body = \"512KiB\"")
        .store("segment_bytes = \"1MiB\"")
        .extra(SINK)
        .start();
    let unknown = |key: &str| {
        gateway.post("/reset", key, "b").expect_status(502);
        let id = &gateway.control().operation(key)["id"];
        id.as_str().unwrap().to_owned()
    };
    let id = unknown("k");
    let mut asked = Asked::of(described, &gateway);
    let with = |body: &[u8]| {
        let body = STANDARD.encode(body);
        json!({"outcome": "completed", "status": 200, "body_base64": body})
    };
    asked.post(RESOLVE, &id, &with(&[b'a'; 513 << 10]), 413);
    asked.post(RESEND, "hook", &json!({"x": "x".repeat(2 << 20)}), 413);
    asked.post(PURGE, "", &json!({"tenant": "x".repeat(2 << 20)}), 413);
    let large = json!({"claim": "x".repeat(2 << 20)});
    asked.post(WORK, "", &large, 413);
    for path in SETTLE {
        asked.post(path, NOBODY, &large, 413);
    }
    let written = noise(600 << 10);
    assert_eq!(exec(&mut asked, "e", 'a', &written, false), 413);

    // What was set aside before is filled first.
    let ids: Vec<_> = (0..8).map(|n| unknown(&format!("k{n}"))).collect();
    faults.set("full");
    let body = with(&noise(400 << 10));
    let refused = ids.iter().any(|id| {
        let answer = asked.ask("POST", RESOLVE, (id, ""), &body.to_string());
        answer.status() == 507
    });
    assert!(refused, "the disk is never full");
    // Down to less than what a few removals need.
    for path in ["/32000", "/1000", "/1"] {
        fill(&gateway, path);
    }
    asked.post(PURGE, "", &json!({}), 507);
    asked.post(WORK, "", &json!({"key": "w"}), 507);
    assert_eq!(exec(&mut asked, "e-2", 'a', b"out", false), 507);
}

/// Asks under new keys until there is no room for an answer, or for a claim.
fn fill(gateway: &Gateway, path: &str) {
    let has_room = |n: usize| {
        let mut client = gateway.begin(&post(path, &format!("{path}-{n}"), "b"));
        client.patience(Duration::from_secs(1));
        // The end of an answer that finds no room does not come.
        let answer = client.try_read_head().map(|_| client.finish());
        answer.is_ok_and(|answer| answer.whole() && answer.status() == 200)
    };
    assert!(!(0..2000).all(has_room), "the disk is never full");
}

#[test]
fn nothing_answers_that_is_not_described() {
    let upstream = Upstream::counting();
    let gateway = gateway(&upstream);
    gateway.post("/x", "k", "b");
    let document = gateway.control().json("/openapi.json");
    let addr = gateway.control_addr();
    let ask = |method: &str, target: &str| {
        let request = Request::new(method, target)
            .without("Host")
            .header("Host", &addr.to_string())
            .header("Connection", "close");
        let mut client = Client::connect(addr);
        client.send(&request).response()
    };
    for (path, item) in members(&document["paths"]) {
        let real = path.replace("{id}", NOBODY).replace("{name}", "key-reused");
        for method in METHODS {
            let described = item.get(method.to_lowercase()).is_some()
                || (method == "HEAD" && item.get("get").is_some());
            let status = ask(method, &real).status();
            assert_eq!(status != 405, described, "{method} {path}: {status}");
        }
        for near in [format!("{real}/"), format!("/{real}"), real.to_uppercase()] {
            assert_eq!(ask("GET", &near).status(), 404, "{near}");
        }
    }
    let id = gateway.control().operation("k")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for elsewhere in [
        "/index.html",
        "/favicon.ico",
        "/consoles",
        "/docs",
        "/debug/pprof",
        "/health",
        "/ready",
        "/status",
        "/openapi",
        "/openapi.yaml",
        "/v1",
        "/v1/",
        "/v1/keys",
        "/v1/tenants",
        "/v1/configs",
        "/v1/operations/k/../../config",
        &format!("/v1/operations/{id}/release"),
        &format!("/v1/operations/{id}/attempts"),
        &format!("/v1/operations/{id}/body"),
        // What a caller sends to the gateway.
        "/x",
        "/v1/chat/completions",
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let answer = ask(method, elsewhere);
            answer.expect_status(404);
            assert_eq!(
                answer.header("content-type"),
                Some("application/problem+json"),
                "{method} {elsewhere}"
            );
        }
    }
}

#[test]
fn the_served_description_is_the_published_one() {
    let upstream = Upstream::counting();
    let served = gateway(&upstream).control().json("/openapi.json");
    let published: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    assert_eq!(served, published);
    assert_eq!(served["openapi"], "3.1.0");
}
