//! What Prometheus and Grafana get to see: the metrics themselves, and the dashboard and the alert rules
//! that are shipped, each checked by Prometheus' own tool against a scrape of the real binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use onlyonce_testkit::{Client, Gateway, Request, Response, Signal, Upstream, eventually};
use serde_json::{Value, json};

use crate::usage::{CHAT, JSON, chat};
use crate::{expect_executed, expect_replay, gateway, post, setup, usage};

const DASHBOARD: &str = include_str!("../../../../packaging/grafana/onlyonce.json");
const PAGE: &str = include_str!("../../../../docs/metrics.md");

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/prometheus")
}

/// What `promtool` says of `input`; it must be content.
#[track_caller]
fn promtool(words: &[&str], input: &str) -> String {
    let child = Command::new("promtool")
        .args(words)
        .current_dir(packaging())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("promtool starts (Debian: apt-get install prometheus)");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    said
}

fn by_acme(path: &str, key: &str, body: &str) -> Request {
    post(path, key, body).header("x-api-key", "credential-of-acme")
}

fn answer_of(model: &str) -> String {
    let mut answer: Value = serde_json::from_str(&chat()).unwrap();
    answer["model"] = model.into();
    answer.to_string()
}

/// A gateway that has seen one of everything, and its upstream.
fn busy() -> (Upstream, Gateway) {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| match x.key() {
        Some("joined") => {
            x.start_chunked(200, &[JSON]);
            wait.wait();
            x.chunk(chat());
            x.end_chunks();
        }
        Some("unknown") => x.reset(),
        Some("released") => x.answer(429, &[], b"later"),
        Some("no-price") => x.answer(
            200,
            &[JSON],
            answer_of("a \"model\"\nof \\ theirs").as_bytes(),
        ),
        Some("not-read") => x.answer(200, &[JSON, ("Content-Encoding", "x-own")], b"??"),
        _ => x.answer(200, &[JSON], chat().as_bytes()),
    });
    let gateway = usage::before(&upstream, "openai")
        .route("forward_key = \"idempotency-key\"")
        .extra(
            "[[tenant]]\nname = \"acme\"\ncredentials = [\"env:ACME\"]\n[[ledger.sink]]\nname = \
             \"billing\"\nkind = \"openmeter\"\nurl = \"http://127.0.0.1:9/events\"",
        )
        .env("ACME", "credential-of-acme")
        .start();
    let send = |key: &str, body: &str| gateway.send(&by_acme(CHAT, key, body));

    let first = send("executed", "{}");
    expect_executed(&first);
    for _ in 0..2 {
        expect_replay(&send("executed", "{}"), &first);
    }
    send("executed", "{ }").expect_problem(422, "key-reused");
    send("unknown", "{}").expect_problem(502, "outcome-unknown");
    send("released", "{}").expect_status(429);
    expect_executed(&send("no-price", "{}"));
    expect_executed(&send("not-read", "{}"));
    let unkeyed = Request::post(CHAT).body("{}");
    gateway.send(&unkeyed).expect_status(200);

    let mut one = gateway.begin(&by_acme(CHAT, "joined", "{}"));
    one.read_head();
    let mut other = gateway.begin(&by_acme(CHAT, "joined", "{}"));
    other.read_head();
    go.fire();
    for client in [&mut one, &mut other] {
        assert!(client.finish().whole());
    }
    (upstream, gateway)
}

/// All samples: what stands before the value, and the value.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name, value.parse().unwrap())
        })
        .collect()
}

/// The names of all samples.
fn names(text: &str) -> BTreeSet<&str> {
    let name = |sample: &&str| sample.find('{').unwrap_or(sample.len());
    samples(text)
        .keys()
        .map(|sample| &sample[..name(sample)])
        .collect()
}

/// Every name of a metric of ours in `text`.
fn named(text: &str) -> BTreeSet<&str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_of_name(c))
        .filter(|word| word.starts_with("onlyonce_"))
        .collect()
}

fn scrape(gateway: &Gateway) -> String {
    gateway.control().get("/metrics").text()
}

