use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    App,
    auth::{self, Grant},
    call::{Call, Fields, encode},
    config::ErrorShape,
    fault::FaultKind,
    jwt,
    reply::{Refusal, Reply},
    state::{Shared, State},
};

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
const JWT_GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// An authorization code that was not used yet.
#[derive(Debug)]
pub(crate) struct Code {
    client: String,
    redirect: String,
    /// The challenge, and whether it is a SHA-256.
    challenge: Option<(String, bool)>,
    due: Option<Instant>,
}

/// A device code.
#[derive(Debug)]
pub(crate) struct Device {
    client: String,
    pub(crate) user_code: String,
    /// Allowed, refused, or not decided.
    pub(crate) decision: Option<bool>,
    asked: Option<Instant>,
    due: Option<Instant>,
}

/// A refresh token that was not used yet.
#[derive(Debug)]
pub(crate) struct Refresh {
    client: String,
    /// Did the code it goes back to prove itself, so that no secret is asked for?
    public: bool,
    grant: Grant,
    due: Option<Instant>,
}

/// A refusal in OAuth's words (coze-platform.md §1.8).
pub(crate) struct Denied {
    code: &'static str,
    message: String,
}

impl Denied {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn request(parameter: &str) -> Self {
        Self::new("invalid_request", format!("invalid request: {parameter}"))
    }

    pub(crate) fn client(why: &str) -> Self {
        Self::new("invalid_client", format!("invalid client: {why}"))
    }

    fn into_reply(self, shape: ErrorShape) -> Reply {
        let (code, message) = (self.code, self.message);
        let body = match shape {
            ErrorShape::All => json!({
                "error": code, "error_code": code, "error_message": message, "error_description": message,
            }),
            ErrorShape::Standard => json!({ "error": code, "error_description": message }),
            ErrorShape::Coded => json!({ "error_code": code, "error_message": message }),
        };
        Reply::Bare { status: if code == "invalid_client" { 401 } else { 400 }, body, outcome: code.into() }
    }
}

fn app<'a>(shared: &'a Shared, id: &str) -> Result<&'a App, Denied> {
    let app = shared.config.apps.iter().find(|app| app.client_id == id);
    let app = app.ok_or_else(|| Denied::client("client_id is not that of an app"))?;
    match app.active {
        true => Ok(app),
        false => {
            let message = format!("app: {} is currently deactivated by the owner", app.name);
            Err(Denied::new("access_deny", message))
        }
    }
}

/// `GET …/oauth2/authorize`, also for one workspace: everybody consents at once, or refuses where a fault says so.
pub(crate) fn authorize(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let leads_to = || -> Result<String, Denied> {
        let need = |name: &str| call.query(name).ok_or_else(|| Denied::request(name));
        if need("response_type")? != "code" {
            return Err(Denied::request("response_type"));
        }
        let app = app(shared, need("client_id")?)?;
        let redirect = need("redirect_uri")?;
        if !app.redirect_uris.is_empty() && !app.redirect_uris.iter().any(|known| known == redirect) {
            return Err(Denied::request("redirect_uri"));
        }
        let challenge = match (call.query("code_challenge"), call.query("code_challenge_method").unwrap_or("plain")) {
            (None, _) => None,
            (Some(challenge), "S256") => Some((challenge.to_owned(), true)),
            (Some(challenge), "plain") => Some((challenge.to_owned(), false)),
            _ => return Err(Denied::request("code_challenge_method")),
        };
        let due = call.now.checked_add(shared.config.oauth.code_lifetime);
        let answer = if call.fault == FaultKind::RefuseConsent {
            "error=access_denied".to_owned()
        } else {
            let code = state.ids.secret("code_");
            let (client, redirect) = (app.client_id.clone(), redirect.to_owned());
            state.codes.insert(code.clone(), Code { client, redirect, challenge, due });
            format!("code={code}")
        };
        // The answer goes before a fragment, after what query there is.
        let (page, fragment) = redirect.split_once('#').map_or((redirect, None), |(page, rest)| (page, Some(rest)));
        let mark = if page.contains('?') { '&' } else { '?' };
        let mut to = format!("{page}{mark}{answer}");
        if let Some(value) = call.query("state") {
            to.push_str(&format!("&state={}", encode(value)));
        }
        to.extend(fragment.map(|fragment| format!("#{fragment}")));
        match HeaderValue::from_str(&to) {
            Ok(_) => Ok(to),
            Err(_) => Err(Denied::request("redirect_uri")),
        }
    };
    Ok(finish(shared, { leads_to }().map(Reply::Redirect)))
}

