//! What ran, what it cost, and what was not spent twice.

mod event_stream;
mod inflate;
mod json;
mod sse;
