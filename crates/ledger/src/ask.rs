//! What a request asks for: its model, and whether its stream is to tell what it used.

use std::io::Read;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use struson::reader::{JsonReader, JsonStreamReader, ReaderError, ValueType};

use crate::json::{Picker, Scalar, Tree};

/// A model that is named further behind is not found.
const MODEL_WITHIN: usize = 64 * 1024;
/// How much is looked at before it is asked whether that was enough.
const AT_ONCE: usize = 4 * 1024;

static MODEL: LazyLock<Tree<()>> = LazyLock::new(|| {
    let mut tree = Tree::default();
    tree.want(["model"], ());
    tree
});

/// Reads the model that a JSON request names (`/model`) out of the beginning of its body, as it
/// passes.
#[derive(Debug, Default)]
pub struct NamedModel {
    picker: Picker,
    seen: usize,
    model: Option<Box<str>>,
}

impl NamedModel {
    /// How many bytes of a body are looked at.
    pub const WITHIN: usize = MODEL_WITHIN;

    /// The model that a body names which begins with `bytes`.
    pub fn of(bytes: &[u8]) -> Option<Box<str>> {
        let mut asked = Self::default();
        asked.see(bytes);
        asked.model
    }

    /// Takes the next bytes of the body.
    pub fn see(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(MODEL_WITHIN - self.seen)];
        self.seen += bytes.len();
        for piece in bytes.chunks(AT_ONCE) {
            if self.model.is_some() {
                return;
            }
            let model = &mut self.model;
            self.picker.push(&MODEL, piece, |(), value| {
                if let (Scalar::Text(text), None) = (value, &model) {
                    *model = Some((**text).into());
                }
            });
        }
    }

    /// The model, as far as it was named by now.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

/// What is to be added to a JSON request, so that its stream tells what it used
/// (`stream_options.include_usage` of the OpenAI API).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addition {
    /// Where, in bytes from the start of the body.
    pub at: u64,
    /// How many bytes go.
    pub replaces: u64,
    /// What comes in their place.
    pub text: &'static str,
}

impl Addition {
    /// What the request `body` lacks, read to its end. `None` where it asks itself, where it asks for
    /// no stream, and where it is not JSON that all read alike: then it goes as it came.
    pub fn to(body: impl Read) -> Option<Self> {
        let mut reader = JsonStreamReader::new(body);
        let members = Members::of(&mut reader).ok()?;
        reader.consume_trailing_whitespace().ok()?;
        members.addition()
    }

    /// `body` with it.
    pub fn made(self, body: &[u8]) -> Option<Bytes> {
        let at = usize::try_from(self.at).ok()?;
        let rest = at.checked_add(usize::try_from(self.replaces).ok()?)?;
        let mut whole = BytesMut::with_capacity(body.len() + self.text.len());
        whole.extend_from_slice(body.get(..at)?);
        whole.extend_from_slice(self.text.as_bytes());
        whole.extend_from_slice(body.get(rest..)?);
        Some(whole.freeze())
    }
}

/// What of a request's members counts here.
struct Members {
    /// Where its object begins.
    start: u64,
    streams: bool,
    options: Options,
    /// Some have one name: readers do not agree on which of them counts.
    is_ambiguous: bool,
}

/// `stream_options`, and `include_usage` in it.
enum Options {
    Absent,
    Null {
        at: u64,
    },
    Object {
        at: u64,
        is_empty: bool,
        include_usage: Include,
    },
    /// Something that is not understood.
    Other,
}

#[derive(Clone, Copy)]
enum Include {
    Absent,
    /// `false` or `null`, of that many bytes.
    No {
        at: u64,
        length: u64,
    },
    Yes,
    Other,
}

impl Members {
    fn of<R: Read>(reader: &mut JsonStreamReader<R>) -> Result<Self, ReaderError> {
        reader.peek()?;
        let mut members = Self {
            start: place(reader),
            streams: false,
            options: Options::Absent,
            is_ambiguous: false,
        };
        let (mut stream, mut options) = (0, 0);
        if reader.peek()? != ValueType::Object {
            reader.skip_value()?;
            return Ok(members);
        }
        reader.begin_object()?;
        while reader.has_next()? {
            match reader.next_name()? {
                "stream" => {
                    stream += 1;
                    members.streams = match reader.peek()? {
                        ValueType::Boolean => reader.next_bool()?,
                        _ => {
                            reader.skip_value()?;
                            false
                        }
                    };
                }
                "stream_options" => {
                    options += 1;
                    members.options = Options::of(reader)?;
                }
                _ => reader.skip_value()?,
            }
        }
        reader.end_object()?;
        members.is_ambiguous = stream > 1 || options > 1;
        Ok(members)
    }

    fn addition(self) -> Option<Addition> {
        if !self.streams || self.is_ambiguous {
            return None;
        }
        let (at, replaces, text) = match self.options {
            // There is another member: `stream`.
            Options::Absent => (
                self.start + 1,
                0,
                "\"stream_options\":{\"include_usage\":true},",
            ),
            Options::Null { at } => (at, 4, "{\"include_usage\":true}"),
            Options::Object {
                at,
                is_empty,
                include_usage,
            } => match include_usage {
                Include::Absent if is_empty => (at + 1, 0, "\"include_usage\":true"),
                Include::Absent => (at + 1, 0, "\"include_usage\":true,"),
                Include::No { at, length } => (at, length, "true"),
                Include::Yes | Include::Other => return None,
            },
            Options::Other => return None,
        };
        Some(Addition { at, replaces, text })
    }
}

