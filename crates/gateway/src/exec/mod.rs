//! `onlyonce exec`: a command that runs once at most, whoever starts it.
//!
//! It asks the control listener of a gateway for the right to run the command (`/v1/exec/claim`). What grants
//! it is an answer that only the gateway can give: a claim, beside the nonce of this very request. Then the
//! command runs here, and what it writes is printed here and sent there under the claim
//! (`/v1/exec/{id}/output`). Any other answer means that the command is not to run here: it is a recorded run,
//! which is printed, one that goes on elsewhere, which is joined, or a refusal.

pub(crate) mod frames;
mod here;
mod told;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use onlyonce_core::{Key, OperationId};
use serde_json::Value;
use uuid::Uuid;

use crate::cli::complain;
use crate::config::parse_duration;
use crate::control::WINDOWS;
use crate::control_client::{Client, Listener, query};
use crate::failure::Failure;

/// The exit code where the command did not run here and there is no recorded run to give, or where it
/// ran and nobody else will know how.
const OWN_FAILURE: u8 = 125;
/// The pauses before a request is made again whose answer did not come.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];

/// Run a command once at most, over the control listener of a running gateway.
///
/// A later run with the same key prints what the command wrote and exits as it did. One that comes while
/// it runs prints along. The exit code is the command's, or 125 where there is none to give.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    listener: Listener,
    /// What this run is called: the same key runs once
    #[arg(long, value_name = "KEY")]
    key: String,
    /// How long later runs get the recorded one, counted from its end [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = window)]
    window: Option<String>,
    /// What to do where nobody knows whether it ran: say so, or run it again, a second time perhaps
    #[arg(long, value_name = "WHAT", default_value = "report")]
    on_unknown: OnUnknown,
    /// Where the key is unique, within the tenant [default: exec]
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Whose run it is [default: the token's tenant, or anonymous]
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// What lists call it [default: the name of the command]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A span that the gateway takes: a mistake in it is one of the command line.
fn window(text: &str) -> Result<String, String> {
    match parse_duration(text) {
        Some(span) if WINDOWS.contains(&span) => Ok(text.to_owned()),
        _ => Err("write a span from 1ms to 3650d, like 12h or 1h30m".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnUnknown {
    Report,
    Rerun,
}

/// Runs it, or gives the run that there was.
pub(crate) fn run(words: &Exec) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let code = match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(once(words));
            // Nothing that still reads or writes holds up the end.
            runtime.shutdown_background();
            code
        }
        Err(error) => Err(Failure::other(
            format!("cannot start ({error}), and nothing was run"),
            "look at the limits of the process (ulimit -n, ulimit -u)",
        )),
    };
    ExitCode::from(code.unwrap_or_else(|failure| {
        complain(&failure);
        match failure {
            Failure::Usage { .. } | Failure::Config(_) => failure.exit_code(),
            Failure::Other { .. } | Failure::Call { .. } => OWN_FAILURE,
        }
    }))
}

async fn once(words: &Exec) -> Result<u8, Failure> {
    let client = words.listener.client()?;
    match ask(words, &client).await.map_err(nothing_ran)? {
        Asked::Granted(claim) => here::run(&words.command, claim, &client).await,
        Asked::Told(run) => told::show(run).await,
    }
}

/// What the gateway has said to a run.
enum Asked {
    /// It is to run here.
    Granted(Claim),
    /// It ran, or runs elsewhere.
    Told(Response<Incoming>),
}

/// The right to run the command once, and to say what became of it.
struct Claim {
    operation: OperationId,
    /// 64 hexadecimal digits.
    token: String,
    /// How long the run answers later ones, where that was said.
    window: Option<String>,
}

/// Asks whether the command may run here. Where no answer comes it asks again: under the same nonce, so that a
/// claim that was granted and did not arrive is granted to this run and to no other.
async fn ask(words: &Exec, client: &Client) -> Result<Asked, Failure> {
    let nonce = Uuid::new_v4().simple().to_string();
    let path = path(words, &nonce);
    let mut pauses = PAUSES.iter();
    let response = loop {
        match (client.send(&path, request(words)?).await, pauses.next()) {
            (Err(Failure::Other { .. }), Some(pause)) => tokio::time::sleep(*pause).await,
            (answered, _) => break answered?,
        }
    };
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE);
    if status.is_success() && kind.is_some_and(|kind| kind == frames::CONTENT_TYPE) {
        return Ok(Asked::Told(response));
    }
    if status == StatusCode::NOT_FOUND {
        return Err(Failure::other(
            "what --control names has no claims for commands",
            "name a control listener, or a route of workers; a gateway that is older than this program \
             needs an `onlyonce` of its own version",
        ));
    }
    let granted = client.json(response).await?;
    let window = words.window.clone();
    let claim = Claim::read(&granted, &nonce, window).ok_or_else(|| {
        Failure::other(
            "what was answered is no claim for this run",
            "look at what stands between this program and the gateway",
        )
    })?;
    Ok(Asked::Granted(claim))
}

