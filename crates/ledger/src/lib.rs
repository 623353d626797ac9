//! What ran, what it cost, and what was not spent twice.

mod event_stream;
mod format;
mod inflate;
mod json;
mod meter;
pub mod prices;
mod sse;

pub use format::{FormatError, OneOrMore, RawFormat, UsageFormat};
pub use inflate::{GaveUp, MeterMemory};
pub use meter::{Asked, End, Meter};
