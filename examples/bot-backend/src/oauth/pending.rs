use std::{collections::HashMap, sync::Mutex, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use coze_auth::Pkce;
use coze_core::Error;
use tokio::time::Instant;

use crate::cli::random_key;

/// Consents that are under way at once. One more makes the oldest one void.
const MAX: usize = 100;
/// How long a person may take.
pub(super) const LIFE: Duration = Duration::from_secs(600);

/// The consents that were begun and did not come to their end. Each is good once.
#[derive(Default)]
pub(super) struct Pending(Mutex<HashMap<String, Begun>>);

struct Begun {
    /// What the browser has to show that comes back.
    browser: String,
    pkce: Pkce,
    end: Instant,
}

/// What a browser is sent away with.
pub(super) struct Started {
    /// Goes to the platform and comes back from there.
    pub(super) state: String,
    /// Stays with the browser.
    pub(super) browser: String,
    pub(super) pkce: Pkce,
}

impl Pending {
    pub(super) fn begin(&self, now: Instant) -> Result<Started, Error> {
        // 128 random bits each.
        let (state, browser, pkce) = (random_key(), random_key(), Pkce::new()?);
        let mut begun = self.0.lock().expect("nobody panics while holding it");
        begun.retain(|_, begun| now < begun.end);
        if begun.len() >= MAX
            && let Some(oldest) = begun.iter().min_by_key(|(_, begun)| begun.end).map(|(state, _)| state.clone())
        {
            begun.remove(&oldest);
        }
        begun.insert(state.clone(), Begun { browser: browser.clone(), pkce: pkce.clone(), end: now + LIFE });
        Ok(Started { state, browser, pkce })
    }

    /// Ends a consent, if this browser has begun it in time: `browsers` is what it shows.
    pub(super) fn end<'a>(
        &self,
        state: &str,
        mut browsers: impl Iterator<Item = &'a str>,
        now: Instant,
    ) -> Option<Pkce> {
        let begun = self.0.lock().expect("nobody panics while holding it").remove(state)?;
        let is_its =
            browsers.any(|browser| verify_slices_are_equal(browser.as_bytes(), begun.browser.as_bytes()).is_ok());
        (is_its && now < begun.end).then_some(begun.pkce)
    }
}

#[cfg(test)]
mod tests {
    use std::iter::{empty, once};

    use super::*;

    #[test]
    fn a_consent_ends_once_in_its_browser_and_in_time() {
        let (pending, now) = (Pending::default(), Instant::now());
        let begin = || pending.begin(now).expect("random");
        let started = begin();
        let soon = now + LIFE - Duration::from_millis(1);
        let pkce = pending.end(&started.state, once(&*started.browser), soon).expect("its own");
        assert_eq!(pkce.verifier(), started.pkce.verifier());
        assert!(pending.end(&started.state, once(&*started.browser), now).is_none(), "a second time");

        let (one, two, three) = (begin(), begin(), begin());
        assert!(one.state != two.state && one.browser != two.browser && one.state.len() == 32);
        assert!(pending.end(&one.state, once(&*two.browser), now).is_none(), "another browser");
        assert!(pending.end(&one.state, once(&*one.browser), now).is_none(), "it was tried in another one");
        assert!(pending.end(&two.state, empty(), now).is_none(), "no browser");
        assert!(pending.end(&three.state, once(&*three.browser), now + LIFE).is_none(), "too late");
        assert!(pending.end("", once(""), now).is_none());
    }

    #[test]
    fn at_the_bound_the_oldest_goes_and_what_is_over_goes_first() {
        let (pending, mut now) = (Pending::default(), Instant::now());
        let mut begin = || {
            now += Duration::from_millis(1);
            (pending.begin(now).expect("random"), now)
        };
        let started: Vec<_> = (0..=MAX).map(|_| begin().0).collect();
        assert_eq!(pending.0.lock().expect("whole").len(), MAX);
        let now = begin().1;
        let is_there = |n: usize| pending.end(&started[n].state, once(&*started[n].browser), now).is_some();
        assert!(!is_there(0) && !is_there(1) && is_there(2) && is_there(MAX));
        pending.begin(now + LIFE).expect("random");
        assert_eq!(pending.0.lock().expect("whole").len(), 1);
    }
}