impl Claim {
    /// Out of the answer to who has drawn `nonce`; `None` where it is another one's, or none.
    fn read(granted: &Value, nonce: &str, window: Option<String>) -> Option<Self> {
        let text = |name: &str| granted.get(name)?.as_str();
        let token = text("claim")?;
        let is_token = token.len() == 64 && token.bytes().all(|digit| digit.is_ascii_hexdigit());
        (is_token && text("nonce")? == nonce).then_some(())?;
        Some(Self {
            operation: text("operation")?.parse().ok()?,
            token: token.to_owned(),
            window,
        })
    }
}

fn nothing_ran(failure: Failure) -> Failure {
    match failure {
        Failure::Other { what, next } => {
            Failure::other(format!("nothing was run here: {what}"), next)
        }
        failure => failure,
    }
}

/// The request for the claim.
fn request(words: &Exec) -> Result<Request<Empty<Bytes>>, Failure> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::POST;
    let key = key(&words.key).ok_or_else(|| {
        Failure::usage(
            format!("--key cannot be {:?}", words.key),
            "use 1 to 255 visible ASCII characters",
        )
    })?;
    let name = HeaderName::from_static("idempotency-key");
    request.headers_mut().insert(name, key);
    Ok(request)
}

/// The key as a string of structured fields, so that a comma in it makes no list.
fn key(text: &str) -> Option<HeaderValue> {
    let key = Key::new(text).ok()?;
    let escaped = key.as_str().replace('\\', "\\\\").replace('"', "\\\"");
    HeaderValue::try_from(format!("\"{escaped}\"")).ok()
}

fn path(words: &Exec, nonce: &str) -> String {
    let on_unknown = match words.on_unknown {
        OnUnknown::Report => "report",
        OnUnknown::Rerun => "rerun",
    };
    let program = words.command.first().map(Path::new);
    let program = program.and_then(Path::file_name).unwrap_or_default();
    let program = program.to_string_lossy();
    let name = words.name.as_deref().unwrap_or(&program);
    let name = Some(name).filter(|name| !name.is_empty());
    let command = hash(&words.command);
    let parts = [
        ("command", Some(&*command)),
        ("nonce", Some(nonce)),
        ("name", name),
        ("tenant", words.tenant.as_deref()),
        ("namespace", words.namespace.as_deref()),
        ("window", words.window.as_deref()),
        ("on_unknown", Some(on_unknown)),
    ];
    format!("/v1/exec/claim{}", query(&parts))
}

/// What makes two runs the same one: the command and its arguments.
fn hash(command: &[OsString]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"onlyonce exec v1");
    for word in command {
        let bytes = word.as_bytes();
        hasher.update(&(bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i02_a_claim_is_one_that_was_granted_to_this_very_run() {
        let id = "op_019a1b2c-3d4e-7f60-8a9b-0c1d2e3f4a5b";
        let granted = |claim: &str, nonce: &str| {
            let answer = serde_json::json!({"operation": id, "claim": claim, "nonce": nonce});
            Claim::read(&answer, "n", None).is_some()
        };
        let token = "0a".repeat(32);
        assert!(granted(&token, "n"));
        assert!(!granted(&token, "another"));
        assert!(!granted(&token[1..], "n") && !granted(&"x".repeat(64), "n"));
        let none = serde_json::json!({"claim": token, "nonce": "n"});
        assert!(Claim::read(&none, "n", None).is_none());
    }

    #[test]
    fn commands_differ_by_every_word_and_where_it_ends() {
        let of = |words: &[&str]| hash(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let all = [
            of(&["a", "b"]),
            of(&["a", "b", ""]),
            of(&["ab"]),
            of(&["a b"]),
            of(&["b", "a"]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one));
            assert_eq!(one.len(), 64);
        }
    }
}
