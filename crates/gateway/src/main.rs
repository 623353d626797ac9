//! The binary `onlyonce`.

use std::process::ExitCode;

/// Requests are many small allocations from several threads: mimalloc is measurably faster at that
/// than the allocator of the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    onlyonce_gateway::cli::run(std::env::args_os())
}
