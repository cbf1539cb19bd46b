use std::{collections::VecDeque, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Config, ROOT_TOKEN, answer::Refusal, database::RoleChange};
use crate::{capped::Capped, ids::Ids};

/// How many of anything are kept.
const KEEP: usize = 10_000;
/// Versions of a KV secret, as Vault keeps by default.
const VERSIONS: usize = 10;
const MAX_FAULTS: usize = 1000;

/// Something that goes wrong: the first fault whose path begins the request's is taken.
#[derive(Clone, Debug)]
pub struct Fault {
    /// How the path begins, such as `database/creds/`, without `/v1/`. Default empty: any.
    pub path: String,
    /// The status; 200 lets the request be carried out, late; `None` breaks the connection off. Default 503.
    pub status: Option<u16>,
    /// The body. Default Vault's shape with one error.
    pub body: Value,
    /// Seconds of `Retry-After`. Default none.
    pub retry_after: Option<u64>,
    /// How long the answer is held back. Default none.
    pub delay: Duration,
    /// Is the request carried out before it goes wrong? Default false.
    pub after: bool,
    /// How many requests it takes. Default 1.
    pub times: u64,
}

impl Default for Fault {
    fn default() -> Self {
        Self {
            path: String::new(),
            status: Some(503),
            body: json!({ "errors": ["on purpose"] }),
            retry_after: None,
            delay: Duration::ZERO,
            after: false,
            times: 1,
        }
    }
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method and path, such as `GET secret/data/bot`.
    pub route: String,
    /// The status of the answer, 0 for a connection that was broken off.
    pub status: u16,
    /// The header `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// Did it have the header `X-Vault-Request: true`, which agents and listeners may ask for?
    pub marked: bool,
}

/// Credentials of a database that were given out.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// The user it is for.
    pub username: String,
    /// Does it live?
    pub state: LeaseState,
    /// How often it was renewed.
    pub renewals: u64,
    pub(super) token: String,
    pub(super) ends: Instant,
    pub(super) max: Instant,
}

/// Whether a lease lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// It does.
    Active,
    /// Its time ended, or that of its token.
    Expired,
    /// It was revoked, or its token was.
    Revoked,
}

#[derive(Debug)]
pub(super) struct Token {
    pub(super) id: String,
    pub(super) ttl: Duration,
    /// When it ends, and when it ends at the latest; `None` for root.
    pub(super) life: Option<(Instant, Instant)>,
    /// May be used so often; 0 is any number.
    pub(super) uses: u64,
    pub(super) cubbyhole: Vec<(String, Value)>,
    /// What path's answer it wraps; empty where it wraps none.
    pub(super) wraps: String,
}

/// Everything that changes.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) config: Config,
    pub(super) sealed: bool,
    pub(super) active: Option<String>,
    pub(super) faults: Vec<Fault>,
    pub(super) requests: VecDeque<Request>,
    pub(super) tokens: Capped<Token>,
    pub(super) leases: Capped<Lease>,
    kv: Capped<Versions>,
    /// Counts the first versions of KV secrets.
    firsts: u32,
    /// What the database is to be told.
    pub(super) changes: Vec<RoleChange>,
    pub(super) ids: Ids,
}

/// The data of one version.
#[derive(Clone, Debug)]
pub(super) enum Data {
    There(Value),
    Deleted,
    Destroyed,
}

/// The versions of one KV secret.
#[derive(Debug)]
struct Versions {
    /// The number of the oldest one that is kept.
    first: u64,
    data: VecDeque<Data>,
    created: String,
}

impl Store {
    pub(super) fn new(config: Config) -> Self {
        let ids = Ids::new(config.seed);
        let mut tokens = Capped::new(KEEP);
        let root = Token {
            id: ROOT_TOKEN.into(),
            ttl: Duration::ZERO,
            life: None,
            uses: 0,
            cubbyhole: Vec::new(),
            wraps: String::new(),
        };
        tokens.insert(ROOT_TOKEN, root);
        Self {
            config,
            sealed: false,
            active: None,
            faults: Vec::new(),
            requests: VecDeque::new(),
            tokens,
            leases: Capped::new(KEEP),
            kv: Capped::new(KEEP),
            firsts: 0,
            changes: Vec::new(),
            ids,
        }
    }

    pub(super) fn add(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    /// The fault for a request, if one waits.
    pub(super) fn take_fault(&mut self, path: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|fault| path.starts_with(&fault.path))?;
        self.faults[at].times = self.faults[at].times.saturating_sub(1);
        let fault = self.faults[at].clone();
        if fault.times == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }

