//! The page of one operation.

use maud::{Markup, html};
use onlyonce_core::metered::Source;
use onlyonce_core::{Attempt, Metered, Record, State, StateName, UnknownReason};
use onlyonce_engine::Operation;
use onlyonce_store::Store;

use super::super::access::Access;
use super::super::answer::Refusal;
use super::super::desk::Desk;
use super::super::operation::{NotSpent, header_list};
use super::super::query::operation_id;
use super::unknown::{known, steps};
use super::{Place, Section, View, money, parts, timeline};
use crate::config::Right;

/// The form that settles. What says that it was shown to this session stands in the page's frame.
pub(super) const SETTLE: &str = "settle-form";

pub(super) async fn view<S: Store>(desk: &Desk<S>, id: &str) -> Result<View, Refusal> {
    let operation = desk.operation(operation_id(id)?).await?;
    let record = &*operation.stored.record;
    let is_unknown = record.state.name() == StateName::Unknown;
    let mut sections = vec![
        Section::new("head", head(record)),
        Section::new("figures", figures(&operation)),
    ];
    if is_unknown {
        sections.push(Section::new("settle", settle(desk, &operation)));
    }
    sections.extend([
        Section::new("life", life(desk, &operation)),
        Section::new("usage", usage(record)),
        Section::new("answer", answer(record, desk.access())),
    ]);
    Ok(View {
        title: record.key.to_string(),
        place: if is_unknown {
            Place::Unknown
        } else {
            Place::Operations
        },
        sections,
    })
}

fn head(record: &Record) -> Markup {
    html! {
        header.page {
            div {
                p.crumb { a href="/console/operations" { "Operations" } }
                h1.key { (record.key) }
                p.muted {
                    (parts::state(record.state.name()))
                    span { span.method { (record.request.method) } " " (record.request.path) }
                    span { "route " (record.request.route) }
                    span { "tenant " (parts::tenant(&record.scope.tenant)) }
                    span { code { (record.id) } }
                }
            }
            button.quiet.share type="button" hidden data-copy=(record.id) { "Copy id" }
        }
    }
}

fn figures(operation: &Operation) -> Markup {
    let record = &*operation.stored.record;
    let metered = record.metered.as_deref();
    let cost = metered.and_then(|metered| metered.cost.as_ref());
    let tokens = metered.and_then(parts::tokens);
    let again = operation.stored.attempts.saturating_sub(1);
    html! {
        div.figures {
            div.card.figure {
                span.label { "Cost" }
                @match cost {
                    Some(cost) => strong { "$" (cost.amount) },
                    None => strong.muted { "–" },
                }
                span.muted.small {
                    @match cost {
                        Some(cost) => {
                            (so_far(record)) (basis(cost.basis.as_str())) ", " (cost.version)
                        },
                        None => (no_cost(record)),
                    }
                }
            }
            div.card.figure {
                span.label { "Tokens in / out" }
                @match tokens {
                    Some(tokens) => strong { (tokens) },
                    None => strong.muted { "–" },
                }
                span.muted.small {
                    @match metered.map_or("", Metered::paid_model) {
                        "" => (no_model(record)),
                        model => (model),
                    }
                }
            }
            @if let Some(not_spent) = NotSpent::of(operation) { (saved(operation, &not_spent)) }
            div.card.figure {
                span.label { "Attempts" }
                strong { (parts::number(operation.stored.attempts.into())) }
                span.muted.small {
                    @match again {
                        0 => "nobody has asked again",
                        1 => "one came after the first",
                        _ => { (again) " came after the first" },
                    }
                }
            }
        }
    }
}

fn saved(operation: &Operation, not_spent: &NotSpent) -> Markup {
    html! {
        div.card.figure .saved[not_spent.attempts > 0] {
            span.label { "Not spent twice" }
            strong { (money::usd(not_spent.amount)) }
            span.muted.small {
                (parts::counted(not_spent.attempts, "attempt")) " replayed or joined"
                @if operation.stored.attempts as usize > operation.attempts.len() { ", at least" }
            }
        }
    }
}

/// What a cost is worth that is there before the whole answer is.
fn so_far(record: &Record) -> &'static str {
    match record.state.name() {
        StateName::InFlight => "of the execution before: ",
        StateName::Unknown => "at least: ",
        StateName::Completed | StateName::Released => "",
    }
}

/// Why there is no cost.
fn no_cost(record: &Record) -> &'static str {
    match record.state.name() {
        StateName::InFlight => "not known yet",
        StateName::Unknown => "not known: its answer has told of none",
        StateName::Released => "none: it did not run",
        StateName::Completed => "no price is known",
    }
}

