//! Why a command ended without doing what it was asked, in one line.

use crate::config::ConfigError;

/// Why a command failed. Reads `<what happened>; <what to do>`.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The words of the command line are.
    #[error("{what}; {next}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do.
        next: String,
    },
    /// The world is: a port, a folder, a peer.
    #[error("{what}; {next}")]
    Other {
        /// What happened.
        what: String,
        /// What to do.
        next: String,
    },
}

impl Failure {
    /// A mistake on the command line.
    pub fn usage(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Usage {
            what: one_line(what),
            next: one_line(next),
        }
    }

    /// Something that went wrong outside.
    pub fn other(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Other {
            what: one_line(what),
            next: one_line(next),
        }
    }

    /// 2 for a mistake in words or configuration, 1 for everything else.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage { .. } => 2,
            Self::Other { .. } => 1,
        }
    }
}

/// What others say may have several lines.
fn one_line(text: impl Into<String>) -> String {
    let text = text.into();
    if text.contains(['\n', '\r']) {
        return text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    text
}
