//! Hashes a multipart body so that its boundary does not count (RFC 2046 section 5.1.1).

use memchr::memmem::Finder;

/// Cuts a body at its delimiters, whatever pieces it comes in, and hashes what lies between them.
pub(crate) struct PartHasher {
    delimiter: Finder<'static>,
    segment: blake3::Hasher,
    /// The end of what came, where a delimiter may have begun; shorter than a delimiter.
    tail: Vec<u8>,
    segments: u64,
}

impl PartHasher {
    /// `None` where `boundary` is not 1 to 70 characters, as RFC 2046 wants it.
    pub(crate) fn new(boundary: &str) -> Option<Self> {
        if boundary.is_empty() || boundary.len() > 70 {
            return None;
        }
        Some(Self {
            delimiter: Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned(),
            segment: blake3::Hasher::new(),
            // The first delimiter has no line before it.
            tail: b"\r\n".to_vec(),
            segments: 0,
        })
    }

    /// Takes in the next piece, and feeds `whole` the hash of every segment that ends in it.
    pub(crate) fn update(&mut self, mut piece: &[u8], whole: &mut blake3::Hasher) {
        let len = self.delimiter.needle().len();
        while !self.tail.is_empty() {
            let held = self.tail.len();
            let enough = (len - 1).min(piece.len());
            self.tail.extend_from_slice(&piece[..enough]);
            if let Some(at) = self.delimiter.find(&self.tail) {
                self.segment.update(&self.tail[..at]);
                self.end_segment(whole);
                piece = &piece[at + len - held..];
                self.tail.clear();
            } else if enough < len - 1 {
                // The whole piece is in the tail, and no delimiter is complete yet.
                let done = self.tail.len().saturating_sub(len - 1);
                self.segment.update(&self.tail[..done]);
                self.tail.drain(..done);
                return;
            } else {
                self.segment.update(&self.tail[..held]);
                self.tail.clear();
            }
        }
        while let Some(at) = self.delimiter.find(piece) {
            self.segment.update(&piece[..at]);
            self.end_segment(whole);
            piece = &piece[at + len..];
        }
        let (done, tail) = piece.split_at(piece.len().saturating_sub(len - 1));
        self.segment.update(done);
        self.tail.extend_from_slice(tail);
    }

    /// Ends the last segment; returns the number of all.
    pub(crate) fn finish(mut self, whole: &mut blake3::Hasher) -> u64 {
        let tail = std::mem::take(&mut self.tail);
        self.segment.update(&tail);
        self.end_segment(whole);
        self.segments
    }

    fn end_segment(&mut self, whole: &mut blake3::Hasher) {
        whole.update(self.segment.finalize().as_bytes());
        self.segment.reset();
        self.segments += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of the segments that `split` would give, cut the simple way.
    fn expected(body: &[u8], boundary: &str) -> (blake3::Hash, u64) {
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        let mut rest = [b"\r\n", body].concat();
        let mut whole = blake3::Hasher::new();
        let mut count = 1;
        while let Some(at) = rest.windows(delimiter.len()).position(|w| w == delimiter) {
            whole.update(blake3::hash(&rest[..at]).as_bytes());
            rest.drain(..at + delimiter.len());
            count += 1;
        }
        whole.update(blake3::hash(&rest).as_bytes());
        (whole.finalize(), count)
    }

    #[test]
    fn a_body_is_cut_at_its_delimiters_in_whatever_pieces_it_comes() {
        let bodies: [&[u8]; 8] = [
            b"",
            b"--b\r\n\r\nx\r\n--b--\r\n",
            b"preamble\r\n--b\r\n\r\nx\r\n--b\r\n--b--",
            b"\r\n--b\r\n--b\r\n\r\n\r\n--b",
            b"\r\n-\r\n--\r\n\r\n--b\r\r\n--b",
            b"no delimiter at all, not even a --b",
            b"--c\r\n--bb\r\n--b",
            b"\r\n\r\n\r\n--",
        ];
        for boundary in ["b", "bb"] {
            for body in bodies {
                for piece in 1..=body.len().max(1) {
                    let mut whole = blake3::Hasher::new();
                    let mut parts = PartHasher::new(boundary).unwrap();
                    body.chunks(piece)
                        .for_each(|chunk| parts.update(chunk, &mut whole));
                    let count = parts.finish(&mut whole);
                    assert_eq!(
                        (whole.finalize(), count),
                        expected(body, boundary),
                        "{body:?} by {piece}"
                    );
                }
            }
        }
    }
}
