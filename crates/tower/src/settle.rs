//! What somebody has found out about an operation of which nobody could say whether it ran.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;
use onlyonce_core::{Head, HeaderBlock, OperationId};
use onlyonce_engine::{Resolution, ResolveError};
use onlyonce_http::headers::{from_upstream, recorded};
use onlyonce_store::Store;

use crate::Once;

/// The longest value of a header that a record holds.
const LONGEST_HEADER: u64 = u16::MAX as u64;

impl<S: Store> Once<S> {
    /// Settles the operation or the step `id`, of which nobody could say whether it ran: it did, and this was its
    /// answer. Retries get it for `window` from now on; what a step has done is kept for a year at least. `who`
    /// has found that out, and the `reason`, stay with the record and go to the log.
    ///
    /// The answer to a step, and to what [`Once::run`] runs, is its result as JSON. Settle the step at which an
    /// operation stopped, and not that operation: its next attempt continues behind it.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{io, time::Duration};
    ///
    /// use http::Response;
    /// use onlyonce_tower::{Call, Key, Once, RunError};
    ///
    /// let once = Once::in_memory();
    /// let call = || Call::new(Key::new("message-17").unwrap());
    /// let failed = once.run(call(), async |_| Err::<u32, _>(io::Error::other("no answer"))).await;
    /// let Err(RunError::Unknown { operation: Some(id), .. }) = failed else { panic!("{failed:?}") };
    ///
    /// // Somebody has looked: it has made report 3.
    /// let day = Duration::from_secs(86_400);
    /// once.complete(id, Response::new("3"), day, "ada", "report 3 is in the archive").await?;
    /// let number: u32 = once.run(call(), async |_| Ok::<_, io::Error>(4)).await?;
    /// assert_eq!(number, 3);
    /// # Ok(()) }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`ResolveError`]; nothing is written then. [`ResolveError::OverLimit`] also where a header is longer than
    /// 65,535 bytes.
    pub async fn complete(
        &self,
        id: OperationId,
        answer: Response<impl Into<Bytes>>,
        window: Duration,
        who: &str,
        reason: &str,
    ) -> Result<(), ResolveError> {
        let (mut head, body) = answer.into_parts();
        from_upstream(&mut head.headers);
        // The body says it better.
        head.headers.remove(CONTENT_LENGTH);
        let headers = HeaderBlock::pack(recorded(&head.headers, false));
        let headers = headers.map_err(|_| ResolveError::OverLimit {
            limit: LONGEST_HEADER,
        })?;
        let resolution = Resolution::Completed {
            head: Head {
                status: head.status.as_u16(),
                headers,
            },
            body: body.into(),
            trailers: HeaderBlock::default(),
            window,
        };
        self.resolve(id, resolution, who, reason).await
    }

    /// Settles the operation or the step `id`, of which nobody could say whether it ran: it did not, and may run
    /// with its next attempt. The rest is as with [`Once::complete`].
    ///
    /// # Errors
    ///
    /// [`ResolveError`]; nothing is written then.
    pub async fn release(
        &self,
        id: OperationId,
        who: &str,
        reason: &str,
    ) -> Result<(), ResolveError> {
        self.resolve(id, Resolution::Released, who, reason).await
    }

    async fn resolve(
        &self,
        id: OperationId,
        resolution: Resolution,
        who: &str,
        reason: &str,
    ) -> Result<(), ResolveError> {
        let settled = self.engine().resolve(id, resolution, who, reason);
        settled.await.map(drop)
    }
}
