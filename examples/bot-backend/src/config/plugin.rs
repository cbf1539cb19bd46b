use coze_auth::{ApiKey, Key};
use coze_core::TenantId;
use serde::Deserialize;

use super::{Config, ConfigError, Secret, secret::one_or_more, value::parsed};

/// Who may call this service as a plugin (coze-platform.md §5.3).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginKey {
    /// What the log calls the caller.
    pub name: String,
    /// Whose bots it may ask for.
    #[serde(deserialize_with = "parsed")]
    pub tenant: TenantId,
    /// The service token, 32 to 512 random characters; several while they are being exchanged.
    #[serde(deserialize_with = "one_or_more")]
    pub keys: Vec<Secret>,
    /// What it may do. Default: `conversations:read`.
    #[serde(default = "read_conversations")]
    pub scopes: Vec<String>,
}

fn read_conversations() -> Vec<String> {
    vec!["conversations:read".into()]
}

impl Config {
    /// Can the keys that are known already be used?
    pub(super) fn check_plugin_keys(&self) -> Result<(), ConfigError> {
        for (at, plugin) in self.plugin_keys.iter().enumerate() {
            let usable = |key: &Secret| Key::new(key.expose()).and_then(|key| ApiKey::new(&plugin.name, &key)).is_ok();
            if let Some(index) = plugin.keys.iter().position(|key| !key.is_open() && !usable(key)) {
                let key = format!("plugin_keys[{at}].keys[{index}]");
                return Err(self.wrong(&key, "expected 32 to 512 characters of visible ASCII, drawn at random"));
            }
        }
        Ok(())
    }
}
