//! Which server holds which shard, and how a command gets there.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use redis::{Cmd, PushInfo, PushKind, Value};
use tokio::runtime;

use super::{
    check::{Expected, Meta},
    failure::{Failure, Refusal},
    names::{HOME, Names, SHARDS, Shard},
    node::{Dialing, Line, Node},
    scripts::Script,
    url::{Place, Shape, Target},
    watch::Listeners,
};

/// A command is sent to so many servers at most before it is given up: a cluster points the way.
const MOST_MOVES: usize = 6;
/// How long to wait where keys of a slot are on both sides of a move.
const HALF_MOVED: Duration = Duration::from_millis(20);
/// Servers are looked for no more often than this.
const PAUSE: Duration = Duration::from_millis(100);

/// The servers of a store.
pub struct Servers {
    pub names: Names,
    shape: Shape,
    dialing: Dialing,
    pub expected: Expected,
    map: RwLock<Option<Arc<Map>>>,
    /// Whether the map may have changed.
    stale: AtomicBool,
    /// Held while servers are looked for; when that was tried last.
    finding: tokio::sync::Mutex<Option<Instant>>,
    /// Each runtime has connections of its own: what reads and writes them runs on the threads that
    /// wait for the answers.
    nodes: Mutex<HashMap<(runtime::Id, Place), Arc<Node>>>,
    /// The connections on which nothing but channels is listened to.
    ears: Mutex<HashMap<Place, Arc<Line>>>,
}

/// Which server holds which shard.
#[derive(Clone)]
struct Map {
    /// Without repeats.
    places: Vec<Place>,
    of_shard: Vec<usize>,
}

impl Map {
    fn all_at(place: Place) -> Self {
        Self {
            places: vec![place],
            of_shard: vec![0; SHARDS],
        }
    }

    fn put(&mut self, shard: Shard, place: &Place) {
        let at = self.places.iter().position(|held| held == place);
        let at = at.unwrap_or_else(|| {
            self.places.push(place.clone());
            self.places.len() - 1
        });
        self.of_shard[usize::from(shard)] = at;
    }

    fn place(&self, shard: Shard) -> &Place {
        &self.places[self.of_shard[usize::from(shard)]]
    }
}

/// A command that goes to the server of a shard.
pub struct Request {
    pub shard: Shard,
    pub command: Cmd,
    /// The script that it calls.
    pub script: Option<&'static Script>,
    /// How late it may still be carried out after it was sent, which its last argument says in the
    /// server's time; without it, it has no such argument.
    pub valid_for: Option<Duration>,
}

impl Request {
    pub fn plain(shard: Shard, command: Cmd) -> Self {
        Self {
            shard,
            command,
            script: None,
            valid_for: None,
        }
    }

    pub fn script(shard: Shard, script: &'static Script, command: Cmd) -> Self {
        Self {
            shard,
            command,
            script: Some(script),
            valid_for: None,
        }
    }
}

impl Servers {
    pub fn new(target: Target, dialing: Dialing) -> Self {
        let names = Names::new(&target.prefix);
        let expected = Expected {
            login: target.login,
            db: target.db,
            cluster: matches!(target.shape, Shape::Cluster(_)),
            meta: Meta {
                key: names.meta(),
                bytes: std::sync::OnceLock::new(),
            },
        };
        Self {
            names,
            shape: target.shape,
            dialing,
            expected,
            map: RwLock::new(None),
            stale: AtomicBool::new(false),
            finding: tokio::sync::Mutex::default(),
            nodes: Mutex::default(),
            ears: Mutex::default(),
        }
    }

    /// Sends a request to the server of its shard, wherever that has moved, and gives the answer.
    ///
    /// A server that does not have the shard does nothing with the request but say so, and so does
    /// one that does not know the script: only then is it sent again.
    pub async fn call(&self, request: &Request) -> Result<Value, Failure> {
        let mut place = self.map().await?.place(request.shard).clone();
        let mut asking = false;
        let mut moves = 0;
        let started = Instant::now();
        loop {
            let node = self.node(&place);
            let failure = match self.send(&node, request, asking).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            match failure.code() {
                "TRYAGAIN" if started.elapsed() < self.dialing.response_timeout => {
                    tokio::time::sleep(HALF_MOVED).await;
                }
                code @ ("MOVED" | "ASK") if moves < MOST_MOVES => {
                    moves += 1;
                    asking = code == "ASK";
                    let Some(to) = moved_to(&failure, &place) else {
                        return Err(failure);
                    };
                    if !asking {
                        self.moved(request.shard, &to);
                    }
                    place = to;
                }
                code => {
                    let answered = matches!(failure, Failure::Refused { .. });
                    if !answered || matches!(code, "READONLY" | "CLUSTERDOWN") {
                        self.doubt_map();
                    }
                    return Err(failure);
                }
            }
        }
    }

