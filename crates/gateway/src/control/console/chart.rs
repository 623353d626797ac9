//! Bars over time.

use maud::{Markup, html};

use super::overview::percent;

const HEIGHT: u64 = 140;

/// One bar.
pub(super) struct Bar {
    /// What stands under it, where something does.
    pub(super) label: String,
    /// What it says to who points at it.
    pub(super) title: String,
    /// Its parts, from the bottom: the class that colours it, and how much.
    pub(super) parts: Vec<(&'static str, u64)>,
}

impl Bar {
    fn height(&self) -> u64 {
        self.parts.iter().map(|(_, part)| part).sum()
    }
}

/// `bars` side by side. `top` writes what the highest one stands for.
pub(super) fn bars(name: &str, bars: &[Bar], top: impl FnOnce(u64) -> String) -> Markup {
    let highest = bars.iter().map(Bar::height).max().unwrap_or(0);
    let count = bars.len() as u64;
    html! {
        figure.chart {
            p.top .muted .small aria-hidden="true" { (top(highest)) }
            svg width="100%" height=(HEIGHT) role="img" aria-label=(name) {
                line.axis x1="0" x2="100%" y1="0" y2="0" {}
                line.axis x1="0" x2="100%" y1=(HEIGHT) y2=(HEIGHT) {}
                @for (number, bar) in (0..).zip(bars) {
                    g {
                        title { (bar.title) }
                        // All of its room answers to the pointer.
                        rect.room x=(percent(number, count)) width=(percent(1, count))
                            y="0" height=(HEIGHT) {}
                        (stack(bar, number, count, highest))
                    }
                }
            }
            div.under aria-hidden="true" {
                @for bar in bars { span.muted.small { (bar.label) } }
            }
            details {
                summary { "In words" }
                ul.small { @for bar in bars.iter().filter(|bar| bar.height() > 0) { li { (bar.title) } } }
            }
        }
    }
}

fn stack(bar: &Bar, number: u64, count: u64, highest: u64) -> Markup {
    let scale = |part: u64| {
        let height = u128::from(part) * u128::from(HEIGHT) / u128::from(highest.max(1));
        // What is there is seen.
        u64::try_from(height)
            .unwrap_or(HEIGHT)
            .max(u64::from(part > 0) * 2)
    };
    let mut below = 0;
    let parts: Vec<_> = bar
        .parts
        .iter()
        .map(|(class, part)| {
            let height = scale(*part);
            below += height;
            (*class, HEIGHT.saturating_sub(below), height)
        })
        .collect();
    // A fifth of its room stays free.
    let (x, width) = (percent(number * 10 + 1, count * 10), percent(8, count * 10));
    html! {
        @for (class, y, height) in parts {
            @if height > 0 { rect class=(class) x=(x) width=(width) y=(y) height=(height) {} }
        }
    }
}
