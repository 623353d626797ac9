//! A tower layer that makes a retried request run once: so far the shell that it will share with the gateway.

pub mod shell;
