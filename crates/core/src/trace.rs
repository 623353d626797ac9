//! Where an operation stands in a distributed trace (W3C Trace Context).

use std::fmt;

use crate::Record;

/// The sixteen bytes of a trace's id, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId([u8; 16]);

/// The eight bytes of a span's id, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId([u8; 8]);

/// The span of an operation, as spans of later attempts link to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationSpan {
    /// Its trace.
    pub trace: TraceId,
    /// Its id.
    pub span: SpanId,
}

impl TraceId {
    /// The trace with these bytes; `None` where all are zero.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl SpanId {
    /// The span with these bytes; `None` where all are zero.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The span whose bytes are this number, and for 0, which is none, another.
    pub fn from_number(number: u64) -> Self {
        Self(match number {
            0 => u64::MAX.to_be_bytes(),
            number => number.to_be_bytes(),
        })
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl Record {
    /// The span of the operation under its current claim. It follows from the record alone, so that
    /// whoever reads the record, on any gateway and after any restart, can link to it.
    ///
    /// The trace is the one that the claiming request came in, else the operation's id, which is a
    /// valid trace id. The span is the id's last eight bytes, raised by one for each write before the
    /// claim: a key that was released, or that is sent again, has a span for each of its executions.
    pub fn span(&self) -> OperationSpan {
        let id = self.id.as_bytes();
        let [.., a, b, c, d, e, f, g, h] = *id;
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let before = self.claim.number().saturating_sub(1);
        OperationSpan {
            trace: self.request.trace.unwrap_or(TraceId(*id)),
            span: SpanId::from_number(number.wrapping_add(before)),
        }
    }
}

impl fmt::Display for TraceId {
    /// Thirty-two lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    /// Sixteen lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_zeros_are_none() {
        assert_eq!(TraceId::from_bytes([0; 16]), None);
        assert_eq!(SpanId::from_bytes([0; 8]), None);
        assert_eq!(SpanId::from_number(0).to_string(), "f".repeat(16));
        assert_eq!(SpanId::from_number(26).to_string(), "000000000000001a");
    }

    #[test]
    fn ids_are_written_in_lower_case_hexadecimal() {
        let trace = TraceId::from_bytes([0xab; 16]).expect("not all zeros");
        let text = "ab".repeat(16);
        assert_eq!(
            (trace.to_string(), format!("{trace:?}")),
            (text.clone(), text)
        );
        let span = SpanId::from_bytes([0xcd; 8]).expect("not all zeros");
        let text = "cd".repeat(8);
        assert_eq!(
            (span.to_string(), format!("{span:?}")),
            (text.clone(), text)
        );
    }
}
