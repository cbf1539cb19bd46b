use std::num::NonZeroUsize;

use serde::Deserialize;

/// What becomes of messages that the limits refuse.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Later {
    /// Where they wait to be answered. Default nowhere: the caller is refused, and told when to come back.
    pub queue: Keeper,
    /// Messages that wait or are being answered. Default 1000.
    pub capacity: NonZeroUsize,
    /// Messages from the queue that are answered at once. Default 4.
    pub lanes: NonZeroUsize,
}

/// Who keeps messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// Nobody.
    #[default]
    None,
    /// This process, as long as it lives.
    Memory,
    /// The Redis of the sessions, for all nodes together.
    Redis,
}

impl Default for Later {
    fn default() -> Self {
        let number = |n| NonZeroUsize::new(n).expect("not zero");
        Self { queue: Keeper::None, capacity: number(1000), lanes: number(4) }
    }
}
