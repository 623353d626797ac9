//! Who may use the control listener.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use onlyonce_store::Store;

use super::Control;
use super::answer::Refusal;
use crate::config::Server;

/// Lets through who presents the token, where one is configured.
pub(super) async fn need_token<S: Store>(
    State(control): State<Control<S>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = &control.shared.config.server.control_token else {
        return next.run(request).await;
    };
    let presented = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_first_chunk::<7>())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token);
    if presented.is_some_and(|presented| same(presented, token.expose().as_bytes())) {
        return next.run(request).await;
    }
    let refusal = Refusal::new(
        StatusCode::UNAUTHORIZED,
        "this needs the control token",
        "send Authorization: Bearer TOKEN, with the token of server.control_token",
    );
    let mut response = refusal.into_response();
    let challenge = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

/// Refuses requests that a web page made somebody's browser send under a name of the page's own
/// (DNS rebinding): without a token, being on loopback is all that protects the listener.
pub(super) async fn need_own_host<S: Store>(
    State(control): State<Control<S>>,
    request: Request,
    next: Next,
) -> Response {
    let server = &control.shared.config.server;
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    if server.control_token.is_some() || host.is_none_or(|host| is_own_host(server, host)) {
        return next.run(request).await;
    }
    Refusal::new(
        StatusCode::FORBIDDEN,
        "this host name is not the control listener's",
        "ask by its address, like http://127.0.0.1:8788, set server.public_url to the name, or set \
         server.control_token",
    )
    .into_response()
}

/// Domains of which no public name server can say that they are here (RFC 6761, and `internal` by
/// ICANN's resolution); the same holds for a name without a dot.
const PRIVATE_DOMAINS: [&str; 3] = ["internal", "localhost", "test"];

fn is_own_host(server: &Server, host: &str) -> bool {
    let alone = match host.rsplit_once(':') {
        Some((alone, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => alone,
        _ => host,
    };
    let address = alone.trim_start_matches('[').trim_end_matches(']');
    let public = server.public_url.as_deref().and_then(|url| {
        let uri: axum::http::Uri = url.parse().ok()?;
        Some(uri.host()?.to_owned())
    });
    let lower = alone.to_ascii_lowercase();
    let is_private = match lower.rsplit_once('.') {
        None => !lower.is_empty(),
        Some((_, last)) => PRIVATE_DOMAINS.contains(&last),
    };
    address.parse::<std::net::IpAddr>().is_ok()
        || is_private
        || public.is_some_and(|public| alone.eq_ignore_ascii_case(&public))
}

/// Compares without telling by the time it takes how much of a guess was right.
fn same(presented: &[u8], token: &[u8]) -> bool {
    let differences = presented
        .iter()
        .zip(token)
        .fold(0, |differences, (a, b)| differences | (a ^ b));
    presented.len() == token.len() && std::hint::black_box(differences) == 0
}
