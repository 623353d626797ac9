//! The echo: any body in, the same body back, with the number of the execution.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;

use super::{Content, Job, Reply};

#[derive(Serialize)]
struct Echo<'a> {
    execution: u64,
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// In place of `body` where that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

pub(crate) fn reply(job: &Job<'_>) -> Reply {
    if let Some(size) = job.script.size {
        return sized(job.n, size);
    }
    let text = std::str::from_utf8(job.body).ok();
    let echo = Echo {
        execution: job.n,
        content_type: job.content_type.and_then(|value| value.to_str().ok()),
        body: text,
        body_base64: text.is_none().then(|| STANDARD.encode(job.body)),
    };
    // Numbers and text always serialise.
    json(serde_json::to_vec(&echo).unwrap_or_default())
}

/// Exactly `size` bytes: a JSON document where that fits, else the number's last digits.
fn sized(n: u64, size: usize) -> Reply {
    let (open, close) = (format!("{{\"execution\":{n},\"padding\":\""), "\"}");
    if let Some(padding) = size.checked_sub(open.len() + close.len()) {
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(open.as_bytes());
        bytes.resize(open.len() + padding, b'.');
        bytes.extend_from_slice(close.as_bytes());
        return json(bytes);
    }
    let digits = Bytes::from(format!("{n:0>size$}"));
    Reply {
        content_type: HeaderValue::from_static("text/plain"),
        content: Content::Whole(digits.slice(digits.len() - size..)),
    }
}

fn json(bytes: Vec<u8>) -> Reply {
    Reply {
        content_type: HeaderValue::from_static("application/json"),
        content: Content::Whole(bytes.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sized_echo_has_exactly_that_size() {
        for size in [0, 1, 5, 27, 28, 29, 30, 31, 1024] {
            let Content::Whole(bytes) = sized(123, size).content else {
                panic!("not whole")
            };
            assert_eq!(bytes.len(), size);
        }
    }
}