impl Options {
    fn of<R: Read>(reader: &mut JsonStreamReader<R>) -> Result<Self, ReaderError> {
        let kind = reader.peek()?;
        let at = place(reader);
        match kind {
            ValueType::Null => {
                reader.next_null()?;
                return Ok(Self::Null { at });
            }
            ValueType::Object => {}
            _ => {
                reader.skip_value()?;
                return Ok(Self::Other);
            }
        }
        reader.begin_object()?;
        let (mut is_empty, mut include_usage) = (true, Include::Absent);
        while reader.has_next()? {
            is_empty = false;
            if reader.next_name()? != "include_usage" {
                reader.skip_value()?;
                continue;
            }
            let found = Include::of(reader)?;
            include_usage = match include_usage {
                Include::Absent => found,
                _ => Include::Other,
            };
        }
        reader.end_object()?;
        Ok(Self::Object {
            at,
            is_empty,
            include_usage,
        })
    }
}

impl Include {
    fn of<R: Read>(reader: &mut JsonStreamReader<R>) -> Result<Self, ReaderError> {
        let kind = reader.peek()?;
        let at = place(reader);
        Ok(match kind {
            ValueType::Boolean if reader.next_bool()? => Self::Yes,
            ValueType::Boolean => Self::No { at, length: 5 },
            ValueType::Null => {
                reader.next_null()?;
                Self::No { at, length: 4 }
            }
            _ => {
                reader.skip_value()?;
                Self::Other
            }
        })
    }
}

/// Where the value begins that was just peeked at.
fn place<R: Read>(reader: &JsonStreamReader<R>) -> u64 {
    reader.current_position(false).data_pos.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(body: &str) -> Option<String> {
        let bytes = body.as_bytes();
        let made = Addition::to(bytes)?.made(bytes)?;
        Some(String::from_utf8(made.to_vec()).expect("UTF-8"))
    }

    #[test]
    fn a_stream_is_asked_to_tell_its_usage_and_nothing_else_changes() {
        for (body, asked) in [
            (
                r#"{"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                " {\n \"a\" : [ {\"stream\":false} ] , \"stream\" : true }\n ",
                " {\"stream_options\":{\"include_usage\":true},\n \"a\" : [ {\"stream\":false} ] , \"stream\" : true }\n ",
            ),
            (
                r#"{"stream":true,"stream_options":null}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options": { } ,"stream":true}"#,
                r#"{"stream_options": {"include_usage":true } ,"stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_obfuscation":false}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"a":{"include_usage":1},"include_usage": false }}"#,
                r#"{"stream":true,"stream_options":{"a":{"include_usage":1},"include_usage": true }}"#,
            ),
            (
                r#"{"n":"é\u00e9😀","stream":true,"stream_options":{"include_usage":null}}"#,
                r#"{"n":"é\u00e9😀","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"str\u0065am":true}"#,
                r#"{"stream_options":{"include_usage":true},"str\u0065am":true}"#,
            ),
        ] {
            assert_eq!(made(body).as_deref(), Some(asked), "{body}");
            assert_eq!(made(asked), None, "{asked}");
            let read: serde_json::Value = serde_json::from_str(asked).expect("JSON");
            assert_eq!(read["stream_options"]["include_usage"], true);
        }
    }

    #[test]
    fn what_asks_itself_or_for_no_stream_or_is_not_understood_goes_as_it_came() {
        for body in [
            "",
            "{}",
            "[]",
            "true",
            r#"[{"stream":true}]"#,
            r#"{"stream":false}"#,
            r#"{"stream":"true"}"#,
            r#"{"stream":1}"#,
            r#"{"a":{"stream":true}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":true,"stream":true}"#,
            r#"{"stream":true,"stream_options":{},"stream_options":{}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":false,"include_usage":true}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":"yes"}}"#,
            r#"{"stream":true,"stream_options":7}"#,
            r#"{"stream":true"#,
            r#"{"stream":true}}"#,
            r#"{"stream":true} {}"#,
            r#"{"stream":true,}"#,
            "{\"a\":\"\u{1}\",\"stream\":true}",
        ] {
            assert_eq!(made(body), None, "{body}");
        }
        assert_eq!(Addition::to(&b"{\"a\":\"\xff\",\"stream\":true}"[..]), None);
    }

    #[test]
    fn the_model_is_the_one_at_the_top() {
        for (body, model) in [
            (r#"{"model":"gpt-5"}"#, Some("gpt-5")),
            (
                r#"{"messages":[{"model":"no","content":"\"model\":\"no\""}],"model":"gpt-5","x":"#,
                Some("gpt-5"),
            ),
            (r#"{"model":null}"#, None),
            (r#"{"model":{"model":"no"}}"#, None),
            (r#"{"model":"gpt"#, None),
            ("model=gpt-5", None),
            ("", None),
        ] {
            assert_eq!(NamedModel::of(body.as_bytes()).as_deref(), model, "{body}");
            for cut in 0..=body.len() {
                let mut asked = NamedModel::default();
                asked.see(&body.as_bytes()[..cut]);
                asked.see(&body.as_bytes()[cut..]);
                assert_eq!(asked.model(), model, "{body} cut at {cut}");
            }
        }
    }

    #[test]
    fn i15_a_model_is_looked_for_in_the_beginning_alone() {
        let body = |filler: usize| format!(r#"{{"x":"{}","model":"m"}}"#, "x".repeat(filler));
        let around = body(0).len() - 1;
        let found = |filler| NamedModel::of(body(filler).as_bytes());
        assert_eq!(found(MODEL_WITHIN - around).as_deref(), Some("m"));
        assert_eq!(found(MODEL_WITHIN), None);
    }
}
