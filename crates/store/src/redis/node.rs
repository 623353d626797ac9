//! One server: its connection, made anew when it breaks, and its clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo,
    ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, TlsCertificates, Value,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};

use super::{
    check::{self, Expected},
    failure::{Failure, Refusal},
    url::{Login, Place},
};

/// Commands that may wait to be written.
const QUEUE: usize = 1_024;
/// After a connection could not be made, for so long nobody tries again.
const PAUSE: Duration = Duration::from_millis(100);

/// How connections are made.
pub struct Dialing {
    pub tls: bool,
    /// Certificates of authorities to trust instead of the system's, as PEM.
    pub root_certificates: Option<Vec<u8>>,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
}

impl Dialing {
    /// Asks one question over a connection of its own.
    pub async fn ask<T: FromRedisValue>(
        &self,
        place: &Place,
        login: &Login,
        question: &Cmd,
    ) -> Result<T, RedisError> {
        let mut connection = self.dial(place, login, 0, |_| {}).await?;
        question.query_async(&mut connection).await
    }

    /// A connection that was not checked for anything.
    pub async fn dial(
        &self,
        place: &Place,
        login: &Login,
        db: i64,
        pushed: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, RedisError> {
        let mut who = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("onlyonce", env!("CARGO_PKG_VERSION"))
            .set_db(db);
        if let Some(user) = &login.user {
            who = who.set_username(user);
        }
        if let Some(password) = &login.password {
            who = who.set_password(password);
        }
        let address = if self.tls {
            ConnectionAddr::TcpTls {
                host: place.host.clone(),
                port: place.port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(place.host.clone(), place.port)
        };
        let info = address
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(who);
        let client = match &self.root_certificates {
            Some(roots) if self.tls => Client::build_with_tls(
                info,
                TlsCertificates {
                    client_tls: None,
                    root_cert: Some(roots.clone()),
                },
            )?,
            _ => Client::open(info)?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout))
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(move |info| {
                pushed(info);
                Ok::<_, redis::aio::SendError>(())
            });
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}

/// One server.
pub struct Node {
    pub place: Place,
    pub clock: Arc<NodeClock>,
    line: Line,
}

impl Node {
    /// The server at `place`, whose clock may be known already.
    pub fn new(place: Place, clock: Arc<NodeClock>) -> Self {
        Self {
            place,
            clock,
            line: Line::default(),
        }
    }

    /// Sends `command` and waits for the answer; never sends it twice. Where the slot is moving here,
    /// it comes after `ASKING`.
    pub async fn send(
        &self,
        dialing: &Dialing,
        expected: &Expected,
        command: &Cmd,
        asking: bool,
    ) -> Result<Value, Failure> {
        let mut live = self.live(dialing, expected).await?;
        let answer = if asking {
            let mut both = redis::Pipeline::new();
            both.cmd("ASKING").add_command(command.clone());
            let answers = live.connection.send_packed_commands(&both, 1, 1).await;
            answers.map(|mut answers| answers.pop().unwrap_or(Value::Nil))
        } else {
            live.connection.send_packed_command(command).await
        };
        self.line.judge(&self.place, &live, answer)
    }

    /// Measures the server's clock again.
    pub async fn measure_clock(
        &self,
        dialing: &Dialing,
        expected: &Expected,
    ) -> Result<(), Failure> {
        let mut live = self.live(dialing, expected).await?;
        let measured = self.clock.measure(&mut live.connection).await;
        let answer = measured.map(|()| Value::Nil);
        self.line.judge(&self.place, &live, answer).map(drop)
    }

    async fn live(&self, dialing: &Dialing, expected: &Expected) -> Result<Live, Failure> {
        let dial = async |closed| {
            let pushed = closes(closed);
            let mut connection = dialing
                .dial(&self.place, &expected.login, expected.db, pushed)
                .await
                .map_err(|error| Refusal::of_connect(&self.place, &error))?;
            check::server(&mut connection, &self.place, expected).await?;
            self.clock
                .measure(&mut connection)
                .await
                .map_err(|error| Refusal::of_connect(&self.place, &error))?;
            Ok(connection)
        };
        self.line.live(dial).await
    }
}

/// Notes in `closed` that its connection broke.
fn closes(closed: Arc<AtomicBool>) -> impl Fn(PushInfo) + Send + Sync + 'static {
    move |info| {
        if info.kind == PushKind::Disconnection {
            closed.store(true, Ordering::Release);
        }
    }
}

/// A connection that is made when it is needed, and made anew when it breaks.
#[derive(Default)]
pub struct Line {
    live: Mutex<Option<Live>>,
    /// Held while a connection is made; why the last one was not, and when.
    dialing: tokio::sync::Mutex<Option<(Instant, Refusal)>>,
}

/// A connection. It is gone with its last clone.
#[derive(Clone)]
pub struct Live {
    pub connection: MultiplexedConnection,
    closed: Arc<AtomicBool>,
}

impl Line {
    /// The connection as it stands, or one that `dial` makes. What `dial` is given is to become true
    /// when the connection breaks.
    pub async fn live(
        &self,
        dial: impl AsyncFnOnce(Arc<AtomicBool>) -> Result<MultiplexedConnection, Refusal>,
    ) -> Result<Live, Failure> {
        if let Some(live) = self.current() {
            return Ok(live);
        }
        // Whoever comes first makes the connection; the others wait, and share its fate.
        let mut last = self.dialing.lock().await;
        if let Some(live) = self.current() {
            return Ok(live);
        }
        if let Some((at, refusal)) = &*last
            && at.elapsed() < PAUSE
        {
            return Err(Failure::Unsent(refusal.clone()));
        }
        let closed = Arc::new(AtomicBool::new(false));
        match dial(closed.clone()).await {
            Ok(connection) => {
                let live = Live { connection, closed };
                *self.live.lock() = Some(live.clone());
                *last = None;
                Ok(live)
            }
            Err(refusal) => {
                *last = Some((Instant::now(), refusal.clone()));
                Err(Failure::Unsent(refusal))
            }
        }
    }

