//! Where an operation is to be found: what its callers are told to do depends on that.

use std::borrow::Cow;

use crate::problem::Problem;

/// Where an operation is to be found, as its callers see it.
///
/// The pages of the problems speak of a gateway before an upstream. Here stands what is to be said elsewhere in
/// place of their sentences, where those would not be true or of no use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Behind a route of a gateway.
    #[default]
    Route,
    /// The same, where what is asked for are calls of tools.
    Mcp,
    /// In a worker that has claimed it by the operations API.
    Work,
    /// Where somebody types `onlyonce exec`.
    Exec,
    /// In the server that has the layer.
    Layer,
}

/// How somebody settles an operation of a server that has the layer.
pub const SETTLE_IN_A_SERVER: &str = "with Once::complete or Once::release in the server, or with onlyonce keys over \
                                      a gateway on its store";

impl Place {
    /// What it is that may have run, at the beginning of a sentence.
    pub(crate) const fn subject(self) -> &'static str {
        match self {
            Self::Route | Self::Layer => "The request",
            Self::Mcp => "The call",
            Self::Work => "The operation",
            Self::Exec => "The command",
        }
    }

    /// What happened, where it is not what the problem's page says.
    pub(crate) const fn happened(self, problem: &Problem) -> Option<&'static str> {
        Some(match (self, problem) {
            (Self::Mcp, Problem::KeyReused) => {
                "This key already belongs to a call that differs from this one in path, tool, arguments, or one of \
                 the route's listed headers."
            }
            (Self::Work, Problem::KeyReused) => {
                "This key already belongs to an operation that was begun with another input."
            }
            (Self::Exec, Problem::KeyReused) => {
                "This key already belongs to another command, or to this one with other arguments."
            }
            (Self::Layer, Problem::KeyReused) => {
                "This key already belongs to a request that differs from this one in method, path, query, content \
                 type or encoding, one of the headers that the rules compare, or body."
            }
            (Self::Layer, Problem::StoreUnavailable { .. }) => {
                "It could not be written down durably that this request is about to run, so it was not run."
            }
            (Self::Layer, Problem::ShuttingDown { .. }) => {
                "The server finishes what it has begun and takes nothing new."
            }
            _ => return None,
        })
    }

    /// What to do next, where it is not what the problem's page says.
    pub(crate) fn next(self, problem: &Problem) -> Option<Cow<'static, str>> {
        let next = match self {
            Self::Route => return None,
            Self::Mcp => return in_a_call(problem),
            Self::Work => in_a_worker(problem)?,
            Self::Exec => at_a_command(problem)?,
            Self::Layer => return in_a_server(problem),
        };
        Some(next.into())
    }
}

fn in_a_call(problem: &Problem) -> Option<Cow<'static, str>> {
    Some(match problem {
        Problem::KeyReused => "Use a new key for a new call. If this was meant to be a retry, call the same tool with \
                               exactly the same arguments as the first time. Do not retry it as it is."
            .into(),
        Problem::KeyMissing { expected_in } => format!(
            "Set {expected_in} of the call: 1 to 255 visible ASCII characters, such as the run, the \
             step and the id of the tool call, one for each action, and the same one in all retries of that action."
        )
        .into(),
        Problem::KeyMalformed(_) => "Set one key, of 1 to 255 visible ASCII characters, in the _meta of the call or in \
                                     its header. Do not retry the call as it is."
            .into(),
        Problem::BodyTooLarge { limit_name, .. } => format!(
            "Send shorter arguments, or have {limit_name} raised in the configuration of the gateway."
        )
        .into(),
        _ => return None,
    })
}

fn in_a_worker(problem: &Problem) -> Option<&'static str> {
    Some(match problem {
        Problem::KeyReused => {
            "Use a new key for a new action. If this was meant to be a retry, begin with exactly the same input as the \
             first time. Do not retry it as it is."
        }
        Problem::KeyMalformed(_) => {
            "Send a key of 1 to 255 visible ASCII characters. Do not retry it as it is."
        }
        Problem::OutcomeUnknown(_) => {
            "Find out whether it ran. Then an operator settles the operation with onlyonce keys complete or onlyonce \
             keys release; where it may run twice, begin it with on_unknown: rerun. Every begin with this key gets \
             this answer until then. A new key may run it a second time."
        }
        _ => return None,
    })
}

fn at_a_command(problem: &Problem) -> Option<&'static str> {
    Some(match problem {
        Problem::KeyReused => {
            "Use a new key for a new command. To get the run that there was, give exactly the same command and \
             arguments as the first time."
        }
        Problem::KeyMalformed(_) | Problem::KeyMissing { .. } => {
            "Give --key 1 to 255 visible ASCII characters."
        }
        Problem::OutcomeUnknown(_) => {
            "Find out whether the command did its work. Where it did nothing, onlyonce keys release makes the key free \
             again; where it may do its work twice, run it with --on-unknown rerun. Every run with this key is told \
             this until then. A new key may run it a second time."
        }
        _ => return None,
    })
}

fn in_a_server(problem: &Problem) -> Option<Cow<'static, str>> {
    Some(match problem {
        Problem::OutcomeUnknown(_) => format!(
            "Find out whether it ran. Then an operator settles the operation, {SETTLE_IN_A_SERVER}. Sending it under \
             a new key may run it a second time. Every retry with this key gets this answer until it is settled."
        )
        .into(),
        Problem::UpstreamUnreachable { .. } => "Retry with the same key.".into(),
        Problem::CredentialMissing => "Send a credential, such as Authorization or x-api-key. In the server, \
                                       Rules::tenant says who a caller is, and Rules::allow_anonymous takes keys \
                                       without a credential."
            .into(),
        Problem::StoreUnavailable { .. } => "Retry with the same key after the time in Retry-After. Operators: look at \
                                             the store and at the log of the server. After a failed flush to disk the \
                                             embedded store takes no new work until the server is restarted."
            .into(),
        Problem::BodyTooLarge { limit_name, .. } => {
            format!("Send a smaller body, or raise Rules::{limit_name} in the server.").into()
        }
        Problem::RequestTimeout { limit_name, .. } => format!(
            "Retry with the same key. If the body is large and the connection slow, raise Rules::{limit_name} in the \
             server."
        )
        .into(),
        Problem::QuotaExceeded { .. } => "Retry with the same key after the time in Retry-After. If it goes on, raise \
                                          the named limit in the Settings of the server, or in the options of its \
                                          store."
            .into(),
        Problem::StorageFull { .. } => "Retry with the same key later. Operators: make room on the disk, raise the \
                                        limit that is named in the options of the store, or shorten the window."
            .into(),
        Problem::BadRequest { .. } => "Correct the request as the detail says.".into(),
        _ => return None,
    })
}