#[test]
fn every_way_of_an_answer_is_counted_with_what_it_cost_and_what_it_spared() {
    let (_upstream, gateway) = busy();
    let text = scrape(&gateway);
    let samples = samples(&text);
    let model = "provider=\"openai\",model=\"gpt-4o-2024-08-06\"";
    let theirs = r#"provider="openai",model="a \"model\"\nof \\ theirs""#;
    for (sample, expected) in [
        (
            "onlyonce_requests_total{status=\"executed\",route=\"up\"}".to_owned(),
            4.0,
        ),
        (
            "onlyonce_requests_total{status=\"replayed\",route=\"up\"}".to_owned(),
            2.0,
        ),
        (
            "onlyonce_requests_total{status=\"joined\",route=\"up\"}".to_owned(),
            1.0,
        ),
        (
            "onlyonce_requests_total{status=\"released\",route=\"up\"}".to_owned(),
            1.0,
        ),
        (
            "onlyonce_requests_total{status=\"refused\",route=\"up\"}".to_owned(),
            2.0,
        ),
        (
            "onlyonce_requests_total{status=\"passed\",route=\"up\"}".to_owned(),
            1.0,
        ),
        ("onlyonce_joins_total{route=\"up\"}".to_owned(), 1.0),
        ("onlyonce_unknown_total{reason=\"broke\"}".to_owned(), 1.0),
        (
            "onlyonce_unknown_total{reason=\"timed_out\"}".to_owned(),
            0.0,
        ),
        ("onlyonce_unknown_open".to_owned(), 1.0),
        (
            "onlyonce_problems_total{problem=\"key-reused\"}".to_owned(),
            1.0,
        ),
        (
            "onlyonce_execution_seconds_count{route=\"up\"}".to_owned(),
            6.0,
        ),
        ("onlyonce_live_operations".to_owned(), 0.0),
        ("onlyonce_store_healthy".to_owned(), 1.0),
        (
            format!("onlyonce_tokens_total{{{model},unit=\"input\"}}"),
            2_000.0,
        ),
        (
            format!("onlyonce_tokens_total{{{model},unit=\"output\"}}"),
            4_000.0,
        ),
        (
            format!("onlyonce_tokens_total{{{model},unit=\"cache_read\"}}"),
            800.0,
        ),
        (
            format!("onlyonce_tokens_total{{{theirs},unit=\"input\"}}"),
            1_000.0,
        ),
        (
            format!("onlyonce_spent_usd_total{{tenant=\"acme\",{model}}}"),
            0.044,
        ),
        (
            format!("onlyonce_not_spent_usd_total{{tenant=\"acme\",{model},got=\"replayed\"}}"),
            0.044,
        ),
        (
            format!("onlyonce_not_spent_usd_total{{tenant=\"acme\",{model},got=\"joined\"}}"),
            0.022,
        ),
        (
            format!("onlyonce_not_spent_tokens_total{{{model},got=\"replayed\"}}"),
            6_000.0,
        ),
        (
            format!("onlyonce_not_spent_tokens_total{{{model},got=\"joined\"}}"),
            3_000.0,
        ),
        (
            format!("onlyonce_unpriced_operations_total{{{theirs}}}"),
            1.0,
        ),
        (
            "onlyonce_unpriced_operations_total{provider=\"openai\",model=\"unknown\"}".to_owned(),
            1.0,
        ),
        (
            "onlyonce_meter_gave_up_total{why=\"coding\"}".to_owned(),
            1.0,
        ),
        (
            "onlyonce_meter_gave_up_total{why=\"memory\"}".to_owned(),
            0.0,
        ),
        (
            "onlyonce_telemetry_dropped_total{signal=\"spans\"}".to_owned(),
            0.0,
        ),
    ] {
        let found = samples.get(&*sample).copied();
        assert_eq!(found, Some(expected), "{sample} in\n{text}");
    }
    let spent = samples
        .keys()
        .filter(|name| name.starts_with("onlyonce_spent_usd"));
    assert_eq!(spent.count(), 1, "{text}");
    let value = |name: &str| samples[name];
    let commits = value("onlyonce_store_commits_total");
    let writes = value("onlyonce_store_committed_writes_total");
    for (name, expected) in [
        ("onlyonce_store_commit_seconds_count", commits),
        ("onlyonce_store_commit_seconds_bucket{le=\"+Inf\"}", commits),
        ("onlyonce_store_commit_group_size_count", commits),
        (
            "onlyonce_store_commit_group_size_bucket{le=\"+Inf\"}",
            commits,
        ),
        ("onlyonce_store_commit_group_size_sum", writes),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    // Six claims, and the outcome of each.
    assert!(writes >= 12.0, "{writes}");
    assert!(value("onlyonce_store_commit_seconds_sum") > 0.0);
}

#[test]
fn a_settled_unknown_is_open_no_more_and_counts_as_spent() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(200, &[usage::SSE]);
        x.chunk(&usage::messages()[0]);
        x.reset();
    });
    let gateway = usage::before(&upstream, "anthropic").start();
    gateway.begin(&post("/v1/messages", "k", "{}")).finish();
    let control = gateway.control();
    control.wait_for_state("k", "unknown");
    let metric = |name: &str| control.metric(name, "");
    eventually("it is open", || metric("onlyonce_unknown_open") > 0.0);
    assert_eq!(metric("onlyonce_spent_usd_total"), 0.0);
    let id = control.operation("k")["id"].as_str().unwrap().to_owned();
    let with = json!({
        "outcome": "completed", "status": 200, "body_base64": "e30=", "reason": "looked it up",
    });
    control.resolve(&id, &with).expect_status(200);
    eventually("it is settled", || metric("onlyonce_unknown_open") < 1.0);
    assert_eq!(metric("onlyonce_spent_usd_total"), 0.000_075);
}

