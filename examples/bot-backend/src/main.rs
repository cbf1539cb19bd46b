//! The program: see the library.

use std::{iter::successors, process::ExitCode};

use bot_backend::{
    Backend,
    cli::{Cli, Command, DEV_BOT, Serve, Sim},
    demo, logs,
};
use clap::Parser;
use coze_core::{BoxError, redact};
use tokio::signal;

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Serve(arguments) => serve(&arguments).await,
        Command::Sim(arguments) => sim(&arguments).await,
        Command::Demo(arguments) => demo::run(&arguments, asked_to_stop()).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<_> = successors(Some(&*error as &dyn std::error::Error), |e| (*e).source())
                .map(ToString::to_string)
                .collect();
            eprintln!("bot-backend: {}", redact(&causes.join(": ")));
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: &Serve) -> Result<(), BoxError> {
    let (config, made_up_key) = arguments.configure()?;
    logs::init(config.log)?;
    let backend = Backend::start(&config, arguments.echo).await?;
    let asked = asked_to_stop();
    println!("listening on {}", backend.url());
    if let Some(key) = made_up_key {
        println!("the bot {DEV_BOT:?} takes messages signed with the key {key}, until this process ends:");
        println!();
        println!(
            "  body='{{\"bot_id\":\"{DEV_BOT}\",\"conversation_id\":\"c1\",\"user_id\":\"u1\",\"content\":\"hello\"}}'"
        );
        println!("  signature=$(printf %s \"$body\" | openssl dgst -sha256 -hmac {key} -r | cut -d' ' -f1)");
        println!("  curl -sS {}/webhook -H \"X-Signature: $signature\" -d \"$body\"", backend.url());
    }
    asked.await?;
    tokio::select! {
        _ = backend.stop() => Ok(()),
        again = asked_to_stop() => again.and(Err("stopped at once, at the second signal".into())),
    }
}

async fn sim(arguments: &Sim) -> Result<(), BoxError> {
    let config = coze_sim::Config { listen: arguments.listen, ..coze_sim::Config::default() };
    let sim = coze_sim::Sim::start(config).await?;
    let asked = asked_to_stop();
    println!("simulating the platform on {}", sim.url());
    println!("access token {}, bot {}", coze_sim::TOKEN, coze_sim::BOT);
    asked.await?;
    sim.shutdown().await;
    Ok(())
}

/// Waits for SIGTERM or SIGINT, which are heard from now on, and not only when somebody waits: whoever reads that we run may
/// ask us to stop at once.
fn asked_to_stop() -> impl Future<Output = Result<(), BoxError>> {
    #[cfg(unix)]
    let heard = {
        use signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)))
    };
    async move {
        #[cfg(unix)]
        {
            let (mut terminate, mut interrupt) = heard?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        #[cfg(not(unix))]
        signal::ctrl_c().await?;
        Ok(())
    }
}
