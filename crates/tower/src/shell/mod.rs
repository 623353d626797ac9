//! The shell around an engine, as far as it is the same for the layer and for the gateway: answers that
//! follow a recording, answers that go into one, what they are marked with, and who is told what.
//!
//! It is public for the gateway alone, and may change with any version.
//!
//! ```text
//!  collecting ── request bodies ──► fingerprint          first ◄── reader ── recorded ──► reply ──► caller
//!                                                          │
//!  incoming ──── the answer ──────► taking ──► execution ──┘   telling: marks and problem documents
//!                                              attached, audience: callers that leave
//! ```

pub mod attached;
pub mod audience;
pub mod collecting;
pub mod first;
pub mod incoming;
pub mod recorded;
pub mod reply;
pub mod taking;
pub mod telling;
pub mod timer;
