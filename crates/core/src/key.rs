//! The key: what the client sends in `Idempotency-Key`.

use std::fmt;

/// The name that a client gives to one logical action: 1 to 255 visible ASCII characters.
///
/// A value of this type is always well formed, and otherwise opaque: it is never interpreted,
/// trimmed or folded. Two keys that differ in case are two keys.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Box<str>);

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No character at all.
    #[error("the key is empty")]
    Empty,
    /// More than [`Key::MAX_LEN`] characters.
    #[error("the key has {len} characters, and {max} are the most", max = Key::MAX_LEN)]
    TooLong {
        /// How many bytes were sent.
        len: usize,
    },
    /// A character outside visible ASCII (0x21 to 0x7E).
    #[error("the key has a character at position {position} that is not visible ASCII")]
    NotVisibleAscii {
        /// Byte offset of the first such character.
        position: usize,
    },
}

impl Key {
    /// The longest key, in characters.
    pub const MAX_LEN: usize = 255;

    /// Takes `text` as a key.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(KeyError::TooLong { len: text.len() });
        }
        match text.bytes().position(|byte| !byte.is_ascii_graphic()) {
            Some(position) => Err(KeyError::NotVisibleAscii { position }),
            None => Ok(Self(text.into())),
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_003_an_empty_key_is_refused() {
        assert_eq!(Key::new(""), Err(KeyError::Empty));
    }

    #[test]
    fn hostile_006_and_007_the_limit_is_255_characters() {
        assert!(Key::new(&"k".repeat(255)).is_ok());
        assert_eq!(
            Key::new(&"k".repeat(256)),
            Err(KeyError::TooLong { len: 256 })
        );
    }

    #[test]
    fn hostile_014_and_015_only_visible_ascii_is_taken() {
        for (text, position) in [
            ("k y", 1),
            ("k\u{e9}", 1),
            ("k\0", 1),
            ("\tk", 0),
            ("k\r\n", 1),
        ] {
            assert_eq!(
                Key::new(text),
                Err(KeyError::NotVisibleAscii { position }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_key_is_the_text_that_was_sent() {
        let key = Key::new("Order-1").expect("a key");
        assert_eq!(key.as_str(), "Order-1");
        assert_eq!(key.to_string(), "Order-1");
        assert_eq!(format!("{key:?}"), "Key(Order-1)");
    }
}
