use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use coze_core::{Error, Kind, Retry};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{Current, Failure, Landed, MAX_MARGIN, Renewing, Shared};
use crate::{Refresher, Token};

/// Flies, and again whenever the token is due, as long as it is used, somebody holds the source, and nobody else flies.
pub(super) async fn keep<F: Refresher>(mut flight: Flight<F>) {
    loop {
        let (weak, timeout, cooldown) = (Arc::downgrade(&flight.shared), flight.timeout, flight.cooldown);
        let mut begun = flight.shared.begun.subscribe();
        let failed = flight.run().await;
        let Some(shared) = weak.upgrade() else { return };
        let Some(current) = shared.current.load_full() else { return };
        let next = match (failed, current.ends) {
            (_, None) | (Some((Retry::Never, _)), _) => return,
            (None, Some((due, _))) => due,
            (Some((_, wait)), _) => Instant::now() + wait,
        };
        let generation = current.token.generation();
        // Nothing is held in the meantime: neither the source nor its token.
        drop((current, shared));
        // Who flies meanwhile keeps the token from then on; one who does is enough.
        if timeout_at(next, begun.changed()).await.is_ok() {
            return;
        }
        let Some(shared) = weak.upgrade() else { return };
        match (Renewing { shared, timeout, cooldown }).renewal(generation) {
            Some(next) => flight = next,
            None => return,
        }
    }
}

/// A fetch that is under way. It lands when it is dropped, so also when the closure panics or the runtime ends.
pub(super) struct Flight<F> {
    pub(super) shared: Arc<Shared<F>>,
    pub(super) timeout: Duration,
    pub(super) cooldown: Duration,
    pub(super) asked: Instant,
    pub(super) landed: watch::Sender<Option<Landed>>,
    pub(super) outcome: Option<Result<Token, Error>>,
}

impl<F> Flight<F> {
    /// Nothing, or what the failure says about another try, and when there may be one.
    async fn run(mut self) -> Option<(Retry, Duration)>
    where
        F: Refresher,
    {
        let fetch = timeout(self.timeout, self.shared.fetch.refresh());
        self.outcome = Some(fetch.await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Timeout, "token_timeout")
                .with_message(format!("no access token was given within {:?}", self.timeout)))
        }));
        let failure = self.outcome.as_ref().and_then(|outcome| outcome.as_ref().err());
        failure.map(|error| (error.retry(), self.pause(error)))
    }

    /// How long there is no other fetch after this failure.
    fn pause(&self, error: &Error) -> Duration {
        error.retry_after().unwrap_or_default().min(MAX_MARGIN).max(self.cooldown)
    }

    /// Says that there is no new token, and how long the old one lasts.
    fn warn(&self, error: &Error, now: Instant) {
        let current = self.shared.current.load();
        // Zero where there is none; one without an end lasts until it is refused, and then it is gone.
        let left = current.as_ref().and_then(|current| Some(current.ends?.1.saturating_duration_since(now)));
        tracing::warn!(
            target: "coze::token",
            reason = error.reason(),
            is_final = error.retry() == Retry::Never,
            left_seconds = left.unwrap_or_default().as_secs(),
            "no new access token: {error}"
        );
    }

    /// From when on a token that landed now is renewed, and when it expires; `None` if that is beyond all time.
    fn ends(&self, token: &Token, now: Instant, random: f64) -> Option<(Instant, Instant)> {
        let life = token.lifetime()?;
        // A token that seems to be over, as where our clock is wrong, serves for the cool-down: it may well be accepted.
        let end = self.asked.checked_add(life)?.max(now.checked_add(self.cooldown)?);
        Some((end - (life / 10).min(MAX_MARGIN).mul_f64(1.0 - random / 2.0), end))
    }
}

impl<F> Drop for Flight<F> {
    fn drop(&mut self) {
        let now = Instant::now();
        let outcome = self.outcome.take().unwrap_or_else(|| {
            Err(Error::new(Kind::Internal, "token_fetch_ended").with_message("the fetch of an access token broke off"))
        });
        if let Err(error) = &outcome {
            self.warn(error, now);
        }
        let mut state = self.shared.lock();
        state.flight = None;
        let landed = match outcome {
            Ok(token) => {
                state.generation += 1;
                let token = token.with_generation(state.generation);
                let random = state.random.f64();
                let (ends, row) = (self.ends(&token, now, random), mem::take(&mut state.row));
                self.shared.doubted.store(if row > 0 { state.generation } else { 0 }, Ordering::Relaxed);
                let current = Current { token: token.clone(), since: now, ends, row, is_used: false.into() };
                self.shared.current.store(Some(Arc::new(current)));
                state.spare = None;
                Ok(token)
            }
            Err(error) => {
                let failure = Failure { until: now + self.pause(&error), error: Arc::new(error) };
                state.failure = Some(failure.clone());
                match state.spare.take().filter(|spare| !spare.is_over(now)) {
                    Some(spare) => {
                        let token = spare.token.clone();
                        self.shared.current.store(Some(spare));
                        Ok(token)
                    }
                    None => Err(failure),
                }
            }
        };
        drop(state);
        self.landed.send_replace(Some(landed));
    }
}
