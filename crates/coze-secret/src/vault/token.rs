use std::{
    fmt,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::wire::Granted;
use crate::SecretBytes;

/// The token of a session.
pub(crate) struct Token {
    pub(crate) value: SecretBytes,
    /// Changes when it is renewed.
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// What it is given by a renewal; `None` if it does not end.
    pub(crate) life: Option<Duration>,
    pub(crate) ends: Option<Instant>,
    pub(crate) renewable: bool,
}

impl Token {
    /// A token that was asked for at `asked`.
    pub(crate) fn new(granted: Granted, asked: Instant) -> Self {
        let state = State::new(granted.life, granted.renewable, asked);
        Self { value: granted.token, state: Mutex::new(state) }
    }

    pub(crate) fn state(&self) -> State {
        *self.lock()
    }

    pub(crate) fn renewed(&self, state: State) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding a state")
    }
}

impl State {
    pub(crate) fn new(life: Option<Duration>, renewable: bool, asked: Instant) -> Self {
        Self { life, ends: life.map(|life| asked + life), renewable }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("state", &self.state()).finish_non_exhaustive()
    }
}
