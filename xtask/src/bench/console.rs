//! The console's queries over a million records, on each store.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Size;
use super::numbers::{median, percentile};
use super::peers::{Running, Stage};
use super::report::{Section, Target};
use super::shared::server::{Engine, Server};
use super::wrk::{self, Keys};
use crate::clients;
use crate::command::{quietly, root};
use crate::faults::client::ask;

/// How often each page is asked for.
const TIMES: usize = 100;

/// How often the overview is painted.
const PAINTS: u32 = 20;

/// Callers that the records are of.
const CALLERS: u32 = 50;

/// How long the books may take to have all of it.
const BOOKED_WITHIN: Duration = Duration::from_secs(120);

/// In milliseconds.
const MOST: f64 = 50.0;
const MOST_TO_PAINT: f64 = 200.0;

const LIMITS: &str = "\n[limits]\ntenant_records = 100000000\n";

/// What the console's pages ask for, and scripts. The names in capitals are those of [`Known`].
const QUERIES: &[(&str, &str)] = &[
    ("overview of a day", "/v1/overview?range=24h"),
    ("overview of a month", "/v1/overview?range=30d"),
    ("newest operations", "/v1/operations?limit=50"),
    (
        "operations of one tenant",
        "/v1/operations?limit=50&tenant=TENANT",
    ),
    ("operations of one key", "/v1/operations?limit=50&key=KEY"),
    (
        "operations of a tenant that has none",
        "/v1/operations?limit=50&tenant=nobody",
    ),
    (
        "operations of the last hour",
        "/v1/operations?limit=50&since=1h",
    ),
    (
        "operations of a span long ago",
        "/v1/operations?limit=50&since=24h&until=UNTIL",
    ),
    (
        "operations of a model that all have",
        "/v1/operations?limit=50&model=MODEL",
    ),
    (
        "operations of a model that none has",
        "/v1/operations?limit=50&model=nobody",
    ),
    ("one operation", "/v1/operations/ID"),
    ("unknown operations", "/v1/unknown?limit=50"),
    (
        "unknown operations of a model",
        "/v1/operations?limit=50&state=unknown&model=MODEL",
    ),
    (
        "released operations",
        "/v1/operations?limit=50&state=released",
    ),
    (
        "spend by tenant and model",
        "/v1/ledger?by=tenant,model&since=30d",
    ),
    ("entries of the books", "/v1/ledger/entries?limit=50"),
    (
        "entries of a tenant and a model",
        "/v1/ledger/entries?limit=50&tenant=TENANT&model=MODEL",
    ),
    (
        "entries of a span long ago",
        "/v1/ledger/entries?limit=50&since=24h&until=UNTIL",
    ),
];

/// Fills each store, and asks. Where one cannot be measured, the others still are.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let mut targets = Vec::new();
    let mut figures = format!(
        "{} finished records of {CALLERS} callers, made over the gateway with new keys; each query {TIMES} times,\n\
         one after the other, each on a connection of its own that is made before the time begins, with no other request\n\
         under way. p50 and p99 in ms. A page of operations on PostgreSQL and Redis looks at 20,000 of them at most, and a\n\
         page that the books are asked for (operations of a model, entries) at 20,000 entries, on every store; then it is\n\
         short, and has a next one. So a filter that matches little is timed for one such page, and not to the end of all.\n\
         Then the overview in Chromium, {PAINTS} times after one that warms it up: from the start of navigation to the\n\
         first paint.\n\n\
         | store | query | p50 | p99 |\n|---|---|---|---|\n",
        size.records
    );
    for engine in [None, Some(Engine::Postgres), Some(Engine::Redis)] {
        let name = engine.map_or("embedded", Engine::name);
        let asked = format!("{name}, slowest query, p99");
        let painted = format!("{name}, first paint, median");
        let (slowest, paint) = of_store(stage, name, engine, size, &mut figures)
            .inspect_err(|error| println!("   {name} could not be measured: {error:#}"))
            .unwrap_or_default();
        let target = |what, figure: Option<f64>, most| match figure {
            Some(figure) => Target::at_most(what, figure, most, "ms"),
            None => Target::unmeasured(what, most, "ms"),
        };
        targets.push(target(asked, slowest, MOST));
        targets.push(target(painted, paint, MOST_TO_PAINT));
    }
    Ok(Section { targets, figures })
}

const ROUTE: &str = "usage = [\"openai-chat\"]";

/// The p99 of the slowest query, and the median of the first paints, in milliseconds.
type Found = (Option<f64>, Option<f64>);