    async fn send(&self, node: &Node, request: &Request, asking: bool) -> Result<Value, Failure> {
        let dated;
        let command = match request.valid_for {
            None => &request.command,
            Some(span) => {
                let latest = node.clock.now() + span.as_millis() as u64;
                let mut command = request.command.clone();
                command.arg(latest);
                dated = command;
                &dated
            }
        };
        let (dialing, expected) = (&self.dialing, &self.expected);
        let answer = node.send(dialing, expected, command, asking).await;
        match (answer, request.script) {
            (Err(failure), Some(script)) if failure.code() == "NOSCRIPT" => {
                node.send(dialing, expected, &script.load(), false).await?;
                node.send(dialing, expected, command, asking).await
            }
            (answer, _) => answer,
        }
    }

    /// Sends a command about channels to the server of a shard. What comes of it is told to `listeners`.
    pub async fn call_ears(
        &self,
        shard: Shard,
        command: &Cmd,
        listeners: &Arc<Listeners>,
    ) -> Result<(), Failure> {
        let place = self.map().await?.place(shard).clone();
        let line = self.ears.lock().entry(place.clone()).or_default().clone();
        let dial = async |closed: Arc<AtomicBool>| {
            let listeners = listeners.clone();
            let pushed = move |info: PushInfo| {
                if info.kind == PushKind::Disconnection {
                    closed.store(true, Ordering::Release);
                }
                listeners.pushed(&info);
            };
            self.dialing
                .dial(&place, &self.expected.login, self.expected.db, pushed)
                .await
                .map_err(|error| Refusal::of_connect(&place, &error))
        };
        let mut live = line.live(dial).await?;
        let answer = live.connection.send_packed_command(command).await;
        let answer = line.judge(&place, &live, answer);
        if let Err(failure) = &answer
            && let ("MOVED", Some(to)) = (failure.code(), moved_to(failure, &place))
        {
            self.moved(shard, &to);
        }
        answer.map(drop)
    }

    /// Sends a command to every server that holds shards.
    pub async fn call_all(&self, command: &Cmd) -> Result<Vec<Value>, Failure> {
        let mut answers = Vec::new();
        for node in self.all().await? {
            answers.push(self.send_to(&node, command).await?);
        }
        Ok(answers)
    }

    /// Every server that holds shards.
    pub async fn all(&self) -> Result<Vec<Arc<Node>>, Failure> {
        let map = self.map().await?;
        Ok(map.places.iter().map(|place| self.node(place)).collect())
    }

    /// The server whose clock is the store's.
    pub async fn home(&self) -> Result<Arc<Node>, Failure> {
        Ok(self.node(self.map().await?.place(HOME)))
    }

    pub fn dialing(&self) -> &Dialing {
        &self.dialing
    }

    /// Closes all connections.
    pub fn close(&self) {
        self.nodes.lock().clear();
        self.ears.lock().clear();
    }

    /// Measures a server's clock again.
    pub async fn measure_clock(&self, node: &Node) -> Result<(), Failure> {
        node.measure_clock(&self.dialing, &self.expected).await
    }

    /// Sends a command to one server.
    pub async fn send_to(&self, node: &Node, command: &Cmd) -> Result<Value, Failure> {
        node.send(&self.dialing, &self.expected, command, false)
            .await
    }

    fn node(&self, place: &Place) -> Arc<Node> {
        let key = (runtime::Handle::current().id(), place.clone());
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(&key) {
            return node.clone();
        }
        // A clock is the server's, whoever looks at it.
        let known = nodes.values().find(|node| node.place == *place);
        let clock = known.map_or_else(Arc::default, |node| node.clock.clone());
        let node = Arc::new(Node::new(place.clone(), clock));
        nodes.insert(key, node.clone());
        node
    }

    async fn map(&self) -> Result<Arc<Map>, Failure> {
        let known = self.map.read().clone();
        let Some(known) = known else {
            let mut tried = self.finding.lock().await;
            if let Some(map) = self.map.read().clone() {
                return Ok(map);
            }
            return self.find_again(&mut tried).await.map_err(Failure::Unsent);
        };
        // One looks for the servers anew, and the others make do with what is known meanwhile.
        if self.stale.load(Ordering::Acquire)
            && let Ok(mut tried) = self.finding.try_lock()
            && tried.is_none_or(|tried| tried.elapsed() >= PAUSE)
        {
            return Ok(self.find_again(&mut tried).await.unwrap_or(known));
        }
        Ok(known)
    }

