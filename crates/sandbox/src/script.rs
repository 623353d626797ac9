//! What a request asks the sandbox to do with it, by its `X-Sandbox-*` headers.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

const MAX_WAIT: Duration = Duration::from_secs(3_600);
const MAX_CHUNKS: usize = 10_000;
const MAX_SIZE: usize = 256 << 20;

/// The parsed headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    /// Wait before the response head.
    pub(crate) delay: Duration,
    pub(crate) fault: Option<Fault>,
    /// Delay and fault strike only this many executions of the tag.
    pub(crate) times: Option<u64>,
    /// Text events of a stream.
    pub(crate) chunks: usize,
    /// Time between them.
    pub(crate) interval: Duration,
    pub(crate) tag: Option<String>,
    /// Body bytes of the echo.
    pub(crate) size: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Hang,
    ResetBeforeHead,
    ResetAfterHead,
    CutStream,
    Status(StatusCode),
}

/// A header that cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ScriptError {
    header: &'static str,
    wanted: &'static str,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "The header {} must be {}. Nothing was run.",
            self.header, self.wanted
        )
    }
}

impl Script {
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, ScriptError> {
        let header = Header { headers };
        let script = Self {
            delay: header
                .parsed(
                    "x-sandbox-delay",
                    "a duration such as 500ms, at most 1h",
                    duration,
                )?
                .unwrap_or(Duration::ZERO),
            fault: header.parsed(
                "x-sandbox-fault",
                "hang, reset-before-head, reset-after-head, cut-stream or status:NNN (200 to 599)",
                fault,
            )?,
            times: header.parsed("x-sandbox-times", "a count", |text| text.parse().ok())?,
            chunks: header
                .parsed("x-sandbox-chunks", "a count from 1 to 10000", |text| {
                    text.parse()
                        .ok()
                        .filter(|count| (1..=MAX_CHUNKS).contains(count))
                })?
                .unwrap_or(20),
            interval: header
                .parsed(
                    "x-sandbox-interval",
                    "a duration such as 20ms, at most 1h",
                    duration,
                )?
                .unwrap_or(Duration::from_millis(15)),
            tag: header.parsed("x-sandbox-tag", "visible ASCII", |text| {
                Some(text.to_owned())
            })?,
            size: header.parsed(
                "x-sandbox-size",
                "a number of bytes, at most 268435456",
                |text| text.parse().ok().filter(|size| *size <= MAX_SIZE),
            )?,
        };
        if script.times.is_some() && script.tag.is_none() {
            return Err(ScriptError {
                header: "x-sandbox-times",
                wanted: "sent together with x-sandbox-tag, by which executions are counted",
            });
        }
        Ok(script)
    }

    /// The script of the `nth_of_tag`-th execution of its tag: calm once `times` is used up.
    pub(crate) fn for_execution(mut self, nth_of_tag: u64) -> Self {
        if self.times.is_some_and(|times| nth_of_tag > times) {
            self.delay = Duration::ZERO;
            self.fault = None;
        }
        self
    }
}

struct Header<'a> {
    headers: &'a HeaderMap,
}

impl Header<'_> {
    fn parsed<T>(
        &self,
        header: &'static str,
        wanted: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ScriptError> {
        let Some(value) = self.headers.get(header) else {
            return Ok(None);
        };
        match value.to_str().ok().and_then(parse) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(ScriptError { header, wanted }),
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let count: u64 = text[..digits].parse().ok()?;
    let duration = match &text[digits..] {
        "us" => Duration::from_micros(count),
        "ms" => Duration::from_millis(count),
        "s" => Duration::from_secs(count),
        "m" => Duration::from_secs(count.checked_mul(60)?),
        "h" => Duration::from_secs(count.checked_mul(3_600)?),
        _ => return None,
    };
    (duration <= MAX_WAIT).then_some(duration)
}

fn fault(text: &str) -> Option<Fault> {
    Some(match text {
        "hang" => Fault::Hang,
        "reset-before-head" => Fault::ResetBeforeHead,
        "reset-after-head" => Fault::ResetAfterHead,
        "cut-stream" => Fault::CutStream,
        _ => {
            let status: u16 = text.strip_prefix("status:")?.parse().ok()?;
            let status = StatusCode::from_u16(status).ok()?;
            Fault::Status(Some(status).filter(|s| (200..600).contains(&s.as_u16()))?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(lines: &[(&'static str, &'static str)]) -> Result<Script, ScriptError> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, value.parse().unwrap());
        }
        Script::from_headers(&headers)
    }

    #[test]
    fn without_headers_nothing_is_asked() {
        let script = script(&[]).unwrap();
        assert_eq!(
            (script.chunks, script.interval),
            (20, Duration::from_millis(15))
        );
        assert_eq!((script.delay, script.fault), (Duration::ZERO, None));
    }

    #[test]
    fn every_fault_has_its_word() {
        for (word, wanted) in [
            ("hang", Fault::Hang),
            ("reset-before-head", Fault::ResetBeforeHead),
            ("reset-after-head", Fault::ResetAfterHead),
            ("cut-stream", Fault::CutStream),
            (
                "status:529",
                Fault::Status(StatusCode::from_u16(529).unwrap()),
            ),
        ] {
            assert_eq!(
                script(&[("x-sandbox-fault", word)]).unwrap().fault,
                Some(wanted)
            );
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_header_named() {
        for (header, value) in [
            ("x-sandbox-delay", "soon"),
            ("x-sandbox-delay", "5"),
            ("x-sandbox-delay", "2h"),
            ("x-sandbox-delay", "18446744073709551615h"),
            ("x-sandbox-fault", "status:99"),
            ("x-sandbox-fault", "status:600"),
            ("x-sandbox-fault", "explode"),
            ("x-sandbox-chunks", "0"),
            ("x-sandbox-chunks", "10001"),
            ("x-sandbox-interval", "-1ms"),
            ("x-sandbox-size", "big"),
            ("x-sandbox-times", "1"),
        ] {
            let refused = script(&[(header, value)]).unwrap_err();
            assert_eq!(refused.header, header, "{value}");
        }
    }

    #[test]
    fn a_limited_fault_spares_later_executions() {
        let script = script(&[
            ("x-sandbox-fault", "hang"),
            ("x-sandbox-delay", "1s"),
            ("x-sandbox-times", "2"),
            ("x-sandbox-tag", "t"),
        ])
        .unwrap();
        assert_eq!(script.clone().for_execution(2).fault, Some(Fault::Hang));
        let calm = script.for_execution(3);
        assert_eq!((calm.fault, calm.delay), (None, Duration::ZERO));
    }
}
