//! Who may use the control listener, and what for.
//!
//! Nothing behind the token is reached but through [`May`]: it is the only way to a [`Desk`], and a
//! desk asks the store for nothing that its holder may not see.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::Deref;

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use onlyonce_store::Store;

use super::answer::Refusal;
use super::desk::Desk;
use super::session::Session;
use super::visitors::Known;
use super::{Control, console};
use crate::config::{Right, Secret, Server, Token};

/// Who asks, and what they may.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// The token's name.
    pub(super) name: Box<str>,
    /// The one tenant that is seen, where it is not all of them.
    pub(super) tenant: Option<Box<str>>,
    /// What may be done.
    pub(super) rights: Box<[Right]>,
    /// The browser's session, where it is no script that asks.
    pub(super) session: Option<Session>,
}

impl Access {
    fn whole(name: &str) -> Self {
        Self {
            name: name.into(),
            tenant: None,
            rights: Right::ALL.into(),
            session: None,
        }
    }

    fn of(token: &Token) -> Self {
        Self {
            name: token.name.clone(),
            tenant: token.tenant.clone(),
            rights: token.rights.clone().into(),
            session: None,
        }
    }

    /// Whether it has `right`.
    pub(super) fn may(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }

    fn need(&self, right: Right) -> Result<(), Refusal> {
        if self.may(right) {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "the token {} lacks the right \"{}\"",
                self.name,
                right.as_str()
            ),
            "use another one, or add it to its rights in [[server.token]]",
        ))
    }
}

/// What a handler needs of who asks.
pub(super) trait Needs {
    /// The right.
    const RIGHT: Right;
}

/// Operations are looked at.
pub(super) struct Read;
/// What was answered is shown.
pub(super) struct Payload;
/// An operation is settled.
pub(super) struct Resolve;
/// Records are removed.
pub(super) struct Admin;
/// Operations are claimed and settled by who executes them.
pub(super) struct Working;

impl Needs for Read {
    const RIGHT: Right = Right::Read;
}
impl Needs for Payload {
    const RIGHT: Right = Right::Payload;
}
impl Needs for Resolve {
    const RIGHT: Right = Right::Resolve;
}
impl Needs for Admin {
    const RIGHT: Right = Right::Admin;
}
impl Needs for Working {
    const RIGHT: Right = Right::Work;
}

/// A desk whose holder may do what `N` says.
pub(super) struct May<S: Store, N> {
    desk: Desk<S>,
    needs: PhantomData<N>,
}

impl<S: Store, N> Deref for May<S, N> {
    type Target = Desk<S>;

    fn deref(&self) -> &Desk<S> {
        &self.desk
    }
}

impl<S: Store, N> May<S, N> {
    /// The desk, to be kept.
    pub(super) fn into_desk(self) -> Desk<S> {
        self.desk
    }
}

impl<S: Store, N: Needs> FromRequestParts<Control<S>> for May<S, N> {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        control: &Control<S>,
    ) -> Result<Self, Self::Rejection> {
        // Put there by `need_token`, without which nothing behind the token is served.
        let access = parts.extensions.get::<Access>().cloned();
        let access = access.ok_or_else(no_token)?;
        access.need(N::RIGHT)?;
        Ok(Self {
            desk: Desk::new(control, access),
            needs: PhantomData,
        })
    }
}

/// Lets through who presents a token, or a session that a token began; everybody where none is
/// configured.
pub(super) async fn need_token<S: Store>(
    State(control): State<Control<S>>,
    mut request: Request,
    next: Next,
) -> Response {
    let access = match identify(&control, request.headers()) {
        Identity::Known(access) => access,
        identity => return refuse(&control, identity, &request),
    };
    // A browser sends its cookie whoever made it ask.
    let is_safe = request.method().is_safe();
    if access.session.is_some() && !is_safe && !is_same_origin(&control, request.headers()) {
        return foreign().into_response();
    }
    let_in(access, &mut request);
    next.run(request).await
}

fn let_in(access: Access, request: &mut Request) {
    Known::note(request.extensions());
    request.extensions_mut().insert(access);
}

/// Lets through who presents a token in the header, and nobody else.
pub(super) async fn need_bearer<S: Store>(
    State(control): State<Control<S>>,
    mut request: Request,
    next: Next,
) -> Response {
    let server = &control.shared.config.server;
    let presented = bearer(request.headers());
    match presented.map(|presented| access_of(server, presented)) {
        Some(Some(access)) => {
            let_in(access, &mut request);
            next.run(request).await
        }
        Some(None) => refuse(&control, Identity::Wrong, &request),
        None => refuse(&control, Identity::Nobody, &request),
    }
}

