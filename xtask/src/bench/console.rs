//! The console's queries over a million records, on each store.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

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

/// Callers that the records are of.
const CALLERS: u32 = 50;

/// How long the books may take to have all of it.
const BOOKED_WITHIN: Duration = Duration::from_secs(120);

/// In milliseconds.
const MOST: f64 = 50.0;
const MOST_TO_PAINT: f64 = 200.0;

const LIMITS: &str = "\n[limits]\ntenant_records = 100000000\n";

/// What the console's pages ask for.
const QUERIES: &[(&str, &str)] = &[
    ("overview of a day", "/v1/overview?range=24h"),
    ("overview of a month", "/v1/overview?range=30d"),
    ("newest operations", "/v1/operations?limit=50"),
    (
        "operations of one tenant",
        "/v1/operations?limit=50&tenant=TENANT",
    ),
    ("operations of one key", "/v1/operations?limit=50&key=KEY"),
    ("unknown operations", "/v1/unknown?limit=50"),
    (
        "spend by tenant and model",
        "/v1/ledger?by=tenant,model&since=30d",
    ),
];

/// Fills each store, and asks.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let mut targets = Vec::new();
    let mut figures = format!(
        "{} finished records of {CALLERS} callers, made over the gateway with new keys; each query {TIMES} times over\n\
         one connection to the control listener, nothing else running. p50 and p99 in ms.\n\n\
         | store | query | p50 | p99 |\n|---|---|---|---|\n",
        size.records
    );
    {
        let name = "console-embedded";
        let _ = fs::remove_dir_all(stage.data(name));
        let gateway = stage.onlyonce_with(name, LIMITS, ROUTE)?;
        of_store("embedded", &gateway, size, &mut targets, &mut figures)?;
        let paint = first_paint(&gateway)?;
        let median = median(&mut paint.clone());
        writeln!(
            figures,
            "\nFirst paint of the overview in Chromium, on the embedded store: {median:.0} ms (median of {}).",
            paint.len()
        )?;
        targets.push(Target::at_most(
            "first paint, embedded, median",
            median,
            MOST_TO_PAINT,
            "ms",
        ));
        gateway.stop()?;
        fs::remove_dir_all(stage.data(name))?;
    }
    for engine in [Engine::Postgres, Engine::Redis] {
        let server = Server::start(stage, engine, "console")?;
        let name = format!("console-{}", engine.name());
        let gateway = stage.onlyonce_on(&name, &server.url(), LIMITS, ROUTE)?;
        let mut rows = String::new();
        of_store(engine.name(), &gateway, size, &mut targets, &mut rows)?;
        writeln!(
            figures,
            "\n| store | query | p50 | p99 |\n|---|---|---|---|\n{rows}"
        )?;
        gateway.stop()?;
    }
    Ok(Section { targets, figures })
}

const ROUTE: &str = "usage = [\"openai-chat\"]";

fn of_store(
    name: &str,
    gateway: &Running,
    size: &Size,
    targets: &mut Vec<Target>,
    figures: &mut String,
) -> Result<()> {
    println!("   {name}: filling");
    let (records, key) = fill(gateway, size.records)?;
    let control = gateway.control.context("no control listener")?;
    booked(control, records)?;
    let newest = ask(control, "/v1/operations?limit=1")?.1;
    let tenant = newest["operations"][0]["tenant"]
        .as_str()
        .context("no operation")?
        .to_owned();
    let mut worst: f64 = 0.0;
    for (what, path) in QUERIES {
        let path = path.replace("TENANT", &tenant).replace("KEY", &key);
        let mut times = Vec::new();
        for _ in 0..TIMES {
            times.push(ask(control, &path)?.0);
        }
        let (p50, p99) = (median(&mut times), percentile(&mut times, 0.99));
        let row = format!("| {name} | {what} | {p50:.1} | {p99:.1} |");
        println!("   {row}");
        writeln!(figures, "{row}")?;
        worst = worst.max(p99);
    }
    targets.push(Target::at_most(
        format!("{name}, slowest query, p99"),
        worst,
        MOST,
        "ms",
    ));
    Ok(())
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
fn first_paint(gateway: &Running) -> Result<Vec<f64>> {
    let control = gateway.control.context("no control listener")?;
    let clients = clients::install()?;
    let mut node = Command::new("node");
    node.arg(root().join("bench/paint.cjs"))
        .arg(format!("http://{control}/console"))
        .env("NODE_PATH", clients.node_modules);
    let said = quietly("first paint in Chromium", &mut node)?;
    said.split_whitespace()
        .map(|number| number.parse().context("no number"))
        .collect()
}
