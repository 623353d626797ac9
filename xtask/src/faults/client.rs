//! A client of HTTP/1.1 that knows exactly whether an answer was complete.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The head of a message.
#[derive(Debug, Default)]
pub struct Head {
    /// Request line or status line.
    pub first_line: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The value of the first header of a name, which must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// The status, if this is the head of an answer.
    pub fn status(&self) -> Option<u16> {
        self.first_line
            .strip_prefix("HTTP/1.")?
            .get(2..5)?
            .parse()
            .ok()
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding")
            .is_some_and(|value| value.contains("chunked"))
    }
}

/// Reads a head up to its empty line.
pub fn read_head(reader: &mut impl BufRead) -> Result<Head> {
    let mut head = Head {
        first_line: read_line(reader)?,
        headers: Vec::new(),
    };
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(head);
        }
        let (name, value) = line.split_once(':').context("a header without a colon")?;
        head.headers
            .push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
}

/// Reads a body whose end the head announces.
pub fn read_body(head: &Head, reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if head.is_chunked() {
        loop {
            let line = read_line(reader)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).context("a chunk without a size")?;
            if size == 0 {
                while !read_line(reader)?.is_empty() {}
                return Ok(body);
            }
            read_exactly(reader, size, &mut body)?;
            if !read_line(reader)?.is_empty() {
                bail!("a chunk that is longer than its size");
            }
        }
    }
    if let Some(length) = head.header("content-length") {
        let length = length.parse().context("a length that is no number")?;
        read_exactly(reader, length, &mut body)?;
        return Ok(body);
    }
    match head.status() {
        None | Some(204 | 304) => Ok(body),
        Some(_) => bail!("an answer that does not say where it ends"),
    }
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        bail!("the connection ended");
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8(line)?)
}

fn read_exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<()> {
    let read = reader.take(length).read_to_end(body)?;
    if (read as u64) < length {
        bail!("the connection ended");
    }
    Ok(())
}

/// An answer that came to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head.
    pub head: Head,
    /// The whole body.
    pub body: Vec<u8>,
}

/// One client with one connection.
#[derive(Default)]
pub struct Client {
    connection: Option<(SocketAddr, BufReader<TcpStream>)>,
}

impl Client {
    /// Sends one attempt and waits for the end of its answer; `patience` is the longest silence.
    pub fn attempt(&mut self, to: SocketAddr, key: &str, patience: Duration) -> Result<Answer> {
        let result = self.exchange(to, key, patience);
        let ends = match &result {
            Ok(answer) => answer.head.header("connection") == Some("close"),
            Err(_) => true,
        };
        if ends {
            self.connection = None;
        }
        result
    }

    fn exchange(&mut self, to: SocketAddr, key: &str, patience: Duration) -> Result<Answer> {
        if self
            .connection
            .as_ref()
            .is_none_or(|(address, _)| *address != to)
        {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
            stream.set_nodelay(true)?;
            self.connection = Some((to, BufReader::new(stream)));
        }
        let (_, reader) = self.connection.as_mut().context("no connection")?;
        reader.get_ref().set_read_timeout(Some(patience))?;
        let body = format!("{{\"do\":\"{key}\"}}");
        let request = format!(
            "POST /work/{key} HTTP/1.1\r\nhost: {to}\r\nidempotency-key: {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        reader.get_ref().write_all(request.as_bytes())?;
        loop {
            let head = read_head(reader)?;
            let status = head.status().context("a status line without a status")?;
            if status < 200 {
                continue;
            }
            let body = read_body(&head, reader)?;
            return Ok(Answer { status, head, body });
        }
    }
}

/// Asks a control listener: what it took in milliseconds, without connecting, and the JSON.
pub fn ask(control: SocketAddr, path: &str) -> Result<(f64, serde_json::Value)> {
    let stream = TcpStream::connect(control)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let start = Instant::now();
    write!(
        reader.get_ref(),
        "GET {path} HTTP/1.1\r\nHost: {control}\r\n\r\n"
    )?;
    let head = read_head(&mut reader)?;
    let body = read_body(&head, &mut reader)?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    if !head.first_line.contains(" 200 ") {
        bail!("{path}: {}", head.first_line);
    }
    Ok((took, serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::{read_body, read_head};

    fn read(text: &str) -> anyhow::Result<Vec<u8>> {
        let mut reader = text.as_bytes();
        let head = read_head(&mut reader)?;
        read_body(&head, &mut reader)
    }

    #[test]
    fn whole_bodies_are_read_and_broken_ones_are_errors() {
        assert_eq!(
            read("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap(),
            b"ok"
        );
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
        assert_eq!(read(&format!("{chunked}0\r\n\r\n")).unwrap(), b"ok");
        assert!(read(chunked).is_err());
        assert!(read("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok").is_err());
        assert!(read("HTTP/1.1 200 OK\r\n\r\nok").is_err());
    }
}
