//! `demo`: the simulated platform and the bot, and what happens between them, step by step.

mod http;
mod limits;
mod messages;
mod report;
mod senders;
mod serve;
mod step;
mod stopping;
mod table;
mod trouble;
mod world;

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use coze_core::BoxError;
use tokio::time::{Instant, timeout};

use crate::{cli::Demo, config::LogFormat, logs};

use report::{Played, Report};
use step::{STEPS, Seen, Step};
use table::Table;
use world::World;

/// Time for one step. A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Plays all steps and prints what became of them. With `--serve` everything then runs on until `asked_to_stop`, which before
/// that breaks off.
///
/// # Errors
/// When a step failed, when the platform or the bot cannot be started, when nobody reads what is printed, or when it is
/// broken off.
pub async fn run(arguments: &Demo, asked_to_stop: impl Future<Output = Result<(), BoxError>>) -> Result<(), BoxError> {
    if std::env::var_os("RUST_LOG").is_some() {
        logs::init(LogFormat::Text)?;
    }
    let mut asked_to_stop = std::pin::pin!(asked_to_stop);
    let broken_off = "stopped before the last step";
    let mut world = tokio::select! {
        world = World::start(&arguments.fault) => world?,
        asked = asked_to_stop.as_mut() => return asked.and(Err(broken_off.into())),
    };
    let ended = tokio::select! {
        ended = play_all(&mut world, arguments) => ended.map_err(Into::into),
        asked = asked_to_stop.as_mut() => asked.and(Err(broken_off.into())),
    };
    if arguments.serve && ended.is_ok() {
        let text = serve::text(&world);
        match arguments.json {
            true => eprintln!("{text}"),
            false => writeln!(io::stdout(), "{text}")?,
        }
        asked_to_stop.await?;
    }
    world.stop().await;
    match ended?.failed() {
        0 => Ok(()),
        failed => Err(format!("steps that failed: {failed}").into()),
    }
}

/// Plays all steps, and tells of each as soon as it is over.
async fn play_all(world: &mut World, arguments: &Demo) -> io::Result<Report> {
    let mut report = Report::default();
    let mut out: Box<dyn Write + Send> = if arguments.json { Box::new(io::sink()) } else { Box::new(io::stdout()) };
    let table = Table::new(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    writeln!(out, "{}", table.head(world))?;
    for (group, steps) in STEPS {
        writeln!(out, "{}", table.group(group))?;
        for step in *steps {
            let played = play(step, world).await;
            writeln!(out, "{}", table.row(report.steps.len() + 1, &played))?;
            report.steps.push(played);
        }
    }
    writeln!(out, "{}", table.summary(&report, arguments.serve))?;
    if arguments.json {
        writeln!(io::stdout(), "{}", report.json())?;
    }
    Ok(report)
}

/// Plays a step and waits until nothing of it is left.
async fn play(step: &Step, world: &mut World) -> Played {
    let start = Instant::now();
    let playing = async {
        world.begin()?;
        (step.play)(world).await
    };
    let seen = match timeout(PATIENCE, playing).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(error)) => Seen::wrong(error.to_string()),
        Err(_) => Seen::wrong(format!("not over after {} s", PATIENCE.as_secs())),
    };
    let took = start.elapsed();
    let is_idle = world.idle().await;
    let mut platform = world.platform_saw();
    if !is_idle {
        platform.push_str(", not over");
    }
    let as_told = seen.verdict.unwrap_or_else(|| seen.bot == step.bot && platform == step.platform);
    Played { ok: as_told && is_idle, step: *step, bot: seen.bot, platform, requests: world.requests(), took }
}
