//! Whether an event stream came to its own end (I5): by its framing alone, a stream that the
//! provider gave up on can look whole.

use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use memchr::memchr;

use crate::config::{Policy, StreamKind};

/// What is kept of the beginning of a line, and of its end, where it is longer than both.
const KEPT: usize = 8 * 1024;

/// Follows the lines of one `text/event-stream` body.
pub(super) struct StreamEnd {
    kinds: Arc<[StreamKind]>,
    /// The line that has begun.
    line: Vec<u8>,
    event: Event,
    place: Place,
    /// Whether the last event was one that ends the stream.
    ended: bool,
}

/// What is known of the event that has begun.
#[derive(Default)]
struct Event {
    /// It has a line that is no comment.
    begun: bool,
    /// It has a line that ends the stream.
    ends: bool,
}

enum Place {
    /// In the first event, which says what kind of stream it is.
    First(Option<usize>),
    /// After the first event of a stream of this kind.
    Within(usize),
    /// In a stream that nothing is known about.
    Unknown,
}

impl StreamEnd {
    /// For a response of which it matters, and can be seen.
    pub(super) fn of(policy: &Policy, status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let is_stream = headers.get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind
                .as_bytes()
                .split(|b| *b == b';')
                .next()
                .unwrap_or_default();
            kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
        });
        let readable = !headers.contains_key(CONTENT_ENCODING);
        let wanted = status.is_success() && is_stream && readable && !policy.streams.is_empty();
        wanted.then(|| Self {
            kinds: Arc::clone(&policy.streams),
            line: Vec::new(),
            event: Event::default(),
            place: Place::First(None),
            ended: false,
        })
    }

    /// Takes in more of the body.
    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr(b'\n', bytes) {
            self.keep(&bytes[..end]);
            self.end_line();
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    /// Whether a body that ends here is whole, as far as can be told.
    pub(super) fn is_whole(&mut self) -> bool {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.end_event();
        self.ended || matches!(self.place, Place::Unknown | Place::First(_))
    }

    fn keep(&mut self, bytes: &[u8]) {
        if matches!(self.place, Place::Unknown) {
            return;
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > 4 * KEPT {
            self.line.drain(KEPT..self.line.len() - KEPT);
        }
    }

    fn end_line(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        if line.is_empty() {
            self.end_event();
        } else if line[0] != b':' {
            self.event.begun = true;
            if let Place::First(kind @ None) = &mut self.place {
                *kind = self.kinds.iter().position(|kind| kind.begins.matches(line));
            }
            let kind = match self.place {
                Place::First(kind) => kind,
                Place::Within(kind) => Some(kind),
                Place::Unknown => None,
            };
            let ends = kind.map_or(&[][..], |kind| &self.kinds[kind].ends);
            self.event.ends |= ends.iter().any(|end| end.matches(line));
        }
        self.line.clear();
    }

    fn end_event(&mut self) {
        let event = std::mem::take(&mut self.event);
        if !event.begun {
            return;
        }
        self.ended = event.ends;
        if let Place::First(kind) = self.place {
            self.place = kind.map_or(Place::Unknown, Place::Within);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::StreamEnd;
    use crate::presets::Presets;

    fn watch(preset: &str) -> Option<StreamEnd> {
        let policy = Presets::built_in().unwrap().policy(preset);
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        headers.insert("content-type", kind);
        StreamEnd::of(&policy, StatusCode::OK, &headers)
    }

    /// Cut at every byte: the answer must not depend on how the body comes in.
    #[track_caller]
    fn expect(preset: &str, body: &str, whole: bool) {
        for cut in 0..=body.len() {
            let mut end = watch(preset).unwrap();
            end.see(&body.as_bytes()[..cut]);
            end.see(&body.as_bytes()[cut..]);
            assert_eq!(end.is_whole(), whole, "{preset}, cut at {cut}: {body}");
        }
    }

    const CHUNK: &str = "data: {\"object\":\"chat.completion.chunk\"}\n\n";

    #[test]
    fn a_chat_stream_ends_with_done() {
        expect("openai", &format!("{CHUNK}{CHUNK}data: [DONE]\n\n"), true);
        expect(
            "openai",
            &format!(": wait\n\n{CHUNK}data: [DONE]\r\n\r\n: bye\n\n"),
            true,
        );
        expect(
            "openai",
            &format!("{CHUNK}data: {{\"error\":{{}}}}\n\n"),
            true,
        );
        expect("openai", &format!("{CHUNK}{CHUNK}"), false);
        expect("openai", CHUNK, false);
    }

    #[test]
    fn a_responses_stream_ends_with_its_response() {
        let created =
            "event: response.created\ndata: {\"type\":\"response.created\",\"error\":null}\n\n";
        for last in ["completed", "incomplete", "failed"] {
            let end = format!("event: response.{last}\ndata: {{\"type\":\"response.{last}\"}}\n\n");
            expect("openai", &format!("{created}{end}"), true);
        }
        expect("openai", created, false);
        let text =
            "event: response.output_text.done\ndata: {\"type\":\"response.output_text.done\"}\n\n";
        expect("openai", &format!("{created}{text}"), false);
    }

    #[test]
    fn a_message_ends_with_message_stop() {
        let start = "event: message_start\ndata: {}\n\n";
        expect(
            "anthropic",
            &format!("{start}event: message_stop\ndata: {{}}\n\n"),
            true,
        );
        expect(
            "anthropic",
            &format!("{start}event: error\ndata: {{}}\n\n"),
            true,
        );
        expect(
            "anthropic",
            &format!("{start}event: message_delta\ndata: {{}}\n\n"),
            false,
        );
    }

    #[test]
    fn a_gemini_stream_ends_with_a_reason() {
        let part = "data: {\"candidates\": [{\"content\": {}}]}\n\n";
        let end = "data: {\"candidates\": [{\"finishReason\": \"STOP\"}]}\n\n";
        expect("gemini", &format!("{part}{end}"), true);
        expect("gemini", end, true);
        expect("gemini", &format!("{part}{part}"), false);
    }

    #[test]
    fn what_is_not_known_counts_as_whole() {
        expect("openai", "event: new.kind\ndata: {}\n\n", true);
        expect("openai", "", true);
        assert!(watch("generic").is_none());
    }

    #[test]
    fn a_line_of_any_length_takes_little_memory_and_its_end_is_seen() {
        let mut end = watch("gemini").unwrap();
        end.see(b"data: {\"candidates\":[{\"text\":\"");
        for _ in 0..1000 {
            end.see(&[b'x'; 1024]);
            assert!(end.line.len() < 64 * 1024);
        }
        end.see(b"\",\"finishReason\":\"STOP\"}]}\n\n");
        assert!(end.is_whole());
    }
}
