//! The Redis store as a [`Store`].

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use onlyonce_core::{
    Address, Attempt, Epoch, Fence, OperationId, OwnerId, Record, RecordingId, State, StateName,
    Timestamp,
    transition::{self, Standing},
};
use redis::{Cmd, Value};

use super::{
    Inner, RedisStore,
    failure::Failure,
    head::{self, HEAD, Head},
    names::shard_of,
    scripts::{self, Script},
    servers::Request,
};
use crate::{
    AttemptNote, MAX_ATTEMPTS_KEPT, Mark, Page, Query, Seen, Shown, Status, Store, StoreError,
    Stored, Swap, Swept, Walked, Write,
    codec::{self, take_attempt},
    corrupt,
    parcel::{self, Label},
    tag,
};

/// For so long after its end a record is still held, if nobody sweeps it: the server's own expiry
/// only gives space back, and decides nothing.
const KEPT_BEYOND_MILLIS: u64 = 3_600_000;

/// What a parcel holds.
const RECORD: u8 = 1;
const LAST_CHUNK: u8 = 2;
const CHUNK: u8 = 3;
const ATTEMPT: u8 = 4;

impl Store for RedisStore {
    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    fn secret(&self) -> &[u8; 32] {
        &self.inner.secret
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        self.inner.load(address).await
    }

    fn may_forget(&self) -> bool {
        true
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        self.inner.compare_and_set(address, expected, write).await
    }

    async fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        let of = head::recording(recording);
        let label = chunk_label(address, recording, chunk);
        let parcel = parcel::close(inner.sealer.as_ref(), &label, &bytes)?;
        let size = parcel.len();
        let mut command = scripts::APPEND.call();
        command.arg(1).arg(inner.servers.names.record(address));
        command.arg(&of).arg(chunk).arg(&*parcel);
        let answer = inner.script(address, &scripts::APPEND, command).await?;
        match inner.echoed(answer, &[&of, chunk.to_string().as_bytes()])? {
            [Value::Int(1)] => {
                inner.figures.grew(size);
                Ok(())
            }
            [Value::Int(0)] => Err(StoreError::Fenced),
            _ => Err(damaged()),
        }
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        self.inner.read(address, recording, chunk).await
    }

    async fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        let inner = &self.inner;
        let parcel = inner.close_note(address, id, note)?;
        let mut command = scripts::NOTE.call();
        command.arg(1).arg(inner.servers.names.record(address));
        command.arg(id.as_bytes()).arg(&*parcel);
        match int(inner.script(address, &scripts::NOTE, command).await?)? {
            0 => Err(StoreError::Unavailable(format!("{id} is not held"))),
            number => u32::try_from(number).map_err(|_| damaged()),
        }
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        self.inner.attempts(address, id).await
    }

    async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        self.inner.find(id).await
    }

    async fn list(&self, query: Query) -> Result<Page, StoreError> {
        self.inner.list(query).await
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        let inner = &self.inner;
        let (names, shard) = (&inner.servers.names, shard_of(address));
        let mut command = scripts::REMOVE.call();
        command.arg(5).arg(names.record(address));
        command.arg(names.ids(shard)).arg(names.leases(shard));
        command.arg(names.ends(shard)).arg(names.others(shard));
        command.arg(&head::fence(fence)).arg(address.as_bytes());
        let answer = inner.script(address, &scripts::REMOVE, command).await?;
        match inner.echoed(answer, &[&head::fence(fence)])? {
            [Value::Int(1)] => {
                inner.figures.removed();
                Ok(true)
            }
            [Value::Int(0)] => Ok(false),
            _ => Err(damaged()),
        }
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        self.inner.sweep().await
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        self.inner.overdue(limit).await
    }

    async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        let inner = &self.inner;
        inner.follow(address, recording, owner, seen, at_most).await
    }

    async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        self.inner.followed(owner).await
    }

    async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        self.inner.show(address, recording, shown).await
    }

    async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        self.inner.mark().await
    }

    async fn set_mark(&self, expected: Option<Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        self.inner.set_mark(expected.as_ref(), to.as_ref()).await
    }

    async fn walk(&self, after: Option<Walked>, limit: usize) -> Result<Vec<Walked>, StoreError> {
        self.inner.walk(after, limit).await
    }

    fn status(&self) -> Status {
        self.inner.figures.status()
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.servers.close();
        Ok(())
    }
}

