//! What the store is marked as, and the places at which it holds something.
//!
//! Every shard has a copy of the mark, so that the script that writes a claim sees it in its own slot.
//! That of the home shard is the one that counts; it is set first.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Inner,
    failure::Failure,
    lists::AT_ONCE,
    names::{HOME, Member, Shard, shard_of},
    scripts,
    servers::Request,
    store::{int, unexpected},
};
use crate::{Mark, StoreError, Walked};

impl Inner {
    pub async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.servers.names.mark(HOME));
        let request = Request::plain(HOME, command);
        match self.call(&request).await.map_err(Failure::of_read)? {
            redis::Value::Nil => Ok(None),
            redis::Value::BulkString(bytes) => Mark::decode(&String::from_utf8_lossy(&bytes)),
            _ => Err(unexpected()),
        }
    }

    pub async fn set_mark(
        &self,
        expected: Option<&Mark>,
        to: Option<&Mark>,
    ) -> Result<bool, StoreError> {
        let [expected, to] = [expected, to].map(|mark| mark.map(Mark::encode).unwrap_or_default());
        let mut command = scripts::MARK.call();
        command.arg(1).arg(self.servers.names.mark(HOME));
        command.arg(expected).arg(&to);
        let request = Request::script(HOME, &scripts::MARK, command);
        if int(self.call(&request).await.map_err(Failure::of_write)?)? == 0 {
            return Ok(false);
        }
        stream::iter(1..=Shard::MAX)
            .map(|shard| {
                let mut command = redis::cmd(if to.is_empty() { "DEL" } else { "SET" });
                command.arg(self.servers.names.mark(shard));
                if !to.is_empty() {
                    command.arg(&to);
                }
                async move {
                    let set = self.call(&Request::plain(shard, command)).await;
                    set.map_err(Failure::of_write)
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        Ok(true)
    }

    pub async fn walk(
        &self,
        after: Option<Walked>,
        limit: usize,
    ) -> Result<Vec<Walked>, StoreError> {
        let first = after.map_or(0, |after| shard_of(after.address));
        let mut walked = Vec::with_capacity(limit);
        for shard in first..=Shard::MAX {
            let begin =
                after
                    .filter(|_| shard == first)
                    .map_or(b"-".to_vec(), |Walked { address, id }| {
                        // Behind the tag, whatever that is.
                        [b"(", &id.as_bytes()[..], address.as_bytes(), &[0xff; 5]].concat()
                    });
            let mut command = redis::cmd("ZRANGE");
            command.arg(self.servers.names.ids(shard)).arg(begin);
            command.arg("+").arg("BYLEX").arg("LIMIT").arg(0);
            command.arg(limit - walked.len());
            let members: Vec<Vec<u8>> = self.ask(&Request::plain(shard, command)).await?;
            let members = members.iter().filter_map(|raw| Member::decode(raw));
            walked.extend(members.map(|Member { id, address, .. }| Walked { address, id }));
            if walked.len() >= limit {
                break;
            }
        }
        Ok(walked)
    }
}