#[test]
fn a_call_with_a_fixed_price_is_spent_and_spared_though_nobody_reads_its_answer() {
    let upstream = Upstream::counting();
    let gateway = setup(&upstream).route("per_call = \"0.25\"").start();
    for _ in 0..3 {
        gateway.post("/x", "k", "b").expect_status(200);
    }
    let of = "provider=\"unknown\",model=\"unknown\"";
    let metric = |name: &str| gateway.control().metric(name, of);
    assert_eq!(metric("onlyonce_spent_usd_total"), 0.25);
    assert_eq!(metric("onlyonce_not_spent_usd_total"), 0.5);
    assert_eq!(metric("onlyonce_unpriced_operations_total"), 0.0);
}

#[test]
fn prometheus_finds_nothing_to_say_against_the_metrics() {
    let (_upstream, gateway) = busy();
    let response = gateway.control().get("/metrics");
    assert_eq!(
        response.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert_eq!(promtool(&["check", "metrics"], &response.text()), "");
}

/// As Prometheus asks since its version 2.5.
const ITS_ACCEPT: &str = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

#[test]
fn who_asks_for_openmetrics_gets_that() {
    let gateway = gateway(&Upstream::counting());
    let ask = |accept: &str| -> Response {
        let to = gateway.control_addr();
        let request = Request::get("/metrics")
            .without("Host")
            .header("Host", &to.to_string())
            .header("Connection", "close")
            .header("Accept", accept);
        Client::connect(to).ask(&request)
    };
    let metrics = ask(ITS_ACCEPT);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(metrics.header("content-type"), Some(kind));
    let text = metrics.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("# UNIT onlyonce_store_commit_seconds seconds\n"));
    assert!(text.contains("# TYPE onlyonce_requests counter\n"));
    let plain = ask("text/plain").text();
    assert!(!plain.contains("# EOF"));
    assert!(plain.contains("# TYPE onlyonce_requests_total counter\n"));
}

