//! Places for several gateways, each with a line of its own to the store.
//!
//! Each place is a network namespace with two lines: one to the store, one to everybody else. Servers,
//! upstream and clients are in another namespace, the hub, and so is whoever runs a test in [`Places::with`].
//! All addresses are inside these namespaces; nothing is changed outside of them. They take root, `ip`
//! (Debian: iproute2) and `nsenter` (util-linux).
//!
//! ```text
//! place 1   store 10.77.1.11 --- bridge 10.77.1.1 store     hub
//!           front 10.77.2.11 --- bridge 10.77.2.1 front
//! ```
//!
//! Where a machine does not allow that, a [`Between`] on loopback stands for each line, and standard
//! error says so: a cut line then closes its connections, which a cut wire does not do. With
//! `ONLYONCE_NAMESPACES=required` in the environment that fails the test, if it runs as root; with
//! `never`, it is asked for.

use std::{
    collections::HashMap,
    fs::File,
    io::{Write, stderr},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    panic::resume_unwind,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use rustix::{
    process::getuid,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{Between, Control, Gateway, Setup};

/// The network of the store's lines, and that of all others: the third number of their addresses.
const NETWORKS: [(&str, u8); 2] = [("store", 1), ("front", 2)];
/// The control listeners are not on loopback, and so they need one.
const TOKEN: &str = "a-token-for-the-places-of-a-test-0";

/// Whether a test that cannot have namespaces of the kernel's is to fail.
pub(crate) fn are_required() -> bool {
    std::env::var("ONLYONCE_NAMESPACES").is_ok_and(|wanted| wanted == "required")
        && getuid().is_root()
}

/// Where several gateways run.
pub enum Places {
    /// In namespaces.
    Namespaces(Namespaces),
    /// All on loopback, with a proxy for each line.
    Proxies(Mutex<HashMap<(usize, u16), Between>>),
}

impl Places {
    /// Makes `count` places, and runs `test` where servers, upstreams and clients belong.
    pub fn with<T: Send>(count: usize, test: impl FnOnce(&Self) -> T + Send) -> T {
        let places = Self::make(count);
        let Self::Namespaces(namespaces) = &places else {
            return test(&places);
        };
        let hub = File::open(namespaces.path(HUB)).expect("a namespace");
        let inside = || {
            // What this thread starts, threads and processes, starts there too.
            move_into_link_name_space(hub.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the hub can be entered");
            test(&places)
        };
        let ended = thread::scope(|scope| scope.spawn(inside).join());
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn make(count: usize) -> Self {
        let name = thread::current().name().unwrap_or("a test").to_owned();
        let wanted = std::env::var("ONLYONCE_NAMESPACES").unwrap_or_default();
        let made = match &*wanted {
            "never" => Err("they are not wanted".to_owned()),
            _ => Namespaces::make(count),
        };
        let (places, how) = match made {
            Ok(namespaces) => (Self::Namespaces(namespaces), "network namespaces".into()),
            Err(why) => {
                let how = format!("proxies, for there are no network namespaces here: {why}");
                assert!(!are_required(), "no gateways over {how}");
                (Self::Proxies(Mutex::default()), how)
            }
        };
        // Not by a macro: this is to be seen also where the test passes.
        let _ = writeln!(stderr(), "{name}: {count} gateways over {how}");
        places
    }

    /// Where an upstream listens, for the gateways to reach it.
    pub fn front(&self) -> IpAddr {
        self.address(|| address(NETWORKS[1].1, 1))
    }

    /// Where a store's server listens too, for the gateways to reach it; loopback, if they are there.
    pub fn store(&self) -> IpAddr {
        self.address(|| address(NETWORKS[0].1, 1))
    }

    /// All addresses that there can be.
    pub const NETWORK: &str = "10.77.0.0/16";

    fn address(&self, there: impl FnOnce() -> IpAddr) -> IpAddr {
        match self {
            Self::Namespaces(_) => there(),
            Self::Proxies(_) => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// How a server that listens on this port of loopback and of [`Places::store`] is reached from a
    /// place, over the line that [`Places::cut`] cuts.
    pub fn line(&self, place: usize, port: u16) -> SocketAddr {
        match self {
            Self::Namespaces(_) => (self.store(), port).into(),
            Self::Proxies(lines) => {
                let mut lines = lines.lock().expect("the lines");
                let line = lines.entry((place, port));
                let line = line.or_insert_with(|| Between::start(port));
                (Ipv4Addr::LOCALHOST, line.port()).into()
            }
        }
    }

    /// Has a gateway run at a place.
    pub fn setup(&self, place: usize, setup: Setup) -> Setup {
        let setup = setup.server(&format!(
            "allow_anonymous = true\ncontrol_token = \"{TOKEN}\""
        ));
        match self {
            Self::Namespaces(namespaces) => {
                let net = format!("--net={}", namespaces.path(place + 1));
                setup
                    .listen(address(NETWORKS[1].1, host(place)))
                    .under(&["nsenter", &net, "--"])
            }
            Self::Proxies(_) => setup,
        }
    }

    /// The control listener of a gateway at any place.
    pub fn control(&self, gateway: &Gateway) -> Control {
        gateway.control().with_token(TOKEN)
    }

    /// Cuts the line between a place and the store. In a namespace, packets vanish, both ways.
    pub fn cut(&self, place: usize) {
        self.switch(place, &["nomaster"], Between::cut);
    }

    /// Mends it.
    pub fn mend(&self, place: usize) {
        self.switch(place, &["master", NETWORKS[0].0], Between::mend);
    }

    fn switch(&self, place: usize, link: &[&str], line: impl Fn(&Between)) {
        match self {
            Self::Namespaces(namespaces) => {
                let port = port_of(NETWORKS[0].0, place);
                let words = [&["link", "set", &port], link].concat();
                namespaces.ip(HUB, &words).expect("the line is there");
            }
            Self::Proxies(lines) => {
                let lines = lines.lock().expect("the lines");
                let of_place = lines.iter().filter(|((at, _), _)| *at == place);
                of_place.for_each(|(_, between)| line(between));
            }
        }
    }
}

/// The namespaces of one test. They go with this, and also when its process ends in any other way.
pub struct Namespaces {
    /// The hub first.
    names: Vec<String>,
    /// Waits for the end of this process, and cleans up.
    keeper: Child,
}

/// Which of the names is the hub's.
const HUB: usize = 0;

impl Namespaces {
    fn make(count: usize) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        if !getuid().is_root() {
            return Err("they take root".to_owned());
        }
        let serial = MADE.fetch_add(1, Ordering::SeqCst);
        let names: Vec<String> = (0..=count)
            .map(|part| format!("onlyonce-{}-{serial}-{part}", std::process::id()))
            .collect();
        let clean_up = "read -r _; for name in \"$@\"; do ip netns del \"$name\"; done";
        let keeper = Command::new("sh")
            .args(["-c", clean_up, "keeper"])
            .args(&names)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let made = Self { names, keeper };
        made.build(count)?;
        Ok(made)
    }

    fn build(&self, count: usize) -> Result<(), String> {
        for (part, name) in self.names.iter().enumerate() {
            ip(&["netns", "add", name])?;
            self.ip(part, &["link", "set", "lo", "up"])?;
        }
        for (network, number) in NETWORKS {
            self.ip(HUB, &["link", "add", network, "type", "bridge"])?;
            self.bring_up(HUB, network, address(number, 1))?;
            for place in 0..count {
                let port = port_of(network, place);
                let far = &self.names[place + 1];
                let pair = [
                    "link", "add", &port, "type", "veth", "peer", "name", network,
                ];
                self.ip(HUB, &[&pair[..], &["netns", far]].concat())?;
                self.ip(HUB, &["link", "set", &port, "master", network, "up"])?;
                self.bring_up(place + 1, network, address(number, host(place)))?;
            }
        }
        Ok(())
    }

    fn bring_up(&self, part: usize, device: &str, address: IpAddr) -> Result<(), String> {
        let address = format!("{address}/24");
        self.ip(part, &["address", "add", &address, "dev", device])?;
        self.ip(part, &["link", "set", device, "up"])
    }

    /// Runs `ip` inside.
    fn ip(&self, part: usize, words: &[&str]) -> Result<(), String> {
        ip(&[&["-n", &self.names[part]], words].concat())
    }

    fn path(&self, part: usize) -> String {
        format!("/run/netns/{}", self.names[part])
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn address(network: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, network, host).into()
}

fn host(place: usize) -> u8 {
    u8::try_from(11 + place).expect("few places")
}

/// The hub's end of a place's line.
fn port_of(network: &str, place: usize) -> String {
    format!("{network}{place}")
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).output();
    let output = output.map_err(|error| format!("ip does not run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", words.join(" "), said.trim()))
}
