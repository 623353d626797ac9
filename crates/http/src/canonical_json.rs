//! Canonical JSON (RFC 8785), for routes that compare bodies by meaning.
//!
//! One thing is stricter than the RFC. It takes every number for a double, so that
//! 9007199254740993 and 9007199254740992 would come out the same, and with them two payments. A
//! number that a double cannot hold (an integer beyond 2^53, or one too large or too small) keeps
//! its own digits here. For all others the result is the RFC's.

use std::cmp::Ordering;
use std::ops::Range;

use onlyonce_core::planted::{Bug, planted};
use struson::reader::{JsonReader, JsonStreamReader, ReaderError, ReaderSettings, ValueType};

/// The deepest nesting that is taken.
const MAX_DEPTH: u32 = 64;
/// 2^53: from here on not every integer is a double.
const EXACT_INTEGERS_END: f64 = 9_007_199_254_740_992.0;

/// Why a text has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum NotCanonical {
    /// It is not JSON (RFC 8259), or is nested too deeply.
    #[error("not JSON: {0}")]
    Malformed(#[from] ReaderError),
    /// An object has two members of one name: readers do not agree on which of them counts.
    #[error("an object has two members named {name:?}")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// An exponent without bound.
    #[error("a number's exponent is too large")]
    Exponent,
}

/// A JSON pointer (RFC 6901) to something that does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Box<[String]>);

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .iter()
            .try_for_each(|part| write!(f, "/{}", part.replace('~', "~0").replace('/', "~1")))
    }
}

/// A text that is no pointer, or one to the whole document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a JSON pointer into a document; write one like /metadata/sent_at")]
pub struct NotAPointer {
    /// The text.
    pub text: String,
}

