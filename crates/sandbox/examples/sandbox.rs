//! Serves the sandbox: `cargo run -p onlyonce-sandbox --example sandbox -- 127.0.0.1:8790`

use onlyonce_sandbox::Sandbox;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let addr = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8790".to_owned());
    let sandbox = Sandbox::bind(addr).await?;
    println!("sandbox listening on http://{}", sandbox.local_addr());
    sandbox
        .serve(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .await;
    Ok(())
}
