//! The page Configuration: what is in force, secrets hidden.

use maud::{Markup, html};
use onlyonce_store::Store;
use serde_json::Value;

use super::super::answer::Refusal;
use super::super::config;
use super::super::desk::Desk;
use super::{Place, Section, View};

/// The parts, as the page is to show them.
const PARTS: [(&str, &str); 8] = [
    ("route", "Routes"),
    ("upstream", "Upstreams"),
    ("server", "Server"),
    ("store", "Store"),
    ("limits", "Limits"),
    ("prices", "Prices"),
    ("telemetry", "Telemetry"),
    ("tenant", "Tenants"),
];

pub(super) fn view<S: Store>(desk: &Desk<S>) -> Result<View, Refusal> {
    let config = config::view(&desk.whole()?.shared.config);
    Ok(View {
        title: "Configuration".to_owned(),
        place: Place::Config,
        sections: vec![
            Section::new(
                "head",
                html! {
                    header.page {
                        div {
                            h1 { "Configuration in force" }
                            p.muted {
                                "What the file, the command line and the defaults came to when this \
                                 gateway started. Secrets are hidden."
                            }
                        }
                    }
                },
            ),
            Section::new(
                "parts",
                html! { @for (name, title) in PARTS { (part(name, title, &config[name])) } },
            ),
        ],
    })
}

fn part(name: &str, title: &str, value: &Value) -> Markup {
    let tables: &[Value] = match value {
        Value::Array(tables) => tables,
        Value::Null => &[],
        table => std::slice::from_ref(table),
    };
    let is_list = value.is_array();
    html! {
        @if !tables.is_empty() {
            section.card aria-labelledby={ "part-" (name) } {
                h2 id={ "part-" (name) } { (title) }
                @for value in tables {
                    @if is_list { h3 { (value["name"].as_str().unwrap_or_default()) } }
                    (table(value, is_list))
                }
            }
        }
    }
}

/// The settings of one table.
fn table(value: &Value, without_name: bool) -> Markup {
    let settings = value.as_object().into_iter().flatten();
    let shown = settings.filter(|(name, _)| !(without_name && *name == "name"));
    html! {
        dl.settings {
            @for (name, value) in shown { div { dt { code { (name) } } dd { (setting(value)) } } }
        }
    }
}

fn setting(value: &Value) -> Markup {
    match value {
        Value::Null => html! { span.muted { "not set" } },
        Value::String(text) if text.is_empty() => html! { span.muted { "any" } },
        Value::String(text) => html! { (text) },
        Value::Array(items) if items.is_empty() => html! { span.muted { "none" } },
        Value::Array(items) if items.iter().any(Value::is_object) => html! {
            @for item in items { (table(item, false)) }
        },
        Value::Array(items) => html! {
            @for (index, item) in items.iter().enumerate() {
                @if index > 0 { ", " }
                (setting(item))
            }
        },
        Value::Object(_) => table(value, false),
        Value::Bool(_) | Value::Number(_) => html! { (value) },
    }
}