impl Pointer {
    /// Takes `text` as a pointer. The empty pointer is refused: it would ignore the whole body.
    pub fn parse(text: &str) -> Result<Self, NotAPointer> {
        let refused = || NotAPointer { text: text.into() };
        let tokens = text.strip_prefix('/').ok_or_else(refused)?;
        tokens
            .split('/')
            .map(|token| unescape(token).ok_or_else(refused))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The names and indexes that lead to what it points at, outermost first.
    pub fn tokens(&self) -> &[String] {
        &self.0
    }
}

/// RFC 6901 section 4: `~1` is a slash, `~0` a tilde, and no other escape exists.
fn unescape(token: &str) -> Option<String> {
    let mut pieces = token.split('~');
    let mut text = pieces.next()?.to_owned();
    for piece in pieces {
        match piece.as_bytes().first()? {
            b'0' => text.push('~'),
            b'1' => text.push('/'),
            _ => return None,
        }
        text.push_str(&piece[1..]);
    }
    Some(text)
}

/// The canonical form of the JSON text `json`.
///
/// What a pointer of `ignore` points at is left out: a member as if it were not there, an element
/// of an array as if it were `null`, so that the others keep their places.
pub fn canonicalize(json: &[u8], ignore: &[Pointer]) -> Result<Vec<u8>, NotCanonical> {
    let settings = ReaderSettings {
        max_nesting_depth: Some(MAX_DEPTH),
        track_path: false,
        restrict_number_values: false,
        ..ReaderSettings::default()
    };
    let mut reader = JsonStreamReader::new_custom(json, settings);
    let mut canonical = Vec::with_capacity(json.len());
    let tokens: Vec<&[String]> = ignore.iter().map(|pointer| &*pointer.0).collect();
    write_value(&mut reader, &tokens, &mut canonical)?;
    reader.consume_trailing_whitespace()?;
    Ok(canonical)
}

type Reader<'a> = JsonStreamReader<&'a [u8]>;

/// `ignore` holds, of every pointer that leads through this value, the tokens that are left.
fn write_value(
    reader: &mut Reader<'_>,
    ignore: &[&[String]],
    out: &mut Vec<u8>,
) -> Result<(), NotCanonical> {
    match reader.peek()? {
        ValueType::Object => write_object(reader, ignore, out)?,
        ValueType::Array => write_array(reader, ignore, out)?,
        ValueType::String => write_string(reader.next_str()?, out),
        ValueType::Number => write_number(reader.next_number_as_str()?, out)?,
        ValueType::Boolean => out.extend_from_slice(if reader.next_bool()? {
            b"true"
        } else {
            b"false"
        }),
        ValueType::Null => {
            reader.next_null()?;
            out.extend_from_slice(b"null");
        }
    }
    Ok(())
}

fn write_object(
    reader: &mut Reader<'_>,
    ignore: &[&[String]],
    out: &mut Vec<u8>,
) -> Result<(), NotCanonical> {
    reader.begin_object()?;
    // All names and all values stand in one piece of memory each: an object may be nothing but small members.
    let (mut names, mut values) = (String::new(), Vec::new());
    let mut members: Vec<(Range<usize>, Option<Range<usize>>)> = Vec::new();
    while reader.has_next()? {
        let name_at = names.len();
        names.push_str(reader.next_name()?);
        let name = name_at..names.len();
        let value_at = values.len();
        // An ignored member is read as well: it must be JSON, and its name must not come twice.
        let counts = write_below(reader, &step(ignore, &names[name.clone()]), &mut values)?;
        members.push((name, counts.then_some(value_at..values.len())));
    }
    reader.end_object()?;
    members.sort_unstable_by(|(one, _), (other, _)| {
        compare_utf16(&names[one.clone()], &names[other.clone()])
    });
    let twice = |pair: &&[(Range<usize>, _)]| names[pair[0].0.clone()] == names[pair[1].0.clone()];
    if let Some(pair) = members.windows(2).find(twice) {
        return Err(NotCanonical::DuplicateName {
            name: names[pair[0].0.clone()].to_owned(),
        });
    }
    out.push(b'{');
    let mut separator: &[u8] = b"";
    for (name, value) in members {
        let Some(value) = value else { continue };
        out.extend_from_slice(separator);
        separator = b",";
        write_string(&names[name], out);
        out.push(b':');
        out.extend_from_slice(&values[value]);
    }
    out.push(b'}');
    Ok(())
}

fn write_array(
    reader: &mut Reader<'_>,
    ignore: &[&[String]],
    out: &mut Vec<u8>,
) -> Result<(), NotCanonical> {
    reader.begin_array()?;
    out.push(b'[');
    let mut index = 0_usize;
    while reader.has_next()? {
        if index > 0 {
            out.push(b',');
        }
        let below = match ignore {
            [] => Below::Counts(Vec::new()),
            _ => step(ignore, &index.to_string()),
        };
        if !write_below(reader, &below, out)? {
            out.extend_from_slice(b"null");
        }
        index += 1;
    }
    reader.end_array()?;
    out.push(b']');
    Ok(())
}

/// What the pointers say of a member or an element.
enum Below<'a> {
    /// It does not count.
    Ignored,
    /// It counts, but for what these remaining tokens point at.
    Counts(Vec<&'a [String]>),
}

fn step<'a>(ignore: &[&'a [String]], token: &str) -> Below<'a> {
    let mut left = Vec::new();
    for tokens in ignore {
        match tokens {
            [last] if last == token => return Below::Ignored,
            [first, rest @ ..] if first == token => left.push(rest),
            _ => {}
        }
    }
    Below::Counts(left)
}

/// Writes the canonical form of the next value, unless it does not count; says whether it does.
fn write_below(
    reader: &mut Reader<'_>,
    below: &Below<'_>,
    out: &mut Vec<u8>,
) -> Result<bool, NotCanonical> {
    match below {
        // Not skipped but read, so that an ignored value with a name twice is refused as well.
        Below::Ignored => {
            let at = out.len();
            write_value(reader, &[], out)?;
            out.truncate(at);
            Ok(false)
        }
        Below::Counts(left) => write_value(reader, left, out).map(|()| true),
    }
}

/// RFC 8785 section 3.2.3: names are sorted by their UTF-16 code units.
fn compare_utf16(one: &str, other: &str) -> Ordering {
    one.encode_utf16().cmp(other.encode_utf16())
}

/// RFC 8785 section 3.2.2.2; serde_json escapes in just this way.
fn write_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string can be written to memory");
}