    pub(super) fn record(&mut self, request: Request, status: u16) {
        if self.requests.len() == KEEP {
            self.requests.pop_front();
        }
        self.requests.push_back(Request { status, ..request });
    }

    /// Something to tell the database, if there is one.
    pub(super) fn change(&mut self, change: RoleChange) {
        if self.config.database.is_some() {
            self.changes.push(change);
        }
    }

    /// The frame of every answer.
    pub(super) fn answer(&mut self, data: Value) -> Value {
        json!({
            "request_id": self.ids.secret(""), "lease_id": "", "renewable": false, "lease_duration": 0, "data": data,
            "wrap_info": null, "warnings": null, "auth": null, "mount_type": "",
        })
    }

    pub(super) fn login(&mut self, now: Instant) -> String {
        let token = self.ids.secret("hvs.");
        let ttl = self.config.token_ttl.min(self.config.token_max_ttl);
        let life = Some((now + ttl, now + self.config.token_max_ttl));
        let id = token.clone();
        self.tokens
            .insert(token.clone(), Token { id, ttl, life, uses: 0, cubbyhole: Vec::new(), wraps: String::new() });
        token
    }

    /// Puts an answer into the cubbyhole of a token for one use.
    pub(super) fn wrap(&mut self, answer: &Value, ttl: Duration, now: Instant, path: &str) -> String {
        let token = self.ids.secret("hvs.wrap.");
        let response = json!({ "response": answer.to_string() });
        let cubbyhole = vec![("response".to_owned(), response)];
        let (id, life) = (token.clone(), Some((now + ttl, now + ttl)));
        self.tokens.insert(token.clone(), Token { id, ttl, life, uses: 1, cubbyhole, wraps: path.to_owned() });
        token
    }

    /// Ends what has reached its end.
    pub(super) fn settle(&mut self, now: Instant) {
        let over = self.tokens.iter().filter(|token| token.life.is_some_and(|(ends, _)| ends <= now));
        let over: Vec<String> = over.map(|token| token.id.clone()).collect();
        over.iter().for_each(|token| self.revoke_token(token, LeaseState::Expired));
        self.end(LeaseState::Expired, |lease| lease.ends <= now);
    }

    pub(super) fn revoke_token(&mut self, token: &str, state: LeaseState) {
        self.tokens.remove(token);
        self.end(state, |lease| lease.token == token);
    }

    pub(super) fn revoke_lease(&mut self, id: &str) {
        self.end(LeaseState::Revoked, |lease| lease.id == id);
    }

    /// Ends the leases of which this is true.
    fn end(&mut self, state: LeaseState, which: impl Fn(&Lease) -> bool) {
        let mut over = Vec::new();
        for lease in self.leases.values_mut().filter(|lease| lease.state == LeaseState::Active && which(lease)) {
            lease.state = state;
            over.push(RoleChange::Drop { username: lease.username.clone() });
        }
        over.into_iter().for_each(|change| self.change(change));
    }

    pub(super) fn put(&mut self, path: &str, data: Value) -> u64 {
        if self.kv.get(path).is_none() {
            self.firsts += 1;
            let created = format!("2026-01-01T00:00:00.{:09}Z", self.firsts);
            self.kv.insert(path, Versions { first: 1, data: VecDeque::new(), created });
        }
        let Some(versions) = self.kv.get_mut(path) else { return 0 };
        versions.data.push_back(Data::There(data));
        if versions.data.len() > VERSIONS {
            versions.data.pop_front();
            versions.first += 1;
        }
        versions.first + versions.data.len() as u64 - 1
    }

    pub(super) fn delete(&mut self, path: &str) {
        if let Some(last) = self.kv.get_mut(path).and_then(|versions| versions.data.back_mut()) {
            *last = Data::Deleted;
        }
    }

    pub(super) fn destroy(&mut self, path: &str) {
        if let Some(last) = self.kv.get_mut(path).and_then(|versions| versions.data.back_mut()) {
            *last = Data::Destroyed;
        }
    }

    pub(super) fn forget(&mut self, path: &str) {
        self.kv.remove(path);
    }

    /// The data and the number of a version, 0 for the last one; and when the secret was made.
    pub(super) fn read(&self, path: &str, version: u64) -> Result<(Data, u64, String), Refusal> {
        let Versions { first, data, created } = self.kv.get(path).ok_or_else(Refusal::missing)?;
        let number = if version == 0 { first + data.len() as u64 - 1 } else { version };
        let at = number.checked_sub(*first).and_then(|at| usize::try_from(at).ok());
        let data = at.and_then(|at| data.get(at)).ok_or_else(Refusal::missing)?;
        Ok((data.clone(), number, created.clone()))
    }
}
