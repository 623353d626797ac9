//! The PostgreSQL store on real servers: how it starts, what it refuses, what it outlives.

mod batches;
mod books;
mod faults;
mod keeping;
mod lists;
mod migrations;
mod mistakes;
mod notices;
mod pooler;
mod space;
mod support;
mod tls;
