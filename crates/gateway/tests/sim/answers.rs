//! Answers of any bytes: what the gateway takes for a whole answer, a reader of the rules alone reads as the same one.

use std::env;

use onlyonce_core::StateName;
use onlyonce_testkit::Head;

use crate::client::{Heard, Manner};
use crate::cuts::COUNTED;
use crate::random::Random;
use crate::upstream::Plan;

/// How many answers each run of the tests takes, unless `ONLYONCE_ANSWERS` says otherwise.
const USUAL: u64 = 3_000;

const SEEDS: [&str; 9] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
    "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nX-A: b\r\nX-A: c\r\n\r\n5\r\nhello\r\n3;a=b\r\n, w\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\nno",
    "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nuntil the end",
    "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 500 Oh\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n",
];

/// Pieces that mean something there.
const WORDS: [&str; 22] = [
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 6\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: +5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding : chunked\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\n\r\n",
    "HTTP/1.0 200 OK\r\n",
    " ",
    ";a=\"b\"",
    "ffffffffffffffff\r\n",
    "X-A: c\r\n d\r\n",
];

/// An answer that was changed in a few places.
fn drawn(random: &mut Random) -> Vec<u8> {
    let mut bytes = SEEDS[random.below(SEEDS.len())].as_bytes().to_vec();
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len() + 1);
        let to = (at + random.below(6)).min(bytes.len());
        let word = WORDS[random.below(WORDS.len())].as_bytes();
        // Most of it means something at the start of a line alone.
        let line = bytes[..at].iter().rposition(|byte| *byte == b'\n');
        let line = line.map_or(0, |end| end + 1);
        match random.below(5) {
            0 => bytes[at..to].reverse(),
            1 => drop(bytes.drain(at..to)),
            2 => drop(bytes.splice(at..at, word.iter().copied())),
            3 => drop(bytes.splice(line..line, word.iter().copied())),
            _ => drop(bytes.splice(at..to, [random.below(256) as u8])),
        }
    }
    bytes
}

/// A whole answer, as the rules alone read it (RFC 9112).
#[derive(Debug)]
struct Read {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Read {
    /// `None` for what is no answer, or none that is known to be whole.
    fn of(mut bytes: &[u8]) -> Option<Self> {
        loop {
            // Empty lines before an answer are nothing.
            let first = loop {
                match line(&mut bytes)? {
                    first if first.is_empty() => {}
                    first => break first,
                }
            };
            let (version, rest) = first.split_once(' ')?;
            let status: u16 = rest.get(..3)?.parse().ok()?;
            let mut fields = Vec::new();
            loop {
                let field = line(&mut bytes)?;
                if field.is_empty() {
                    break;
                }
                let (name, value) = field.split_once(':')?;
                fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            match status {
                101 => return None,
                100..200 => {}
                _ => {
                    let body = body(version, status, &fields, bytes)?;
                    return Some(Self {
                        status,
                        fields,
                        body,
                    });
                }
            }
        }
    }

    fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter();
        let of_name = fields.filter(|(field, _)| field == name);
        of_name.map(|(_, value)| &**value).collect()
    }
}

/// The next line of a head, whose end may be a line feed alone (section 2.2).
fn line(bytes: &mut &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let line = line.iter().map(|&byte| char::from(byte)).collect();
    *bytes = &bytes[end + 1..];
    Some(line)
}

/// Section 6.3.
fn body(version: &str, status: u16, fields: &[(String, String)], bytes: &[u8]) -> Option<Vec<u8>> {
    let values = |name: &str| {
        let named = fields.iter().filter(move |(field, _)| field == name);
        let values: Vec<_> = named.map(|(_, value)| &**value).collect();
        values.join(",")
    };
    if matches!(status, 204 | 304) {
        return Some(Vec::new());
    }
    let (coding, lengths) = (values("transfer-encoding"), values("content-length"));
    if !coding.is_empty() {
        let is_framed = version == "HTTP/1.1" && coding.eq_ignore_ascii_case("chunked");
        return is_framed.then(|| chunks(bytes)).flatten();
    }
    let mut lengths = lengths.split(',').map(str::trim);
    let length = lengths.next().filter(|text| !text.is_empty())?;
    let is_number = length.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || lengths.any(|other| other != length) {
        return None;
    }
    bytes.get(..length.parse().ok()?).map(<[u8]>::to_vec)
}

fn chunks(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(&mut bytes)?;
        let size = size.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
    while !line(&mut bytes)?.is_empty() {}
    Some(body)
}

fn agree(head: &Head, body: &[u8], read: &Read, case: &str) {
    assert_eq!(head.status(), read.status, "{case}");
    assert_eq!(
        body.escape_ascii().to_string(),
        read.body.escape_ascii().to_string(),
        "{case}"
    );
    // What one connection's field names does not pass.
    if read.values("connection").is_empty() {
        let passed: Vec<_> = head
            .all("x-a")
            .into_iter()
            .map(|value| value.trim())
            .collect();
        assert_eq!(passed, read.values("x-a"), "{case}");
    }
}

#[test]
fn i05_what_is_taken_for_a_whole_answer_is_one_by_the_rules() {
    let answers = env::var("ONLYONCE_ANSWERS").ok();
    let answers = answers.map_or(USUAL, |number| number.parse().unwrap());
    let (mut whole, mut unknown) = (0, 0);
    for number in 0..answers {
        let bytes = drawn(&mut Random::new(number));
        let case = format!("answer {number}: \"{}\"", bytes.escape_ascii());
        let read = Read::of(&bytes);
        let plan = Plan {
            raw: Some(bytes.into()),
            ..COUNTED.answering(None)
        };
        let came = COUNTED.cut(usize::MAX, plan, &Manner::patient());
        // Nothing else goes on in a world whose first answer is none of its own.
        let late = came.wrong.iter().find(|wrong| wrong.starts_with('L'));
        assert_eq!(late, None, "{case}");
        match came.state {
            Some(StateName::Completed) => whole += 1,
            Some(StateName::Unknown) => unknown += 1,
            // It says that it did not run.
            Some(StateName::Released) => {}
            other => panic!("{case}: {other:?}"),
        }
        let is_completed = came.state == Some(StateName::Completed);
        // What did not run is executed by whoever comes later.
        let later = is_completed.then_some(&came.later);
        for heard in [&came.first, &came.joined].into_iter().chain(later) {
            if let Heard::Answer(head, body) = heard
                && head.header("onlyonce-status").is_some()
            {
                match &read {
                    Some(read) => agree(head, &body.bytes, read, &case),
                    None => panic!("{case}: {head:?}"),
                }
            }
        }
        assert!(!is_completed || read.is_some(), "{case}");
        assert!(!is_completed || came.seen.len() == 1, "{case}");
    }
    // Both happen, and often.
    assert!(
        whole * 5 > answers && unknown * 5 > answers,
        "{whole}, {unknown}"
    );
}
