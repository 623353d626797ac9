//! What ran, what it cost, and what was not spent twice.

mod ask;
pub mod event;
mod event_stream;
mod format;
mod hide;
mod inflate;
mod json;
mod meter;
pub mod outbox;
pub mod prices;
pub mod sinks;
mod sse;

pub use ask::{Addition, NamedModel};
pub use format::{FormatError, OneOrMore, RawFormat, UsageFormat};
pub use hide::UsageHider;
pub use inflate::{GaveUp, MeterMemory};
pub use meter::{Asked, End, Meter};
