//! Picks a few values out of JSON texts as they pass, whatever the cut of the pieces, and keeps
//! nothing else.

use std::borrow::Cow;
use std::mem;

use memchr::memchr2;

/// A name or a value longer than this is not looked at.
const MAX_TEXT: usize = 256;

/// Which values are wanted, and what they are wanted as.
#[derive(Debug)]
pub(crate) struct Tree<T> {
    /// The first is the whole document.
    nodes: Vec<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    below: Vec<(Box<str>, usize)>,
    wanted: Vec<T>,
}

/// The token of a pointer that stands for every element of an array.
const EVERY: &str = "*";

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            below: Vec::new(),
            wanted: Vec::new(),
        }
    }
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }
}

impl<T> Tree<T> {
    /// Wants what `tokens` lead to; `*` leads to every element of an array.
    pub(crate) fn want<'a>(&mut self, tokens: impl IntoIterator<Item = &'a str>, wanted: T) {
        let mut at = 0;
        for token in tokens {
            let known = self.nodes[at]
                .below
                .iter()
                .find(|(name, _)| **name == *token);
            at = match known {
                Some((_, below)) => *below,
                None => {
                    let new = self.nodes.len();
                    self.nodes[at].below.push((token.into(), new));
                    self.nodes.push(Node::default());
                    new
                }
            };
        }
        self.nodes[at].wanted.push(wanted);
    }

    fn member(&self, of: usize, name: &str) -> Option<usize> {
        let mut below = self.nodes[of].below.iter();
        below.find(|(known, _)| **known == *name).map(|(_, at)| *at)
    }

    fn element(&self, of: usize, index: u64) -> Option<usize> {
        let mut below = self.nodes[of].below.iter();
        below
            .find(|(known, _)| **known == *EVERY || known.parse() == Ok(index))
            .map(|(_, at)| *at)
    }

    fn wanted(&self, node: Option<usize>) -> &[T] {
        node.map_or(&[], |node| &self.nodes[node].wanted)
    }
}

