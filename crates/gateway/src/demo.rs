//! `onlyonce demo`: what a dying connection costs, without and with the gateway.
//!
//! A sandbox plays the paid provider. One client talks to it directly, another through a gateway;
//! the connection of each dies half way through the answer, and each asks again.

mod client;

use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use onlyonce_sandbox::{Ledger, Sandbox};
use tokio::sync::oneshot;

use crate::config::{Config, Overrides};
use crate::failure::Failure;
use crate::open;
use crate::start::{self, Doors, Running};
use client::{Answer, ask};

/// Words of the answer, and of them those after which the connection dies.
const WORDS: usize = 60;
const WORDS_BEFORE_DEATH: usize = 25;
/// Time between two words.
const PAUSE: Duration = Duration::from_millis(40);

/// Shows it.
pub(crate) fn run() -> Result<(), Failure> {
    start::runtime()?.block_on(show())
}

async fn show() -> Result<(), Failure> {
    let broke = |error: &dyn std::fmt::Display| {
        Failure::other(
            format!("the demo broke ({error})"),
            "look at the temporary folder (TMPDIR) and the space left there, and run it again",
        )
    };
    let sandbox = Sandbox::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(|error| broke(&error))?;
    let provider = sandbox.local_addr();
    let ledger = sandbox.ledger();
    let (stop_sandbox, sandbox_stops) = oneshot::channel::<()>();
    let sandbox = tokio::spawn(sandbox.serve(async {
        let _ = sandbox_stops.await;
    }));
    let folder = tempfile::tempdir().map_err(|error| broke(&error))?;
    let overrides = Overrides {
        listen: Some((Ipv4Addr::LOCALHOST, 0).into()),
        control: Some((Ipv4Addr::LOCALHOST, 0).into()),
        data: Some(folder.path().join("data")),
    };
    let mut config = Config::for_upstream(&format!("http://{provider}"), "openai", &overrides)?;
    config.server.workers = 1;
    let doors = Doors::open(&config)?;
    let store = open::embedded(&folder.path().join("data"), &config.store, &config.limits)?;
    let gateway = Running::start(config, store, doors)?;

    say(&format!(
        "A client asks a paid API for a long answer. Half way its connection dies, and it asks \
         again.\n(The API is a sandbox at http://{provider}, the gateway is at http://{}.)\n\n",
        gateway.addr
    ));
    let (without, with) = tokio::join!(
        story("without", provider, &ledger),
        story("with", gateway.addr, &ledger)
    );
    let outcome = match (without, with) {
        (Ok(without), Ok(with)) => {
            say(&table(&without, &with, io::stdout().is_terminal()));
            verdict(&without, &with)
        }
        (Err(error), _) | (_, Err(error)) => Err(broke(&error)),
    };
    gateway
        .stop(Duration::from_secs(1), std::future::pending())
        .await;
    let _ = stop_sandbox.send(());
    let _ = sandbox.await;
    outcome
}

/// What happened to one client.
struct Story {
    first: Answer,
    second: Answer,
    executions: u64,
    billed: String,
}

async fn story(name: &str, addr: SocketAddr, ledger: &Ledger) -> io::Result<Story> {
    let first = ask(addr, name, Some(WORDS_BEFORE_DEATH)).await?;
    let second = ask(addr, name, None).await?;
    let seen = ledger.snapshot_of(|entry| entry.tag.as_deref() == Some(name));
    Ok(Story {
        first,
        second,
        executions: seen.executions,
        billed: format!("${}", seen.charged_usd),
    })
}

impl Story {
    /// Whether the second attempt got the answer whose beginning the first one saw.
    fn is_one_answer(&self) -> bool {
        self.second.whole && self.second.text.starts_with(&self.first.text)
    }
}

/// The two stories side by side.
fn table(without: &Story, with: &Story, terminal: bool) -> String {
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let paint = |text: &str, good: bool| match (colours, good) {
        (false, _) => format!("{text:<32}"),
        (true, true) => format!("\x1b[32m{text:<32}\x1b[0m"),
        (true, false) => format!("\x1b[31m{text:<32}\x1b[0m"),
    };
    let first = |story: &Story| format!("{} words, then cut off", story.first.words());
    let second = |story: &Story| {
        let way = story.second.status.as_deref().unwrap_or("executed again");
        format!("{} words, {way}", story.second.words())
    };
    let answer = |story: &Story| {
        let words = if story.is_one_answer() {
            "one answer, whole"
        } else {
            "two different answers"
        };
        paint(words, story.is_one_answer())
    };
    let executed = |story: &Story| paint(&story.executions.to_string(), story.executions == 1);
    let billed = |story: &Story| paint(&story.billed, story.executions == 1);
    let rows = [
        (
            "",
            format!("{:<32}", "without Onlyonce"),
            "with Onlyonce".to_owned(),
        ),
        (
            "first attempt",
            format!("{:<32}", first(without)),
            first(with),
        ),
        (
            "second attempt",
            format!("{:<32}", second(without)),
            second(with),
        ),
        ("executed", executed(without), executed(with)),
        ("billed", billed(without), billed(with)),
        ("the client got", answer(without), answer(with)),
    ];
    let lines = rows.map(|(label, left, right)| format!("  {label:<16}{left}{right}"));
    format!(
        "{}\n",
        lines.map(|line| line.trim_end().to_owned()).join("\n")
    )
}

/// The demo promises something: when it does not come true, it fails.
fn verdict(without: &Story, with: &Story) -> Result<(), Failure> {
    if with.executions == 1 && with.is_one_answer() && without.executions == 2 {
        return Ok(());
    }
    Err(Failure::other(
        format!(
            "the demo went otherwise than it should: {} executions without the gateway, {} with it",
            without.executions, with.executions
        ),
        "run it again, and report it if it stays so",
    ))
}

fn say(text: &str) {
    let mut out = io::stdout().lock();
    // Nobody watches where standard output is closed.
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str, whole: bool, status: Option<&str>) -> Answer {
        Answer {
            text: text.to_owned(),
            whole,
            status: status.map(str::to_owned),
        }
    }

    fn stories() -> (Story, Story) {
        let without = Story {
            first: answer("one two", false, None),
            second: answer("un deux trois", true, None),
            executions: 2,
            billed: "$0.002000".to_owned(),
        };
        let with = Story {
            first: answer("one two", false, Some("executed")),
            second: answer("one two three", true, Some("joined")),
            executions: 1,
            billed: "$0.001000".to_owned(),
        };
        (without, with)
    }

    #[test]
    fn the_table_shows_both_sides_without_colours_where_nobody_sees_them() {
        let (without, with) = stories();
        let table = table(&without, &with, false);
        assert!(!table.contains('\x1b'));
        for line in [
            "  executed        2                               1\n",
            "  billed          $0.002000                       $0.001000\n",
            "  second attempt  3 words, executed again         3 words, joined\n",
            "  the client got  two different answers           one answer, whole\n",
        ] {
            assert!(table.contains(line), "{table}");
        }
    }

    #[test]
    fn a_demo_that_does_not_show_what_it_promises_fails() {
        let (without, with) = stories();
        assert!(verdict(&without, &with).is_ok());
        assert!(verdict(&with, &with).is_err());
        assert!(verdict(&without, &without).is_err());
    }
}