impl Inner {
    pub fn now(&self) -> Timestamp {
        if let Some(clock) = &self.given_clock {
            return clock.now();
        }
        let now = self.home_clock.read().now();
        let latest = self.latest.fetch_max(now, Ordering::AcqRel);
        Timestamp::from_millis(now.max(latest))
    }

    /// The time that a script is to go by; the server's own where it is empty.
    pub fn given_now(&self) -> String {
        let given = self.given_clock.as_ref();
        given.map_or(String::new(), |clock| clock.now().as_millis().to_string())
    }

    pub async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        let fields = self.fields(address, &["h", "r", "l", "n"]).await?;
        let Ok([head, record, last_chunk, attempts]) = <[_; 4]>::try_from(fields) else {
            return Err(damaged());
        };
        let Some(head) = head else {
            let is_empty = record.is_none() && last_chunk.is_none() && attempts.is_none();
            return if is_empty { Ok(None) } else { Err(damaged()) };
        };
        let decoded = Head::decode(&head).map_err(corrupt)?;
        let record = record.ok_or_else(damaged)?;
        let open = |kind, parcel: Bytes| {
            let label = record_label(kind, address, decoded.token);
            parcel::open(self.sealer.as_ref(), &label, &parcel)
        };
        let mut record = codec::decode(open(RECORD, record)?).map_err(corrupt)?;
        if decoded.standing.state == StateName::Unknown {
            // It may be one that lost its recording.
            record = record.without_recording();
        }
        if record.standing() != decoded.standing {
            return Err(corrupt("the record is not the one that its head speaks of"));
        }
        let last_chunk = match &record.state {
            State::Completed(completed) if completed.chunks > 0 => {
                let parcel = last_chunk.ok_or_else(damaged);
                match parcel.and_then(|parcel| open(LAST_CHUNK, parcel)) {
                    Ok(last_chunk) => Some(last_chunk),
                    Err(error) => {
                        self.spoil(address, &decoded, &error).await?;
                        record = record.without_recording();
                        None
                    }
                }
            }
            _ => None,
        };
        Ok(Some(Stored {
            record: Arc::new(record),
            attempts: number_or(1, attempts)?,
            last_chunk,
        }))
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        let started = Instant::now();
        crate::assert_whole(&write);
        let record = &write.record;
        let claims = record.is_new_claim();
        let tenant_tag = tag(&self.secret, &record.scope.tenant);
        if expected.is_none() {
            self.check_room(tenant_tag)?;
        }
        let script = match record.state.name() {
            StateName::Completed => &scripts::WRITE,
            StateName::InFlight if claims => &scripts::WRITE,
            _ => &scripts::WRITE_FREEING,
        };
        let mut token = [0; 8];
        aws_lc_rs::rand::fill(&mut token)
            .map_err(|_| StoreError::Unavailable("the system has no random bytes".to_owned()))?;
        let command = self.write_command(script, address, expected, &write, token)?;
        let size = command.get_packed_command().len();
        let mut request = Request::script(shard_of(address), script, command);
        // What the server gets to after its writer gave up must not start an execution. Under a
        // given clock there is no such time.
        if claims && self.given_clock.is_none() {
            request.valid_for = Some(self.servers.dialing().response_timeout * 3 / 4);
        } else {
            request.command.arg("");
        }
        let answer = self.call(&request).await.map_err(Failure::of_write)?;
        match self.echoed(answer, &[&token])? {
            [Value::Int(code @ (1 | 2)), Value::Int(attempts)] => {
                self.figures.wrote(size, started);
                if code == 2 {
                    self.figures.added(tenant_tag);
                }
                let attempts = u32::try_from(attempts).map_err(|_| damaged())?;
                Ok(Swap::Done { attempts })
            }
            [Value::Int(-3), Value::BulkString(held)] => Ok(refuse_unlawful(&held, record)),
            [Value::Int(-4), Value::BulkString(mark)] => {
                let mark = Mark::decode(&String::from_utf8_lossy(&mark))?;
                Err(mark
                    .as_ref()
                    .and_then(Mark::refusal)
                    .unwrap_or_else(unexpected))
            }
            [Value::Int(0), _] => Ok(Swap::Lost),
            [Value::Int(-1), _] => Err(damaged()),
            [Value::Int(-2), _] => {
                // Either it took long, or the server's clock was set.
                self.measure_clocks().await?;
                Err(StoreError::Unavailable(
                    "the server got to the claim too late, and did not make it".to_owned(),
                ))
            }
            _ => Err(unexpected()),
        }
    }

    fn write_command(
        &self,
        script: &Script,
        address: Address,
        expected: Option<Fence>,
        write: &Write,
        token: [u8; 8],
    ) -> Result<Cmd, StoreError> {
        let record = &write.record;
        let tenant_tag = tag(&self.secret, &record.scope.tenant);
        let new = Head::of(record, tenant_tag, token);
        let head = new.encode();
        let mut plain = BytesMut::with_capacity(512);
        codec::encode(record, &mut plain);
        let close = |kind, plain: &[u8]| {
            let label = record_label(kind, address, token);
            parcel::close(self.sealer.as_ref(), &label, plain)
        };
        let body = close(RECORD, &plain)?;
        let last_chunk = match &write.last_chunk {
            Some(chunk) => close(LAST_CHUNK, chunk)?,
            None => Bytes::new(),
        };
        let note = match &write.attempt {
            Some(note) => self.close_note(address, record.id, note.clone())?,
            None => Bytes::new(),
        };
        let expected_fence = expected.map(head::fence);
        let expected_fence = expected_fence.as_ref().map_or(&[][..], |fence| fence);
        // Where the record does not follow the one expected, no state is one that it may come from.
        let arrows = if follows(expected, record) {
            head::arrows_to(record.state.name())
        } else {
            ""
        };
        let (names, shard) = (&self.servers.names, shard_of(address));
        let mut command = script.call();
        command.arg(7).arg(names.record(address));
        command.arg(names.ids(shard)).arg(names.leases(shard));
        command.arg(names.ends(shard)).arg(names.mark(shard));
        command.arg(names.inbox(shard)).arg(names.others(shard));
        command.arg(expected_fence).arg(arrows).arg(&head);
        command.arg(&*body).arg(&*last_chunk).arg(&*note);
        command.arg(new.until).arg(new.chunks);
        command.arg(&new.member(address).encode());
        command.arg(KEPT_BEYOND_MILLIS).arg(self.given_now());
        command.arg(&*self.close_entry(record)?);
        command.arg(self.folded.floor(shard));
        Ok(command)
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        let missing = || corrupt(format!("chunk {chunk} of {recording} is missing"));
        let name = format!("c{chunk}");
        let fields = self.fields(address, &["h", &name]).await?;
        let Ok([head, parcel]) = <[_; 2]>::try_from(fields) else {
            return Err(damaged());
        };
        let head = head.ok_or_else(missing)?;
        let decoded = Head::decode(&head).map_err(corrupt)?;
        if decoded.recording() != recording {
            return Err(corrupt(format!("{recording} is not there any more")));
        }
        let is_completed = decoded.standing.state == StateName::Completed;
        let read = match parcel {
            Some(parcel) => {
                let label = chunk_label(address, recording, chunk);
                parcel::open(self.sealer.as_ref(), &label, &parcel)
            }
            // The last one stands beside the record.
            None if is_completed && decoded.chunks.checked_sub(1) == Some(chunk) => {
                let stored = self.load(address).await?;
                return stored
                    .filter(|stored| stored.record.recording() == recording)
                    .and_then(|stored| stored.last_chunk)
                    .ok_or_else(missing);
            }
            None => Err(missing()),
        };
        if let Err(error) = &read
            && is_completed
            && chunk < decoded.chunks
        {
            self.spoil(address, &decoded, error).await?;
        }
        read
    }

    /// A completed record whose recording cannot be read is unknown from now on, for everybody, under
    /// the fence that it has (I13).
    async fn spoil(
        &self,
        address: Address,
        held: &Head,
        why: &StoreError,
    ) -> Result<(), StoreError> {
        let id = held.id();
        tracing::error!(operation = %id, %why, "its recording cannot be read; it is unknown now");
        let new = Head {
            standing: Standing {
                state: StateName::Unknown,
                ..held.standing
            },
            until: 0,
            chunks: 0,
            ..held.clone()
        };
        let (names, shard) = (&self.servers.names, shard_of(address));
        let mut command = scripts::SPOIL.call();
        command.arg(3).arg(names.record(address));
        command.arg(names.ends(shard)).arg(names.others(shard));
        command.arg(&held.encode()).arg(&new.encode());
        command.arg(&held.member(address).encode());
        // Where another head stands by now, there is nothing to do.
        self.script(address, &scripts::SPOIL, command).await?;
        Ok(())
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        let fields = self.fields(address, &["h", "n"]).await?;
        let Ok([Some(head), last]) = <[_; 2]>::try_from(fields) else {
            return Ok(Vec::new());
        };
        if Head::decode(&head).map_err(corrupt)?.id() != id {
            return Ok(Vec::new());
        }
        let last = number_or(1, last)?;
        let first = last.saturating_sub(MAX_ATTEMPTS_KEPT as u32) + 1;
        let names: Vec<String> = (first..=last).map(|number| format!("a{number}")).collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let notes = self.fields(address, &names).await?;
        let mut attempts = Vec::with_capacity(notes.len());
        for (number, note) in (first..).zip(notes) {
            let Some(note) = note else { continue };
            let label = Label::new(ATTEMPT, &[address.as_bytes(), id.as_bytes()]);
            let mut note = parcel::open(self.sealer.as_ref(), &label, &note)?;
            let attempt = take_attempt(&mut note).map_err(corrupt)?;
            attempts.push(Attempt { number, ..attempt });
        }
        Ok(attempts)
    }

    /// Some fields of what is held at `address`.
    pub async fn fields(
        &self,
        address: Address,
        names: &[&str],
    ) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(self.servers.names.record(address)).arg(names);
        let request = Request::plain(shard_of(address), command);
        let Value::Array(values) = self.call(&request).await.map_err(Failure::of_read)? else {
            return Err(unexpected());
        };
        let field = |value| match value {
            Value::BulkString(bytes) => Ok(Some(Bytes::from(bytes))),
            Value::Nil => Ok(None),
            _ => Err(unexpected()),
        };
        values.into_iter().map(field).collect()
    }

    async fn script(
        &self,
        address: Address,
        script: &'static Script,
        command: Cmd,
    ) -> Result<Value, StoreError> {
        let request = Request::script(shard_of(address), script, command);
        self.call(&request).await.map_err(Failure::of_write)
    }

    /// Sends a request, unless the store was closed.
    pub async fn call(&self, request: &Request) -> Result<Value, Failure> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Failure::Closed);
        }
        self.servers.call(request).await
    }

    /// What an answer says behind the words by which it names its question. Where it names another
    /// one, answers were mixed up on their way, and nothing of what came is believed.
    fn echoed<const N: usize>(
        &self,
        answer: Value,
        question: &[&[u8]],
    ) -> Result<[Value; N], StoreError> {
        let Value::Array(mut words) = answer else {
            return Err(self.mixed_up());
        };
        if words.len() != question.len() + N {
            return Err(self.mixed_up());
        }
        let rest = words.split_off(question.len());
        let same = |(word, asked): (&Value, &&[u8])| matches!(word, Value::BulkString(word) if word == asked);
        if !words.iter().zip(question).all(same) {
            return Err(self.mixed_up());
        }
        rest.try_into().map_err(|_| unexpected())
    }

    fn mixed_up(&self) -> StoreError {
        tracing::error!("a server answered another question than was asked; connecting anew");
        self.servers.close();
        StoreError::InDoubt("the server answered another question than was asked".to_owned())
    }

    fn close_note(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<Bytes, StoreError> {
        // The script counts; the number stands in the name of the field.
        let mut plain = BytesMut::with_capacity(64);
        codec::encode_attempt(&note.numbered(0, self.now()), &mut plain);
        let label = Label::new(ATTEMPT, &[address.as_bytes(), id.as_bytes()]);
        parcel::close(self.sealer.as_ref(), &label, &plain)
    }
}

