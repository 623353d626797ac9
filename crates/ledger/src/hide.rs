//! Takes out of a stream what it tells only because the gateway asked for it: of OpenAI's chat streams
//! under `stream_options.include_usage`, the event that holds the usage, and `"usage": null` in the
//! others.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memmem};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::sse::{Events, Part};

/// A longer event is passed on as it comes.
const MAX_EVENT: usize = 64 * 1024;

/// What the other events are told to have no usage by, where that was asked for.
const NO_USAGE: [&[u8]; 2] = [b",\"usage\":null", b", \"usage\": null"];

/// Follows one event stream, and leaves out the usage in it. What is left does not depend on where the
/// pieces are cut.
///
/// An event is held back from its first byte to its end.
#[derive(Debug)]
pub struct UsageHider {
    /// The event that has begun, where it came in pieces.
    held: BytesMut,
    /// Whether it is too long, so that it passes.
    is_long: bool,
    is_line_empty: bool,
    /// Whether the last byte was a carriage return: a line feed after it is of the same line end.
    after_return: bool,
    /// Whether the last event was left out.
    has_hidden: bool,
}

impl Default for UsageHider {
    fn default() -> Self {
        Self {
            held: BytesMut::new(),
            is_long: false,
            is_line_empty: true,
            after_return: false,
            has_hidden: false,
        }
    }
}

impl UsageHider {
    /// Takes the next bytes of the stream, and gives those that may go on: none, maybe.
    pub fn push(&mut self, bytes: Bytes) -> Bytes {
        let mut out = Out::of(&bytes);
        let (mut event, mut at) = (0, 0);
        while let Some(found) = memchr2(b'\n', b'\r', &bytes[at..]) {
            let end = at + found + 1;
            if found > 0 {
                self.within_line();
            }
            at = end;
            if bytes[end - 1] == b'\n' && std::mem::take(&mut self.after_return) {
                // The second half of a line end; that of an event that is over already goes with it.
                if event + 1 == end && self.held.is_empty() {
                    if !self.has_hidden {
                        out.pass(event..end);
                    }
                    event = end;
                }
                continue;
            }
            self.after_return = bytes[end - 1] == b'\r';
            if std::mem::replace(&mut self.is_line_empty, true) {
                self.end_event(event..end, &mut out);
                event = end;
            }
        }
        if at < bytes.len() {
            self.within_line();
        }
        self.hold(event..bytes.len(), &mut out);
        out.finish()
    }

    /// The stream is over: what is held of an event that nothing ends.
    pub fn finish(&mut self) -> Bytes {
        let event = std::mem::take(&mut self.held).freeze();
        match look(&event) {
            Look::Usage => Bytes::new(),
            Look::Other(cut) => without(&event, cut),
        }
    }

    fn within_line(&mut self) {
        self.is_line_empty = false;
        self.after_return = false;
    }

    fn hold(&mut self, part: Range<usize>, out: &mut Out<'_>) {
        if part.is_empty() {
            return;
        }
        if !self.is_long {
            self.held.extend_from_slice(&out.bytes[part.clone()]);
            self.is_long = self.held.len() > MAX_EVENT;
            if self.is_long {
                out.add(&self.held.split());
            }
        } else {
            out.pass(part);
        }
    }

    /// The event ends with `part`.
    fn end_event(&mut self, part: Range<usize>, out: &mut Out<'_>) {
        self.has_hidden = false;
        if std::mem::take(&mut self.is_long) {
            return out.pass(part);
        }
        let is_in_one_piece = self.held.is_empty();
        let joined;
        let event: &[u8] = if is_in_one_piece {
            &out.bytes[part.clone()]
        } else {
            self.held.extend_from_slice(&out.bytes[part.clone()]);
            joined = self.held.split();
            &joined
        };
        let look = match event.len() > MAX_EVENT {
            true => Look::Other(None),
            false => look(event),
        };
        match look {
            Look::Usage => self.has_hidden = true,
            Look::Other(None) if is_in_one_piece => out.pass(part),
            Look::Other(None) => out.add(event),
            Look::Other(Some(cut)) => {
                let event = [&event[..cut.start], &event[cut.end..]].concat();
                out.add(&event);
            }
        }
    }
}

