//! What the fault campaigns share: a scripted upstream that counts, clients that retry, and the
//! checks of the guarantees against the upstream's own ledger.

pub mod client;
pub mod gateway;
pub mod history;
pub mod judge;
pub mod kills;
pub mod load;
pub mod random;
pub mod script;
pub mod upstream;
