//! The page Unknown: what nobody knows the outcome of, and what to do about it.

use maud::{Markup, html};
use onlyonce_core::{State, StateName};
use onlyonce_store::{Store, Stored};

use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::listing;
use super::super::unknown::{advice, since};
use super::{Place, Section, View, operations, parts};

pub(super) async fn view<S: Store>(desk: &Desk<S>, query: &str) -> Result<View, Refusal> {
    let filter = operations::read(query)?;
    let mut asked = filter.clone().for_store(desk.now())?;
    asked.state = Some(StateName::Unknown);
    let page = listing::records(desk, asked, filter.model.as_deref()).await?;
    let next = page.next.map(|id| id.to_string());
    Ok(View {
        title: "Unknown".to_owned(),
        place: Place::Unknown,
        sections: vec![
            Section::new(
                "head",
                html! {
                    header.page {
                        div {
                            h1 { "Unknown" }
                            p.muted {
                                "Operations that may have run, and nobody can say. Find out at the \
                                 upstream, then settle them."
                            }
                        }
                    }
                },
            ),
            Section::new(
                "list",
                html! {
                    @if page.records.is_empty() {
                        div.card {
                            (parts::empty("Every outcome is known", &html! {
                                "When an upstream breaks off, what it did waits here."
                            }))
                        }
                    }
                    @for stored in &page.records { (card(stored)) }
                    (operations::pager(next.as_deref(), &filter))
                },
            ),
        ],
    })
}

fn card(stored: &Stored) -> Markup {
    let record = &stored.record;
    let page = format!("/console/operations/{}", record.id);
    html! {
        article.card.case {
            header {
                h2 { a href=(page) { (record.key) } }
                (parts::state(StateName::Unknown))
            }
            (known(stored))
            (steps(stored))
            p { a.button.primary href={ (page) "#settle" } { "Settle it" } }
        }
    }
}

/// What is known of an unknown operation.
pub(super) fn known(stored: &Stored) -> Markup {
    let record = &stored.record;
    let State::Unknown { reason, .. } = &record.state else {
        return html! {};
    };
    let told = record.metered.as_deref();
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let model = told.and_then(|told| filled(&told.model));
    let asked_model = told.and_then(|told| filled(&told.request_model));
    let id = told.and_then(|told| filled(&told.response_id));
    let cost = told.and_then(|told| told.cost.as_ref());
    let mut facts = vec![
        ("What happened", html! { (reason) }),
        ("Tenant", parts::tenant(&record.scope.tenant)),
        (
            "Request",
            html! { span.method { (record.request.method) } " " (record.request.path) },
        ),
    ];
    if let Some(since) = since(record) {
        facts.push(("Since", parts::moment(since)));
    }
    match (model, asked_model) {
        (Some(model), _) => facts.push(("Model", html! { (model) })),
        (None, Some(model)) => facts.push(("Model asked for", html! { (model) })),
        (None, None) => {}
    }
    if let Some(id) = id {
        facts.push(("Upstream's id", html! { code { (id) } }));
    }
    if let Some(tokens) = told.and_then(parts::tokens) {
        facts.push(("Tokens so far, in / out", html! { (tokens) }));
    }
    if let Some(cost) = cost {
        facts.push(("At risk, at least", html! { "$" (cost.amount) }));
    }
    parts::facts(&facts)
}

/// What to do about it.
pub(super) fn steps(stored: &Stored) -> Markup {
    html! {
        h3 { "What to do" }
        ol.steps { @for step in advice(&stored.record) { li { (step) } } }
    }
}
