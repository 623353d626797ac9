//! What one operation costs a gateway and the store's server.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use super::super::Size;
use super::super::peers::{Running, Stage};
use super::super::rounds::CONNECTIONS;
use super::super::wrk::{self, Keys};
use super::server::{Counted, Engine, Server};
use super::{NO_CACHE, gateway};

/// Everything for one operation.
pub struct Cost {
    what: String,
    /// Operations a second, while it was measured.
    rate: f64,
    gateway_cpu: Duration,
    /// Nothing where the store is embedded.
    server: Option<ServerCost>,
}

struct ServerCost {
    /// Calls, syncs and bytes of the log.
    counted: Counted,
    /// Bytes that the gateway sent.
    sent: f64,
    /// Bytes that it received.
    received: f64,
    cpu: Duration,
}

/// A kind of load on a store of its own.
struct Load {
    what: &'static str,
    keys: Keys,
    connections: u32,
    store: &'static str,
}

const LOADS: &[Load] = &[
    Load {
        what: "new key, 64 connections",
        keys: Keys::New,
        connections: CONNECTIONS,
        store: "",
    },
    Load {
        what: "new key, one connection",
        keys: Keys::New,
        connections: 1,
        store: "",
    },
    Load {
        what: "replay that asks the store, 64 connections",
        keys: Keys::Some,
        connections: CONNECTIONS,
        store: NO_CACHE,
    },
];

/// How long it takes until a server has the files and its processes the statements that they use
/// again and again, in seconds.
const WARM_UP: u64 = 2;

/// New keys on the embedded store, to compare with.
pub fn embedded(stage: &Stage, size: &Size) -> Result<Cost> {
    println!("   embedded: costs");
    let gateway = stage.onlyonce("costs-embedded")?;
    let run = |prefix, seconds| {
        let urls = [gateway.url()];
        wrk::run(&urls, Keys::New, prefix, CONNECTIONS, seconds)
    };
    run("warm", WARM_UP)?;
    let before = gateway.cpu();
    let run = run("cost", size.seconds)?;
    Ok(Cost {
        what: "embedded, new key, 64 connections".to_string(),
        rate: run.rate,
        gateway_cpu: (gateway.cpu() - before).div_f64(run.requests as f64),
        server: None,
    })
}

/// Every kind of load on one engine; also says, in `held`, how much of the first of them stays.
pub fn of(stage: &Stage, size: &Size, engine: Engine, held: &mut String) -> Result<Vec<Cost>> {
    let server = Server::start(stage, engine, "costs")?;
    server.keep_log()?;
    let mut costs = Vec::new();
    for (number, load) in LOADS.iter().enumerate() {
        let held_before = (number == 0).then(|| server.held()).transpose()?;
        let (cost, records) = measure(stage, size, &server, load)?;
        if let Some(before) = held_before {
            write_held(held, &server, &before, records)?;
        }
        costs.push(cost);
    }
    Ok(costs)
}

/// One load, by a gateway that comes for it and goes: what it counted is complete only then. Also how
/// many requests there were in all.
fn measure(stage: &Stage, size: &Size, server: &Server, load: &Load) -> Result<(Cost, u64)> {
    let run = |gateway: &Running, name: &str, seconds| {
        // What is replayed has been made by the run that warms up.
        let prefix = match load.keys {
            Keys::New => format!("{name}{}", load.connections),
            _ => "cost".to_string(),
        };
        wrk::run(
            &[gateway.url()],
            load.keys,
            &prefix,
            load.connections,
            seconds,
        )
    };
    let name = "costs";
    let warm = gateway(stage, server, name, load.store)?;
    let warmed = run(&warm, "warm", WARM_UP)?;
    warm.stop()?;
    let counted_before = server.counted()?;
    let gateway = gateway(stage, server, name, load.store)?;
    let (sent_before, received_before) = server.traffic()?;
    let (gateway_before, server_before) = (gateway.cpu(), server.cpu());
    let measured = run(&gateway, "cost", size.seconds)?;
    let operations = measured.requests as f64;
    let gateway_cpu = (gateway.cpu() - gateway_before).div_f64(operations);
    let server_cpu = (server.cpu() - server_before).div_f64(operations);
    let (sent, received) = server.traffic()?;
    gateway.stop()?;
    let counted = server.counted()?;
    let of_one = |after: f64, before: f64| (after - before) / operations;
    let syncs = counted.syncs.zip(counted_before.syncs);
    let cost = Cost {
        what: format!("{}, {}", server.engine.name(), load.what),
        rate: measured.rate,
        gateway_cpu,
        server: Some(ServerCost {
            counted: Counted {
                calls: of_one(counted.calls, counted_before.calls),
                syncs: syncs.map(|(after, before)| of_one(after, before)),
                log_bytes: of_one(counted.log_bytes, counted_before.log_bytes),
            },
            sent: of_one(sent, sent_before),
            received: of_one(received, received_before),
            cpu: server_cpu,
        }),
    };
    Ok((cost, warmed.requests + measured.requests))
}

/// How much of each record stays.
fn write_held(
    text: &mut String,
    server: &Server,
    before: &[(String, f64)],
    records: u64,
) -> Result<()> {
    let name = server.engine.name();
    let mut parts = Vec::new();
    let mut all = 0.0;
    for (place, bytes) in server.held()? {
        let empty = before.iter().find(|(known, _)| *known == place);
        let of_one = (bytes - empty.map_or(0.0, |(_, bytes)| *bytes)) / records as f64;
        parts.push(format!("{place} {of_one:.0}"));
        all += of_one;
    }
    let all = match server.engine {
        Engine::Postgres => format!(", {all:.0} in all, with indexes"),
        Engine::Redis => String::new(),
    };
    writeln!(
        text,
        "\n{name} holds of each of {records} finished records with 1 KB of JSON, in bytes: {}{all}.",
        parts.join(", ")
    )?;
    Ok(())
}

/// A table of all of them, and what is held.
pub fn write(figures: &mut String, costs: &[Cost], held: &str) -> Result<()> {
    figures.push_str(
        "\n### What one operation costs\n\n\
         Each line is a run of its own, divided by its requests. A round trip is a transaction of PostgreSQL\n\
         or a command of Redis; operations that come together share them. Redis does not count its syncs.\n\
         CPU is that of all processes of a program, in µs.\n\n\
         | store, operation | operations/s | round trips | syncs of the log | bytes of log | bytes to the server | bytes from it | CPU of the gateway | CPU of the server |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for cost in costs {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        write!(figures, "| {} | {:.0} |", cost.what, cost.rate)?;
        let gateway = micros(cost.gateway_cpu);
        match &cost.server {
            None => writeln!(figures, " 0 | - | - | - | - | {gateway:.0} | - |")?,
            Some(server) => {
                let counted = &server.counted;
                let syncs = counted
                    .syncs
                    .map_or("-".to_string(), |syncs| format!("{syncs:.3}"));
                writeln!(
                    figures,
                    " {:.3} | {syncs} | {:.0} | {:.0} | {:.0} | {gateway:.0} | {:.0} |",
                    counted.calls,
                    counted.log_bytes,
                    server.sent,
                    server.received,
                    micros(server.cpu)
                )?;
            }
        }
    }
    figures.push_str(held);
    Ok(())
}
