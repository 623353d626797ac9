//! `onlyonce demo`
use crate::failure::Failure;

/// Shows it.
pub(crate) fn run() -> Result<(), Failure> {
    Ok(())
}
