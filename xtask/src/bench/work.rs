//! What workers get done over the operations API: pairs of begin and complete, in turns with nginx.

use anyhow::Result;

use super::Size;
use super::peers::Stage;
use super::report::{Section, Target};
use super::rounds::{CONNECTIONS, NGINX, Peer, Rounds};
use super::wrk::{Keys, TOKEN};

/// Pairs a second, for each request a second of nginx.
const LEAST: f64 = 0.25;

/// Both listeners that serve the operations API, on one store.
pub fn measure(stage: &Stage, size: &Size) -> Result<Section> {
    let limits = "\n[limits]\ntenant_records = 100000000\n";
    let route = format!(
        "\n[[route]]\nkind = \"work\"\n\n[[server.token]]\nname = \"bench\"\ntoken = \"{TOKEN}\"\n\
         rights = [\"work\"]\n"
    );
    let gateway = stage.onlyonce_with("work", limits, &route)?;
    let control = gateway.control.map(|address| format!("http://{address}/"));
    let peers = [
        Peer::new("nginx", Keys::None, stage.nginx()?),
        Peer::over(
            "a route of workers",
            Keys::Pairs,
            vec![gateway.url()],
            vec![],
        ),
        Peer::over(
            "the control listener",
            Keys::Pairs,
            Vec::from_iter(control),
            vec![gateway],
        ),
    ];
    let rounds = Rounds::run(&peers, size)?;
    let mut figures = format!(
        "Workers begin operations with new keys and complete them with 200 bytes of JSON, over {CONNECTIONS} connections, on\n\
         the embedded store: both are on disk before they are answered. A cell is pairs of begin and complete a\n\
         second (p50, p99 of one request in ms), and for nginx, which passes through, requests a second; a ratio is\n\
         pairs to requests of nginx in the same round. {} rounds of {} s after one that warms up.\n",
        size.pairs, size.seconds
    );
    rounds.write(&mut figures, "Begin and complete")?;
    let target = |name: &str, peer| {
        let what = format!("pairs on {name}, ratio to requests of nginx, median");
        Target::at_least(what, rounds.ratio(peer, NGINX), LEAST, "")
    };
    Ok(Section {
        targets: vec![target("a route", 1), target("the control listener", 2)],
        figures,
    })
}