/// What goes on of some bytes: most often they do as they are, and are not copied.
struct Out<'a> {
    bytes: &'a Bytes,
    /// They go on up to here, where nothing is copied.
    passed: usize,
    copied: Option<BytesMut>,
}

impl<'a> Out<'a> {
    fn of(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            passed: 0,
            copied: None,
        }
    }

    fn pass(&mut self, part: Range<usize>) {
        match self.copied {
            None if part.start == self.passed => self.passed = part.end,
            _ => {
                let bytes = self.bytes;
                self.add(&bytes[part]);
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let (all, passed) = (self.bytes, self.passed);
        let copied = self
            .copied
            .get_or_insert_with(|| BytesMut::from(&all[..passed]));
        copied.extend_from_slice(bytes);
    }

    fn finish(self) -> Bytes {
        match self.copied {
            Some(copied) => copied.freeze(),
            None => self.bytes.slice(..self.passed),
        }
    }
}

/// What an event is.
enum Look {
    /// The one that tells the usage.
    Usage,
    /// Another one, with what is to be cut out of it.
    Other(Option<Range<usize>>),
}

/// What of an event counts here.
#[derive(Deserialize)]
struct Chunk {
    choices: Vec<IgnoredAny>,
    usage: Option<IgnoredAny>,
}

fn look(event: &[u8]) -> Look {
    if memmem::find(event, b"\"usage\"").is_none() {
        return Look::Other(None);
    }
    let mut data = Vec::with_capacity(event.len());
    let mut events = Events::default();
    let take = |part: Part<'_>| {
        if let Part::Data(piece) = part {
            data.extend_from_slice(piece);
        }
    };
    events.push(event, take);
    match serde_json::from_slice(&data) {
        Ok(Chunk {
            choices,
            usage: Some(_),
        }) if choices.is_empty() => Look::Usage,
        Ok(Chunk { usage: None, .. }) => Look::Other(no_usage(event)),
        _ => Look::Other(None),
    }
}

