//! `onlyonce exec`: a command that runs once at most, whoever starts it.
//!
//! It asks the control listener of a gateway for the right to run the command (`/v1/exec`): the request
//! waits with its body until the gateway sends `100 Continue`, and that is the claim. Then the command
//! runs here, and what it writes is printed here and sent there as the body. Any other answer means that
//! the command is not to run here: it is a recorded run, which is printed, one that goes on elsewhere,
//! which is joined, or a refusal.

pub(crate) mod frames;
mod here;
mod told;

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures_util::stream;
use http::header::{CONTENT_TYPE, EXPECT};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body::Frame as BodyFrame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use onlyonce_core::Key;
use tokio::sync::{mpsc, oneshot};

use crate::cli::complain;
use crate::config::parse_duration;
use crate::control::WINDOWS;
use crate::control_client::{Client, Listener, query};
use crate::failure::Failure;

/// The exit code where the command did not run here and there is no recorded run to give, or where it
/// ran and nobody else will know how.
const OWN_FAILURE: u8 = 125;

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
    let (out, body) = mpsc::channel(16);
    let (request, claimed) = request(words, body)?;
    let path = path(words);
    let answer = client.send(&path, request);
    tokio::pin!(answer);
    let claimed = tokio::select! {
        biased;
        // Whatever is answered without the claim, the command does not run here.
        answer = &mut answer => Err(answer),
        claimed = claimed => Ok(claimed),
    };
    let response = match claimed {
        Ok(Ok(())) => return here::run(&words.command, out, answer, &client).await,
        // What tells of the claim is gone with the connection, and so the answer is an error.
        Ok(Err(_)) => answer.await,
        Err(answer) => answer,
    };
    let told = told(&client, response.map_err(nothing_ran)?).await;
    // The end of a body that nobody wants would reach a connection that closes, and could cost the rest
    // of the answer.
    drop(out);
    told
}

/// What there is to do about an answer that came before the command could run.
async fn told(client: &Client, response: Response<Incoming>) -> Result<u8, Failure> {
    if response.status().is_success() {
        return told::show(response).await;
    }
    match client.json(response).await {
        Ok(_) => Err(Failure::other(
            "the gateway answered something else than it should, and nothing was run",
            "look whether it is as new as this program",
        )),
        Err(failure) => Err(nothing_ran(failure)),
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

type RequestBody = StreamBody<stream::BoxStream<'static, Result<BodyFrame<Bytes>, Infallible>>>;

/// The request, whose body is what comes out of `body`; and what tells that the claim is made.
fn request(
    words: &Exec,
    body: mpsc::Receiver<Bytes>,
) -> Result<(Request<RequestBody>, oneshot::Receiver<()>), Failure> {
    let pieces = stream::unfold(body, |mut body| async move {
        let piece = body.recv().await?;
        Some((Ok(BodyFrame::data(piece)), body))
    });
    let body = StreamBody::new(Box::pin(pieces) as stream::BoxStream<'static, _>);
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    let key = key(&words.key).ok_or_else(|| {
        Failure::usage(
            format!("--key cannot be {:?}", words.key),
            "use 1 to 255 visible ASCII characters",
        )
    })?;
    let headers = request.headers_mut();
    headers.insert(HeaderName::from_static("idempotency-key"), key);
    let kind = HeaderValue::from_static(frames::CONTENT_TYPE);
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
    let (tell, claimed) = oneshot::channel();
    let tell = parking_lot::Mutex::new(Some(tell));
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == http::StatusCode::CONTINUE
            && let Some(tell) = tell.lock().take()
        {
            // Nobody waits any more where the answer was faster.
            let _ = tell.send(());
        }
    });
    Ok((request, claimed))
}

/// The key as a string of structured fields, so that a comma in it makes no list.
fn key(text: &str) -> Option<HeaderValue> {
    let key = Key::new(text).ok()?;
    let escaped = key.as_str().replace('\\', "\\\\").replace('"', "\\\"");
    HeaderValue::try_from(format!("\"{escaped}\"")).ok()
}

fn path(words: &Exec) -> String {
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
        ("name", name),
        ("tenant", words.tenant.as_deref()),
        ("namespace", words.namespace.as_deref()),
        ("window", words.window.as_deref()),
        ("on_unknown", Some(on_unknown)),
    ];
    format!("/v1/exec{}", query(&parts))
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
