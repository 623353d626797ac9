//! Coming in by the browser, and going out.

use axum::extract::rejection::FormRejection;
use axum::extract::{Form, State};
use axum::http::header::{HOST, SET_COOKIE};
use axum::http::{Extensions, HeaderMap, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::html;
use onlyonce_store::Store;
use serde::Deserialize;

use super::super::Control;
use super::super::access::{
    May, Read, access_of, foreign, is_same_origin, peer, public_host, secret_of,
};
use super::super::answer::Refusal;
use super::super::session::Session;
use super::{assets, layout};

/// What the form sends.
#[derive(Deserialize)]
pub(in crate::control) struct Entry {
    #[serde(default)]
    token: String,
    #[serde(default)]
    next: String,
}

/// What the page says above the form.
enum Say {
    Nothing,
    Wrong,
    TooMany,
}

/// `GET /console/login`.
pub(in crate::control) async fn page<S: Store>(State(control): State<Control<S>>) -> Response {
    if !control.shared.config.server.has_token() {
        return Redirect::to("/console").into_response();
    }
    form(StatusCode::OK, "/console", &Say::Nothing)
}

/// Answers a request for a page that needs a token with the form, which leads to that page.
pub(in crate::control) fn ask(uri: &Uri, too_many: bool) -> Response {
    let next = uri
        .path_and_query()
        .map_or("/console", |page| page.as_str());
    match too_many {
        false => form(StatusCode::UNAUTHORIZED, next, &Say::Nothing),
        true => form(StatusCode::TOO_MANY_REQUESTS, next, &Say::TooMany),
    }
}

/// `POST /console/login`.
pub(in crate::control) async fn enter<S: Store>(
    State(control): State<Control<S>>,
    headers: HeaderMap,
    extensions: Extensions,
    entry: Result<Form<Entry>, FormRejection>,
) -> Result<Response, Refusal> {
    let Form(Entry { token, next }) = entry.map_err(not_a_form)?;
    if !is_same_origin(&control, &headers) {
        return Err(foreign());
    }
    let peer = peer(&extensions);
    let next = own_page(&next);
    if !control.guesses.may(peer) {
        return Ok(form(StatusCode::TOO_MANY_REQUESTS, next, &Say::TooMany));
    }
    let server = &control.shared.config.server;
    let Some(access) = access_of(server, token.trim().as_bytes()) else {
        control.guesses.failed(peer);
        tracing::warn!(?peer, "somebody presented a wrong token to the console");
        return Ok(form(StatusCode::UNAUTHORIZED, next, &Say::Wrong));
    };
    let store = control.shared.engine.store();
    let secret = secret_of(server, &access.name).ok_or_else(foreign)?;
    let session = Session::begin(&**store, &access.name, secret);
    let cookie = session.cookie(is_https(&control, &headers));
    Ok(([(SET_COOKIE, cookie)], Redirect::to(next)).into_response())
}

/// What the button sends.
#[derive(Deserialize)]
pub(in crate::control) struct Leave {
    #[serde(default)]
    form: String,
}

/// `POST /console/logout`.
pub(in crate::control) async fn leave<S: Store>(
    State(control): State<Control<S>>,
    desk: May<S, Read>,
    headers: HeaderMap,
    entry: Result<Form<Leave>, FormRejection>,
) -> Result<Response, Refusal> {
    let Form(Leave { form }) = entry.map_err(not_a_form)?;
    desk.check_form(&form)?;
    let cookie = Session::no_cookie(is_https(&control, &headers));
    Ok(([(SET_COOKIE, cookie)], Redirect::to("/console/login")).into_response())
}

pub(super) fn not_a_form(error: FormRejection) -> Refusal {
    Refusal::new(
        error.status(),
        error.body_text(),
        "use the form on the console's page; scripts use the API",
    )
}

/// Whether the browser reaches the console over https: something before it must then do that.
fn is_https<S: Store>(control: &Control<S>, headers: &HeaderMap) -> bool {
    let server = &control.shared.config.server;
    let is_public = public_host(server).is_some_and(|public| {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        host.is_some_and(|host| host.eq_ignore_ascii_case(public))
    });
    let url = server.public_url.as_deref().unwrap_or_default();
    is_public && url.starts_with("https://")
}

/// A page of ours to go to, whatever was asked for.
fn own_page(next: &str) -> &str {
    let uri: Option<Uri> = next.parse().ok();
    let is_own = |uri: &Uri| uri.host().is_none() && super::is_page(uri);
    match uri.filter(is_own) {
        Some(_) if !next.starts_with("/console/log") && !next.starts_with("/console/live") => next,
        _ => "/console",
    }
}

fn form(status: StatusCode, next: &str, say: &Say) -> Response {
    let page = layout::bare(
        "Sign in",
        html! {
            main.login {
                img src=(assets::ADDRESSES.icon) alt="" width="40" height="40";
                h1 { "Onlyonce" }
                p.muted { "Sign in with a token of the control listener." }
                form.card method="post" action="/console/login" {
                    @match say {
                        Say::Nothing => {}
                        Say::Wrong => p.alert role="alert" { "That is no token of this gateway." },
                        Say::TooMany => p.alert role="alert" {
                            "Too many wrong tokens came from your address. Wait a minute, then try \
                             again."
                        },
                    }
                    input type="hidden" name="next" value=(own_page(next));
                    label for="token" { "Token" }
                    input #token type="password" name="token" required autofocus
                        autocomplete="current-password" spellcheck="false";
                    button.primary type="submit" { "Sign in" }
                }
                p.muted.small {
                    "It is " code { "server.control_token" } " or a " code { "[[server.token]]" }
                    " of the configuration. It is sent once, and your browser keeps a session of \
                     12 hours in its place."
                }
            }
        },
    );
    (status, Html(page.into_string())).into_response()
}

#[cfg(test)]
mod tests {
    use super::own_page;

    #[test]
    fn a_login_leads_to_a_page_of_ours_only() {
        for own in [
            "/console",
            "/console/operations?tenant=a",
            "/console/unknown",
        ] {
            assert_eq!(own_page(own), own);
        }
        for other in [
            "",
            "//evil.example/console",
            "https://evil.example/console",
            "/v1/operations",
            "/console/login",
            "/console/logout",
            "/consoles",
            "\\evil.example",
        ] {
            assert_eq!(own_page(other), "/console", "{other}");
        }
    }
}
