use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
};

use coze_auth::{MAX_KEYS, Static};
use coze_core::{Error, Kind, redact};

use super::{Config, Keeper, OAuth, Places, Secret, place};

/// Why a configuration is refused: file, line and key, and what was expected there.
#[derive(Debug)]
pub struct ConfigError {
    /// None where the command line or the environment is to blame.
    file: Option<PathBuf>,
    line: Option<usize>,
    key: String,
    message: String,
}

impl ConfigError {
    /// Nothing says who answers.
    pub(crate) fn no_file() -> Self {
        let message = "there is no configuration. Name a file with --config or BOT_CONFIG. It needs at least one bot:\n\n    \
                       [[bots]]\n    id = \"…\"            # the bot's id on the platform\n    \
                       tenant = \"…\"        # whose bot it is\n    \
                       webhook_keys = { env = \"BOT_WEBHOOK_KEY\" }\n\n\
                       and an access token for the platform, in BOT_PLATFORM_TOKEN or platform.token. \
                       All keys are in the example bot.toml.\n\
                       To try it without a platform and a file: bot-backend serve --echo";
        Self { file: None, line: None, key: String::new(), message: message.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, _) => {}
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read, is no TOML, or holds what [`Config`] does not allow.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError {
            file: Some(file.into()),
            line: None,
            key: String::new(),
            message: format!("cannot be read: {e}"),
        })?;
        Self::parse(&text, file)
    }

    /// The same from a text; `file` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let error = |line, key, message: &str| ConfigError {
            file: Some(file.into()),
            line,
            key,
            message: redact(message).into_owned(),
        };
        // Only the parser's message: its full text quotes the line, which may hold a secret.
        let mut config: Self = toml::from_str(text).map_err(|e| match e.span() {
            Some(span) => error(Some(place::line_at(text, span.start)), place::path_at(text, span.start), e.message()),
            None => error(None, String::new(), e.message()),
        })?;
        config.places = Places::of(text, file);
        config.check().map_err(|wrong| config.wrong(&wrong.key, &wrong.message))?;
        Ok(config)
    }

    /// Says of a key what is wrong with it, and where it stands.
    pub(crate) fn wrong(&self, key: &str, message: &str) -> ConfigError {
        let (file, line) = (self.places.file.clone(), self.places.line(key));
        ConfigError { file, line, key: key.to_owned(), message: redact(message).into_owned() }
    }

    /// The same as an error of the service, of what is found only when it starts.
    pub(crate) fn refused(&self, key: &str, error: Error) -> Error {
        let message = self.wrong(key, error.message()).to_string();
        Error::new(Kind::Precondition, "config").with_message(message).with_source(error)
    }

    /// What the type of one key cannot say. For a configuration that was put together or changed; a parsed one is checked.
    ///
    /// # Errors
    /// [`ConfigError`], which names the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, message: &str| {
            Err(ConfigError { file: None, line: None, key: key.to_owned(), message: message.to_owned() })
        };
        if self.bots.is_empty() {
            return wrong("bots", "expected at least one [[bots]] table");
        }
        let mut seen = HashSet::new();
        for (index, bot) in self.bots.iter().enumerate() {
            if !seen.insert(&bot.id) {
                return wrong(&format!("bots[{index}].id"), &format!("the bot {} is there twice", bot.id));
            }
            for (name, keys) in [("webhook_keys", &bot.webhook_keys), ("verify_tokens", &bot.verify_tokens)] {
                if keys.len() > MAX_KEYS {
                    return wrong(&format!("bots[{index}].{name}"), &format!("expected at most {MAX_KEYS}"));
                }
            }
        }
        self.check_plugin_keys()?;
        self.check_vault()?;
        if self.later.queue == Keeper::Redis && self.storage.sessions.expose() == "memory" {
            return wrong("later.queue", "redis is that of storage.sessions, which is memory");
        }
        let platform = &self.platform;
        let ways = [
            ("platform.token", platform.token.is_some()),
            ("platform.service_account", platform.service_account.is_some()),
            ("platform.oauth", platform.oauth.is_some()),
        ];
        let mut ways = ways.into_iter().filter_map(|(key, is_there)| is_there.then_some(key));
        if let (Some(one), Some(other)) = (ways.next(), ways.next()) {
            return wrong(one, &format!("there is {other} too: keep one of them"));
        }
        if let Some(Err((key, message))) = platform.oauth.as_ref().map(OAuth::check) {
            return wrong(&format!("platform.oauth.{key}"), message);
        }
        if platform.token.as_ref().is_some_and(|token| !token.is_open() && Static::new(token.expose()).is_err()) {
            return wrong("platform.token", "expected visible ASCII without spaces");
        }
        if let Err((index, error)) = self.retry.policy() {
            return wrong(&format!("retry.rows[{index}].name"), error.message());
        }
        if let Err((key, message)) = self.api.check() {
            return wrong(&format!("api.{key}"), message);
        }
        if self.http.idle_timeout <= self.http.request_timeout {
            let message =
                "must be more than request_timeout_seconds, or it would end requests that wait for their answer";
            return wrong("http.idle_timeout_seconds", message);
        }
        let begins =
            |url: &Secret, with: &[&str]| url.is_open() || with.iter().any(|scheme| url.expose().starts_with(scheme));
        if !begins(&self.storage.conversations, &["sqlite:", "postgres://", "postgresql://"]) {
            return wrong("storage.conversations", "expected sqlite://path, sqlite::memory: or postgres://…");
        }
        let places = [("storage.sessions", Some(&self.storage.sessions)), ("limits.redis", self.limits.redis.as_ref())];
        for (key, place) in places.into_iter().filter_map(|(key, place)| Some((key, place?))) {
            if place.expose() != "memory" && !begins(place, &["redis://", "rediss://", "redis+unix://"]) {
                return wrong(key, "expected memory or redis://…");
            }
        }
        Ok(())
    }
}
