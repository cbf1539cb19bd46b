//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use coze_core::{BotId, TenantId};

use crate::config::{BaseUrl, Bot, Config, ConfigError, LogFormat, Secret};

/// The reference bot backend: signed messages in, answers of the Coze platform out.
#[derive(Debug, Parser)]
#[command(name = "bot-backend", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, for as long as the program runs")]
pub enum Command {
    /// Answer messages until SIGTERM or SIGINT
    Serve(Serve),
    /// Simulate the platform, for trying things out
    Sim(Sim),
    /// Play what there is against the simulated platform, and say of each step whether it went as it should
    Demo(Demo),
}

/// Arguments of `serve`. What is given here or in the environment overrides the file.
#[derive(Clone, Debug, Default, Args)]
#[expect(clippy::doc_markdown, reason = "the text is the program's help")]
pub struct Serve {
    /// Configuration file (TOML); bot.toml in the package is an example with all keys
    #[arg(long, value_name = "FILE", env = "BOT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Answer each message with itself, without the platform. Without a file this serves one bot, "dev", that is kept in memory
    #[arg(long)]
    pub echo: bool,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "BOT_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address of the platform's API: http:// or https:// and a host
    #[arg(long, value_name = "URL", env = "BOT_PLATFORM_URL")]
    pub platform_url: Option<BaseUrl>,
    /// Access token for the platform; other users can see arguments, so use the environment
    #[arg(long, value_name = "TOKEN", env = "BOT_PLATFORM_TOKEN", hide_env_values = true)]
    pub platform_token: Option<String>,
    /// Where conversations are kept: sqlite://path, sqlite::memory: or postgres://…
    #[arg(long, value_name = "URL", env = "BOT_CONVERSATIONS_URL", hide_env_values = true)]
    pub conversations_url: Option<String>,
    /// Where sessions are kept: memory or redis://…
    #[arg(long, value_name = "URL", env = "BOT_SESSIONS_URL", hide_env_values = true)]
    pub sessions_url: Option<String>,
    /// How log lines look; RUST_LOG says which there are, such as info or coze=debug
    #[arg(long, value_name = "FORMAT", env = "BOT_LOG_FORMAT")]
    pub log: Option<LogFormat>,
    /// Key that signs messages to the bot "dev" of --echo without a file; random unless set
    #[arg(long, value_name = "KEY", env = "BOT_WEBHOOK_KEY", hide_env_values = true)]
    pub webhook_key: Option<String>,
}

/// Arguments of `sim`.
#[derive(Clone, Debug, Args)]
pub struct Sim {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

/// Arguments of `demo`.
#[derive(Clone, Debug, Default, Args)]
pub struct Demo {
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// Leave everything running after the last step, and say where it is
    #[arg(long)]
    pub serve: bool,
    /// Let the platform go wrong in a further way, as its control endpoint takes it; steps will fail
    #[arg(long, value_name = "JSON", value_parser = fault)]
    pub fault: Vec<coze_sim::Fault>,
}

fn fault(text: &str) -> Result<coze_sim::Fault, serde_json::Error> {
    serde_json::from_str(text)
}

/// The bot of `serve --echo` without a file.
pub const DEV_BOT: &str = "dev";

impl Serve {
    /// The configuration these arguments stand for, and the key of the development bot if there is one that was made up.
    ///
    /// # Errors
    /// When the file is wrong, or there is none and no `--echo`.
    pub fn configure(&self) -> Result<(Config, Option<String>), ConfigError> {
        let (mut config, key) = match (&self.config, self.echo) {
            (Some(file), _) => (Config::load(file)?, None),
            (None, true) => self.development(),
            (None, false) => return Err(ConfigError::no_file()),
        };
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(url) = &self.platform_url {
            config.platform.url = url.clone();
        }
        if let Some(token) = &self.platform_token {
            config.platform.token = Some(Secret::new(token));
            config.platform.service_account = None;
            config.platform.oauth = None;
        }
        if let Some(url) = &self.conversations_url {
            config.storage.conversations = Secret::new(url);
        }
        if let Some(url) = &self.sessions_url {
            config.storage.sessions = Secret::new(url);
        }
        if let Some(log) = self.log {
            config.log = log;
        }
        config.check()?;
        Ok((config, key))
    }

    /// One bot that nobody else can talk to, and nothing on disk.
    fn development(&self) -> (Config, Option<String>) {
        let random = self.webhook_key.is_none().then(random_key);
        let key = self.webhook_key.as_ref().or(random.as_ref()).map_or("", String::as_str);
        let mut config = Config::default();
        config.storage.conversations = Secret::new("sqlite::memory:");
        config.bots.push(Bot {
            id: BotId::new(DEV_BOT).expect("a valid id"),
            tenant: TenantId::new(DEV_BOT).expect("a valid id"),
            webhook_keys: vec![Secret::new(key)],
            verify_tokens: Vec::new(),
            platform_bot_id: None,
            stream: true,
            concurrency: None,
            user_per_second: None,
        });
        (config, random)
    }
}

/// 128 random bits as text.
pub(crate) fn random_key() -> String {
    let mut key = [0; 16];
    aws_lc_rs::rand::fill(&mut key).expect("the operating system has random bytes");
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
