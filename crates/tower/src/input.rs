//! What something to do depends on, as JSON.

use onlyonce_http::canonical_json::canonicalize;
use serde::Serialize;

/// An input, or why it is none. Nothing at all is another input than `null`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Input(Option<Result<Vec<u8>, String>>);

impl Input {
    pub(crate) fn of(input: &impl Serialize) -> Self {
        Self(Some(
            serde_json::to_vec(input).map_err(|error| error.to_string()),
        ))
    }

    /// As it was kept; empty where there was none.
    pub(crate) fn kept(json: &[u8]) -> Self {
        Self((!json.is_empty()).then(|| Ok(json.to_vec())))
    }

    /// As it is kept: empty where there is none.
    pub(crate) fn json(&self) -> Result<&[u8], String> {
        match &self.0 {
            None => Ok(&[]),
            Some(Ok(json)) => Ok(json),
            Some(Err(why)) => Err(format!("its input is no JSON: {why}")),
        }
    }

    /// As it is compared (RFC 8785).
    pub(crate) fn canonical(&self) -> Result<Vec<u8>, String> {
        match self.json()? {
            [] => Ok(Vec::new()),
            json => {
                canonicalize(json, &[]).map_err(|error| format!("its input is no JSON: {error}"))
            }
        }
    }
}
