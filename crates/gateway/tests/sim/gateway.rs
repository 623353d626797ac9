//! A gateway on lines: what there is of a process, as often as it starts.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use onlyonce_core::OwnerId;
use onlyonce_engine::Engine;
use onlyonce_gateway::config::{Config, Overrides, Source};
use onlyonce_gateway::proxy::{Line, OnLines, Opening, Upstreams};
use onlyonce_gateway::shared::{Phase, Shared};
use parking_lot::Mutex;
use tempfile::NamedTempFile;
use tokio::sync::watch;

use crate::gate::Gate;
use crate::pipe::{self, Cut, End, Gated};
use crate::store::Way;
use crate::upstream::{self, Reach};
use crate::world::World;

const CONFIG: &str = r#"
[store]
url = "memory:"
lease = "5s"

[ledger]
enabled = false

[[tenant]]
name = "t0"
credentials = ["credential-0"]

[[tenant]]
name = "t1"
credentials = ["credential-1"]

[[upstream]]
name = "up"
url = "http://up.test"
"#;

/// What all routes have.
const EACH: &str = r#"
upstream = "up"
connect_timeout = "1s"
first_byte_timeout = "2s"
between_bytes_timeout = "2s"
total_timeout = "6s"
late_answer = "3s"
join_timeout = "8s"
"#;

/// The routes, by the first segment of their paths, with what each has of its own.
pub const ROUTES: [(&str, &str); 6] = [
    ("join", ""),
    ("brief", "window = \"3s\""),
    ("reject", "concurrent = \"reject\""),
    ("cancel", "client_gone = \"cancel\""),
    ("durable", "forward = \"after-durable\""),
    ("again", "retries = { max = 2, backoff = \"50ms\" }"),
];

/// One gateway, in whichever of its lives.
pub struct Gateway {
    world: Arc<World>,
    number: u64,
    lives: Mutex<Lives>,
}

#[derive(Default)]
struct Lives {
    count: u64,
    now: Option<Life>,
}

struct Life {
    name: Arc<str>,
    gate: Arc<Gate>,
    lines: OnLines<Way>,
    shared: Arc<Shared<Way>>,
    phases: watch::Sender<Phase>,
    cuts: Arc<Mutex<Vec<Cut>>>,
}

/// How a life of a gateway opens lines to the upstream.
struct Dialing {
    name: Arc<str>,
    world: Arc<World>,
    gate: Arc<Gate>,
    cuts: Arc<Mutex<Vec<Cut>>>,
}

impl Gateway {
    /// A gateway that runs.
    pub fn start(world: &Arc<World>, number: u64) -> Arc<Self> {
        let gateway = Self {
            world: Arc::clone(world),
            number,
            lives: Mutex::default(),
        };
        gateway.starts();
        Arc::new(gateway)
    }

    /// Begins its next life, unless it runs.
    pub fn starts(&self) {
        let mut lives = self.lives.lock();
        if lives.now.is_some() {
            return;
        }
        lives.count += 1;
        self.world
            .note(|| format!("gateway {} starts", self.number));
        lives.now = Some(self.life(lives.count));
    }

    fn life(&self, count: u64) -> Life {
        let gate = Arc::new(Gate::default());
        let mut random = self.world.random(1_000 + self.number * 100 + count);
        let owner = OwnerId::new(random.next());
        let name: Arc<str> = format!("g{}.{count}", self.number).into();
        let store = Way::new(&self.world, Arc::clone(&name), &gate, random);
        let shared = Shared::new(config(), store, owner).expect("a gateway");
        let cuts = Arc::default();
        let dialing = Dialing {
            name: Arc::clone(&name),
            world: Arc::clone(&self.world),
            gate: Arc::clone(&gate),
            cuts: Arc::clone(&cuts),
        };
        let (phases, phase) = watch::channel(Phase::Serving);
        let lines = OnLines::new(&shared, Arc::new(dialing), phase).expect("a data path");
        let (engine, upkeep) = (shared.engine.clone(), Arc::clone(&gate));
        tokio::spawn(async move { upkeep.run(engine.run_upkeep()).await });
        Life {
            name,
            gate,
            lines,
            shared,
            phases,
            cuts,
        }
    }

    /// What runs of it.
    pub fn engine(&self) -> Option<Engine<Way>> {
        let lives = self.lives.lock();
        Some(lives.now.as_ref()?.shared.engine.clone())
    }