/// RFC 8785 section 3.2.2.3, but for what a double cannot hold.
fn write_number(text: &str, out: &mut Vec<u8>) -> Result<(), NotCanonical> {
    let value: f64 = text.parse().map_err(|_| NotCanonical::Exponent)?;
    let mut buffer = ryu_js::Buffer::new();
    let is_ordinary = value.abs() < EXACT_INTEGERS_END && value != 0.0;
    let is_ordinary = is_ordinary || (planted(Bug::NumbersMerged) && value.is_finite());
    if is_ordinary {
        out.extend_from_slice(buffer.format_finite(value).as_bytes());
        return Ok(());
    }
    let exact = Decimal::of(text)?;
    let shortest = value.is_finite().then(|| buffer.format_finite(value));
    match shortest {
        Some(shortest) if Decimal::of(shortest)? == exact => {
            out.extend_from_slice(shortest.as_bytes());
        }
        _ => exact.write(out),
    }
    Ok(())
}

/// A decimal number in the one form that it has: no zero at either end of its digits.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    /// The power of ten of the last digit.
    exponent: i64,
}

impl Decimal {
    /// The value of a JSON number.
    fn of(text: &str) -> Result<Self, NotCanonical> {
        let (negative, magnitude) = match text.strip_prefix('-') {
            Some(magnitude) => (true, magnitude),
            None => (false, text),
        };
        let (mantissa, exponent) = match magnitude.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                let exponent = exponent.parse().map_err(|_| NotCanonical::Exponent)?;
                (mantissa, exponent)
            }
            None => (magnitude, 0_i64),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = [whole.as_bytes(), fraction.as_bytes()].concat();
        let Some(first) = all.iter().position(|digit| *digit != b'0') else {
            // Zero, and RFC 8785 has no negative zero.
            return Ok(Self {
                negative: false,
                digits: vec![b'0'],
                exponent: 0,
            });
        };
        let last = all
            .iter()
            .rposition(|digit| *digit != b'0')
            .unwrap_or(first);
        let shift = (all.len() - 1 - last) as i64 - fraction.len() as i64;
        Ok(Self {
            negative,
            digits: all[first..=last].to_vec(),
            exponent: exponent.checked_add(shift).ok_or(NotCanonical::Exponent)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        out.extend_from_slice(&self.digits);
        if self.exponent != 0 {
            out.extend_from_slice(format!("e{}", self.exponent).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(json: &str) -> String {
        ignoring(json, &[])
    }

    fn ignoring(json: &str, pointers: &[&str]) -> String {
        let ignore: Vec<_> = pointers
            .iter()
            .map(|p| Pointer::parse(p).unwrap())
            .collect();
        String::from_utf8(canonicalize(json.as_bytes(), &ignore).unwrap()).unwrap()
    }

    /// The cases of cyberphone/json-canonicalization, where they are present.
    #[test]
    fn published_canonical_forms_are_met() {
        let Some(folder) = crate::shared_data("jcs") else {
            return;
        };
        let mut cases = 0;
        for entry in std::fs::read_dir(folder.join("input")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            let input = std::fs::read(&path).unwrap();
            let output = std::fs::read(folder.join("output").join(name)).unwrap();
            let ours = canonicalize(&input, &[]).unwrap();
            assert_eq!(
                String::from_utf8_lossy(&ours),
                String::from_utf8_lossy(&output),
                "{}",
                path.display()
            );
            cases += 1;
        }
        assert!(cases >= 6, "{cases} cases");
    }

    #[test]
    fn numbers_that_a_double_holds_are_written_as_ecmascript_does() {
        for (text, form) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0e7", "0"),
            ("1.0", "1"),
            ("1e0", "1"),
            ("4.50", "4.5"),
            ("1E30", "1e+30"),
            ("1000000000000000000000", "1e+21"),
            ("100000000000000000000", "100000000000000000000"),
            ("0.000001", "0.000001"),
            ("1e-7", "1e-7"),
            ("9007199254740991", "9007199254740991"),
            ("9007199254740992", "9007199254740992"),
            ("9007199254740992.0", "9007199254740992"),
            ("333333333.33333329", "333333333.3333333"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ] {
            assert_eq!(canonical(text), form, "{text}");
        }
    }

    #[test]
    fn numbers_beyond_two_to_the_53_do_not_merge() {
        let texts = [
            "9007199254740992",
            "9007199254740993",
            "9007199254740992.5",
            "-9007199254740993",
            "123456789012345678901234567890",
            "123456789012345678901234567891",
            "1e400",
            "1e401",
            "0",
            "1e-400",
        ];
        let forms: Vec<_> = texts.iter().map(|text| canonical(text)).collect();
        for (at, form) in forms.iter().enumerate() {
            assert!(!forms[..at].contains(form), "{}", texts[at]);
        }
        assert_eq!(
            canonical("9007199254740993"),
            canonical("9007199254740993.00")
        );
        assert_eq!(
            canonical("90071992547409930"),
            canonical("9007199254740993e1")
        );
        assert_eq!(canonical("[9007199254740993]"), "[9007199254740993]");
    }

    #[test]
    fn a_canonical_form_is_its_own_canonical_form() {
        for text in [
            "9007199254740993",
            "-1.5e400",
            "1e-400",
            r#"{"b":[],"a":{"c":"\u001f"}}"#,
        ] {
            let once = canonical(text);
            assert_eq!(canonical(&once), once);
        }
    }

    #[test]
    fn results_that_are_zero_false_or_empty_are_values() {
        let forms = ["0", "false", "null", "\"\"", "[]", "{}", "[null]", "[[]]"].map(canonical);
        for (at, form) in forms.iter().enumerate() {
            assert!(!forms[..at].contains(form));
        }
    }

    #[test]
    fn names_are_sorted_by_utf16_code_units() {
        // U+1F600 is a surrogate pair from U+D83D and so comes before U+FF5E.
        assert_eq!(
            canonical("{\"\u{ff5e}\":1,\"\u{1f600}\":2,\"a\":3}"),
            "{\"a\":3,\"\u{1f600}\":2,\"\u{ff5e}\":1}"
        );
    }

    #[test]
    fn a_name_twice_is_refused_even_where_it_is_ignored() {
        let ignore = [Pointer::parse("/x").unwrap()];
        for json in [
            r#"{"a":1,"a":1}"#,
            r#"[{"b":{"a":1,"\u0061":2}}]"#,
            r#"{"x":1,"x":2}"#,
            r#"{"x":{"a":1,"a":2}}"#,
        ] {
            let refused = canonicalize(json.as_bytes(), &ignore);
            assert!(
                matches!(refused, Err(NotCanonical::DuplicateName { .. })),
                "{json}"
            );
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let deep = "[".repeat(65) + &"]".repeat(65);
        for json in [
            "",
            " ",
            "{",
            "[1,]",
            "{} {}",
            "01",
            "+1",
            "NaN",
            "'a'",
            "\"\\ud800\"",
            "\u{feff}1",
            "// c\n1",
            "1e99999999999999999999",
            &deep,
        ] {
            assert!(canonicalize(json.as_bytes(), &[]).is_err(), "{json}");
        }
        assert!(canonicalize(b"\"\xff\"", &[]).is_err());
    }

    #[test]
    fn pointers_take_out_what_they_point_at() {
        let json = r#"{"a":{"b":1,"c":2},"l":[1,2,{"t":3,"u":4}],"x/y":5,"m~n":6}"#;
        for (pointers, left) in [
            (
                &["/a/b"][..],
                r#"{"a":{"c":2},"l":[1,2,{"t":3,"u":4}],"m~n":6,"x/y":5}"#,
            ),
            (&["/a", "/l"], r#"{"m~n":6,"x/y":5}"#),
            (
                &["/l/0", "/l/2/t"],
                r#"{"a":{"b":1,"c":2},"l":[null,2,{"u":4}],"m~n":6,"x/y":5}"#,
            ),
            (&["/x~1y", "/m~0n", "/a", "/l"], "{}"),
            (
                &["/none", "/a/b/c", "/l/9", "/a/", "/l", "/a"],
                r#"{"m~n":6,"x/y":5}"#,
            ),
        ] {
            assert_eq!(ignoring(json, pointers), left);
        }
    }

    #[test]
    fn pointers_that_are_none_are_refused() {
        for text in ["", "a", "a/b", "/~", "/~2", "/a~"] {
            assert!(Pointer::parse(text).is_err(), "{text}");
        }
        assert_eq!(Pointer::parse("/").unwrap().0.as_ref(), [String::new()]);
    }
}