/// Why no model is named.
fn no_model(record: &Record) -> &'static str {
    match record.state.name() {
        StateName::InFlight => "not known yet",
        StateName::Unknown => "not known",
        StateName::Released => "it did not run",
        StateName::Completed => "not metered",
    }
}

/// Why nothing is known of its use.
fn no_usage(record: &Record) -> &'static str {
    match record.state.name() {
        StateName::InFlight => "Not known yet: it is still running.",
        StateName::Unknown => "Not known: no answer has come that tells of it.",
        StateName::Released => "None: it did not run.",
        StateName::Completed => "Nothing was metered: the answer has told of no usage.",
    }
}

/// How a price came about.
fn basis(basis: &str) -> &str {
    match basis {
        "stated" => "stated by the provider",
        "tenant" => "the tenant's price",
        "route" => "the route's price",
        _ => "by the price table",
    }
}

fn life<S: Store>(desk: &Desk<S>, operation: &Operation) -> Markup {
    let record = &*operation.stored.record;
    let mut facts = vec![("Claimed", parts::moment(record.claimed_at))];
    match &record.state {
        State::InFlight { lease_until, .. } => {
            facts.push(("Lease until", parts::moment(*lease_until)));
        }
        State::Completed(completed) => {
            facts.push(("Completed", parts::moment(completed.completed_at)));
            facts.push(("Replayed until", parts::moment(completed.expires_at)));
        }
        State::Unknown { since, .. } => facts.push(("Unknown since", parts::moment(*since))),
        State::Released { since, reason, .. } => {
            facts.push(("Released", parts::moment(*since)));
            facts.push(("Because", html! { (reason) }));
        }
    }
    if let Some(ruling) = &record.ruling {
        facts.push(("Settled by", html! { (ruling.who) }));
        facts.push(("Settled at", parts::moment(ruling.at)));
        if !ruling.reason.is_empty() {
            facts.push(("In their words", html! { (ruling.reason) }));
        }
    }
    html! {
        section.card aria-labelledby="life-title" {
            h2 #life-title { "Attempts" }
            (timeline::draw(operation, desk.now()))
            (parts::facts(&facts))
            (attempts(&operation.attempts, record))
        }
    }
}

fn attempts(attempts: &[Attempt], record: &Record) -> Markup {
    html! {
        div.scroll {
            table {
                caption.hidden { "The attempts, oldest first" }
                thead { tr {
                    th.number scope="col" { "No." }
                    th scope="col" { "Got" }
                    th scope="col" { "From" }
                    th scope="col" { "Retry of its SDK" }
                    th scope="col" { "Trace" }
                    th.number scope="col" { "After" }
                    th.number scope="col" { "Came" }
                } }
                tbody { @for attempt in attempts {
                    tr {
                        td.number { (attempt.number) }
                        td { span class={ "got " (attempt.got.as_str()) } { (attempt.got.as_str()) } }
                        td { code { (attempt.peer) } }
                        td { @match attempt.sdk_retry_count {
                            Some(count) => (count),
                            None => span.muted { "not said" },
                        } }
                        td { @match attempt.trace {
                            Some(trace) => code { (trace) },
                            None => span.muted { "none" },
                        } }
                        td.number { (parts::span(record.claimed_at, attempt.at)) }
                        td.number { (parts::moment(attempt.at)) }
                    }
                } }
            }
        }
    }
}

fn usage(record: &Record) -> Markup {
    html! {
        section.card aria-labelledby="usage-title" {
            h2 #usage-title { "Usage and cost" }
            @match record.metered.as_deref() {
                Some(metered) if is_told(record, metered) => (metered_parts(metered)),
                asked => {
                    p.muted { (no_usage(record)) }
                    @if let Some(metered) = asked.filter(|asked| !asked.request_model.is_empty()) {
                        (parts::facts(&[("Asked for", html! { (metered.request_model) })]))
                    }
                }
            }
        }
    }
}

/// Whether an answer has told it. Until one does, a record has of its use what the request asks for.
fn is_told(record: &Record, metered: &Metered) -> bool {
    record.state.name() == StateName::Completed || metered.source != Source::NotMetered
}

