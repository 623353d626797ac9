//! The console: the control listener's pages for people.
//!
//! A page is a list of sections, each with an id, made on the server out of what the API shows too.
//! [`live`] makes the same sections again while somebody looks, and sends those that changed. Every
//! page works without its script.

mod assets;
mod chart;
mod config;
mod health;
mod layout;
mod live;
mod login;
mod money;
mod operation;
mod operations;
mod overview;
mod parts;
mod settle;
mod spend;
mod timeline;
mod unknown;

use axum::extract::{Query, Request};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, Uri};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::Markup;
use onlyonce_store::Store;
use serde::de::DeserializeOwned;

pub(super) use assets::{icon, script, style};
pub(super) use live::{Followed, stream as live};
pub(super) use login::{ask as ask_login, enter, leave, page as login};
pub(super) use settle::settle;

use super::access::{May, Read};
use super::answer::Refusal;
use super::desk::Desk;

/// One page, before its frame.
///
/// Its sections hold nothing of one browser's session: browsers with the same token share them.
struct View {
    title: String,
    /// The entry of the rail that it belongs to.
    place: Place,
    sections: Vec<Section>,
}

/// A part of a page that changes as a whole.
struct Section {
    id: &'static str,
    markup: Markup,
}

impl Section {
    fn new(id: &'static str, markup: Markup) -> Self {
        Self { id, markup }
    }
}

/// The entries of the rail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Overview,
    Operations,
    Spend,
    Unknown,
    Health,
    Config,
}

/// Whether `uri` is one of the console's.
pub(super) fn is_page(uri: &Uri) -> bool {
    uri.path() == "/console" || uri.path().starts_with("/console/")
}

/// `GET /`.
pub(super) async fn home() -> Redirect {
    Redirect::to("/console")
}

/// `GET /console` and all pages under it.
pub(super) async fn page<S: Store>(desk: May<S, Read>, uri: Uri) -> Response {
    match view(&desk, &uri).await {
        Ok(view) => Html(layout::frame(&desk, &view, &uri).into_string()).into_response(),
        Err(refusal) => layout::refused(&desk, &refusal),
    }
}

/// The page that `uri` names.
async fn view<S: Store>(desk: &Desk<S>, uri: &Uri) -> Result<View, Refusal> {
    let query = uri.query().unwrap_or_default();
    let path = uri.path().strip_prefix("/console").unwrap_or_default();
    match path {
        "" => overview::view(desk, query).await,
        "/operations" => operations::view(desk, query).await,
        "/spend" => spend::view(desk, query).await,
        "/unknown" => unknown::view(desk, query).await,
        "/health" => health::view(desk),
        "/config" => config::view(desk),
        _ => match path.strip_prefix("/operations/") {
            Some(id) => operation::view(desk, id).await,
            None => Err(super::pages::nothing_at(uri)),
        },
    }
}

/// What `query` asks of a page; `fields` says what it may have. A form sends the fields that were left
/// empty too: those ask for nothing.
fn asked<Q: DeserializeOwned>(query: &str, fields: &str) -> Result<Q, Refusal> {
    let wrong = |what: String| Refusal::bad_request(what, fields);
    let is_filled = |pair: &&str| {
        pair.split_once('=')
            .is_none_or(|(_, value)| !value.is_empty())
    };
    let filled: Vec<_> = query.split('&').filter(is_filled).collect();
    let uri = format!("/?{}", filled.join("&")).parse();
    let uri: Uri = uri.map_err(|_| wrong("the query is no part of an address".to_owned()))?;
    let asked = Query::try_from_uri(&uri).map_err(|error| wrong(error.body_text()))?;
    Ok(asked.0)
}

/// What a browser may do with an answer: nothing but show it, with what comes from here.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// Puts the headers on every answer of the console.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let is_page = is_page(request.uri());
    let mut response = next.run(request).await;
    if !is_page {
        return response;
    }
    let headers = response.headers_mut();
    let opener = HeaderName::from_static("cross-origin-opener-policy");
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (opener, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