#[test]
fn the_metrics_are_those_that_the_page_names() {
    let (_upstream, gateway) = busy();
    let text = scrape(&gateway);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: BTreeSet<_> = types.filter_map(|line| line.split(' ').next()).collect();
    let table = PAGE.lines().filter(|line| line.starts_with("| `onlyonce_"));
    let on_page: BTreeSet<_> = table
        .flat_map(|line| named(line.split('|').nth(1).unwrap()))
        .collect();
    assert_eq!(served, on_page);
}

#[test]
fn the_alert_rules_are_sound_and_each_fires_when_it_should() {
    let said = promtool(&["check", "rules", "alerts.yml"], "");
    let rules = fs::read_to_string(packaging().join("alerts.yml")).unwrap();
    let tests = fs::read_to_string(packaging().join("alerts_test.yml")).unwrap();
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(
        said.contains(&format!("{} rules found", alerts.len())),
        "{said}"
    );
    for alert in &alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels:");
        assert!(tests.contains(&fires), "{alert} is never seen to fire");
        let silent = format!("alertname: {alert} }}");
        assert_eq!(
            tests.matches(&silent).count(),
            2,
            "{alert} when all is well, and just before"
        );
    }
    for annotation in ["summary:", "money:", "action:"] {
        let count = rules
            .lines()
            .filter(|line| line.trim().starts_with(annotation));
        assert_eq!(count.count(), alerts.len(), "{annotation}");
    }
    let said = promtool(&["test", "rules", "alerts_test.yml"], "");
    assert!(said.contains("SUCCESS"), "{said}");
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().unwrap()
}

/// The queries of a dashboard, as they stand where nothing is chosen in it.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let of = |panel: &Value| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let id = panel["id"].clone();
        targets.into_iter().map(move |target| {
            let name = format!("onlyonce:panel_{id}_{}", target["refId"].as_str().unwrap());
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$__rate_interval", "5m")
                .replace("$__range", "1h")
                .replace("$instance", ".*");
            assert!(!query.contains('$'), "{query}");
            (name, query)
        })
    };
    panels(dashboard).iter().flat_map(of).collect()
}

#[test]
fn every_query_of_the_dashboard_is_one_that_prometheus_takes() {
    let queries = queries(&dashboard());
    assert!(queries.len() > 30, "{}", queries.len());
    let rules: Vec<_> = queries
        .iter()
        .map(|(record, expr)| json!({ "record": record, "expr": expr }))
        .collect();
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let folder = tempfile::tempdir().unwrap();
    // JSON is YAML.
    let file = folder.path().join("dashboard.yml");
    fs::write(&file, rules.to_string()).unwrap();
    let said = promtool(&["check", "rules", file.to_str().unwrap()], "");
    assert!(
        said.contains(&format!("{} rules found", queries.len())),
        "{said}"
    );
}

#[test]
fn every_metric_that_the_dashboard_and_the_alerts_name_is_in_the_scrape() {
    let (_upstream, gateway) = busy();
    let text = scrape(&gateway);
    let served = names(&text);
    let rules = fs::read_to_string(packaging().join("alerts.yml")).unwrap();
    let dashboard = dashboard();
    let queries: Vec<_> = queries(&dashboard)
        .into_iter()
        .map(|(_, query)| query)
        .collect();
    let variables = dashboard["templating"].to_string();
    let rules: String = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n");
    let mut all = named(&rules);
    all.extend(queries.iter().flat_map(|query| named(query)));
    all.extend(named(&variables));
    assert!(all.len() > 25, "{all:?}");
    for name in all {
        assert!(served.contains(name), "{name} in\n{text}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let sources = variables.iter().filter(|one| one["type"] == "datasource");
    let sources: Vec<_> = sources.map(|one| &one["name"]).collect();
    assert_eq!(sources, ["datasource"]);
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let title = panel["title"]
            .as_str()
            .filter(|title| !title.is_empty())
            .unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("w") > 0 && at("x") + at("w") <= 24, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(
                    taken.insert((x, y)),
                    "{title} lies over another at {x}, {y}"
                );
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for of in targets.iter().chain([panel]) {
            assert_eq!(of["datasource"], source, "{title}");
        }
    }
}