    async fn find_again(&self, tried: &mut Option<Instant>) -> Result<Arc<Map>, Refusal> {
        *tried = Some(Instant::now());
        let map = Arc::new(self.find_map().await?);
        *self.map.write() = Some(map.clone());
        self.stale.store(false, Ordering::Release);
        Ok(map)
    }

    fn moved(&self, shard: Shard, place: &Place) {
        let mut map = self.map.write();
        if let Some(map) = map.as_mut() {
            Arc::make_mut(map).put(shard, place);
        }
    }

    /// Looks for the servers anew at the next request.
    pub fn doubt_map(&self) {
        self.stale.store(true, Ordering::Release);
    }

    async fn find_map(&self) -> Result<Map, Refusal> {
        match &self.shape {
            Shape::One(place) => Ok(Map::all_at(place.clone())),
            Shape::Sentinel { .. } => self.ask_sentinels().await.map(Map::all_at),
            Shape::Cluster(seeds) => self.ask_cluster(seeds).await,
        }
    }

    async fn ask_sentinels(&self) -> Result<Place, Refusal> {
        let Shape::Sentinel {
            sentinels,
            master,
            login,
        } = &self.shape
        else {
            unreachable!("only sentinels are asked");
        };
        let mut last = None;
        for sentinel in sentinels {
            let mut command = redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
            let answer: Option<(String, u16)> =
                match self.dialing.ask(sentinel, login, &command).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        last = Some(Refusal::of_connect(sentinel, &error));
                        continue;
                    }
                };
            if let Some((host, port)) = answer {
                return Ok(Place { host, port });
            }
        }
        Err(last.unwrap_or_else(|| Refusal::NoMaster {
            master: master.clone(),
        }))
    }

    async fn ask_cluster(&self, seeds: &[Place]) -> Result<Map, Refusal> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let known: Vec<Place> = {
            let nodes = self.nodes.lock();
            nodes.keys().map(|(_, place)| place.clone()).collect()
        };
        let mut last = None;
        for place in known.iter().chain(seeds) {
            match self
                .dialing
                .ask::<Value>(place, &self.expected.login, &command)
                .await
            {
                Ok(slots) => match self.read_slots(&slots, place) {
                    Some(map) => return Ok(map),
                    None => {
                        last = Some(Refusal::NotReady {
                            place: place.to_string(),
                            why: "a part of the cluster's slots has no server".to_owned(),
                        });
                    }
                },
                Err(error) if error.to_string().contains("cluster support disabled") => {
                    return Err(Refusal::NotInCluster {
                        place: place.to_string(),
                    });
                }
                Err(error) => last = Some(Refusal::of_connect(place, &error)),
            }
        }
        Err(last.unwrap_or_else(|| Refusal::Unreachable {
            place: "the cluster".to_owned(),
            why: "no node of it is named".to_owned(),
        }))
    }

    /// Reads what `CLUSTER SLOTS` says, as `asked` told it: ranges, each with its master first.
    fn read_slots(&self, slots: &Value, asked: &Place) -> Option<Map> {
        let mut ranges = Vec::new();
        for range in slots.as_sequence()? {
            let [Value::Int(first), Value::Int(last), master, ..] = range.as_sequence()? else {
                return None;
            };
            let [host, Value::Int(port), ..] = master.as_sequence()? else {
                return None;
            };
            let host = match redis::from_redis_value::<Option<String>>(host.clone()).ok()? {
                // It does not know its own name: it is the one that we reached.
                None => asked.host.clone(),
                Some(host) if host.is_empty() || host == "?" => asked.host.clone(),
                Some(host) => host,
            };
            let port = u16::try_from(*port).ok()?;
            ranges.push((*first, *last, Place { host, port }));
        }
        let mut map: Option<Map> = None;
        for shard in 0..=u8::MAX {
            let slot = i64::from(self.names.slot(shard));
            let (_, _, place) = ranges
                .iter()
                .find(|(first, last, _)| (*first..=*last).contains(&slot))?;
            map.get_or_insert_with(|| Map::all_at(place.clone()))
                .put(shard, place);
        }
        map
    }
}

/// Where an answer says that the slot is: `MOVED 3999 127.0.0.1:6381`.
fn moved_to(failure: &Failure, asked: &Place) -> Option<Place> {
    let Failure::Refused { text, .. } = failure else {
        return None;
    };
    let to = text.rsplit(' ').next()?;
    let (host, port) = to.rsplit_once(':')?;
    let host = if host.is_empty() { &asked.host } else { host };
    Some(Place {
        host: host.to_owned(),
        port: port.parse().ok()?,
    })
}