/// The label of a record, or of its last chunk: of this very write.
fn record_label(kind: u8, address: Address, token: [u8; 8]) -> Label {
    Label::new(kind, &[address.as_bytes(), &token])
}

fn chunk_label(address: Address, recording: RecordingId, number: u32) -> Label {
    let of = head::recording(recording);
    Label::new(CHUNK, &[address.as_bytes(), &of, &number.to_be_bytes()])
}

/// Whether `record` may follow a record with the fence `expected`, as far as can be told without
/// its state.
fn follows(expected: Option<Fence>, record: &Record) -> bool {
    let follows = match expected {
        Some(fence) => transition::may_follow(fence, record),
        None => record.epoch == Epoch::ZERO.next(),
    };
    let ends_after_its_start = match &record.state {
        State::Completed(completed) => completed.expires_at >= completed.completed_at,
        _ => true,
    };
    follows && ends_after_its_start
}

/// The script found that the drawing has no arrow from what is held to `record` (I8).
fn refuse_unlawful(held: &[u8], record: &Record) -> Swap {
    let held = <&[u8; HEAD]>::try_from(held).ok();
    let held = held.and_then(|held| Head::decode(held).ok());
    let held = held.map(|head| head.standing);
    match transition::check_arrow(held, record) {
        Err(breach) if held.is_none() => panic!("{breach}"),
        Err(breach) => crate::forgotten(record, &breach),
        Ok(()) => unreachable!("I8: the script refused {} a lawful arrow", record.id),
    }
}

