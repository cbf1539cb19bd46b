//! A platform in a process of its own, for tests in other languages: `cargo run --example sim -- 127.0.0.1:9000`.
//!
//! Prints one line of JSON with where it is and what it accepts, and serves until Ctrl-C.

use coze_sim::{App, Config, Sim};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    if let Some(listen) = std::env::args().nth(1) {
        config.listen = listen.parse()?;
    }
    let (app, private_key) = App::with_key("20000000000000000000000000000002.app.coze")?;
    let (client_id, kid) = (app.client_id.clone(), app.keys[0].0.clone());
    config.apps.push(app);
    let sim = Sim::start(config).await?;
    let jwt = json!({ "client_id": client_id, "kid": kid, "private_key": private_key });
    println!("{}", json!({ "url": sim.url(), "token": coze_sim::TOKEN, "bot": coze_sim::BOT, "jwt": jwt }));
    tokio::signal::ctrl_c().await?;
    sim.shutdown().await;
    Ok(())
}