    /// A caller's end of a new connection, and to whom it leads; `None` where nobody listens.
    pub fn connect(&self, peer: SocketAddr) -> Option<(End, Arc<str>)> {
        let lives = self.lives.lock();
        let life = lives.now.as_ref()?;
        if *life.phases.borrow() != Phase::Serving {
            return None;
        }
        let (near, far) = pipe::pair(64 << 10, usize::MAX);
        life.cuts.lock().push(near.cut());
        let gated = Gated {
            end: far,
            gate: Arc::clone(&life.gate),
        };
        let serving = life.lines.serve(Box::new(gated), peer)?;
        let gate = Arc::clone(&life.gate);
        tokio::spawn(async move { gate.run(serving).await });
        Some((near, Arc::clone(&life.name)))
    }

    /// Its process is gone, and its connections with it.
    pub fn kill(&self) {
        let Some(life) = self.lives.lock().now.take() else {
            return;
        };
        self.world.note(|| format!("gateway {} dies", self.number));
        self.world.count("gateways: killed");
        life.gate.kill();
        life.cuts.lock().iter().for_each(Cut::reset);
    }

    /// Its process stands still.
    pub fn hold(&self) {
        if let Some(life) = &self.lives.lock().now {
            self.world
                .note(|| format!("gateway {} stands still", self.number));
            self.world.count("gateways: stood still");
            self.world.stands_still(&life.name);
            life.gate.hold();
        }
    }

    /// Its process goes on.
    pub fn release(&self) {
        if let Some(life) = &self.lives.lock().now {
            self.world
                .note(|| format!("gateway {} goes on", self.number));
            self.world.goes_on(&life.name);
            life.gate.release();
        }
    }

    /// It is asked to end, and gets `drain` for what runs. It may die over it.
    pub async fn stop(&self, drain: Duration) {
        let Some((engine, gate)) = self.lives.lock().now.as_ref().map(|life| {
            life.phases.send_replace(Phase::Draining);
            (life.shared.engine.clone(), Arc::clone(&life.gate))
        }) else {
            return;
        };
        self.world.note(|| format!("gateway {} stops", self.number));
        self.world.count("gateways: ended");
        tokio::select! {
            biased;
            () = gate.dead() => return,
            () = engine.shutdown(drain) => {}
        }
        let life = self.lives.lock().now.take();
        if let Some(life) = life {
            life.phases.send_replace(Phase::Stopping);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.world.note(|| format!("gateway {} ends", self.number));
            life.gate.kill();
            life.cuts.lock().iter().for_each(Cut::reset);
        }
    }
}

impl Upstreams for Dialing {
    fn open(&self, _: &str, _: u16) -> Opening {
        let (world, gate) = (Arc::clone(&self.world), Arc::clone(&self.gate));
        let name = Arc::clone(&self.name);
        let cuts = Arc::clone(&self.cuts);
        Box::pin(async move {
            gate.pass().await;
            let end = upstream::reach(&world, &name).await;
            gate.pass().await;
            let end = match end {
                Reach::Refused => return Err(std::io::ErrorKind::ConnectionRefused.into()),
                Reach::There(end, number) => {
                    world.connection_is_open(number);
                    end
                }
            };
            cuts.lock().push(end.cut());
            let line: Line = Box::new(Gated { end, gate });
            Ok(line)
        })
    }
}

/// Read once: all gateways are configured alike.
fn config() -> Config {
    static CONFIGURED: OnceLock<(Config, NamedTempFile)> = OnceLock::new();
    let read = || {
        // No prices: a gateway reads them at its start, and the list that it comes with is long.
        let prices = NamedTempFile::new().expect("a file");
        std::fs::write(&prices, "[]").expect("room for it");
        let no_prices = format!("[prices]\nfile = {:?}\n", prices.path());
        let routes = ROUTES.iter().map(|(name, more)| {
            format!("[[route]]\nname = \"{name}\"\npath_prefix = \"/{name}\"\n{more}{EACH}\n")
        });
        let text = format!("{CONFIG}{no_prices}{}", routes.collect::<String>());
        let source = Source {
            name: "onlyonce.toml",
            text: &text,
            env: &|_| None,
        };
        let config = Config::read(&source, &Overrides::default());
        (config.unwrap_or_else(|error| panic!("{error}")), prices)
    };
    CONFIGURED.get_or_init(read).0.clone()
}