    /// What an answer that came over `live` means; a connection that it speaks against is dropped.
    pub fn judge(
        &self,
        place: &Place,
        live: &Live,
        answer: Result<Value, RedisError>,
    ) -> Result<Value, Failure> {
        let failure = match answer.and_then(Value::extract_error) {
            Ok(value) => return Ok(value),
            Err(error) => Failure::of_sent(place, &error),
        };
        // A role that changed, and an answer that did not come, are found out anew.
        if matches!(failure, Failure::Unanswered(_)) || failure.code() == "READONLY" {
            let mut current = self.live.lock();
            if current
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(&current.closed, &live.closed))
            {
                *current = None;
            }
        }
        Err(failure)
    }

    fn current(&self) -> Option<Live> {
        let mut live = self.live.lock();
        if live
            .as_ref()
            .is_some_and(|live| live.closed.load(Ordering::Acquire))
        {
            *live = None;
        }
        live.clone()
    }
}

/// What a server's clock says, as far as is known here: how far it is from the time that passed
/// since the start of this process, by the monotonic clock.
pub struct NodeClock {
    started: Instant,
    /// Milliseconds.
    offset: AtomicI64,
}

impl Default for NodeClock {
    fn default() -> Self {
        // Only until it is measured.
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started: Instant::now(),
            offset: AtomicI64::new(wall.as_millis() as i64),
        }
    }
}

impl NodeClock {
    /// Milliseconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        let passed = self.started.elapsed().as_millis() as i64;
        u64::try_from(self.offset.load(Ordering::Acquire) + passed).unwrap_or(0)
    }

    /// Learns what the server said its time was, at some moment between `asked` and now.
    fn learn(&self, asked: Instant, said: u64) {
        let round_trip = asked.elapsed();
        let passed = (asked - self.started + round_trip / 2).as_millis() as i64;
        let offset = said as i64 - passed;
        let off_by = (offset - self.offset.load(Ordering::Acquire)).unsigned_abs();
        // Within what the round trip leaves open, the clock that is known is as good.
        if u128::from(off_by) > round_trip.as_millis() / 2 + 1 {
            self.offset.store(offset, Ordering::Release);
        }
    }

    async fn measure(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let asked = Instant::now();
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
        self.learn(asked, seconds * 1_000 + micros / 1_000);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_follows_what_the_server_says() {
        let clock = NodeClock::default();
        let year = 365 * 86_400_000;
        let ahead = clock.now() + year;
        clock.learn(Instant::now(), ahead);
        assert!(clock.now().abs_diff(ahead) < 1_000);
        clock.learn(Instant::now(), ahead - 2 * year);
        assert!(clock.now().abs_diff(ahead - 2 * year) < 1_000);
    }
}
