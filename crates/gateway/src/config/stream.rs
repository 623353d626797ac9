//! How an upstream's event streams begin and end: a clean end of the body does not prove that the
//! provider said all that it had to say.

use memchr::memmem;

use super::error::ConfigError;
use super::section::{Entry, Section};

/// One kind of event stream (`text/event-stream`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamKind {
    /// A line of its first event; a stream that begins otherwise is of another kind.
    pub begins: Line,
    /// Its last event has one of these lines, or the stream was cut short.
    pub ends: Vec<Line>,
}

/// What a line of an event looks like: `data: [DONE]`, or `data: *"finishReason"`, where anything
/// may stand in the place of the star, and after what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    field: Box<str>,
    start: Box<str>,
    /// What comes somewhere after the start. Without it the value is the start and no more.
    later: Option<Box<str>>,
}

impl StreamKind {
    /// Reads `{ begins = "...", ends = ["..."] }`.
    pub(super) fn read(mut section: Section<'_>) -> Result<Self, ConfigError> {
        let begins = section.require("begins", "write a line of the first event")?;
        let begins = Line::read(&begins)?;
        let ends = section.require("ends", "list the lines that the last event may have")?;
        let items = ends.list("[\"data: [DONE]\"]")?;
        if items.is_empty() {
            return Err(ends.fail("is empty", "list the lines that the last event may have"));
        }
        let ends = items.iter().map(Line::read).collect::<Result<_, _>>()?;
        section.finish()?;
        Ok(Self { begins, ends })
    }
}

impl std::fmt::Display for Line {
    /// As `Line::parse` reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.start)?;
        match &self.later {
            Some(later) => write!(f, "*{later}"),
            None => Ok(()),
        }
    }
}

impl Line {
    fn read(entry: &Entry<'_>) -> Result<Self, ConfigError> {
        let text = entry.text()?;
        Self::parse(text).ok_or_else(|| {
            entry.fail(
                format!("is \"{text}\", which is no line of an event"),
                "write it like \"data: [DONE]\", \"event: message_stop\" or \"data: *\\\"done\\\"\"",
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (field, value) = text.split_once(": ")?;
        let (start, later) = match value.split_once('*') {
            Some((start, later)) => (start, Some(later.into())),
            None => (value, None),
        };
        (!field.is_empty() && !value.is_empty()).then(|| Self {
            field: field.into(),
            start: start.into(),
            later,
        })
    }

    /// Whether `line`, without its line end, is such a line. The space after the colon is the
    /// sender's choice.
    pub(crate) fn matches(&self, line: &[u8]) -> bool {
        let value = line
            .strip_prefix(self.field.as_bytes())
            .and_then(|rest| rest.strip_prefix(b":"))
            .map(|value| value.strip_prefix(b" ").unwrap_or(value));
        let Some(rest) = value.and_then(|value| value.strip_prefix(self.start.as_bytes())) else {
            return false;
        };
        match &self.later {
            None => rest.trim_ascii_end().is_empty(),
            Some(later) => memmem::find(rest, later.as_bytes()).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn a_line_is_matched_whole_or_by_what_it_holds() {
        let done = Line::parse("data: [DONE]").unwrap();
        assert!(done.matches(b"data: [DONE]") && done.matches(b"data:[DONE]"));
        assert!(!done.matches(b"data: [DONE] not") && !done.matches(b"event: [DONE]"));
        let holds = Line::parse("data: *\"finishReason\"").unwrap();
        assert!(holds.matches(br#"data: {"a":1,"finishReason":"STOP"}"#));
        // A model that writes about it does not end its stream: its quotes are escaped.
        assert!(!holds.matches(br#"data: {"text":"\"finishReason\": \"STOP\""}"#));
        let error = Line::parse("data: {\"error\"*").unwrap();
        assert!(error.matches(br#"data: {"error":{}}"#));
        assert!(!error.matches(br#"data: {"id":1,"error":null}"#));
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for text in ["", "[DONE]", "data:", "data: ", ": x"] {
            assert_eq!(Line::parse(text), None, "{text:?}");
        }
    }
}
