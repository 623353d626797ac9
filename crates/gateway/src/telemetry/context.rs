//! W3C Trace Context: `traceparent` in and out (<https://www.w3.org/TR/trace-context-2/>).

use http::{HeaderMap, HeaderValue};
use onlyonce_core::{SpanId, TraceId};

/// The header of a span's context.
const TRACEPARENT: &str = "traceparent";
/// What vendors add to it, which is worth nothing without it.
const TRACESTATE: &str = "tracestate";
/// The flag that says that somebody keeps this trace.
const SAMPLED: u8 = 1;
/// The flags that are defined: sampled, and that the trace id is random.
const KNOWN: u8 = 0b11;

/// A span in a trace, as its children are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) flags: u8,
}

impl Context {
    /// The context that a request came in. `None` where there is none, or more than one, or one that
    /// is malformed: then the trace begins anew (section 4.3).
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next()?;
        match values.next() {
            None => Self::parse(value.as_bytes().trim_ascii()),
            Some(_) => None,
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let version = hex::<1>(text.get(..2)?)?;
        let ends = match version {
            [0xff] => false,
            [0] => text.len() == 55,
            // A later version may say more behind what this one knows.
            _ => text.len() == 55 || text.get(55) == Some(&b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
        if !ends || !dashes {
            return None;
        }
        let [flags] = hex(text.get(53..55)?)?;
        Some(Self {
            trace: TraceId::from_bytes(hex(text.get(3..35)?)?)?,
            span: SpanId::from_bytes(hex(text.get(36..52)?)?)?,
            flags: flags & KNOWN,
        })
    }

    /// Writes it into the headers of a request that is its child. `continues` says that the caller's
    /// own context, with what vendors added to it, is part of the same trace.
    pub(super) fn write(&self, headers: &mut HeaderMap, continues: bool) {
        let text = format!("00-{}-{}-{:02x}", self.trace, self.span, self.flags);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(TRACEPARENT, value);
        }
        if !continues {
            headers.remove(TRACESTATE);
        }
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// Which traces are kept of those that nobody has decided about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Traces are kept whose number is below.
    below: u64,
}

/// The bits of a trace id that are random in every trace id that says so, ours included.
const RANDOM_BITS: u32 = 56;

impl Sample {
    /// A share from 0 to 1.
    pub(super) fn of(share: f64) -> Self {
        // From 0 to 2^56, which a u64 and an f64 both hold exactly.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let below = (share.clamp(0.0, 1.0) * f64::from(1_u32 << (RANDOM_BITS / 2)).powi(2)) as u64;
        Self { below }
    }

    /// The flags of a trace that begins here. Every gateway with the same share decides alike.
    pub(super) fn flags(self, trace: &TraceId) -> u8 {
        let [.., a, b, c, d, e, f, g] = *trace.as_bytes();
        let number = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
        match number < self.below {
            true => KNOWN,
            false => KNOWN & !SAMPLED,
        }
    }
}

/// Lower-case hexadecimal digits, and no others, as bytes.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn a_context_is_written_as_it_is_read() {
        let context = Context::of(&headers(&[TEXT])).expect("a context");
        assert!(context.is_sampled());
        let mut out = headers(&[TEXT, TEXT]);
        out.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        context.write(&mut out, true);
        assert_eq!(out.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [TEXT]);
        assert!(out.contains_key(TRACESTATE));
        context.write(&mut out, false);
        assert!(!out.contains_key(TRACESTATE));
    }

    #[test]
    fn what_is_no_context_begins_a_trace_anew() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(Context::of(&headers(&[later])).is_some());
        assert!(Context::of(&headers(&[&format!("{later}-more")])).is_some());
        for text in [
            "",
            "00",
            &TEXT[..54],
            &format!("{TEXT}-more"),
            &format!("{later}.more"),
            &TEXT.replace("00-", "ff-"),
            &TEXT.replace('b', "B"),
            &TEXT.replace('-', "_"),
            &TEXT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &TEXT.replace("00f067aa0ba902b7", &"0".repeat(16)),
        ] {
            assert_eq!(Context::of(&headers(&[text])), None, "{text}");
        }
        assert_eq!(Context::of(&headers(&[TEXT, TEXT])), None);
        assert_eq!(Context::of(&HeaderMap::new()), None);
    }

    #[test]
    fn a_share_of_traces_is_kept() {
        let kept = |share| {
            let sample = Sample::of(share);
            let traces = (1..=1_000_u128).map(|number| {
                let bytes = (number << 46 | 1 << 100).to_be_bytes();
                TraceId::from_bytes(bytes).expect("not zero")
            });
            traces
                .filter(|trace| sample.flags(trace) & SAMPLED != 0)
                .count()
        };
        assert_eq!(kept(0.0), 0);
        assert_eq!(kept(0.25), 255);
        assert_eq!(kept(1.0), 1_000);
    }
}
