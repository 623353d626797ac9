//! `onlyonce ledger`: what was spent and what was not, over the control listener.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::control_client::{Client, Reach, page_table, query, table, text};
use crate::failure::Failure;

/// The words of `onlyonce ledger`.
#[derive(Debug, Args)]
pub(crate) struct Ledger {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sum what was spent, and what was not spent twice
    Report {
        /// By what: some of day, hour, tenant, route, provider and model, with commas between them
        #[arg(long, value_name = "NAMES", default_value = "day")]
        by: String,
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// From the day of this moment on: 2026-11-25T08:00:00Z, or a span until now like 30d [default: 30d]
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Until this moment [default: now]
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Print comma-separated values
        #[arg(long, conflicts_with = "json")]
        csv: bool,
    },
    /// List the entries, the last booked first: one for each operation that completed
    Entries {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Only of this route
        #[arg(long)]
        route: Option<String>,
        /// Only of this model
        #[arg(long)]
        model: Option<String>,
        /// Only completed since this moment: 2026-11-25T08:00:00Z, or a span until now like 2h
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Only completed before this moment
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// List those who are told of completed operations, and how it goes
    Sinks,
    /// List what was given up of one of them
    Dead {
        /// The sink's name
        sink: String,
    },
    /// Send once more what was given up, and forget what is taken
    Resend {
        /// The sink's name
        sink: String,
        /// The operations (op_...)
        #[arg(value_name = "OP", required_unless_present = "all")]
        ids: Vec<String>,
        /// All that was given up
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Show what looks like repeats on routes with key = "observe", and what these cost
    Suspects,
}

/// Does what `ledger` says.
pub(crate) fn run(ledger: &Ledger) -> Result<(), Failure> {
    ledger.reach.run(|client| ledger.run(client))
}

impl Ledger {
    async fn run(&self, client: Client) -> Result<(), Failure> {
        match &self.command {
            Command::Report {
                by,
                tenant,
                since,
                until,
                csv,
            } => {
                let asked = query(&[
                    ("by", Some(by.as_str())),
                    ("tenant", tenant.as_deref()),
                    ("since", since.as_deref()),
                    ("until", until.as_deref()),
                ]);
                let report = client.get(&format!("/v1/ledger{asked}")).await?;
                self.reach
                    .print(&report, if *csv { as_csv } else { as_table })
            }
            Command::Entries {
                tenant,
                route,
                model,
                since,
                until,
                limit,
            } => {
                let filter = [
                    ("tenant", tenant.as_deref()),
                    ("route", route.as_deref()),
                    ("model", model.as_deref()),
                    ("since", since.as_deref()),
                    ("until", until.as_deref()),
                ];
                let path = "/v1/ledger/entries";
                let entries = client.pages(path, &filter, "entries", *limit).await?;
                self.reach.print(&entries, show_entries)
            }
            Command::Sinks => {
                let sinks = client.get("/v1/sinks").await?;
                self.reach.print(&sinks, show_sinks)
            }
            Command::Dead { sink } => {
                let path = format!("/v1/sinks/{sink}/dead");
                let dead = client.pages(&path, &[], "dead", u64::MAX).await?;
                self.reach.print(&dead, show_dead)
            }
            Command::Resend { sink, ids, all } => {
                let which = match all {
                    true => json!({ "all": true }),
                    false => json!({ "ids": ids }),
                };
                let path = format!("/v1/sinks/{sink}/resend");
                let resent = client.post(&path, &which).await?;
                self.reach.print(&resent, show_resent)
            }
            Command::Suspects => {
                let report = client.get("/v1/suspects").await?;
                self.reach.print(&report, suspects)
            }
        }
    }
}

/// What a report shows of sums: its name in the API, and at the head of its column.
const COLUMNS: [(&str, &str); 9] = [
    ("operations", "OPERATIONS"),
    ("input", "TOKENS IN"),
    ("output", "TOKENS OUT"),
    ("spent_usd", "SPENT USD"),
    ("replayed", "REPLAYS"),
    ("joined", "JOINS"),
    ("not_spent_usd", "NOT SPENT USD"),
    ("unpriced", "NO PRICE"),
    ("unmetered", "NOT READ"),
];

fn names(report: &Value) -> Vec<&str> {
    let by = report["by"].as_array().into_iter().flatten();
    by.filter_map(Value::as_str).collect()
}

fn as_table(report: &Value) -> String {
    let by = names(report);
    let heads = by.iter().map(|name| name.to_uppercase());
    let mut rows = vec![
        heads
            .chain(COLUMNS.map(|(_, head)| head.to_owned()))
            .collect::<Vec<_>>(),
    ];
    let sums = |row: &Value| COLUMNS.map(|(name, _)| text(&row[name]));
    for row in report["rows"].as_array().into_iter().flatten() {
        let names = by.iter().map(|name| shown(name, &row[*name]));
        rows.push(names.chain(sums(row)).collect());
    }
    if !by.is_empty() {
        let mut total = vec![String::new(); by.len()];
        total[0] = "total".to_owned();
        total.extend(sums(&report["total"]));
        rows.push(total);
    }
    table(&rows)
}

/// A name as people read it: a day as a date, and that nobody said it.
fn shown(by: &str, name: &Value) -> String {
    let name = text(name);
    match by {
        "day" => name.chars().take(10).collect(),
        "hour" => name
            .chars()
            .take(16)
            .map(|c| if c == 'T' { ' ' } else { c })
            .collect(),
        _ if name.is_empty() => "(not said)".to_owned(),
        _ => name,
    }
}

/// The rows as RFC 4180 has them, without a total.
fn as_csv(report: &Value) -> String {
    let by = names(report);
    let fields: Vec<&str> = by
        .iter()
        .copied()
        .chain(COLUMNS.map(|(name, _)| name))
        .collect();
    let mut out = fields.join(",") + "\r\n";
    for row in report["rows"].as_array().into_iter().flatten() {
        let row: Vec<_> = fields
            .iter()
            .map(|field| quoted(&text(&row[*field])))
            .collect();
        out += &row.join(",");
        out += "\r\n";
    }
    out
}

fn quoted(text: &str) -> String {
    match text.contains([',', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

fn suspects(report: &Value) -> String {
    let observing = report["observing"].as_array();
    if observing.is_none_or(Vec::is_empty) {
        return "no route observes: set key = \"observe\" on one\n".to_owned();
    }
    let (total, since) = (&report["total"], text(&report["since"]));
    let kinds = report["suspects"].as_array().map_or(&[][..], Vec::as_slice);
    if kinds.is_empty() {
        return format!("no request looks like a repeat since {since}\n");
    }
    let times = match total["times"].as_u64() {
        Some(1) => "1 request looks like a repeat".to_owned(),
        _ => format!("{} requests look like repeats", text(&total["times"])),
    };
    let heads = [
        "TIMES", "COST", "INPUT", "OUTPUT", "LATEST", "CLIENT", "MODEL", "ROUTE", "TENANT",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for kind in kinds {
        let columns = [
            "times",
            "cost_usd",
            "input_tokens",
            "output_tokens",
            "latest",
            "client",
            "model",
            "route",
            "tenant",
        ];
        rows.push(columns.map(|name| text(&kind[name])).to_vec());
    }
    format!(
        "at least {times} since {since}: ${}{}\n{}",
        text(&total["cost_usd"]),
        unpriced(total),
        table(&rows)
    )
}

fn unpriced(total: &Value) -> String {
    match total["unpriced"].as_u64() {
        None | Some(0) => String::new(),
        Some(count) => format!(", and {count} without a known cost"),
    }
}

fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of[name].as_array().map_or(&[], Vec::as_slice)
}

fn show_entries(answer: &Value) -> String {
    let heads = [
        "COMPLETED",
        "OPERATION",
        "TENANT",
        "ROUTE",
        "MODEL",
        "STATUS",
        "TOKENS IN",
        "TOKENS OUT",
        "USD",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for entry in list(answer, "entries") {
        let model = match &entry["model"] {
            Value::Null => &entry["request_model"],
            said => said,
        };
        let (usage, cost) = (&entry["usage"], &entry["cost"]);
        let columns = [
            &entry["completed_at"],
            &entry["id"],
            &entry["tenant"],
            &entry["route"],
            model,
            &entry["status"],
            &usage["input"],
            &usage["output"],
            &cost["amount"],
        ];
        rows.push(columns.map(text).to_vec());
    }
    page_table(&rows, answer)
}

fn show_sinks(answer: &Value) -> String {
    let mut out = String::new();
    for sink in list(answer, "sinks") {
        let state = match (sink["paused"].as_bool(), sink["delivers"].as_bool()) {
            (Some(true), _) => "paused",
            (_, Some(true)) => "delivers",
            _ => "waits",
        };
        let _ = writeln!(
            out,
            "{}  {}  {state}  {} pending, {} dead, {} delivered, {} ms behind",
            text(&sink["name"]),
            text(&sink["kind"]),
            sink["pending"],
            sink["dead"],
            sink["delivered"],
            sink["lag_ms"],
        );
        let error = &sink["last_error"];
        if !error.is_null() {
            let _ = writeln!(out, "  {}  {}", text(&error["at"]), text(&error["why"]));
        }
    }
    match out.is_empty() {
        true => "there is no [[ledger.sink]]\n".to_owned(),
        false => out,
    }
}

fn show_dead(answer: &Value) -> String {
    let mut out = String::new();
    for letter in list(answer, "dead") {
        let _ = writeln!(
            out,
            "{}  {}  {} tries  {}",
            text(&letter["entry"]["id"]),
            text(&letter["since"]),
            letter["tries"],
            text(&letter["why"]),
        );
    }
    out
}

fn show_resent(answer: &Value) -> String {
    let mut out = String::new();
    for id in list(answer, "delivered") {
        let _ = writeln!(out, "{}  taken", text(id));
    }
    for failed in list(answer, "failed") {
        let _ = writeln!(out, "{}  {}", text(&failed["id"]), text(&failed["why"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        let sums = json!({ "operations": 2, "input": 24, "output": 690, "spent_usd": "0.00693",
            "replayed": 2, "joined": 0, "not_spent_usd": "0.00693", "unpriced": 0, "unmetered": 0 });
        let mut row = sums.clone();
        row["tenant"] = json!("acme, inc");
        row["day"] = json!("2026-11-25T00:00:00.000Z");
        json!({ "by": ["tenant", "day"], "rows": [row], "total": sums })
    }

    #[test]
    fn a_report_is_a_table_with_a_total() {
        let shown = as_table(&report());
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(
            lines[0].starts_with("TENANT     DAY         OPERATIONS"),
            "{shown}"
        );
        assert!(
            lines[1].starts_with("acme, inc  2026-11-25  2  "),
            "{shown}"
        );
        assert!(lines[2].starts_with("total "), "{shown}");
    }

    #[test]
    fn values_with_commas_are_quoted() {
        assert_eq!(
            as_csv(&report()),
            "tenant,day,operations,input,output,spent_usd,replayed,joined,not_spent_usd,unpriced,unmetered\r\n\
             \"acme, inc\",2026-11-25T00:00:00.000Z,2,24,690,0.00693,2,0,0.00693,0,0\r\n"
        );
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
