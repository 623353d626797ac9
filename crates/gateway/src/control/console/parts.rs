//! What pages are made of: states, moments, amounts, tables of operations.

use maud::{Markup, html};
use onlyonce_core::{Entry, Metered, StateName, Timestamp, Unit};
use onlyonce_store::Stored;

use super::super::query::show_moment;

/// A state: a dot and its word.
pub(super) fn state(state: StateName) -> Markup {
    html! {
        span class={ "state " (state.as_str()) } { (state_word(state)) }
    }
}

/// A state, as people say it.
pub(super) const fn state_word(state: StateName) -> &'static str {
    match state {
        StateName::InFlight => "running",
        StateName::Completed => "completed",
        StateName::Unknown => "unknown",
        StateName::Released => "released",
    }
}

/// A moment. The script adds how long ago that is.
pub(super) fn moment(at: Timestamp) -> Markup {
    let full = show_moment(at);
    let (date, time) = full.split_once('T').unwrap_or((&full, ""));
    let time = time.split('.').next().unwrap_or_default();
    html! {
        time datetime=(full) title={ (full) } { (date) " " (time) }
    }
}

/// A span between two moments: `840 ms`, `3.2 s`, `4 min 05 s`, `2 h 11 min`.
pub(super) fn span(from: Timestamp, to: Timestamp) -> String {
    let millis = to.as_millis().saturating_sub(from.as_millis());
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A number with its thousands set apart.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How many of something: `1 replay`, `2 replays`.
pub(super) fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", number(count))
}

/// A size: `512 B`, `3.4 KiB`, `1.2 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1024, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Tokens in and out, where both are known.
pub(super) fn tokens(metered: &Metered) -> Option<String> {
    let of = |unit| metered.usage.get(unit).map(number);
    Some(format!("{} / {}", of(Unit::Input)?, of(Unit::Output)?))
}

/// A table of operations.
pub(super) fn operations(caption: &str, rows: impl Iterator<Item = Markup>) -> Markup {
    html! {
        div.scroll {
            table.operations {
                caption.hidden { (caption) }
                thead {
                    tr {
                        th scope="col" { "State" }
                        th scope="col" { "Key" }
                        th scope="col" { "Tenant" }
                        th scope="col" { "Request" }
                        th scope="col" { "Model" }
                        th.number scope="col" { "Tokens in / out" }
                        th.number scope="col" { "Cost" }
                        th.number scope="col" { "Attempts" }
                        th.number scope="col" { "First seen" }
                    }
                }
                tbody { @for row in rows { (row) } }
            }
        }
    }
}

/// An operation, with a link to its page.
pub(super) fn row(stored: &Stored) -> Markup {
    let record = &stored.record;
    html! {
        tr {
            td { (state(record.state.name())) }
            td.key { a href={ "/console/operations/" (record.id) } { (record.key) } }
            td { (tenant(&record.scope.tenant)) }
            td { span.method { (record.request.method) } " " (record.request.path) }
            (used(record.metered.as_deref()))
            td.number { (number(stored.attempts.into())) }
            td.number { (moment(record.id.first_claimed())) }
        }
    }
}

/// An operation of which only the books tell: they have neither its key nor its path.
pub(super) fn booked_row(entry: &Entry) -> Markup {
    html! {
        tr {
            td { (state(StateName::Completed)) }
            td.key.muted title=(entry.id) { "record gone" }
            td { (tenant(&entry.scope.tenant)) }
            td { "route " (entry.route) }
            (used(Some(&entry.metered)))
            td.number { (none()) }
            td.number { (moment(entry.id.first_claimed())) }
        }
    }
}

/// Model, tokens and cost.
fn used(metered: Option<&Metered>) -> Markup {
    let or_none = |text: Option<String>| text.map_or_else(none, |text| html! { (text) });
    let model = metered.map(|metered| metered.paid_model().to_owned());
    let cost = metered.and_then(|metered| metered.cost.as_ref());
    html! {
        td { (or_none(model.filter(|model| !model.is_empty()))) }
        td.number { (or_none(metered.and_then(tokens))) }
        td.number { (or_none(cost.map(|cost| format!("${}", cost.amount)))) }
    }
}

fn none() -> Markup {
    html! { span.muted { "–" } }
}

/// A tenant; the name that a hash makes is cut, and stands whole in its title.
pub(super) fn tenant(name: &str) -> Markup {
    const SHOWN: usize = 16;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => html! { span title=(name) { (name[..end]) "…" } },
        None => html! { (name) },
    }
}

/// What stands where there is nothing.
pub(super) fn empty(title: &str, text: &Markup) -> Markup {
    html! {
        div.empty { h3 { (title) } p { (text) } }
    }
}

/// Names and values.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_for_people() {
        let at = Timestamp::from_millis;
        for (millis, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (3_250, "3.2 s"),
            (245_000, "4 min 05 s"),
            (7_860_000, "2 h 11 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(at(5), at(5 + millis)), text);
        }
        assert_eq!(span(at(5), at(1)), "0 ms");
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(number(count), text);
        }
        for (bytes, text) in [
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "1677721.5 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
