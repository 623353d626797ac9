//! The Model Context Protocol over streamable HTTP (revisions 2025-03-26 to 2025-11-25), as far as an
//! operation needs it: which posted message is a call of a tool, whether its answer is whole, and the
//! same answer for a retry that has another id.

mod answer;
mod events;
mod list;
mod message;
mod rewrite;
mod scan;

pub use answer::Answered;
pub use list::{Declared, ListReader};
pub use message::{Calls, NotAMessage, Posted};
pub use rewrite::{Requests, Retry, Rewriter};
