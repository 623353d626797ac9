//! Reading and writing HTTP/1.1 on one end of a connection, byte by byte where it matters.

use std::io::{self, ErrorKind};

use onlyonce_testkit::{Head, parse_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::pipe::{Cut, End};

/// One end, with what was read from it and not taken yet.
pub struct Wire {
    end: End,
    buffer: Vec<u8>,
    /// Bytes read so far.
    pub read: usize,
    /// Bytes written so far.
    pub written: usize,
    /// After so many bytes read, nothing more is read.
    pub reads_at_most: usize,
}

/// Headers or trailers, in their order.
pub type Fields = Vec<(String, String)>;

/// A body, and whether it came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub bytes: Vec<u8>,
    /// Of a body in chunks, with names in lower case.
    pub trailers: Fields,
    pub whole: bool,
}

impl Wire {
    pub fn new(end: End) -> Self {
        Self {
            end,
            buffer: Vec::new(),
            read: 0,
            written: 0,
            reads_at_most: usize::MAX,
        }
    }

    pub fn cut(&self) -> Cut {
        self.end.cut()
    }

    /// What was read and is not taken yet.
    pub fn unread(&self) -> &[u8] {
        &self.buffer
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.end.write_all(bytes).await?;
        self.written += bytes.len();
        Ok(())
    }

    pub async fn end_writing(&mut self) -> io::Result<()> {
        self.end.shutdown().await
    }

    /// Reads more; an error at the end, and where no more is to be read.
    pub async fn fill(&mut self) -> io::Result<()> {
        let mut some = [0; 4096];
        let most = some.len().min(self.reads_at_most - self.read);
        if most == 0 {
            return Err(ErrorKind::Other.into());
        }
        let read = self.end.read(&mut some[..most]).await?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.read += read;
        self.buffer.extend_from_slice(&some[..read]);
        Ok(())
    }

    async fn line_end(&mut self, mark: &[u8]) -> io::Result<usize> {
        let mut looked = 0_usize;
        loop {
            let from = looked.saturating_sub(mark.len());
            let found = self.buffer[from..]
                .windows(mark.len())
                .position(|bytes| bytes == mark);
            if let Some(at) = found {
                return Ok(from + at + mark.len());
            }
            looked = self.buffer.len();
            self.fill().await?;
        }
    }

    pub async fn head(&mut self) -> io::Result<Head> {
        let end = self.line_end(b"\r\n\r\n").await?;
        let head = parse_head(&self.buffer[..end]);
        self.buffer.drain(..end);
        Ok(head)
    }

    /// The body that follows `head`.
    pub async fn body(&mut self, head: &Head) -> Body {
        let mut body = Body::default();
        body.whole = if head.chunked() {
            self.chunks(&mut body).await.is_ok()
        } else {
            let len = head.content_length().unwrap_or(0);
            self.counted(len, &mut body.bytes).await.is_ok()
        };
        body
    }

    async fn counted(&mut self, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let end = into.len() + len;
        loop {
            let some = self.buffer.len().min(end - into.len());
            into.extend(self.buffer.drain(..some));
            if into.len() == end {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn chunks(&mut self, body: &mut Body) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let len = usize::from_str_radix(&line, 16).map_err(|_| ErrorKind::InvalidData)?;
            if len == 0 {
                break;
            }
            self.counted(len, &mut body.bytes).await?;
            self.counted(2, &mut Vec::new()).await?;
        }
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(());
            }
            let (name, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
            let field = (name.to_ascii_lowercase(), value.trim().to_owned());
            body.trailers.push(field);
        }
    }

    /// The next line, without its end.
    async fn line(&mut self) -> io::Result<String> {
        let end = self.line_end(b"\r\n").await?;
        let line = String::from_utf8_lossy(&self.buffer[..end - 2]).into_owned();
        self.buffer.drain(..end);
        Ok(line)
    }
}
