//! What the upstream does with a key. It follows from the key alone, so that upstream, client and
//! checks agree without talking to each other.

use std::time::Duration;

use super::random::{Random, hash};

/// The upstream's behaviour for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// How often the upstream first answers 503, "did not run".
    pub declines: u64,
    /// What it does once it runs.
    pub run: Run,
    /// How long it thinks before it does anything.
    pub delay: Duration,
    /// What its whole answer says that it used.
    pub used: Used,
}

/// What an execution used and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Input tokens.
    pub input: i128,
    /// Output tokens.
    pub output: i128,
    /// What it cost, in thousand-millionths of a US dollar.
    pub nanos: i128,
}

/// What the upstream does when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// A whole answer with a length.
    Answer { status: u16, bytes: usize },
    /// A whole answer in chunks, with a pause before each.
    Stream {
        bytes: usize,
        chunks: usize,
        pause: Duration,
    },
    /// The connection ends before any answer.
    Reset,
    /// A chunked answer that is cut off in the middle.
    CutStream { bytes: usize },
    /// An answer shorter than its length.
    CutAnswer { bytes: usize },
}

impl Script {
    /// The script of a key.
    pub fn of_key(key: &str) -> Self {
        let mut random = Random::new(hash(key.as_bytes()));
        let delay = Duration::from_millis(if random.percent(50) {
            0
        } else {
            random.below(60)
        });
        let declines = if random.percent(8) {
            random.between(1, 2)
        } else {
            0
        };
        let bytes = match random.below(10) {
            0..=5 => random.between(40, 2_000),
            6..=8 => random.between(2_000, 40_000),
            _ => random.between(40_000, 600_000),
        } as usize;
        let run = match random.below(100) {
            0..=51 => Run::Answer { status: 200, bytes },
            52..=59 => Run::Answer {
                status: [201, 400, 404, 500][random.below(4) as usize],
                bytes,
            },
            60..=89 => Run::Stream {
                bytes,
                chunks: random.between(2, 24) as usize,
                pause: Duration::from_micros(random.below(8_000)),
            },
            90..=93 => Run::Reset,
            94..=96 => Run::CutStream { bytes },
            _ => Run::CutAnswer { bytes },
        };
        let used = Used {
            input: random.below(200_000).into(),
            output: random.below(20_000).into(),
            nanos: random.below(3_000_000_000).into(),
        };
        Self {
            declines,
            run,
            delay,
            used,
        }
    }

    /// Whether a run gives a whole answer.
    pub fn is_whole(&self) -> bool {
        matches!(self.run, Run::Answer { .. } | Run::Stream { .. })
    }

    /// The whole body of execution `number` of the key: JSON, about as long as the run says. No two
    /// executions have the same.
    pub fn body(&self, key: &str, number: u64) -> Vec<u8> {
        let Used {
            input,
            output,
            nanos,
        } = self.used;
        let (dollars, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let mut body = format!(
            "{{\"execution\":{number},\"key\":\"{key}\",\"model\":\"scripted\",\"usage\":{{\"input\":{input},\
             \"output\":{output},\"cost\":\"{dollars}.{rest:09}\"}},\"text\":\""
        )
        .into_bytes();
        let mut random = Random::new(hash(key.as_bytes()) ^ number);
        let end = b"\"}";
        let least = body.len() + 16;
        let length = self.run.bytes().max(least + end.len()) - end.len();
        while body.len() < length {
            // Several times each: a body is made anew for every answer that is checked.
            let text = format!("{:016x}", random.next());
            body.extend_from_slice(text.repeat(8).as_bytes());
        }
        body.truncate(length);
        body.extend_from_slice(end);
        body
    }
}

impl Run {
    /// The status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Answer { status, .. } => *status,
            _ => 200,
        }
    }

    /// The length of the whole answer's body, if what has to be in it is not longer.
    fn bytes(&self) -> usize {
        match self {
            Self::Answer { bytes, .. }
            | Self::Stream { bytes, .. }
            | Self::CutStream { bytes }
            | Self::CutAnswer { bytes } => *bytes,
            Self::Reset => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Script;

    #[test]
    fn a_key_always_has_the_same_script_and_every_execution_another_body() {
        let script = Script::of_key("a");
        assert_eq!(Script::of_key("a"), script);
        assert_eq!(script.body("a", 1), script.body("a", 1));
        assert_ne!(script.body("a", 1), script.body("a", 2));
    }

    #[test]
    fn a_body_is_json_and_says_what_was_used() {
        let script = Script::of_key("a");
        let body: serde_json::Value = serde_json::from_slice(&script.body("a", 1)).unwrap();
        let usage = &body["usage"];
        assert_eq!(
            usage["input"].as_i64().map(i128::from),
            Some(script.used.input)
        );
        let cost = usage["cost"].as_str().unwrap().replacen('.', "", 1);
        assert_eq!(cost.parse(), Ok(script.used.nanos));
    }

    #[test]
    fn all_kinds_of_script_come_up() {
        let scripts: Vec<_> = (0..500).map(|n| Script::of_key(&format!("k{n}"))).collect();
        assert!(scripts.iter().any(|script| script.declines > 0));
        assert!(scripts.iter().any(|script| !script.is_whole()));
        assert!(scripts.iter().filter(|script| script.is_whole()).count() > 400);
    }
}