fn refuse<S: Store>(control: &Control<S>, identity: Identity, request: &Request) -> Response {
    let peer = peer(request.extensions());
    let guesses = &control.guesses;
    let too_many = matches!(identity, Identity::Wrong) && !guesses.failed(peer);
    if console::is_page(request.uri()) {
        return console::ask_login(request.uri(), too_many);
    }
    if too_many {
        return too_many_guesses().into_response();
    }
    let refusal = match identity {
        Identity::Wrong => wrong_token(),
        Identity::Nobody | Identity::Known(_) => no_token(),
    };
    let mut response = refusal.into_response();
    let challenge = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

fn wrong_token() -> Refusal {
    Refusal::new(
        StatusCode::UNAUTHORIZED,
        "this token is none of this control listener's",
        "send that of server.control_token or of a [[server.token]]",
    )
}

fn no_token() -> Refusal {
    Refusal::new(
        StatusCode::UNAUTHORIZED,
        "this control listener wants a token",
        "send that of server.control_token or of a [[server.token]]: as Authorization: Bearer TOKEN; \
         on the command line with --token, or in ONLYONCE_CONTROL_TOKEN",
    )
}

/// The answer to a peer that has presented too many wrong tokens.
pub(super) fn too_many_guesses() -> Refusal {
    Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too many wrong tokens came from this address",
        "wait a minute, then send the right one",
    )
}

/// The answer to a request that a page of another origin made a browser send.
pub(super) fn foreign() -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "this request comes from a page that is not the control listener's",
        "use the form on the console's own page; scripts send Authorization: Bearer TOKEN",
    )
}

/// The address that a request comes from, where it came over a connection.
pub(super) fn peer(extensions: &Extensions) -> Option<std::net::IpAddr> {
    let info = extensions.get::<ConnectInfo<SocketAddr>>();
    info.map(|ConnectInfo(peer)| peer.ip())
}

enum Identity {
    Known(Access),
    Wrong,
    Nobody,
}

fn identify<S: Store>(control: &Control<S>, headers: &HeaderMap) -> Identity {
    let server = &control.shared.config.server;
    if !server.has_token() {
        return Identity::Known(Access::whole("anybody here"));
    }
    if let Some(presented) = bearer(headers) {
        return access_of(server, presented).map_or(Identity::Wrong, Identity::Known);
    }
    let engine = &control.shared.engine;
    let Some(session) = Session::of(headers) else {
        return Identity::Nobody;
    };
    let keys = tokens(server).map(|(token, access)| (token, access.name.clone(), access));
    for (token, name, access) in keys {
        if session.is_of(&**engine.store(), &name, token) {
            let session = Some(session);
            return Identity::Known(Access { session, ..access });
        }
    }
    // Sessions end by themselves: that is no guess.
    Identity::Nobody
}

/// What who presents `presented` may do, where it is a token.
pub(super) fn access_of(server: &Server, presented: &[u8]) -> Option<Access> {
    // All are compared, so that the time tells nothing of which.
    tokens(server).fold(None, |found, (token, access)| {
        match same(presented, token.expose().as_bytes()) {
            true => Some(access),
            false => found,
        }
    })
}

/// The token `name`.
pub(super) fn secret_of<'a>(server: &'a Server, name: &str) -> Option<&'a Secret> {
    let mut tokens = tokens(server);
    let found = tokens.find(|(_, access)| *access.name == *name);
    found.map(|(token, _)| token)
}

fn tokens(server: &Server) -> impl Iterator<Item = (&Secret, Access)> {
    let control = server.control_token.iter();
    let named = server.tokens.iter();
    control
        .map(|token| (token, Access::whole(Token::CONTROL)))
        .chain(named.map(|one| (&one.token, Access::of(one))))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers
        .get(AUTHORIZATION)?
        .as_bytes()
        .split_first_chunk::<7>()?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Whether a browser says that it sends this for a page of the control listener itself.
pub(super) fn is_same_origin<S: Store>(control: &Control<S>, headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let Some((_, origin)) = text(ORIGIN).and_then(|origin| origin.split_once("://")) else {
        return false;
    };
    text(HOST).is_some_and(|host| host.eq_ignore_ascii_case(origin))
        || public_host(&control.shared.config.server)
            .is_some_and(|public| public.eq_ignore_ascii_case(origin))
}

/// Host and port of `server.public_url`.
pub(super) fn public_host(server: &Server) -> Option<&str> {
    let url = server.public_url.as_deref()?;
    let (_, rest) = url.split_once("://")?;
    rest.split('/').next()
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
    if server.has_token() || host.is_none_or(|host| is_own_host(server, host)) {
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
        let uri: Uri = url.parse().ok()?;
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
pub(super) fn same(presented: &[u8], token: &[u8]) -> bool {
    let differences = presented
        .iter()
        .zip(token)
        .fold(0, |differences, (a, b)| differences | (a ^ b));
    presented.len() == token.len() && std::hint::black_box(differences) == 0
}