/// `POST …/oauth2/device/code`, also for one workspace.
pub(crate) fn device_code(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let config = &shared.config.oauth;
    let reply = object(call).and_then(|body| {
        let app = app(shared, need(&body, "client_id")?)?;
        let (code, user_code) = (state.ids.secret(""), state.ids.user_code());
        let device = Device {
            client: app.client_id.clone(),
            user_code: user_code.clone(),
            decision: None,
            asked: None,
            due: call.now.checked_add(config.device_lifetime),
        };
        state.devices.insert(code.clone(), device);
        let body = json!({
            "device_code": code, "user_code": user_code, "verification_uri": format!("{}/device", shared.url),
            "expires_in": config.device_lifetime.as_secs(), "interval": config.device_interval.as_secs(),
        });
        Ok(Reply::Bare { status: 200, body, outcome: "0".into() })
    });
    Ok(finish(shared, reply))
}

/// `POST …/oauth2/token`, also for an account or an enterprise, where only assertions are taken.
pub(crate) fn token(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let reply = exchange(shared, state, call);
    if reply.is_ok() {
        state.record.counts.tokens_issued += 1;
    }
    Ok(finish(shared, reply.map(|body| Reply::Bare { status: 200, body, outcome: "0".into() })))
}

fn finish(shared: &Shared, reply: Result<Reply, Denied>) -> Reply {
    reply.unwrap_or_else(|denied| denied.into_reply(shared.config.oauth.errors))
}

fn exchange(shared: &Shared, state: &mut State, call: &Call) -> Result<Value, Denied> {
    let body = object(call)?;
    let kind = need(&body, "grant_type")?;
    let account = call.args.first().map(String::as_str);
    match kind {
        JWT_GRANT => jwt_grant(shared, state, call, &body, account),
        "authorization_code" if account.is_none() => code_grant(shared, state, call, &body),
        "refresh_token" if account.is_none() => refresh_grant(shared, state, call, &body),
        DEVICE_GRANT if account.is_none() => device_grant(shared, state, call, &body),
        _ => Err(Denied::new("unsupported_grant_type", format!("not supported grant type: {kind}"))),
    }
}

/// The body; only JSON is taken, never a form.
fn object(call: &Call) -> Result<Fields, Denied> {
    call.object().map_err(|_| Denied::request("the body must be a JSON object"))
}

fn need<'a>(body: &'a Fields, name: &str) -> Result<&'a str, Denied> {
    body.need_text(name).map_err(|_| Denied::request(name))
}

/// A confidential app shows its secret as a bearer token.
fn check_secret(app: &App, call: &Call) -> Result<(), Denied> {
    match &app.client_secret {
        Some(secret) if auth::bearer(&call.parts.headers) != Some(secret) => Err(Denied::client("client secret")),
        _ => Ok(()),
    }
}

fn code_grant(shared: &Shared, state: &mut State, call: &Call, body: &Fields) -> Result<Value, Denied> {
    let app = app(shared, need(body, "client_id")?)?;
    let (code, redirect) = (need(body, "code")?, need(body, "redirect_uri")?);
    let known = state.codes.get(code).ok_or_else(|| Denied::request("code"))?;
    let is_over = known.due.is_some_and(|due| due <= call.now);
    if is_over || known.client != app.client_id {
        return Err(Denied::request("code"));
    }
    if known.redirect != redirect {
        return Err(Denied::request("redirect_uri"));
    }
    match &known.challenge {
        None => check_secret(app, call)?,
        Some((challenge, is_hash)) => {
            let verifier = need(body, "code_verifier")?;
            let hash = || URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
            if *challenge != if *is_hash { hash() } else { verifier.to_owned() } {
                return Err(Denied::request("code_verifier"));
            }
        }
    }
    let public = known.challenge.is_some();
    state.codes.remove(code);
    Ok(issue_user_token(shared, state, call, app, grant_of(app), public))
}

fn refresh_grant(shared: &Shared, state: &mut State, call: &Call, body: &Fields) -> Result<Value, Denied> {
    let app = app(shared, need(body, "client_id")?)?;
    let token = need(body, "refresh_token")?;
    let known = state.refreshes.get(token).ok_or_else(|| Denied::request("refresh_token"))?;
    if known.due.is_some_and(|due| due <= call.now) || known.client != app.client_id {
        return Err(Denied::request("refresh_token"));
    }
    if !known.public {
        check_secret(app, call)?;
    }
    let (grant, public) = (known.grant.clone(), known.public);
    // From here on the token that was sent is worth nothing, whether the answer arrives or not.
    state.refreshes.remove(token);
    Ok(issue_user_token(shared, state, call, app, grant, public))
}

