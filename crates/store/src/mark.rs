//! What a store is marked as while its records move to another one.

use std::fmt;

use crate::StoreError;

/// What a store is marked as. Gateways serve from a store without a mark only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Its records move to another store, or have moved there. From the moment that
    /// [`Store::set_mark`](crate::Store::set_mark) has returned it takes no claim any more, whoever asks;
    /// what runs still settles.
    Moved {
        /// That store, without credentials.
        to: Box<str>,
    },
    /// It is being filled with the records of another store, and does not hold all of them yet.
    Filling {
        /// That store, without credentials.
        from: Box<str>,
        /// What is added to the times of that store's records, in milliseconds: the clocks of two
        /// stores differ. Measured once for all records, when the filling begins.
        shift_millis: Option<i64>,
    },
}

impl Mark {
    /// The mark as stores keep it.
    pub(crate) fn encode(&self) -> String {
        match self {
            Self::Moved { to } => format!("moved to {to}"),
            Self::Filling { from, shift_millis } => {
                let shift = shift_millis.map_or_else(|| "-".to_owned(), |shift| shift.to_string());
                format!("filling {shift} from {from}")
            }
        }
    }

    /// The mark that a store has kept; nothing where that is empty. A store whose mark cannot be read is
    /// not to be served from either.
    pub(crate) fn decode(text: &str) -> Result<Option<Self>, StoreError> {
        let read = || {
            if let Some(to) = text.strip_prefix("moved to ") {
                return Some(Self::Moved { to: to.into() });
            }
            let (shift, from) = text.strip_prefix("filling ")?.split_once(" from ")?;
            let shift_millis = match shift {
                "-" => None,
                shift => Some(shift.parse().ok()?),
            };
            let from = from.into();
            Some(Self::Filling { from, shift_millis })
        };
        if text.is_empty() {
            return Ok(None);
        }
        let mark = read().ok_or_else(|| StoreError::Corrupt(format!("its mark reads {text:?}")));
        mark.map(Some)
    }

    /// What a claim is told by a store with this mark, where it takes none.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        matches!(self, Self::Moved { .. }).then(|| StoreError::Unavailable(self.to_string()))
    }
}

impl fmt::Display for Mark {
    /// As it is said of a store: `moved to <store>`, or that it is not filled yet.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved { to } => write!(f, "its records moved to {to}"),
            Self::Filling { from, .. } => {
                write!(f, "not all records of {from} are copied into it yet")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        let from = "redis://a:1 from b".into();
        let marks = [
            Mark::Moved { to: "x".into() },
            Mark::Filling {
                from,
                shift_millis: Some(-5),
            },
            Mark::Filling {
                from: "y".into(),
                shift_millis: None,
            },
        ];
        for mark in marks {
            let kept = mark.encode();
            assert_eq!(Mark::decode(&kept).expect("a mark"), Some(mark));
        }
        assert_eq!(Mark::decode("").expect("none"), None);
        for bad in ["moved", "filling x from y", "else"] {
            assert!(
                matches!(Mark::decode(bad), Err(StoreError::Corrupt(_))),
                "{bad}"
            );
        }
    }
}
