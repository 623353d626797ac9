//! Why a command ended without doing what it was asked, in one line.

use crate::config::ConfigError;

/// Why a command failed. Reads `<what happened>; <what to do>`, or as two sentences where both are.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The words of the command line are.
    #[error("{}", joined(.what, .next))]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do.
        next: String,
    },
    /// The world is: a port, a folder, a peer.
    #[error("{}", joined(.what, .next))]
    Other {
        /// What happened.
        what: String,
        /// What to do.
        next: String,
    },
    /// `onlyonce call` has no good answer, or `onlyonce verify` no verdict. One line of its own, and its own exit code.
    #[error("{text}")]
    Call {
        /// What happened, what it means for the caller's money, and what to do.
        text: String,
        /// The exit code, as the help of either lists them.
        code: u8,
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

    /// A call without a good answer.
    pub fn call(text: impl Into<String>, code: u8) -> Self {
        Self::Call {
            text: one_line(text),
            code,
        }
    }

    /// 2 for a mistake in words or configuration, 1 for everything else but a call, which has its own.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage { .. } => 2,
            Self::Other { .. } => 1,
            Self::Call { code, .. } => *code,
        }
    }
}

fn joined(what: &str, next: &str) -> String {
    match what.strip_suffix('.') {
        Some(_) if next.starts_with(char::is_uppercase) => format!("{what} {next}"),
        // What a server says may end like a sentence.
        rest => format!("{}; {next}", rest.unwrap_or(what)),
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