/// Where an event says that it has no usage. Quotes within a string are escaped, so that no text can
/// look like this; where it stands more than once, nobody knows which is meant.
fn no_usage(event: &[u8]) -> Option<Range<usize>> {
    let mut found = NO_USAGE.iter().flat_map(|text| {
        let places = memmem::find_iter(event, text);
        places.map(|at| at..at + text.len())
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

fn without(event: &Bytes, cut: Option<Range<usize>>) -> Bytes {
    match cut {
        None => event.clone(),
        Some(cut) => [&event[..cut.start], &event[cut.end..]].concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: &str = r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1}}"#;

    fn hidden(stream: &[u8], size: usize) -> Vec<u8> {
        let mut hider = UsageHider::default();
        let mut out = Vec::new();
        for piece in stream.chunks(size) {
            out.extend_from_slice(&hider.push(Bytes::copy_from_slice(piece)));
            assert!(hider.held.len() <= MAX_EVENT, "{}", hider.held.len());
        }
        out.extend_from_slice(&hider.finish());
        out
    }

    /// The same in one piece, and cut at every byte, and in pieces of every size.
    #[track_caller]
    fn expect(stream: &str, left: &str) {
        for size in 1..=stream.len() {
            let out = hidden(stream.as_bytes(), size);
            assert_eq!(
                String::from_utf8_lossy(&out),
                left,
                "{stream:?} in pieces of {size}"
            );
        }
        for cut in 0..=stream.len() {
            let (before, after) = stream.as_bytes().split_at(cut);
            let mut hider = UsageHider::default();
            let mut out = hider.push(Bytes::copy_from_slice(before)).to_vec();
            out.extend_from_slice(&hider.push(Bytes::copy_from_slice(after)));
            out.extend_from_slice(&hider.finish());
            assert_eq!(
                String::from_utf8_lossy(&out),
                left,
                "{stream:?} cut at {cut}"
            );
        }
    }

    #[test]
    fn what_was_asked_for_is_gone_however_the_stream_is_cut() {
        let said = |usage: &str| {
            format!(
                "data: {{\"id\":\"c\",\"choices\":[{{\"delta\":{{\"content\":\"Hi\"}}}}]{usage}}}"
            )
        };
        for end in ["\n", "\r\n", "\r"] {
            let stream = |usage: &str, last: &str| {
                let said = said(usage);
                format!("{said}{end}{end}{last}data: [DONE]{end}{end}")
            };
            let last = format!("data: {USAGE}{end}{end}");
            expect(&stream(",\"usage\":null", &last), &stream("", ""));
            expect(&stream(", \"usage\": null", &last), &stream("", ""));
            expect(&stream("", &last), &stream("", ""));
            // At the very end, with an empty line after it or not.
            expect(&format!("{}{last}", stream("", "")), &stream("", ""));
            expect(&format!("{}data: {USAGE}", stream("", "")), &stream("", ""));
        }
        expect(
            &format!("id: 7\nevent: x\ndata: {USAGE}\n: c\n\ndata: a\n\n"),
            "data: a\n\n",
        );
        expect(
            "data: {\"choices\":[],\ndata: \"usage\":{}}\n\ndata: a\n\n",
            "data: a\n\n",
        );
    }

    #[test]
    fn everything_else_stays_byte_by_byte() {
        let long = format!(
            "data: {{\"x\":\"{}\",\"choices\":[],\"usage\":{{}}}}\n\n",
            "x".repeat(300)
        );
        for stream in [
            "",
            "\n",
            "\r\n\r\n\n\r",
            "data: a",
            "data: a\n",
            ": ping\n\n\n\n",
            "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}\n\n",
            "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
            "data: {\"usage\":{}}\n\n",
            "data: {\"choices\":[],\"usage\":{}\n\n",
            "data: {\"choices\":[],\"usage\":{},\"usage\":{}}\n\n",
            "data: {\"choices\":{},\"usage\":null}\n\n",
            "data: {\"choices\":[{\"text\":\"\\\"choices\\\":[],\\\"usage\\\":{}\"}]}\n\n",
            "data: {\"choices\":[{\"a\":1,\"usage\":null}],\"usage\":{}}\n\n",
            "data: {\"choices\":[{\"a\":1,\"usage\":null}],\"id\":1,\"usage\":null}\n\n",
            "DATA: {\"choices\":[],\"usage\":{}}\n\n",
            "\u{feff}data: [DONE]\r\n\r\n",
        ] {
            expect(stream, stream);
        }
        assert_eq!(hidden(long.as_bytes(), 7), b"");
    }

    #[test]
    fn i15_an_event_that_is_too_long_passes_as_it_comes() {
        let event = |filler: usize| {
            format!(
                "data: {{\"choices\":[],\"usage\":{{}},\"x\":\"{}\"}}\n\n",
                "x".repeat(filler)
            )
        };
        let around = event(0).len();
        for (length, is_hidden) in [(MAX_EVENT, true), (MAX_EVENT + 1, false)] {
            let stream = format!("{}data: a\n\n{}", event(length - around), event(9));
            let left = match is_hidden {
                true => "data: a\n\n".to_owned(),
                false => format!("{}data: a\n\n", event(length - around)),
            };
            for size in [1, 1_000, MAX_EVENT - 1, MAX_EVENT, MAX_EVENT + 1, 1 << 20] {
                let out = hidden(stream.as_bytes(), size);
                assert!(out == left.as_bytes(), "{length} in pieces of {size}");
            }
        }
    }

    #[test]
    fn what_passes_whole_is_not_copied() {
        let bytes = Bytes::from_static(b"data: a\n\ndata: {\"choices\":[]}\n\n");
        let out = UsageHider::default().push(bytes.clone());
        assert_eq!(out.as_ptr(), bytes.as_ptr());
        assert_eq!(out, bytes);
    }
}
