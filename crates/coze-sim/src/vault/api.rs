use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    DATABASE_ROLE,
    answer::{Answered, Refusal},
    database::RoleChange,
    login,
    store::{Data, Lease, LeaseState, Store},
};
use crate::call::{decode, query_pairs};

/// One request, read whole.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: String,
    /// Without `/v1/`.
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) token: String,
    pub(super) wrap: Option<Duration>,
    pub(super) body: Map<String, Value>,
    pub(super) now: Instant,
}

impl Call {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str().filter(|text| !text.is_empty())
    }

    /// A duration: seconds, as a number or as text with or without its unit.
    pub(super) fn seconds(&self, name: &str) -> Option<Duration> {
        match self.body.get(name)? {
            Value::String(text) => duration(text),
            value => value.as_u64().filter(|seconds| *seconds > 0).map(Duration::from_secs),
        }
    }
}

/// A query of the URL as the handlers want it.
pub(super) fn query(text: Option<&str>) -> Vec<(String, String)> {
    query_pairs(text)
}

/// `60`, `60s`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).map(Duration::from_secs)
}

/// Answers a request: seal and standby first, then who asks, then the path.
pub(super) fn handle(store: &mut Store, call: &Call) -> Answered {
    store.settle(call.now);
    if call.path == "sys/health" {
        return health(store);
    }
    if store.sealed {
        return Err(Refusal::new(503, "Vault is sealed"));
    }
    let answer = route(store, call)?;
    match (answer, call.wrap) {
        (Some(answer), Some(ttl)) if !call.path.starts_with("sys/wrapping/") => {
            let token = store.wrap(&answer, ttl, call.now, &call.path);
            let mut wrapped = store.answer(Value::Null);
            wrapped["wrap_info"] = json!({
                "token": token, "accessor": "", "ttl": ttl.as_secs(), "creation_time": "", "creation_path": call.path,
            });
            Ok(Some(wrapped))
        }
        (answer, _) => Ok(answer),
    }
}

fn route(store: &mut Store, call: &Call) -> Answered {
    let method = match call.method.as_str() {
        "PUT" => "POST",
        method => method,
    };
    match (method, call.path.as_str()) {
        ("POST", "auth/approle/login") => return login::app_role(store, call),
        ("POST", "auth/kubernetes/login") => return login::kubernetes(store, call),
        ("POST", "sys/wrapping/unwrap") => return unwrap(store, call),
        ("POST", "sys/wrapping/lookup") => return wrapping(store, call),
        _ => {}
    }
    let token = store.tokens.get_mut(&call.token).ok_or_else(Refusal::denied)?;
    if token.uses > 0 && !call.path.starts_with("cubbyhole/") {
        return Err(Refusal::denied());
    }
    match (method, call.path.as_str()) {
        ("GET", "auth/token/lookup-self") | ("POST", "auth/token/lookup") => login::lookup(store, call),
        ("POST", "auth/token/renew-self") => login::renew(store, call),
        ("POST", "auth/token/revoke-self") => login::revoke(store, call),
        ("POST", "sys/leases/renew") => renew(store, call),
        ("POST", "sys/leases/revoke") => {
            let id = call.text("lease_id").ok_or_else(|| Refusal::new(400, "lease_id must be specified"))?;
            store.revoke_lease(id);
            Ok(None)
        }
        ("GET", path) if path.starts_with("secret/data/") => kv(store, call, &path["secret/data/".len()..]),
        ("GET", path) if path.starts_with("database/creds/") => creds(store, call, &path["database/creds/".len()..]),
        (method, path) if path.starts_with("cubbyhole/") => cubbyhole(store, call, method, &path["cubbyhole/".len()..]),
        (_, path) => {
            let error = format!("no handler for route \"{path}\". route entry not found.");
            Err(Refusal::new(404, error))
        }
    }
}

/// `sys/health`: 429 where it stands by, 503 where it is sealed.
fn health(store: &mut Store) -> Answered {
    let (sealed, standby) = (store.sealed, store.active.is_some());
    let body = json!({
        "initialized": true, "sealed": sealed, "standby": standby || sealed, "performance_standby": false,
        "replication_performance_mode": "disabled", "replication_dr_mode": "disabled", "version": "1.20.0",
    });
    match (sealed, standby) {
        (true, _) => Err(Refusal { status: 503, body }),
        (false, true) => Err(Refusal { status: 429, body }),
        (false, false) => Ok(Some(body)),
    }
}

fn kv(store: &mut Store, call: &Call, path: &str) -> Answered {
    let version = call.query.iter().find(|(key, _)| key == "version").map_or(Ok(0), |(_, text)| text.parse());
    let version = version.map_err(|_| Refusal::new(400, "error converting input for field \"version\""))?;
    let (data, number, created) = store.read(&decode(path), version)?;
    let (data, deletion, destroyed) = match data {
        Data::There(data) => (Some(data), "", false),
        Data::Deleted => (None, "2026-01-01T00:00:00Z", false),
        Data::Destroyed => (None, "", true),
    };
    let metadata = json!({
        "created_time": created, "custom_metadata": null, "deletion_time": deletion, "destroyed": destroyed,
        "version": number,
    });
    let is_there = data.is_some();
    let body = store.answer(json!({ "data": data, "metadata": metadata }));
    match is_there {
        true => Ok(Some(body)),
        false => Err(Refusal { status: 404, body }),
    }
}

