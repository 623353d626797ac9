//! The head of an HTTP/1.1 message, kept as it came.

/// A start line and header lines, in their order, values as text (Latin-1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The request line or status line.
    pub start: String,
    /// Header names as sent, with their values, in order.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).into_iter().next()
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The word at this place of the start line (`GET`, `/path`, `HTTP/1.1` are 0, 1, 2).
    pub fn word(&self, place: usize) -> &str {
        self.start.split(' ').nth(place).unwrap_or("")
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.word(1)
            .parse()
            .unwrap_or_else(|_| panic!("no status in {:?}", self.start))
    }

    /// The length that `Content-Length` gives.
    pub fn content_length(&self) -> Option<usize> {
        self.header("content-length").map(|v| {
            v.trim()
                .parse()
                .unwrap_or_else(|_| panic!("content-length {v:?}"))
        })
    }

    /// Whether the body is chunked.
    pub fn chunked(&self) -> bool {
        self.header("transfer-encoding")
            .is_some_and(|v| v.to_ascii_lowercase().contains("chunked"))
    }
}

/// Parses a head, its empty last line included or not.
pub fn parse_head(bytes: &[u8]) -> Head {
    let text: String = bytes.iter().map(|&b| b as char).collect();
    let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
    let start = lines.next().unwrap_or("").to_owned();
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        })
        .collect();
    Head { start, headers }
}
