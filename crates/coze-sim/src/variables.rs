//! Variables: what a bot or an app knows of one user.

use serde_json::{Value, json};

use crate::{
    call::{Call, Fields},
    reply::{Refusal, Reply},
    state::{Shared, State},
};

/// A value under a keyword.
#[derive(Debug)]
pub(crate) struct Variable {
    scope: String,
    keyword: String,
    value: String,
    created: u64,
    updated: u64,
}

/// Whose variables are meant: those of a user with a bot or an app on a channel, as this caller sees them.
fn scope<'a>(call: &'a Call, text: impl Fn(&str) -> Result<Option<&'a str>, Refusal>) -> Result<String, Refusal> {
    let text = |name| Ok::<_, Refusal>(text(name)?.filter(|text| !text.is_empty()));
    let (bot, app) = (text("bot_id")?, text("app_id")?);
    if bot.is_some() == app.is_some() {
        return Err(Refusal::param("either bot_id or app_id is required"));
    }
    let user = text("connector_uid")?.ok_or_else(|| Refusal::param("connector_uid is required"))?;
    let channel = text("connector_id")?.unwrap_or("1024");
    Ok(json!([call.grant.account, call.grant.session, bot, app, channel, user]).to_string())
}

/// `GET /v1/variables`: those of the `keywords`, or all.
pub(crate) fn list(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let scope = scope(call, |name| Ok(call.query(name)))?;
    let keywords: Option<Vec<_>> = call.query("keywords").map(|keywords| keywords.split(',').collect());
    let is_meant = |variable: &&Variable| {
        variable.scope == scope && keywords.as_ref().is_none_or(|keywords| keywords.contains(&&*variable.keyword))
    };
    let items: Vec<Value> = state.variables.iter().filter(is_meant).map(Variable::to_json).collect();
    Ok(Reply::Data(json!({ "items": items })))
}

/// `PUT /v1/variables`. All of them are set, or none.
pub(crate) fn set(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let scope = scope(call, |name| body.text(name))?;
    let mut pairs = Vec::new();
    for item in body.list("data")? {
        let item = Fields(item.as_object().cloned().unwrap_or_default());
        let value = item.text("value")?.ok_or_else(|| Refusal::param("data.value is required"))?.to_owned();
        pairs.push((item.need_text("keyword")?.to_owned(), value));
    }
    if pairs.is_empty() {
        return Err(Refusal::param("data is required"));
    }
    for (keyword, value) in pairs {
        let key = json!([scope, keyword]).to_string();
        if let Some(known) = state.variables.get_mut(&key) {
            (known.value, known.updated) = (value, call.unix);
        } else {
            let (scope, created, updated) = (scope.clone(), call.unix, call.unix);
            state.variables.insert(key, Variable { scope, keyword, value, created, updated });
        }
    }
    Ok(Reply::Data(json!({})))
}

impl Variable {
    fn to_json(&self) -> Value {
        json!({
            "keyword": self.keyword, "value": self.value, "create_time": self.created, "update_time": self.updated,
        })
    }
}