/// A value without parts. `null` and `false` are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scalar<'a> {
    /// A string, its escapes undone.
    Text(Cow<'a, str>),
    /// A number as it stands there.
    Number(&'a str),
    /// `true`.
    True,
}

/// Where one reader of JSON texts stands.
///
/// It takes one text after another, with white space between them (so JSON lines, too), and is
/// lenient: a text that is not quite JSON may be taken, but what no JSON text can begin with ends
/// the reading until [`Picker::restart`]. What nobody wants is skipped without a stack, however deep
/// it is nested.
#[derive(Debug, Default)]
pub(crate) struct Picker {
    state: State,
    /// The objects and arrays on the way to something wanted; never more than the tree is deep.
    path: Vec<Level>,
    /// Which part of the tree the value that comes next is; `None` where nobody wants it.
    next: Option<usize>,
    /// How many unwanted objects and arrays are open.
    skipped: u64,
    /// The wanted name or value, as far as it came.
    text: Vec<u8>,
    too_long: bool,
    /// Whether the last byte was the backslash of an escape.
    escaped: bool,
    /// How many whole texts there were.
    texts: u64,
}

#[derive(Debug)]
struct Level {
    node: usize,
    /// The index of the current element, in an array.
    element: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Value,
    AfterValue,
    Name,
    NameText,
    Colon,
    /// Within a wanted string.
    Text,
    /// Within a wanted number or word.
    Word,
    /// Among unwanted things.
    Skip,
    /// Within an unwanted string.
    SkipText,
    Failed,
}

impl Picker {
    /// Takes the next bytes, and tells `found` about every wanted value that ends in them.
    pub(crate) fn push<T: Copy>(
        &mut self,
        tree: &Tree<T>,
        bytes: &[u8],
        mut found: impl FnMut(T, &Scalar<'_>),
    ) {
        let mut rest = bytes;
        while !rest.is_empty() && self.state != State::Failed {
            let used = match self.state {
                State::Start => self.start(),
                State::Text | State::NameText | State::SkipText => {
                    self.within_text(tree, rest, &mut found)
                }
                State::Word => self.within_word(tree, rest, &mut found),
                State::Skip => self.skip(rest),
                _ => self.structure(tree, rest[0]),
            };
            rest = &rest[used..];
        }
    }

    /// Whether there was a text, and each was whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.texts > 0 && self.state == State::Start
    }

    /// Forgets a text that is not whole: the next byte begins another.
    pub(crate) fn restart(&mut self) {
        let text = mem::take(&mut self.text);
        let path = mem::take(&mut self.path);
        *self = Self {
            text,
            path,
            ..Self::default()
        };
        self.text.clear();
        self.path.clear();
    }

    fn start(&mut self) -> usize {
        self.next = Some(0);
        self.state = State::Value;
        0
    }

    /// One byte between names and values.
    fn structure<T>(&mut self, tree: &Tree<T>, byte: u8) -> usize {
        match (self.state, byte) {
            (_, b' ' | b'\t' | b'\n' | b'\r') => {
                // Between two texts, there is nothing yet.
                if self.state == State::Value && self.path.is_empty() {
                    self.state = State::Start;
                }
            }
            (State::Value, b'{' | b'[') => self.open(tree, byte == b'['),
            (State::Value, b'"') => {
                self.begin_text(match tree.wanted(self.next).is_empty() {
                    true => State::SkipText,
                    false => State::Text,
                });
            }
            (State::Value, b'-' | b'0'..=b'9' | b'a'..=b'z') => {
                self.begin_text(State::Word);
                return 0;
            }
            (State::Name, b'"') => self.begin_text(State::NameText),
            (State::Colon, b':') => self.state = State::Value,
            (State::AfterValue, b',') => self.after_comma(tree),
            (State::Value | State::AfterValue, b']') if self.in_array() => self.close(),
            (State::Name | State::AfterValue, b'}') if !self.in_array() => self.close(),
            _ => self.state = State::Failed,
        }
        1
    }

    fn in_array(&self) -> bool {
        self.path
            .last()
            .is_some_and(|level| level.element.is_some())
    }

    fn open<T>(&mut self, tree: &Tree<T>, is_array: bool) {
        let Some(node) = self.next.filter(|node| !tree.nodes[*node].below.is_empty()) else {
            self.skipped = 1;
            self.state = State::Skip;
            return;
        };
        self.path.push(Level {
            node,
            element: is_array.then_some(0),
        });
        self.state = match is_array {
            true => State::Value,
            false => State::Name,
        };
        self.next = tree.element(node, 0).filter(|_| is_array);
    }

    fn after_comma<T>(&mut self, tree: &Tree<T>) {
        self.state = match self.path.last_mut() {
            None => State::Failed,
            Some(Level { element: None, .. }) => State::Name,
            Some(Level {
                node,
                element: Some(index),
            }) => {
                *index += 1;
                self.next = tree.element(*node, *index);
                State::Value
            }
        };
    }

    fn close(&mut self) {
        self.path.pop();
        self.after_value();
    }

    fn after_value(&mut self) {
        self.state = State::AfterValue;
        if self.path.is_empty() {
            self.state = State::Start;
            self.texts += 1;
        }
    }

    fn begin_text(&mut self, state: State) {
        self.state = state;
        self.text.clear();
        self.too_long = false;
        self.escaped = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        match self.text.len() + bytes.len() <= MAX_TEXT {
            true => self.text.extend_from_slice(bytes),
            false => self.too_long = true,
        }
    }

    /// Up to the end of a string, or of `bytes`.
    fn within_text<T: Copy>(
        &mut self,
        tree: &Tree<T>,
        bytes: &[u8],
        found: &mut impl FnMut(T, &Scalar<'_>),
    ) -> usize {
        let is_kept = self.state != State::SkipText;
        if mem::take(&mut self.escaped) {
            if is_kept {
                self.keep(&bytes[..1]);
            }
            return 1;
        }
        let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        if is_kept {
            self.keep(&bytes[..end]);
        }
        match bytes.get(end) {
            None => return end,
            Some(b'\\') => {
                self.escaped = true;
                if is_kept {
                    self.keep(b"\\");
                }
            }
            Some(_) => self.end_text(tree, found),
        }
        end + 1
    }

    fn end_text<T: Copy>(&mut self, tree: &Tree<T>, found: &mut impl FnMut(T, &Scalar<'_>)) {
        match self.state {
            State::SkipText if self.skipped > 0 => self.state = State::Skip,
            State::SkipText => self.after_value(),
            State::NameText => {
                let name = self.unescaped();
                let level = self.path.last();
                self.next = level.and_then(|level| tree.member(level.node, &name?));
                self.state = State::Colon;
            }
            _ => {
                if let Some(text) = self.unescaped() {
                    let text = Scalar::Text(text);
                    let wanted = tree.wanted(self.next).iter();
                    wanted.for_each(|wanted| found(*wanted, &text));
                }
                self.after_value();
            }
        }
    }

    /// The string that was kept, where it is one.
    fn unescaped(&self) -> Option<Cow<'_, str>> {
        if self.too_long {
            return None;
        }
        let text = std::str::from_utf8(&self.text).ok()?;
        if !text.contains('\\') {
            return Some(Cow::Borrowed(text));
        }
        serde_json::from_str(&format!("\"{text}\""))
            .ok()
            .map(Cow::Owned)
    }

    fn within_word<T: Copy>(
        &mut self,
        tree: &Tree<T>,
        bytes: &[u8],
        found: &mut impl FnMut(T, &Scalar<'_>),
    ) -> usize {
        let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let end = bytes.iter().position(|byte| !goes_on(byte));
        let length = end.unwrap_or(bytes.len());
        if !tree.wanted(self.next).is_empty() {
            self.keep(&bytes[..length]);
        }
        if end.is_some() {
            if let Some(value) = self.word() {
                let wanted = tree.wanted(self.next).iter();
                wanted.for_each(|wanted| found(*wanted, &value));
            }
            self.after_value();
        }
        length
    }

    fn word(&self) -> Option<Scalar<'_>> {
        if self.too_long {
            return None;
        }
        let word = std::str::from_utf8(&self.text).ok()?;
        match word {
            "true" => Some(Scalar::True),
            _ if word.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) => {
                Some(Scalar::Number(word))
            }
            _ => None,
        }
    }

    /// Over what nobody wants, to its end, the next string, or the end of `bytes`.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => {
                    self.begin_text(State::SkipText);
                    return at + 1;
                }
                b'{' | b'[' => self.skipped += 1,
                b'}' | b']' => {
                    self.skipped -= 1;
                    if self.skipped == 0 {
                        self.after_value();
                        return at + 1;
                    }
                }
                _ => {}
            }
        }
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(pointers: &[&'static str]) -> Tree<&'static str> {
        let mut tree = Tree::default();
        for pointer in pointers {
            tree.want(pointer.split('/').skip(1), *pointer);
        }
        tree
    }

    /// What is found in `json`, the same in one piece and byte by byte; and whether it is whole.
    #[track_caller]
    fn found(pointers: &[&'static str], json: &str) -> (Vec<String>, bool) {
        let tree = tree(pointers);
        let read = |size: usize| {
            let mut picker = Picker::default();
            let mut all = Vec::new();
            for piece in json.as_bytes().chunks(size) {
                picker.push(&tree, piece, |pointer, value| {
                    all.push(format!("{pointer} {value:?}"));
                });
            }
            assert!(picker.path.len() <= 8 && picker.text.capacity() <= 2 * MAX_TEXT);
            (all, picker.is_whole())
        };
        let whole = read(json.len());
        for size in 1..json.len().min(20) {
            assert_eq!(read(size), whole, "in pieces of {size}: {json}");
        }
        whole
    }

    #[test]
    fn what_is_wanted_is_found_and_nothing_else() {
        for (json, values) in [
            (r#"{"a":{"b":12}}"#, vec!["/a/b Number(\"12\")"]),
            (
                r#" { "a" : { "x" : [ 1 , { "b" : 2 } ] , "b" : -1.5e3 } } "#,
                vec!["/a/b Number(\"-1.5e3\")"],
            ),
            (
                r#"{"a":{"b":"x\"\\\u00e9\ud83d\ude00"}}"#,
                vec!["/a/b Text(\"x\\\"\\\\é😀\")"],
            ),
            (r#"{"\u0061":{"b":true}}"#, vec!["/a/b True"]),
            (r#"{"a":{"b":null,"b":false}}"#, vec![]),
            (r#"{"a":{"b":{"c":1}}}"#, vec![]),
            (r#"{"a":[{"b":1}],"b":2}"#, vec![]),
            (
                r#"{"x":"{\"a\":{\"b\":1}}","a":{"b":2}}"#,
                vec!["/a/b Number(\"2\")"],
            ),
            (
                r#"{"x":[[{"a":{"b":1}}],"]",{}],"a":{"b":2}}"#,
                vec!["/a/b Number(\"2\")"],
            ),
            (
                r#"{"a":{"b":1},"a":{"b":2}}"#,
                vec!["/a/b Number(\"1\")", "/a/b Number(\"2\")"],
            ),
            (
                "{\"a\":{\"b\":1}}\n{\"a\":{\"b\":2}}\n",
                vec!["/a/b Number(\"1\")", "/a/b Number(\"2\")"],
            ),
            ("{}", vec![]),
            ("[]", vec![]),
            (r#"{"a":{"b":"\q"}}"#, vec![]),
        ] {
            assert_eq!(
                found(&["/a/b"], json),
                (values.iter().map(|v| (*v).into()).collect(), true),
                "{json}"
            );
        }
    }

    #[test]
    fn a_star_is_every_element_and_a_number_one_of_them() {
        let json = r#"[{"u":1,"v":[5,6,7]},{"u":2},{"*":{"u":9}},[],3]"#;
        assert_eq!(
            found(&["/*/u", "/0/v/2"], json).0,
            ["/*/u Number(\"1\")", "/*/u Number(\"2\")"],
        );
        assert_eq!(found(&["/0/v/2"], json).0, ["/0/v/2 Number(\"7\")"]);
        assert_eq!(
            found(&["/*/u"], r#"{"*":{"u":9}}"#).0,
            ["/*/u Number(\"9\")"]
        );
    }

    #[test]
    fn a_text_that_is_cut_is_not_whole_and_no_number_is_taken_in_half() {
        let json = r#"{"a":{"b":123},"c":"d"}"#;
        for end in 1..json.len() {
            let (values, is_whole) = found(&["/a/b"], &json[..end]);
            assert!(!is_whole, "{end}");
            let number_ends = json.find('}').expect("an end");
            assert_eq!(values.len(), usize::from(end > number_ends), "{end}");
        }
    }

    #[test]
    fn what_is_not_json_is_not_read_until_the_next_text() {
        for text in [
            "<html>{\"a\":{\"b\":1}}",
            "[DONE]",
            "{\"a\" 1}",
            "{]",
            "}",
            "{\"a\":{\"b\":1]}",
        ] {
            assert!(!found(&["/a/b"], text).1, "{text}");
        }
        let tree = tree(&["/a"]);
        let mut picker = Picker::default();
        let mut count = 0;
        picker.push(&tree, b"<{\"a\":1}", |_, _| count += 1);
        picker.restart();
        picker.push(&tree, b"{\"a\":1}", |_, _| count += 1);
        assert_eq!((count, picker.is_whole()), (1, true));
    }

    #[test]
    fn long_names_and_values_are_passed_over() {
        let long = "x".repeat(100_000);
        let json = format!(
            r#"{{"{long}":1,"a":{{"b":"{long}","b":{},"b":7}}}}"#,
            "1".repeat(1000)
        );
        assert_eq!(
            found(&["/a/b"], &json),
            (vec!["/a/b Number(\"7\")".to_owned()], true)
        );
    }

    #[test]
    fn nesting_costs_nothing() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let json = format!(r#"{{"x":{deep},"a":{{"b":7,"c":{deep}}}}}"#);
        assert_eq!(
            found(&["/a/b"], &json),
            (vec!["/a/b Number(\"7\")".to_owned()], true)
        );
        let json = r#"{"a":"#.repeat(100_000);
        assert_eq!(found(&["/a/b"], &json), (vec![], false));
    }
}
