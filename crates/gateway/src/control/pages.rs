//! What the control listener shows without asking who wants to know; and the metrics.

use axum::Json;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use onlyonce_http::problem_pages::{PAGES, page};
use onlyonce_store::Store;
use serde_json::json;

use super::Control;
use super::access::{May, Read};
use super::answer::Refusal;
use super::query::Named;
use crate::config::nearest;
use crate::metrics::Format;
use crate::shared::Phase;

/// The API's description.
pub(super) const OPENAPI: &str = include_str!("../../openapi.json");

/// `GET /healthz`: the process answers.
pub(super) async fn health() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// `GET /readyz`: whether keyed requests can be served.
pub(super) async fn ready<S: Store>(State(control): State<Control<S>>) -> Response {
    let store = control.shared.engine.store().status();
    let why = match (control.phase(), store.poisoned) {
        (Phase::Serving, None) => return Json(json!({ "status": "ready" })).into_response(),
        // Why, in the store's own words, is for those who have a token.
        (Phase::Serving, Some(_)) => {
            "the store takes no writes; the log and /v1/health say why, and a restart ends it"
        }
        (Phase::Draining | Phase::Stopping, _) => "the gateway is draining",
    };
    let body = Json(json!({ "status": "not ready", "reason": why }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

/// `GET /metrics`.
pub(super) async fn metrics<S: Store>(
    desk: May<S, Read>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let shared = &desk.whole()?.shared;
    let engine = &shared.engine;
    shared.metrics.books(
        engine.store().now(),
        engine.books_lag(),
        engine.savings_lost(),
        &shared.sinks,
    );
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::asked(accept);
    let text = shared.metrics.tell(&shared.engine, format).await;
    Ok(([(CONTENT_TYPE, format.content_type())], text).into_response())
}

/// `GET /problems`: all pages.
pub(super) async fn problems() -> Response {
    let mut items = String::new();
    for page in &PAGES {
        items += &format!(
            "<li><a href=\"/problems/{name}\"><code>{name}</code></a> {title}</li>\n",
            name = page.name,
            title = page.title
        );
    }
    html(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>Problems - Onlyonce</title>\
         <style>body{{font:17px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;\
         padding:0 1em}}</style></head><body>\n<h1>Problems</h1>\n<ul>\n{items}</ul>\n\
         </body></html>\n"
    ))
}

/// `GET /problems/{name}`: one page.
pub(super) async fn problem(Named(name): Named) -> Result<Response, Refusal> {
    match page(&name) {
        Some(page) => Ok(html(page.to_html())),
        None => {
            let next = match nearest(&name, PAGES.iter().map(|page| page.name)) {
                Some(meant) => format!("did you mean /problems/{meant}?"),
                None => "all of them are listed at /problems".to_owned(),
            };
            Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "there is no problem of that name",
                next,
            ))
        }
    }
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// Whatever else is asked for.
pub(super) async fn not_found(uri: Uri) -> Refusal {
    nothing_at(&uri)
}

pub(super) fn nothing_at(uri: &Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}", uri.path()),
        "all paths are listed at /openapi.json",
    )
}

/// A path that is there, by a method that is not.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
        "the methods of all paths are listed at /openapi.json",
    )
}

fn html(text: String) -> Response {
    let mut response = Html(text).into_response();
    response.headers_mut().insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
    );
    response
}
