//! Sinks: who delivers to them, how far they are, and what was given up.

use bytes::{Bytes, BytesMut};
use onlyonce_core::OperationId;
use redis::Value;

use super::{id_of, position_of};
use crate::{
    StoreError,
    books::{Advance, Begin, DeadLetter, Held, Hold},
    codec, corrupt,
    parcel::{self, Label},
    redis::{
        Inner,
        failure::Failure,
        names::HOME,
        scripts::{self, Script},
        servers::Request,
        store::{int, unexpected},
    },
};

/// What a parcel holds.
const DEAD_LETTER: u8 = 8;

impl Inner {
    pub async fn hold(&self, hold: &Hold) -> Result<Option<Held>, StoreError> {
        let names = &self.servers.names;
        let mut command = scripts::HOLD.call();
        command
            .arg(2)
            .arg(names.sink(&hold.sink))
            .arg(names.ledger());
        command
            .arg(hold.owner.number())
            .arg(hold.lease.as_millis() as u64);
        command
            .arg(u8::from(hold.begin == Begin::Now))
            .arg(self.given_now());
        let Value::Array(answer) = self.home_script(&scripts::HOLD, command).await? else {
            return Err(unexpected());
        };
        match &answer[..] {
            [Value::Int(0), _] => Ok(None),
            [Value::Int(1), Value::BulkString(position)] if position.is_empty() => {
                Ok(Some(Held { position: None }))
            }
            [Value::Int(1), Value::BulkString(position)] => {
                let position = std::str::from_utf8(position).ok().and_then(position_of);
                let position = Some(position.ok_or_else(unexpected)?);
                Ok(Some(Held { position }))
            }
            _ => Err(unexpected()),
        }
    }

    pub async fn advance(&self, step: &Advance) -> Result<bool, StoreError> {
        let names = &self.servers.names;
        let mut command = scripts::ADVANCE.call();
        command.arg(3).arg(names.sink(&step.sink));
        command
            .arg(names.dead(&step.sink))
            .arg(names.dead_ids(&step.sink));
        command.arg(step.owner.number());
        command.arg(step.from.map(id_of).unwrap_or_default());
        command.arg(id_of(step.to)).arg(self.given_now());
        for letter in &step.bury {
            command.arg(letter.entry.id.as_bytes());
            command.arg(&*self.close_letter(letter)?);
        }
        Ok(int(self.home_script(&scripts::ADVANCE, command).await?)? == 1)
    }

    pub async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let names = &self.servers.names;
        let first = after.map_or(b"-".to_vec(), |after| {
            [b"(", &after.as_bytes()[..]].concat()
        });
        let mut command = redis::cmd("ZRANGE");
        command.arg(names.dead_ids(sink)).arg(first).arg("+");
        command.arg("BYLEX").arg("LIMIT").arg(0).arg(limit);
        let ids: Vec<Vec<u8>> = self.home(command).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(names.dead(sink)).arg(&ids);
        let letters: Vec<Option<Vec<u8>>> = self.home(command).await?;
        // What is forgotten meanwhile is not there.
        let letters = ids.iter().zip(letters);
        let letters = letters.filter_map(|(id, letter)| letter.map(|letter| (id, letter)));
        letters
            .map(|(id, letter)| self.open_letter(id, &letter))
            .collect()
    }

    pub async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        let names = &self.servers.names;
        let mut command = scripts::FORGET.call();
        command
            .arg(2)
            .arg(names.dead(sink))
            .arg(names.dead_ids(sink));
        for id in ids {
            command.arg(id.as_bytes());
        }
        let forgotten = int(self.home_script(&scripts::FORGET, command).await?)?;
        u64::try_from(forgotten).map_err(|_| unexpected())
    }

    async fn home_script(
        &self,
        script: &'static Script,
        command: redis::Cmd,
    ) -> Result<Value, StoreError> {
        let request = Request::script(HOME, script, command);
        self.call(&request).await.map_err(Failure::of_write)
    }

    fn close_letter(&self, letter: &DeadLetter) -> Result<Bytes, StoreError> {
        let mut plain = BytesMut::with_capacity(512);
        codec::encode_letter(letter, &mut plain);
        let label = Label::new(DEAD_LETTER, &[letter.entry.id.as_bytes()]);
        parcel::close(self.sealer.as_ref(), &label, &plain)
    }

    fn open_letter(&self, id: &[u8], letter: &[u8]) -> Result<DeadLetter, StoreError> {
        let label = Label::new(DEAD_LETTER, &[id]);
        let plain = parcel::open(self.sealer.as_ref(), &label, letter)?;
        codec::decode_letter(plain).map_err(corrupt)
    }
}
