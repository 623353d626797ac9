//! Whether the store takes claims, as far as a look at it tells.

use std::time::Duration;

use onlyonce_store::Store;
use tokio::time::timeout;

/// How long the look may take. Whoever scrapes or asks does not wait for a server that is gone.
const LOOK: Duration = Duration::from_secs(1);

/// Why it takes none; `None` where it does.
pub(crate) async fn trouble(store: &impl Store) -> Option<String> {
    if let Some(why) = store.status().poisoned {
        return Some(why);
    }
    match timeout(LOOK, store.mark()).await {
        Ok(Ok(None)) => None,
        Ok(Ok(Some(mark))) => Some(format!("it is closed: {mark}")),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("it does not answer".to_owned()),
    }
}