fn metered_parts(metered: &Metered) -> Markup {
    let texts = [
        ("Provider", &metered.provider),
        ("Model", &metered.model),
        ("Asked for", &metered.request_model),
        ("Call", &metered.operation),
        ("Tier", &metered.tier),
        ("Provider's id", &metered.response_id),
    ];
    let mut facts = vec![("Read from", html! { (source(metered.source.as_str())) })];
    let filled = texts.into_iter().filter(|(_, text)| !text.is_empty());
    facts.extend(filled.map(|(name, text)| (name, html! { (text) })));
    if let Some(cost) = &metered.cost {
        let basis = basis(cost.basis.as_str());
        facts.push(("Price", html! { (basis) ", " (cost.version) }));
    }
    html! {
        (parts::facts(&facts))
        @if !metered.usage.is_empty() {
            div.scroll { table.narrow {
                caption.hidden { "Counts by unit" }
                thead { tr { th scope="col" { "Unit" } th.number scope="col" { "Count" } } }
                tbody {
                    @for (unit, count) in metered.usage.iter() {
                        tr { td { (unit.as_str()) } td.number { (parts::number(count)) } }
                    }
                    @if let Some(cost) = &metered.cost {
                        tr.total { td { "Cost" } td.number { "$" (cost.amount) } }
                    }
                }
            } }
        }
    }
}

/// Where counts come from.
fn source(source: &str) -> &str {
    match source {
        "provider" => "the provider's own count",
        "partial" => "the provider's count, as far as it had come",
        "unknown" => "nothing: the answer did not tell",
        _ => "nothing: its route is not metered",
    }
}

fn answer(record: &Record, access: &Access) -> Markup {
    let may = access.may(Right::Payload);
    let recording = format!("/v1/operations/{}/recording", record.id);
    let (status, headers, bytes) = match &record.state {
        State::Completed(completed) => (
            Some(completed.head.status),
            header_list(&completed.head.headers, may),
            Some(completed.body_len),
        ),
        _ => (None, Vec::new(), None),
    };
    let has_recording = matches!(record.state, State::Completed(_) | State::InFlight { .. });
    html! {
        section.card aria-labelledby="answer-title" {
            header {
                h2 #answer-title { "Answer" }
                @if let Some(status) = status { span.status { (status) } }
                @if let Some(bytes) = bytes { span.muted.small { (parts::size(bytes)) } }
            }
            @if !headers.is_empty() {
                details open[headers.len() <= 12] {
                    summary { "Headers (" (headers.len()) ")" }
                    dl.settings { @for (name, value) in &headers {
                        div { dt { code { (name) } } dd { code { (value) } } }
                    } }
                }
            }
            @if !has_recording {
                p.muted { "Nothing is recorded." }
            } @else if may {
                div.body data-recording=(recording) {
                    p.bar {
                        button.quiet type="button" hidden data-show { "Show the body" }
                        a.button.quiet href=(recording) download={ (record.id) ".bin" } {
                            "Download the body"
                        }
                    }
                }
            } @else {
                p.muted { "The body is hidden: this token has no right to " code { "payload" } "." }
            }
        }
    }
}

fn settle<S: Store>(desk: &Desk<S>, operation: &Operation) -> Markup {
    let record = &*operation.stored.record;
    html! {
        section.card.case aria-labelledby="settle-title" {
            h2 #settle-title { "Nobody knows whether it ran" }
            (known(&operation.stored))
            (steps(&operation.stored))
            @if desk.access().may(Right::Resolve) {
                (form(&format!("/console/operations/{}/resolve", record.id), &record.state))
            } @else {
                p.muted {
                    "To settle it takes a token with the right " code { "resolve" } "."
                }
            }
        }
    }
}

fn form(action: &str, state: &State) -> Markup {
    let reason = UnknownReason::LeasePassed;
    let out_of_sight = matches!(state, State::Unknown { reason: why, .. } if *why == reason);
    html! {
        form.settle id=(SETTLE) method="post" action=(action) {
            fieldset {
                legend { "What did you find out?" }
                label.choice {
                    input type="radio" name="outcome" value="released" required;
                    span {
                        strong { "It did not run" } " The key is free: the next retry runs it."
                        @if out_of_sight {
                            " Be sure first that who ran it is gone or answers again: a gateway \
                             that stands still may send when it wakes."
                        }
                    }
                }
                label.choice {
                    input type="radio" name="outcome" value="completed";
                    span { strong { "It ran" } " Retries get the answer that you write here." }
                }
                div.ran {
                    div {
                        label for="status" { "Status" }
                        input #status name="status" value="200" inputmode="numeric";
                    }
                    div {
                        label for="content_type" { "Content-Type" }
                        input #content_type name="content_type" value="application/json";
                    }
                    div.wide {
                        label for="body" { "Body of the answer" }
                        textarea #body name="body" rows="5" spellcheck="false" {}
                    }
                }
            }
            label for="reason" { "How is that known? It goes to the log, with the token's name." }
            input #reason name="reason" required maxlength="500" autocomplete="off";
            button.primary type="submit" { "Settle" }
        }
    }
}
