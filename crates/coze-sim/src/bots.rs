pub(crate) mod edit;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    call::Call,
    entity::{Bot, Workspace},
    reply::{Refusal, Reply},
    state::{Shared, State},
};

/// When every simulated bot and workflow was made and published.
pub(crate) const MADE_AT: u64 = 1_700_000_000;
/// The picture of everything.
pub(crate) const ICON: &str = "https://example.com/icon.png";

/// `GET /v1/bot/get_online_info`.
pub(crate) fn online_info(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    find(state, call.need_query("bot_id")?)
}

/// `GET /v1/bots/:bot_id`.
pub(crate) fn retrieve(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    find(state, &call.args[0])
}

fn find(state: &State, id: &str) -> Result<Reply, Refusal> {
    let Some(bot) = state.bots.iter().find(|bot| bot.id == id) else {
        return Err(Refusal::new(4200, format!("The bot {id} does not exist")));
    };
    Ok(Reply::Data(json!({
        "bot_id": bot.id,
        "name": bot.name,
        "description": bot.description,
        "icon_url": ICON,
        "create_time": MADE_AT,
        "update_time": MADE_AT,
        "version": MADE_AT.to_string(),
        "bot_mode": 0,
        "owner_user_id": crate::ACCOUNT,
        "prompt_info": { "prompt": bot.prompt },
        "onboarding_info": { "prologue": bot.prologue, "suggested_questions": bot.follow_ups },
        "model_info": {
            "model_id": "1", "model_name": "sim", "temperature": 1.0, "top_p": 1.0, "context_round": 30, "max_tokens": 4096,
            "frequency_penalty": 0.0, "presence_penalty": 0.0,
        },
        "knowledge": { "dataset_ids": [], "auto_call": true, "search_strategy": 0 },
        "suggest_reply_info": { "reply_mode": if bot.follow_ups.is_empty() { "disable" } else { "enable" } },
        "plugin_info_list": [],
        "workflow_info_list": [],
        "shortcut_commands": [],
    })))
}

/// `GET /v1/bots`.
pub(crate) fn list(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let workspace = call.need_query("workspace_id")?;
    let published = match call.query("publish_status").unwrap_or("published_online") {
        "published_online" | "published_draft" => Some(true),
        "unpublished_draft" => Some(false),
        "all" => None,
        _ => return Err(Refusal::param("publish_status is not one of its values")),
    };
    let (page, total) = page(state, call, |bot| {
        bot.workspace == workspace && published.is_none_or(|published| bot.published == published)
    })?;
    let item = |bot: &&Bot| {
        json!({
            "id": bot.id, "name": bot.name, "description": bot.description, "icon_url": ICON,
            "is_published": bot.published, "published_at": MADE_AT, "updated_at": MADE_AT,
            "owner_user_id": crate::ACCOUNT, "folder_id": "",
        })
    };
    Ok(Reply::Data(json!({ "items": page.iter().map(item).collect::<Vec<_>>(), "total": total })))
}

/// `GET /v1/space/published_bots_list`, the older list.
pub(crate) fn published(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let workspace = call.need_query("space_id")?;
    let (page, total) = page(state, call, |bot| bot.workspace == workspace && bot.published)?;
    let item = |bot: &&Bot| {
        json!({
            "bot_id": bot.id, "bot_name": bot.name, "description": bot.description, "icon_url": ICON,
            "publish_time": MADE_AT.to_string(),
        })
    };
    Ok(Reply::Data(json!({ "space_bots": page.iter().map(item).collect::<Vec<_>>(), "total": total })))
}

/// One page of the bots that are wanted, and how many there are.
fn page<'a>(state: &'a State, call: &Call, is_wanted: impl Fn(&Bot) -> bool) -> Result<(Vec<&'a Bot>, usize), Refusal> {
    // The document of one list says `page_num`, that of the other `page_index`; the Python SDK sends the latter to both.
    let name = if call.query("page_num").is_some() { "page_num" } else { "page_index" };
    let number = call.query_number(name, 1, 1, usize::MAX)?;
    let size = call.query_number("page_size", 20, 1, 100)?;
    let all: Vec<_> = state.bots.iter().map(Arc::as_ref).filter(|bot| is_wanted(bot)).collect();
    let page = all.iter().skip((number - 1).saturating_mul(size)).take(size).copied().collect();
    Ok((page, all.len()))
}

/// `GET /v1/workspaces`.
pub(crate) fn workspaces(shared: &Shared, _: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let number = call.query_number("page_num", 1, 1, usize::MAX)?;
    let size = call.query_number("page_size", 20, 1, 50)?;
    let wanted = call.query("enterprise_id");
    let all = shared.config.workspaces.iter();
    let all: Vec<_> = all.filter(|space| wanted.is_none_or(|wanted| space.enterprise == wanted)).collect();
    let item = |space: &&Workspace| {
        json!({
            "id": space.id, "name": space.name, "icon_url": ICON, "role_type": space.role, "workspace_type": space.kind,
            "enterprise_id": space.enterprise,
        })
    };
    let page: Vec<_> = all.iter().skip((number - 1).saturating_mul(size)).take(size).map(item).collect();
    Ok(Reply::Data(json!({ "workspaces": page, "total_count": all.len() })))
}

/// `GET /v1/users/me`.
pub(crate) fn me(_: &Shared, _: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let account = &call.grant.account;
    Ok(Reply::Data(json!({
        "user_id": account, "user_name": format!("user{account}"), "nick_name": "Simulated", "avatar_url": ICON,
    })))
}

/// `GET /v1/commerce/benefit/benefits/get`: the limits that hold (coze-platform.md §4).
pub(crate) fn benefits(shared: &Shared, _: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let limits = &shared.config.limits;
    let mut data = json!({ "basic_info": { "user_level": limits.level } });
    let mut infos = Vec::new();
    for kind in call.query("benefit_type_list").unwrap_or_default().split(',').filter(|kind| !kind.is_empty()) {
        let (resource, total) = match (kind, call.query("resource_id")) {
            ("api_run_qps", Some("chat")) => ("chat", limits.chat_qps),
            ("api_run_qps", Some("workflow")) => ("workflow", limits.workflow_qps),
            // The simulated platform has no plugin API, and so no limit on it.
            ("api_run_qps", Some("plugin")) => ("plugin", 0),
            ("api_run_qps", _) => return Err(Refusal::param("resource_id must be chat, workflow or plugin")),
            ("call_tool_limit", _) => ("", 0),
            _ => return Err(Refusal::param("benefit_type_list must be of api_run_qps, call_tool_limit")),
        };
        infos.push(benefit(kind, resource, total));
    }
    if !infos.is_empty() {
        data["benefit_info"] = infos.into();
    }
    Ok(Reply::Data(data))
}

fn benefit(kind: &str, resource: &str, total: u32) -> Value {
    let (strategy, total) = if total == 0 { ("unlimit", 1) } else { ("by_quota", total) };
    let info = json!({
        "item_info": { "used": 0, "total": total, "start_at": 0, "end_at": 0, "strategy": strategy },
        "status": "valid",
    });
    json!({ "benefit_type": kind, "resource_id": resource, "basic": info, "extra": [], "effective": info })
}
