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
/// Marks that are closer than this share one label.
const APART: u64 = 260;
/// The same where a label is of several marks already, and wider.
const APART_OF_SEVERAL: u64 = 420;

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
                (parts::counted(operation.attempts.len() as u64, "attempt"))
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
    html! { @for mark in Mark::all(attempts, scale) { (mark.draw(scale)) } }
}

/// Attempts that came so close to each other that they share a label.
struct Mark<'a> {
    attempts: Vec<(&'a Attempt, u64)>,
}

impl<'a> Mark<'a> {
    fn all(attempts: &'a [Attempt], scale: &Scale) -> Vec<Self> {
        let mut marks: Vec<Self> = Vec::new();
        for attempt in attempts {
            let placed = (attempt, scale.place(attempt.at));
            match marks.last_mut() {
                Some(mark) if mark.reaches(placed.1) => mark.attempts.push(placed),
                _ => marks.push(Self {
                    attempts: vec![placed],
                }),
            }
        }
        marks
    }

    fn reaches(&self, place: u64) -> bool {
        let apart = match self.attempts.len() {
            1 => APART,
            _ => APART_OF_SEVERAL,
        };
        let last = self.attempts.last();
        last.is_some_and(|(_, last)| place < last + apart)
    }

    /// The first attempt and the last one, each with its place.
    fn ends(&self) -> Option<[&(&'a Attempt, u64); 2]> {
        Some([self.attempts.first()?, self.attempts.last()?])
    }

    fn draw(&self, scale: &Scale) -> Markup {
        let Some([first, last]) = self.ends() else {
            return html! {};
        };
        let label = match first.0.number == last.0.number {
            true => first.0.number.to_string(),
            false => format!("{}–{}", first.0.number, last.0.number),
        };
        let width = 22.max(8 + 8 * label.chars().count());
        let is_of_one_kind = self.attempts.iter().all(|(one, _)| one.got == first.0.got);
        let kind = if is_of_one_kind {
            first.0.got.as_str()
        } else {
            "mixed"
        };
        html! {
            g class={ "mark " (kind) } tabindex="0" {
                title { @for (attempt, _) in &self.attempts { (told(attempt, scale)) "\n" } }
                @for (attempt, place) in &self.attempts {
                    line class=(attempt.got.as_str()) x1=(percent(*place)) x2=(percent(*place))
                        y1="36" y2="88" {}
                }
                // Its own coordinates, so that its size is in pixels while its place is not.
                svg x=(percent(first.1.midpoint(last.1))) y="24" width="1" height="1" {
                    rect x={ "-" (width / 2) } y="-11" width=(width) height="22" rx="11" {}
                    text y="4" { (label) }
                }
            }
        }
    }
}

/// What there is to say of an attempt in one line.
fn told(attempt: &Attempt, scale: &Scale) -> Markup {
    html! {
        "Attempt " (attempt.number) ": " (attempt.got.as_str()) ", from " (attempt.peer)
        " after " (parts::span(scale.start, attempt.at))
        @if let Some(count) = attempt.sdk_retry_count { ", retry " (count) " of its SDK" }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u32, at: u64, got: Got) -> Attempt {
        Attempt {
            number,
            at: Timestamp::from_millis(at),
            peer: "192.0.2.1:5".into(),
            sdk_retry_count: None,
            got,
            trace: None,
        }
    }

    #[test]
    fn attempts_that_came_close_to_each_other_share_a_label() {
        let attempts = [
            attempt(1, 0, Got::Executed),
            attempt(2, 400, Got::Joined),
            attempt(3, 401, Got::Joined),
            attempt(4, 402, Got::Refused),
            attempt(5, 1000, Got::Replayed),
        ];
        let at = Timestamp::from_millis;
        let scale = Scale {
            start: at(0),
            end: at(1000),
            last: None,
        };
        let drawn = marks(&attempts, &scale).into_string();
        for whole in [">1</text>", ">2–4</text>", ">5</text>"] {
            assert!(drawn.contains(whole), "{whole}: {drawn}");
        }
        assert_eq!(drawn.matches("<text").count(), 3, "{drawn}");
        assert_eq!(drawn.matches("<line").count(), 5, "{drawn}");
        assert!(drawn.contains("Attempt 3: joined, from 192.0.2.1:5 after 401 ms"));
        assert!(
            drawn.contains("class=\"mark mixed\"") && drawn.contains("class=\"mark replayed\"")
        );
    }
}
