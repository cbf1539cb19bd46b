use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    KUBERNETES_JWT, KUBERNETES_ROLE, ROLE_ID, SECRET_ID,
    answer::{Answered, Refusal},
    api::Call,
    store::{LeaseState, Store},
};

/// `auth/approle/login` (API docs: `AppRole` auth method, login).
pub(super) fn app_role(store: &mut Store, call: &Call) -> Answered {
    let role = call.text("role_id").ok_or_else(|| Refusal::new(400, "missing role_id"))?;
    let secret = call.text("secret_id").ok_or_else(|| Refusal::new(400, "missing secret_id"))?;
    if role != ROLE_ID || secret != SECRET_ID {
        return Err(Refusal::new(400, "invalid role or secret ID"));
    }
    Ok(Some(logged_in(store, call.now)))
}

/// `auth/kubernetes/login` (API docs: Kubernetes auth method, login).
pub(super) fn kubernetes(store: &mut Store, call: &Call) -> Answered {
    let role = call.text("role").ok_or_else(|| Refusal::new(400, "missing role"))?;
    let jwt = call.text("jwt").ok_or_else(|| Refusal::new(400, "missing jwt"))?;
    if role != KUBERNETES_ROLE {
        return Err(Refusal::new(400, format!("invalid role name {role:?}")));
    }
    match jwt {
        KUBERNETES_JWT => Ok(Some(logged_in(store, call.now))),
        _ => Err(Refusal::denied()),
    }
}

/// The answer to a login.
pub(super) fn logged_in(store: &mut Store, now: Instant) -> Value {
    let token = store.login(now);
    authenticated(store, &token, now)
}

/// An answer with the block `auth`.
fn authenticated(store: &mut Store, token: &str, now: Instant) -> Value {
    let accessor = store.ids.secret("");
    let life = store.tokens.get(token).and_then(|token| token.life);
    let mut answer = store.answer(Value::Null);
    answer["auth"] = json!({
        "client_token": token, "accessor": accessor, "policies": ["default"], "token_policies": ["default"],
        "metadata": {}, "lease_duration": life.map_or(0, |(ends, _)| (ends - now).as_secs()),
        "renewable": life.is_some(), "entity_id": "", "token_type": "service", "orphan": true, "mfa_requirement": null,
        "num_uses": 0,
    });
    answer
}

/// `auth/token/lookup-self`, and `auth/token/lookup` of another one (API docs: token auth method).
pub(super) fn lookup(store: &mut Store, call: &Call) -> Answered {
    let id = call.text("token").unwrap_or(&call.token);
    let token = store.tokens.get(id).ok_or_else(|| Refusal::new(403, "bad token"))?;
    let (ttl, max) = token.life.map_or((0, 0), |(ends, max)| ((ends - call.now).as_secs(), (max - call.now).as_secs()));
    let mut data = json!({
        "expire_time": token.life.map(|_| "2026-01-01T00:00:00Z"), "id": id, "accessor": "", "creation_ttl": token.ttl.as_secs(), "ttl": ttl, "explicit_max_ttl": 0,
        "num_uses": token.uses, "orphan": true, "path": "auth/token/create", "policies": ["default"],
        "type": "service", "meta": null,
    });
    // Of a token that does not end Vault says nothing of the kind.
    if let Some((ends, last)) = token.life {
        data["renewable"] = (token.uses == 0 && ends <= last && max > 0).into();
    }
    Ok(Some(store.answer(data)))
}

/// `auth/token/renew-self`: as long as before or as asked, and never beyond the end of all renewals.
pub(super) fn renew(store: &mut Store, call: &Call) -> Answered {
    let token = store.tokens.get_mut(&call.token).ok_or_else(Refusal::denied)?;
    let Some((ends, max)) = token.life.as_mut().filter(|_| token.uses == 0) else {
        return Err(Refusal::new(400, "lease is not renewable"));
    };
    *ends = (call.now + call.seconds("increment").unwrap_or(token.ttl)).min(*max);
    Ok(Some(authenticated(store, &call.token, call.now)))
}

/// `auth/token/revoke-self`.
pub(super) fn revoke(store: &mut Store, call: &Call) -> Answered {
    store.revoke_token(&call.token, LeaseState::Revoked);
    Ok(None)
}
