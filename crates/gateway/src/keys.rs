//! `onlyonce keys`: looking at operations and settling them, over the control listener.

mod show;

use std::io::{self, Read};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::control_client::{Client, Reach, query};
use crate::failure::Failure;

/// The words of `onlyonce keys`.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List operations, newest first
    List {
        /// Only in this state: in_flight, completed, unknown or released
        #[arg(long)]
        state: Option<String>,
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Only with this key
        #[arg(long)]
        key: Option<String>,
        /// Only since this moment: 2026-11-25T08:00:00Z, or a span until now like 2h
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Show one operation and its attempts
    Show {
        /// A key, or an operation's id (op_...)
        key_or_op: String,
    },
    /// Write the recorded body of one operation to standard output
    Body {
        /// The operation's id, or its key
        op: String,
    },
    /// Say that an unknown operation did not run: its key is free again
    ///
    /// Where its lease has passed, be sure first that who ran it is gone or answers again: a gateway
    /// that stands still may send when it wakes.
    Release {
        /// The operation's id, or its key
        op: String,
        /// How that is known
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Say that an unknown operation ran, and what it answered
    Complete {
        /// The operation's id, or its key
        op: String,
        /// The status of the answer
        #[arg(long, value_parser = clap::value_parser!(u16).range(200..=599))]
        status: u16,
        /// The file with the answer's body; - for standard input
        #[arg(long, value_name = "FILE")]
        body: PathBuf,
        /// A header of the answer, "name: value"; may be repeated
        #[arg(long = "header", value_name = "HEADER", value_parser = header)]
        headers: Vec<(String, String)>,
        /// How that is known
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Remove records, those in flight aside: their keys will be new again
    Purge {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<String>,
        /// Only in this state
        #[arg(long)]
        state: Option<String>,
        /// Only those first claimed before this moment, or longer ago than this span
        #[arg(long, value_name = "TIME")]
        before: Option<String>,
        /// Yes, remove them
        #[arg(long, required = true)]
        yes: bool,
    },
}

/// Does what `keys` says.
pub(crate) fn run(keys: &Keys) -> Result<(), Failure> {
    keys.reach.run(|client| keys.run(client))
}

impl Keys {
    async fn run(&self, client: Client) -> Result<(), Failure> {
        match &self.command {
            Command::List {
                state,
                tenant,
                key,
                since,
                limit,
            } => {
                let filter = [
                    ("state", state.as_deref()),
                    ("tenant", tenant.as_deref()),
                    ("key", key.as_deref()),
                    ("since", since.as_deref()),
                ];
                let path = "/v1/operations";
                let all = client.pages(path, &filter, "operations", *limit).await?;
                self.reach.print(&all, show::list)
            }
            Command::Show { key_or_op } => {
                let id = self.operation(&client, key_or_op).await?;
                let operation = client.get(&format!("/v1/operations/{id}")).await?;
                self.reach.print(&operation, show::operation)
            }
            Command::Body { op } => {
                let id = self.operation(&client, op).await?;
                client
                    .download(&format!("/v1/operations/{id}/recording"), &mut io::stdout())
                    .await
            }
            Command::Release { op, reason } => {
                let with = json!({ "outcome": "released", "reason": reason });
                self.resolve(&client, op, &with).await
            }
            Command::Complete {
                op,
                status,
                body,
                headers,
                reason,
            } => {
                let with = json!({
                    "outcome": "completed",
                    "status": status,
                    "headers": headers,
                    "body_base64": STANDARD.encode(read_body(body)?),
                    "reason": reason,
                });
                self.resolve(&client, op, &with).await
            }
            Command::Purge {
                tenant,
                state,
                before,
                yes: _,
            } => {
                let with = json!({ "tenant": tenant, "state": state, "before": before });
                let purged = client.post("/v1/purge", &with).await?;
                self.reach.print(&purged, |purged| {
                    let what = match state.as_deref() {
                        Some("unknown") => {
                            ": a retry with one of these keys runs, and is paid a second time where the first ran"
                        }
                        _ => "",
                    };
                    format!("purged {}{what}\n", purged["purged"])
                })
            }
        }
    }

    async fn resolve(&self, client: &Client, op: &str, with: &Value) -> Result<(), Failure> {
        let id = self.operation(client, op).await?;
        let operation = client
            .post(&format!("/v1/operations/{id}/resolve"), with)
            .await?;
        self.reach.print(&operation, show::operation)
    }

    /// The id of the operation that is meant by an id or a key.
    async fn operation(&self, client: &Client, key_or_op: &str) -> Result<String, Failure> {
        if key_or_op.parse::<onlyonce_core::OperationId>().is_ok() {
            return Ok(key_or_op.to_owned());
        }
        let path = format!("/v1/operations{}", query(&[("key", Some(key_or_op))]));
        let page = client.get(&path).await?;
        let operations = page["operations"].as_array().map_or(&[][..], Vec::as_slice);
        match operations {
            [] => Err(Failure::other(
                format!("there is no operation with the key {key_or_op}"),
                "list them with `onlyonce keys list`; a record is gone after its window",
            )),
            [only] => Ok(only["id"].as_str().unwrap_or_default().to_owned()),
            several => Err(Failure::other(
                format!("{} operations have the key {key_or_op}", several.len()),
                format!("name one by its id: {}", show::ids(several)),
            )),
        }
    }
}

fn read_body(file: &PathBuf) -> Result<Vec<u8>, Failure> {
    let read = if file.as_os_str() == "-" {
        let mut body = Vec::new();
        io::stdin().read_to_end(&mut body).map(|_| body)
    } else {
        std::fs::read(file)
    };
    read.map_err(|error| {
        Failure::usage(
            format!("the body {} cannot be read ({error})", file.display()),
            "name a file that exists and may be read, or - for standard input",
        )
    })
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write it like 'content-type: application/json'".to_owned()),
    }
}