fn device_grant(shared: &Shared, state: &mut State, call: &Call, body: &Fields) -> Result<Value, Denied> {
    let app = app(shared, need(body, "client_id")?)?;
    let code = need(body, "device_code")?;
    let device = state.devices.get_mut(code).filter(|device| device.client == app.client_id);
    let device = device.ok_or_else(|| Denied::request("device_code"))?;
    if device.due.is_some_and(|due| due <= call.now) {
        return Err(Denied::new("expired_token", "expired"));
    }
    let last = device.asked.replace(call.now);
    match device.decision {
        Some(true) => {}
        Some(false) => return Err(Denied::new("access_denied", "denied")),
        None => {
            let interval = shared.config.oauth.device_interval;
            let too_soon = last.is_some_and(|last| call.now.duration_since(last) < interval);
            return Err(match too_soon {
                true => Denied::new("slow_down", "slow down"),
                false => Denied::new("authorization_pending", "pending"),
            });
        }
    }
    state.devices.remove(code);
    Ok(issue_user_token(shared, state, call, app, grant_of(app), true))
}

fn jwt_grant(
    shared: &Shared,
    state: &mut State,
    call: &Call,
    body: &Fields,
    account: Option<&str>,
) -> Result<Value, Denied> {
    let config = &shared.config;
    let assertion = auth::bearer(&call.parts.headers).ok_or_else(|| Denied::client("no JWT in Authorization"))?;
    let host = call.header("host").or_else(|| call.parts.uri.authority().map(http::uri::Authority::as_str));
    let claims = jwt::verify(config, assertion, host.unwrap_or_default(), call.unix)?;
    let app = app(shared, &claims.client)?;
    let life = match body.number("duration_seconds").map_err(|_| Denied::request("duration_seconds"))? {
        None => config.oauth.token_lifetime.as_secs(),
        Some(life) => match u64::try_from(life) {
            Ok(life @ 1..=86_399) => life,
            _ => return Err(Denied::request("duration_seconds")),
        },
    };
    let mut grant = grant_of(app);
    grant.session = claims.session;
    if let Some(account) = account {
        grant.account = account.to_owned();
    }
    narrow(&mut grant, body)?;
    // Only now, so that a request that was wrong otherwise may be corrected.
    let spent = format!("{} {}", claims.client, claims.jti);
    if state.spent.get(&spent).is_some() {
        return Err(Denied::client("the JWT was used before"));
    }
    state.spent.insert(spent, ());
    Ok(issue(state, "czs_", grant, call.unix + life))
}

/// Takes the rights a `scope` asks for out of those the app has (coze-platform.md §1.6).
fn narrow(grant: &mut Grant, body: &Fields) -> Result<(), Denied> {
    let Some(scope) = body.value("scope") else { return Ok(()) };
    let strings = |value: &Value| -> Option<Vec<String>> { serde_json::from_value(value.clone()).ok() };
    let list = &scope["account_permission"]["permission_list"];
    if !list.is_null() {
        let asked = strings(list).ok_or_else(|| Denied::request("scope"))?;
        let has_all = |held: &Vec<String>| asked.iter().all(|permission| held.contains(permission));
        if !grant.permissions.as_ref().is_none_or(has_all) {
            return Err(Denied::request("scope"));
        }
        grant.permissions = Some(asked);
    }
    let bots = &scope["attribute_constraint"]["connector_bot_chat_attribute"]["bot_id_list"];
    if !bots.is_null() {
        grant.bots = Some(strings(bots).ok_or_else(|| Denied::request("scope"))?);
    }
    Ok(())
}

fn grant_of(app: &App) -> Grant {
    Grant {
        app: app.client_id.clone(),
        account: app.account.clone(),
        permissions: app.permissions.clone(),
        ..Grant::default()
    }
}

/// Gives out an access token that ends at `expires`. `expires_in` is that time, not a duration (coze-platform.md §1.7).
fn issue(state: &mut State, prefix: &str, mut grant: Grant, expires: u64) -> Value {
    let token = state.ids.secret(prefix);
    grant.expires = Some(expires);
    state.grants.insert(token.clone(), grant);
    json!({ "access_token": token, "expires_in": expires })
}

/// The same for a person, with a refresh token.
fn issue_user_token(shared: &Shared, state: &mut State, call: &Call, app: &App, grant: Grant, public: bool) -> Value {
    let config = &shared.config.oauth;
    let mut body = issue(state, "czu_", grant.clone(), call.unix + config.token_lifetime.as_secs());
    let token = state.ids.secret("");
    let due = call.now.checked_add(config.refresh_lifetime);
    state.refreshes.insert(token.clone(), Refresh { client: app.client_id.clone(), public, grant, due });
    body["refresh_token"] = token.into();
    body
}
