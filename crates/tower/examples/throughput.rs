//! A server for load: each request is answered with 1 KB of JSON, once for each key, over an embedded store.
//! As in the gateway, each core has a runtime and a listener of its own.
//!
//! ```text
//! cargo run --release -p onlyonce-tower --example throughput -- 127.0.0.1:8080 data
//! ```
//!
//! With `--one-runtime` behind that, all cores have one runtime, as `#[tokio::main]` makes it, and one listener.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::{Router, routing::post};
use onlyonce_tower::{Once, OnceLayer, Rules};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// As in the gateway: requests are many small allocations from several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (address, folder, has_one_runtime) = match words.as_slice() {
        [address, folder] => (address, folder, false),
        [address, folder, option] if option == "--one-runtime" => (address, folder, true),
        _ => return Err("write the address to listen on and the data folder".into()),
    };
    let address: SocketAddr = address.parse()?;
    let mut runtime = Builder::new_multi_thread();
    if !has_one_runtime {
        // It serves nobody.
        runtime.worker_threads(1);
    }
    let serving = serve(address, folder, has_one_runtime);
    runtime.enable_all().build()?.block_on(serving)
}

async fn serve(
    address: SocketAddr,
    folder: &str,
    has_one_runtime: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let once = Once::embedded(folder)?;
    let rules = Rules::default().allow_anonymous();
    let answer: &str = format!(
        r#"{{"object":"answer","text":"{}"}}"#,
        "0123456789".repeat(99)
    )
    .leak();
    let handler = post(move || async move { ([(CONTENT_TYPE, "application/json")], answer) });
    let app = Router::new()
        .route("/", handler)
        .layer(OnceLayer::new(once.clone(), rules));

    let (stop, stopped) = watch::channel(());
    if has_one_runtime {
        let serving = tokio::spawn(work(address, app, stopped));
        signal(SignalKind::terminate())?.recv().await;
        drop(stop);
        serving.await??;
        once.shutdown(Duration::from_secs(10)).await?;
        return Ok(());
    }
    let cores = thread::available_parallelism()?;
    let workers = (0..cores.get()).map(|_| {
        let (app, stopped) = (app.clone(), stopped.clone());
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(thread::spawn(move || {
            runtime.block_on(work(address, app, stopped))
        }))
    });
    let workers = workers.collect::<io::Result<Vec<_>>>()?;
    signal(SignalKind::terminate())?.recv().await;
    drop(stop);
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")??;
    }
    once.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}

async fn work(
    address: SocketAddr,
    app: Router,
    mut stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    let listener: TcpListener = socket.listen(1024)?;
    let end = async move { while stopped.changed().await.is_ok() {} };
    axum::serve(listener, app).with_graceful_shutdown(end).await
}
