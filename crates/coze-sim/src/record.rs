use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::Serialize;

use crate::config::Keep;

/// How many kinds of outcome are told apart per route; further ones are counted as `other`.
const MAX_OUTCOMES: usize = 64;

/// What the platform was sent, and what it answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// By route: the method and the pattern, such as `POST /v3/chat`, or `unknown`.
    pub routes: BTreeMap<String, RouteCount>,
    /// Requests under way, to the end of their answers.
    pub in_flight: usize,
    /// The most there were at once.
    pub max_in_flight: usize,
    /// Chats that run.
    pub running_chats: usize,
    /// The most there were at once.
    pub max_running_chats: usize,
    /// The most there were at once, by bot.
    pub max_running_chats_by_bot: BTreeMap<String, usize>,
    /// The most requests one app or token made in one of its windows of a second, by group (`chat`, `workflow`, `upload`),
    /// refused ones included.
    pub max_per_second: BTreeMap<&'static str, u32>,
    /// Access tokens given out by OAuth.
    pub tokens_issued: u64,
}

impl Counts {
    /// Requests to a route, such as `POST /v3/chat`.
    #[must_use]
    pub fn requests(&self, route: &str) -> u64 {
        self.routes.get(route).map_or(0, |count| count.requests)
    }

    /// Answers of a route with this outcome (see [`RouteCount::outcomes`]).
    #[must_use]
    pub fn outcomes(&self, route: &str, outcome: &str) -> u64 {
        self.routes.get(route).and_then(|count| count.outcomes.get(outcome)).copied().unwrap_or_default()
    }
}

/// What one route was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RouteCount {
    /// Requests.
    pub requests: u64,
    /// Answers by outcome: the platform's code as text (`0` is success), OAuth's error name, `http 504` where a gateway
    /// answered, `reset`, and for streams that went wrong `cut`, `failed`, `error` or `invalid json`.
    pub outcomes: BTreeMap<String, u64>,
}

/// One request. No token is in it, and no body of an OAuth request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recorded {
    /// The number of the request, from 0.
    pub number: u64,
    /// When it had been read, counted from the start of the platform, in JSON milliseconds.
    #[serde(with = "crate::fault::millis", rename = "at_ms")]
    pub at: Duration,
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query.
    pub query: String,
    /// The route, as in [`Counts::routes`].
    pub route: String,
    /// The [`fingerprint`](crate::fingerprint()) of the bearer token.
    pub token: Option<String>,
    /// The id of the key (`kid`) that a bearer token names which is an assertion of a service account.
    pub key_id: Option<String>,
    /// The tenant, as [`Config::tenant_header`](crate::Config::tenant_header) says it.
    pub tenant: Option<String>,
    /// The body, as far as it is kept, invalid UTF-8 replaced; empty for OAuth.
    pub body: String,
    /// The length of the whole body.
    pub body_bytes: usize,
    /// The SHA-256 of the whole body, in hexadecimal.
    pub body_sha256: String,
    /// The HTTP status of the answer; 0 until there is one, or where there was none.
    pub status: u16,
    /// The outcome, as in [`RouteCount::outcomes`]; empty until there is one.
    pub outcome: String,
    /// The log id of the answer.
    pub logid: String,
}

/// Counts, and the last requests.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) counts: Counts,
    requests: VecDeque<Recorded>,
    next: u64,
    cap: usize,
}

impl Record {
    pub(crate) fn new(keep: &Keep) -> Self {
        Self { counts: Counts::default(), requests: VecDeque::new(), next: 0, cap: keep.requests }
    }

    /// Keeps a request; gives its number.
    pub(crate) fn request(&mut self, mut request: Recorded) -> u64 {
        let number = self.next;
        self.next += 1;
        self.counts.routes.entry(request.route.clone()).or_default().requests += 1;
        request.number = number;
        self.requests.push_back(request);
        if self.requests.len() > self.cap {
            self.requests.pop_front();
        }
        number
    }

    /// Notes how request `number` was answered.
    pub(crate) fn answered(&mut self, number: u64, route: &str, status: u16, outcome: &str) {
        if let Some(count) = self.counts.routes.get_mut(route) {
            let known = count.outcomes.len() < MAX_OUTCOMES || count.outcomes.contains_key(outcome);
            *count.outcomes.entry(if known { outcome } else { "other" }.to_owned()).or_default() += 1;
        }
        let first = self.requests.front().map_or(0, |request| request.number);
        let at = number.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some(request) = at.and_then(|at| self.requests.get_mut(at)) {
            request.status = status;
            outcome.clone_into(&mut request.outcome);
        }
    }

    pub(crate) fn arrived(&mut self) {
        self.counts.in_flight += 1;
        self.counts.max_in_flight = self.counts.max_in_flight.max(self.counts.in_flight);
    }

    pub(crate) fn left(&mut self) {
        self.counts.in_flight = self.counts.in_flight.saturating_sub(1);
    }

    /// Notes that a chat began, `of_bot` of its bot running now.
    pub(crate) fn chat_began(&mut self, bot: &str, running: usize, of_bot: usize) {
        self.counts.max_running_chats = self.counts.max_running_chats.max(running);
        let max = self.counts.max_running_chats_by_bot.entry(bot.to_owned()).or_default();
        *max = of_bot.max(*max);
    }

    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.requests.iter().cloned().collect()
    }

    /// Forgets counts and requests; what is under way stays counted.
    pub(crate) fn clear(&mut self) {
        let in_flight = self.counts.in_flight;
        self.counts = Counts { in_flight, max_in_flight: in_flight, ..Counts::default() };
        self.requests.clear();
    }
}
