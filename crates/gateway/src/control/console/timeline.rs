//! The life of an operation as a drawing: the execution as a bar, the attempts as marks over it.
//!
//! Replays come hours after an execution of seconds. So the scale breaks where the execution ends: what
//! comes later has a part of the drawing, and a scale, of its own.

use maud::{Markup, html};
use onlyonce_core::{Attempt, Got, Record, State, Timestamp};
use onlyonce_engine::Operation;

use super::parts;

/// Hundredths of a percent of the drawing's width.
const WHOLE: u64 = 10_000;
/// What is left free on both sides, so that marks at the ends are whole.
const MARGIN: u64 = 250;
/// Where the execution's part ends, if something comes later.
const BREAK: u64 = 6_000;
/// Marks that are closer than this get no number.
const APART: u64 = 260;

/// The drawing. `now` is where what still runs ends.
pub(super) fn draw(operation: &Operation, now: Timestamp) -> Markup {
    let record = &operation.stored.record;
    let scale = Scale::of(operation, now);
    let bar_end = scale.place(scale.end);
    let bar_start = scale.place(record.claimed_at);
    let name = record.state.name();
    html! {
        svg.timeline width="100%" height="112" role="img" aria-labelledby="timeline-name" {
            title #timeline-name {
                "Execution of " (parts::span(record.claimed_at, scale.end)) ", "
                (operation.attempts.len()) " attempts"
            }
            line.axis x1=(percent(MARGIN)) x2=(percent(WHOLE - MARGIN)) y1="88" y2="88" {}
            @if scale.last.is_some() {
                line.cut x1=(percent(BREAK + MARGIN)) x2=(percent(BREAK + MARGIN)) y1="20" y2="96" {}
            }
            rect class={ "run " (name.as_str()) } x=(percent(bar_start)) y="64" height="16" rx="4"
                width=(percent(bar_end.saturating_sub(bar_start).max(40))) {}
            text.tick x=(percent(bar_start)) y="106" { "0" }
            text.tick.end x=(percent(bar_end.max(bar_start + 600))) y="106" {
                (parts::span(record.claimed_at, scale.end))
            }
            @if let Some(last) = scale.last {
                text.tick.end x=(percent(WHOLE - MARGIN)) y="106" {
                    "+" (parts::span(record.claimed_at, last))
                }
            }
            (marks(&operation.attempts, &scale))
        }
        ul.legend {
            @for got in Got::ALL { li class=(got.as_str()) { (got.as_str()) } }
        }
    }
}

fn marks(attempts: &[Attempt], scale: &Scale) -> Markup {
    let mut free_from = 0;
    let placed: Vec<_> = attempts
        .iter()
        .map(|attempt| {
            let place = scale.place(attempt.at);
            let has_number = place >= free_from;
            if has_number {
                free_from = place + APART;
            }
            (attempt, place, has_number)
        })
        .collect();
    html! {
        @for (attempt, place, has_number) in placed {
            g class={ "mark " (attempt.got.as_str()) } tabindex="0" {
                title {
                    "Attempt " (attempt.number) ": " (attempt.got.as_str()) ", from " (attempt.peer)
                    " after " (parts::span(scale.start, attempt.at))
                    @if let Some(count) = attempt.sdk_retry_count { ", retry " (count) " of its SDK" }
                }
                line x1=(percent(place)) x2=(percent(place)) y1="36" y2="88" {}
                @if has_number {
                    circle cx=(percent(place)) cy="24" r="11" {}
                    text x=(percent(place)) y="28" { (attempt.number) }
                }
            }
        }
    }
}

/// Where moments stand in the drawing.
struct Scale {
    start: Timestamp,
    /// The end of the execution.
    end: Timestamp,
    /// The last attempt, where it came later than the execution's end.
    last: Option<Timestamp>,
}

impl Scale {
    fn of(operation: &Operation, now: Timestamp) -> Self {
        let record = &operation.stored.record;
        let end = ended(record).unwrap_or(now).max(record.claimed_at);
        let at = |attempt: &Attempt| attempt.at;
        let first = operation.attempts.first().map_or(record.claimed_at, at);
        let last = operation.attempts.iter().map(at).max();
        Self {
            start: first.min(record.claimed_at),
            end,
            last: last.filter(|last| *last > end),
        }
    }

    fn place(&self, at: Timestamp) -> u64 {
        let right = self.last.map_or(WHOLE - MARGIN, |_| BREAK);
        let part = |at: Timestamp, from: Timestamp, to: Timestamp, left: u64, right: u64| {
            let whole = to.as_millis().saturating_sub(from.as_millis()).max(1);
            let done = at.as_millis().saturating_sub(from.as_millis()).min(whole);
            let width = u128::from(right - left) * u128::from(done) / u128::from(whole);
            left + u64::try_from(width).unwrap_or_default()
        };
        match self.last {
            Some(last) if at > self.end => {
                part(at, self.end, last, BREAK + 2 * MARGIN, WHOLE - MARGIN)
            }
            _ => part(at, self.start, self.end, MARGIN, right),
        }
    }
}

/// When the execution came to its end.
pub(super) fn ended(record: &Record) -> Option<Timestamp> {
    match &record.state {
        State::InFlight { .. } => None,
        State::Completed(completed) => Some(completed.completed_at),
        State::Unknown { since, .. } | State::Released { since, .. } => Some(*since),
    }
}

fn percent(place: u64) -> String {
    super::overview::percent(place, WHOLE)
}