fn creds(store: &mut Store, call: &Call, role: &str) -> Answered {
    if role != DATABASE_ROLE {
        return Err(Refusal::new(400, format!("unknown role: {role}")));
    }
    let id = format!("database/creds/{role}/{}", store.ids.secret(""));
    let username = store.ids.secret(&format!("v-token-{role}-"));
    let (ttl, max) = (store.config.lease_ttl.min(store.config.lease_max_ttl), store.config.lease_max_ttl);
    let (token, ends, max) = (call.token.clone(), call.now + ttl, call.now + max);
    let lease =
        Lease { id: id.clone(), username: username.clone(), state: LeaseState::Active, renewals: 0, token, ends, max };
    store.leases.insert(id.clone(), lease);
    let password = store.ids.secret("A1a-");
    store.change(RoleChange::Create { username: username.clone(), password: password.clone(), ttl });
    let mut answer = store.answer(json!({ "username": username, "password": password }));
    answer["lease_id"] = id.into();
    answer["lease_duration"] = ttl.as_secs().into();
    answer["renewable"] = store.config.leases_renewable.into();
    Ok(Some(answer))
}

fn renew(store: &mut Store, call: &Call) -> Answered {
    let id = call.text("lease_id").ok_or_else(|| Refusal::new(400, "lease_id must be specified"))?;
    let (ttl, renewable) = (store.config.lease_ttl, store.config.leases_renewable);
    let Some(lease) = store.leases.get_mut(id).filter(|lease| lease.state == LeaseState::Active) else {
        return Err(Refusal::new(400, "lease not found"));
    };
    if !renewable {
        return Err(Refusal::new(400, "lease is not renewable"));
    }
    let wanted = call.now + call.seconds("increment").unwrap_or(ttl);
    lease.ends = wanted.min(lease.max);
    lease.renewals += 1;
    let (left, username) = (lease.ends - call.now, lease.username.clone());
    let is_capped = lease.ends < wanted;
    store.change(RoleChange::Extend { username, ttl: left });
    let left = left.as_secs();
    let mut answer = store.answer(Value::Null);
    if is_capped {
        answer["warnings"] = json!([format!("TTL exceeded the effective max_ttl; TTL value is capped to \"{left}s\"")]);
    }
    answer["lease_id"] = id.into();
    answer["lease_duration"] = left.into();
    answer["renewable"] = true.into();
    Ok(Some(answer))
}

/// Gives what a token wraps, and ends the token. It is named in the body, or asks itself.
fn unwrap(store: &mut Store, call: &Call) -> Answered {
    let id = call.text("token").unwrap_or(&call.token);
    let wrapped = store.tokens.get(id).filter(|token| token.uses == 1).and_then(|token| token.cubbyhole.first());
    let text = wrapped.and_then(|(_, value)| value["response"].as_str()).map(str::to_owned);
    let Some(answer) = text.and_then(|text| serde_json::from_str(&text).ok()) else {
        return Err(no_wrapping());
    };
    store.tokens.remove(id);
    Ok(Some(answer))
}

/// What a token wraps an answer of, which leaves it unspent. Nobody has to log in for that.
fn wrapping(store: &mut Store, call: &Call) -> Answered {
    let id = call.text("token").unwrap_or(&call.token);
    let token = store.tokens.get(id).filter(|token| token.uses == 1).ok_or_else(no_wrapping)?;
    let (path, ttl) = (token.wraps.clone(), token.ttl.as_secs());
    Ok(Some(store.answer(json!({
        "creation_path": path, "creation_time": "2026-01-01T00:00:00Z", "creation_ttl": ttl,
    }))))
}

fn no_wrapping() -> Refusal {
    Refusal::new(400, "wrapping token is not valid or does not exist")
}

/// The drawer of each token. Reading uses a token for one use up.
fn cubbyhole(store: &mut Store, call: &Call, method: &str, path: &str) -> Answered {
    let token = store.tokens.get_mut(&call.token).ok_or_else(Refusal::denied)?;
    match method {
        "POST" if token.cubbyhole.len() < 100 => {
            token.cubbyhole.retain(|(key, _)| key != path);
            token.cubbyhole.push((path.to_owned(), Value::Object(call.body.clone())));
            Ok(None)
        }
        "GET" => {
            let found = token.cubbyhole.iter().find(|(key, _)| key == path).map(|(_, value)| value.clone());
            if token.uses == 1 {
                store.tokens.remove(&call.token);
            }
            let data = found.ok_or_else(Refusal::missing)?;
            Ok(Some(store.answer(data)))
        }
        _ => Err(Refusal::new(405, "unsupported operation")),
    }
}
