//! What ran, what it cost, and what was not spent twice.
