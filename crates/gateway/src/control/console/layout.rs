//! The frame around every page.

use axum::http::Uri;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use onlyonce_store::Store;

use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::assets::ADDRESSES;
use super::operation::SETTLE;
use super::{Place, View};

/// A page without the rail.
pub(super) fn bare(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Onlyonce" }
                link rel="icon" href=(ADDRESSES.icon) type="image/svg+xml";
                link rel="stylesheet" href=(ADDRESSES.style);
                // Not deferred: it sets the theme before anything is painted.
                script src=(ADDRESSES.script) {}
            }
            body { (body) }
        }
    }
}

/// A whole page.
pub(super) fn frame<S: Store>(desk: &Desk<S>, view: &View, uri: &Uri) -> Markup {
    let live = uri
        .path_and_query()
        .map_or("/console", |page| page.as_str());
    bare(
        &view.title,
        html! {
            a.skip href="#main" { "Skip to the content" }
            (rail(desk, Some(view.place)))
            main #main tabindex="-1" data-live=(live) {
                @for section in &view.sections {
                    div id=(section.id) { (section.markup) }
                }
                p #said .hidden aria-live="polite" {}
            }
            input type="hidden" name="form" value=(desk.form_mac()) form=(SETTLE);
            (keys())
        },
    )
}

/// `text` as a sentence.
fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().into_iter().flat_map(char::to_uppercase);
    first.chain(rest).chain(['.']).collect()
}

/// A refusal as a page.
pub(super) fn refused<S: Store>(desk: &Desk<S>, refusal: &Refusal) -> Response {
    let page = bare(
        "Not shown",
        html! {
            (rail(desk, None))
            main #main tabindex="-1" {
                header.page { h1 { "This cannot be shown" } }
                div.card role="alert" {
                    p { (sentence(refusal.detail())) }
                    p.muted { "What to do: " (refusal.next()) "." }
                    p { a href="/console" { "To the overview" } }
                }
            }
        },
    );
    (refusal.status(), Html(page.into_string())).into_response()
}

fn rail<S: Store>(desk: &Desk<S>, here: Option<Place>) -> Markup {
    let access = desk.access();
    let entries = [
        (Place::Overview, "/console", "Overview", ICON_OVERVIEW),
        (
            Place::Operations,
            "/console/operations",
            "Operations",
            ICON_OPERATIONS,
        ),
        (Place::Spend, "/console/spend", "Spend", ICON_SPEND),
        (Place::Unknown, "/console/unknown", "Unknown", ICON_UNKNOWN),
        (
            Place::Health,
            "/console/health",
            "Store and health",
            ICON_HEALTH,
        ),
        (
            Place::Config,
            "/console/config",
            "Configuration",
            ICON_CONFIG,
        ),
    ];
    let is_whole = access.tenant.is_none();
    let seen = entries
        .into_iter()
        .filter(|(place, ..)| is_whole || !matches!(place, Place::Health | Place::Config));
    html! {
        nav.rail aria-label="Console" {
            a.brand href="/console" {
                img src=(ADDRESSES.icon) alt="" width="24" height="24";
                "Onlyonce"
            }
            ul {
                @for (place, href, name, icon) in seen {
                    li {
                        a href=(href) aria-current=[(here == Some(place)).then_some("page")] {
                            svg width="16" height="16" viewBox="0 0 16 16" aria-hidden="true" {
                                (PreEscaped(icon))
                            }
                            span { (name) }
                        }
                    }
                }
            }
            div.foot {
                p.live .muted .small hidden { span.pulse {} span { "Live" } }
                fieldset.theme hidden {
                    legend.hidden { "Colours" }
                    @for (value, name) in [("auto", "Auto"), ("light", "Light"), ("dark", "Dark")] {
                        label { input type="radio" name="theme" value=(value); span { (name) } }
                    }
                }
                @if let Some(tenant) = &access.tenant {
                    p.small { "Tenant " strong { (tenant) } }
                }
                @if access.session.is_some() {
                    form method="post" action="/console/logout" {
                        input type="hidden" name="form" value=(desk.form_mac());
                        p.small.muted { "Signed in as " strong { (access.name) } }
                        button.quiet type="submit" { "Sign out" }
                    }
                }
            }
        }
    }
}

fn keys() -> Markup {
    let keys = [
        ("/", "Go to the filters"),
        ("j", "Next row"),
        ("k", "Row before"),
        ("Enter", "Open the row"),
        ("g o", "Overview"),
        ("g p", "Operations"),
        ("g s", "Tenants and spend"),
        ("g u", "Unknown"),
        ("g h", "Store and health"),
        ("g c", "Configuration"),
        ("?", "These keys"),
    ];
    html! {
        dialog #keys aria-labelledby="keys-title" {
            h2 #keys-title { "Keys" }
            dl { @for (key, what) in keys { div { dt { kbd { (key) } } dd { (what) } } } }
            form method="dialog" { button.quiet { "Close" } }
        }
    }
}

const ICON_OVERVIEW: &str = r#"<path d="M2 9h5V2H2zm7 5h5V7H9zM2 14h5v-3H2zM9 5h5V2H9z"/>"#;
const ICON_OPERATIONS: &str = r#"<path d="M2 3.5h12M2 8h12M2 12.5h8"/>"#;
const ICON_SPEND: &str = r#"<path d="M2 13.5h12M4 11V7m4 4V2.5M12 11V5.5"/>"#;
const ICON_UNKNOWN: &str = r#"<circle cx="8" cy="8" r="6"/><path d="M6.2 6.3a1.9 1.9 0 1 1 2.6 1.8c-.5.2-.8.6-.8 1.1M8 11.3v.2"/>"#;
const ICON_HEALTH: &str = r#"<path d="M1.5 8.5h3l1.8-5 3 9 1.9-4h3.3"/>"#;
const ICON_CONFIG: &str = r#"<path d="M2 4.5h7m3 0h2M2 11.5h2m3 0h7"/><circle cx="10.5" cy="4.5" r="1.6"/><circle cx="5.5" cy="11.5" r="1.6"/>"#;