pub fn int(value: Value) -> Result<i64, StoreError> {
    match value {
        Value::Int(int) => Ok(int),
        _ => Err(unexpected()),
    }
}

/// The number in a field, or what its absence stands for.
pub fn number_or(absent: u32, field: Option<Bytes>) -> Result<u32, StoreError> {
    let Some(field) = field else {
        return Ok(absent);
    };
    let text = std::str::from_utf8(&field).map_err(corrupt)?;
    text.parse().map_err(corrupt)
}

fn damaged() -> StoreError {
    corrupt("the record is damaged")
}

pub fn unexpected() -> StoreError {
    StoreError::InDoubt("the server's answer is none that was expected".to_owned())
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{
        Fingerprint, Key, OwnerId, RequestLine, Scope,
        transition::{Claim, claim},
    };
    use onlyonce_testkit::RedisServer;

    use super::*;
    use crate::redis::Options;

    /// Nobody here sends a write twice, but something between may.
    #[tokio::test]
    async fn a_write_that_arrives_twice_is_one_write() {
        let server = RedisServer::start(&[]);
        let store = RedisStore::open(&server.url(), Options::default()).await;
        let inner = store.expect("it opens").inner;
        let address = Address::from_bytes([1; 16]);
        let first = Claim {
            id: OperationId::from_bytes([1; 16]),
            scope: Scope {
                tenant: "acme".into(),
                namespace: "openai".into(),
            },
            key: Key::new("k").expect("a key"),
            fingerprint: Fingerprint::from_bytes([7; 32]),
            request: RequestLine::default(),
            owner: OwnerId::new(1),
            raise: std::num::NonZero::<u32>::MIN,
        };
        let record = claim(None, first, inner.now(), Duration::from_secs(30)).expect("new");
        let write = Write {
            record,
            last_chunk: None,
            attempt: None,
        };
        for (token, first, second) in [([1; 8], 2, 1), ([2; 8], 0, 0)] {
            let mut command = inner
                .write_command(&scripts::WRITE, address, None, &write, token)
                .expect("a command");
            command.arg("");
            let request = Request::script(shard_of(address), &scripts::WRITE, command);
            for code in [first, second] {
                let answer = inner.call(&request).await.expect("an answer");
                let answer = inner.echoed(answer, &[&token]).expect("its own");
                assert_eq!(answer, [Value::Int(code), Value::Int(0)]);
            }
        }
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_not_believed() {
        let server = RedisServer::start(&[]);
        let store = RedisStore::open(&server.url(), Options::default()).await;
        let inner = store.expect("it opens").inner;
        let told =
            |word: &[u8]| Value::Array(vec![Value::BulkString(word.to_vec()), Value::Int(1)]);
        assert!(matches!(
            inner.echoed(told(b"mine"), &[b"mine"]),
            Ok([Value::Int(1)])
        ));
        for answer in [told(b"yours"), Value::Int(1), Value::Array(Vec::new())] {
            let believed = inner.echoed::<1>(answer, &[b"mine"]);
            assert!(
                matches!(believed, Err(StoreError::InDoubt(_))),
                "{believed:?}"
            );
        }
    }
}
