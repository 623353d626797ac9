//! The caller's own name of one logical action.

use std::fmt;
use std::sync::Arc;

/// What a caller calls one logical action: `order-17/charge`.
///
/// One action has one key, in all processes that share a key store, for as long as the store keeps it.
/// Name what is to happen once, and not the attempt: a name with a time or a random part in it protects
/// nothing. Put it into the extensions of a request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Action(Arc<str>);

/// Why a text names no action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActionError {
    /// No character at all: such as the id that a program forgot to fill in.
    #[error("the name of the action is empty; name what is to happen once, like order-17/charge")]
    Empty,
    /// More than [`Action::MAX_LEN`] bytes.
    #[error("the name of the action has {len} bytes, and {max} are the most", max = Action::MAX_LEN)]
    TooLong {
        /// How many bytes it has.
        len: usize,
    },
    /// A control character.
    #[error("the name of the action has a control character at byte {position}")]
    Control {
        /// Byte offset of the first one.
        position: usize,
    },
}

impl Action {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// Takes `name` as the name of an action: 1 to 1024 bytes of any text without control characters.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, ActionError> {
        let name = name.into();
        if name.is_empty() {
            return Err(ActionError::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(ActionError::TooLong { len: name.len() });
        }
        match name.char_indices().find(|(_, char)| char.is_control()) {
            Some((position, _)) => Err(ActionError::Control { position }),
            None => Ok(Self(name)),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Action({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_any_text_that_can_be_printed() {
        for name in [
            "a",
            "order-17/charge",
            "order 17: \u{e9}",
            "../../etc/passwd",
            &"x".repeat(1024),
        ] {
            assert_eq!(Action::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_name_that_names_nothing_is_refused() {
        assert_eq!(Action::new(""), Err(ActionError::Empty));
        assert_eq!(
            Action::new("x".repeat(1025)),
            Err(ActionError::TooLong { len: 1025 })
        );
        assert_eq!(
            Action::new("\u{e9}\n"),
            Err(ActionError::Control { position: 2 })
        );
    }
}