/// On the store of `engine`, or the embedded one.
fn of_store(
    stage: &Stage,
    name: &str,
    engine: Option<Engine>,
    size: &Size,
    figures: &mut String,
) -> Result<Found> {
    let started = engine.map(|engine| Server::start(stage, engine, "console"));
    let server = started.transpose()?;
    let config = format!("console-{name}");
    let _ = fs::remove_dir_all(stage.data(&config));
    let gateway = match &server {
        None => stage.onlyonce_with(&config, LIMITS, ROUTE)?,
        Some(server) => stage.onlyonce_on(&config, &server.url(), LIMITS, ROUTE)?,
    };
    println!("   {name}: filling");
    let (records, key) = fill(&gateway, size.records)?;
    let control = gateway.control.context("no control listener")?;
    booked(control, records)?;
    let slowest = slowest_query(name, control, &key, figures);
    let slowest = slowest.inspect_err(|error| println!("   {name}: {error:#}"));
    let paints = first_paint(control);
    let paints = paints.inspect_err(|error| println!("   {name}, first paint: {error:#}"));
    if let Ok(paints) = &paints {
        let mut paints = paints.clone();
        let (p50, most) = (median(&mut paints), percentile(&mut paints, 1.0));
        write_row(
            figures,
            &format!("| {name} | first paint | {p50:.0} | {most:.0} (most) |"),
        )?;
    }
    gateway.stop()?;
    if server.is_none() {
        fs::remove_dir_all(stage.data(&config))?;
    }
    Ok((
        slowest.ok(),
        paints.ok().map(|mut paints| median(&mut paints)),
    ))
}

fn write_row(figures: &mut String, row: &str) -> Result<()> {
    println!("   {row}");
    writeln!(figures, "{row}")?;
    Ok(())
}

/// What queries name, by the capitals that stand for it.
struct Known([(&'static str, String); 5]);

impl Known {
    /// Of the newest operation, and of that of `key`, which is one of the oldest.
    fn of(control: SocketAddr, key: &str) -> Result<Self> {
        let newest = first_of(control, "/v1/operations?limit=1")?;
        let oldest = first_of(control, &format!("/v1/operations?limit=1&key={key}"))?;
        let text = |value: &Value, what: &str| {
            let text = value.as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned)
                .with_context(|| format!("an operation without {what}"))
        };
        let metered = &newest["metered"];
        let model = text(&metered["model"], "model");
        let model = model.or_else(|_| text(&metered["request_model"], "model"));
        Ok(Self([
            ("TENANT", text(&newest["tenant"], "tenant")?),
            ("MODEL", model?),
            ("ID", text(&oldest["id"], "id")?),
            ("UNTIL", text(&oldest["created_at"], "created_at")?),
            ("KEY", key.to_owned()),
        ]))
    }

    fn fill_in(&self, path: &str) -> String {
        let filled = path.to_owned();
        self.0
            .iter()
            .fold(filled, |path, (name, value)| path.replace(name, value))
    }
}

fn first_of(control: SocketAddr, path: &str) -> Result<Value> {
    let (_, mut page) = ask(control, path)?;
    let first = page["operations"].get_mut(0).map(Value::take);
    first.with_context(|| format!("{path}: no operation"))
}

/// Asks for each page; the greatest p99.
fn slowest_query(name: &str, control: SocketAddr, key: &str, figures: &mut String) -> Result<f64> {
    let known = Known::of(control, key)?;
    let mut slowest: f64 = 0.0;
    for (what, path) in QUERIES {
        let path = known.fill_in(path);
        let mut times = Vec::new();
        for _ in 0..TIMES {
            times.push(ask(control, &path)?.0);
        }
        let (p50, p99) = (median(&mut times), percentile(&mut times, 0.99));
        write_row(
            figures,
            &format!("| {name} | {what} | {p50:.1} | {p99:.1} |"),
        )?;
        slowest = slowest.max(p99);
    }
    Ok(slowest)
}

/// Sends new keys until there are enough; how many there are, and one of them.
fn fill(gateway: &Running, records: u64) -> Result<(u64, String)> {
    let url = [format!("{}v1/chat/completions", gateway.url())];
    let (mut done, mut seconds, mut run) = (0, 1, 0);
    while done < records {
        run += 1;
        let one = wrk::run_of(&url, Keys::New, &format!("fill{run}"), 64, seconds, CALLERS)?;
        done += one.requests;
        if run % 5 == 1 {
            println!("   {done} records");
        }
        let rest = records.saturating_sub(done) as f64 / one.rate.max(1.0);
        seconds = (rest.ceil() as u64).clamp(1, 10);
    }
    Ok((done, "fill1-1-100".to_owned()))
}

/// Waits until the books have them.
fn booked(control: SocketAddr, records: u64) -> Result<()> {
    let since = Instant::now();
    loop {
        let (_, ledger) = ask(control, "/v1/ledger?by=")?;
        let booked = ledger["total"]["operations"].as_u64().unwrap_or(0);
        if booked >= records {
            return Ok(());
        }
        if since.elapsed() > BOOKED_WITHIN {
            bail!("{booked} of {records} operations are in the books");
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// From the start of navigation to the first paint, in milliseconds, after one that warms Chromium up.
fn first_paint(control: SocketAddr) -> Result<Vec<f64>> {
    let clients = clients::install()?;
    let mut node = Command::new("node");
    node.arg(root().join("bench/paint.cjs"))
        .arg(format!("http://{control}/console"))
        .arg(PAINTS.to_string())
        .env("NODE_PATH", clients.node_modules);
    let said = quietly("first paint in Chromium", &mut node)?;
    said.split_whitespace()
        .map(|number| number.parse().context("no number"))
        .collect()
}
