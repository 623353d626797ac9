//! Bytes that are taken apart: the first ones choose, the rest is the matter.

/// What is left of the bytes.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte; 0 where there is none.
    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next `len` bytes, or those that there are.
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A piece whose length a byte says.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.take(len)
    }
}

/// `bytes` in pieces of 1 to 16 bytes, or all in pieces of one; `seed` says how long each is.
pub(crate) fn pieces(bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    let mut state = u32::from(seed);
    std::iter::from_fn(move || {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let len = if seed == 0 {
            1
        } else {
            1 + (state >> 28) as usize
        };
        let (piece, left) = rest.split_at(len.min(rest.len()));
        rest = left;
        (!piece.is_empty()).then_some(piece)
    })
}
