//! Bots that are made, changed and published while the platform runs.

use std::sync::Arc;

use serde_json::json;

use crate::{
    call::{Call, Fields},
    entity::Bot,
    reply::{Refusal, Reply},
    state::{Shared, State},
};

/// The most characters of a name, and of a description.
const MAX_NAME: usize = 20;
const MAX_DESCRIPTION: usize = 500;

/// `POST /v1/bot/create`: a draft, which nobody can chat with until it is published.
pub(crate) fn create(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    body.need_text("name")?;
    let mut bot = draft(shared, state, body.need_text("space_id")?)?;
    change(&mut bot, &body)?;
    let reply = Reply::Data(json!({ "bot_id": bot.id }));
    state.add_bot(shared, bot);
    Ok(reply)
}

/// `POST /v1/bot/update`: what the body does not say stays as it is.
pub(crate) fn update(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let bot = find(state, body.need_text("bot_id")?)?;
    let mut changed = bot.clone();
    change(&mut changed, &body)?;
    *bot = changed;
    Ok(Reply::Data(json!({})))
}

/// `POST /v1/bot/publish`.
pub(crate) fn publish(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let id = body.need_text("bot_id")?;
    if body.list("connector_ids")?.is_empty() {
        return Err(Refusal::param("connector_ids is required"));
    }
    find(state, id)?.published = true;
    Ok(Reply::Data(json!({ "bot_id": id, "version": call.unix.to_string() })))
}

/// `POST /v1/bots/:bot_id/unpublish`.
pub(crate) fn unpublish(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    call.object()?.need_text("connector_id")?;
    find(state, &call.args[0])?.published = false;
    Ok(Reply::Data(json!({})))
}

/// `POST /v1/templates/:template_id/duplicate`. The bots are the templates; the copy is a draft.
pub(crate) fn duplicate(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let template = find(state, &call.args[0])?.clone();
    let Bot { id, workspace, .. } = draft(shared, state, body.need_text("workspace_id")?)?;
    let mut copy = Bot { id, workspace, published: false, ..template };
    change(&mut copy, &body)?;
    let reply = Reply::Data(json!({ "entity_id": copy.id, "entity_type": "agent" }));
    state.add_bot(shared, copy);
    Ok(reply)
}

/// A bot in a workspace that there is, with a new id and nothing else.
fn draft(shared: &Shared, state: &mut State, workspace: &str) -> Result<Bot, Refusal> {
    if !shared.config.workspaces.iter().any(|known| known.id == workspace) {
        return Err(Refusal::new(4200, format!("The workspace {workspace} does not exist")));
    }
    let bot = Bot::new(state.ids.id(), "");
    Ok(Bot { workspace: workspace.into(), published: false, description: String::new(), ..bot })
}

fn find<'a>(state: &'a mut State, id: &str) -> Result<&'a mut Bot, Refusal> {
    let bot = state.bots.iter_mut().find(|bot| bot.id == id);
    bot.map(Arc::make_mut).ok_or_else(|| Refusal::new(4200, format!("The bot {id} does not exist")))
}

/// Takes over what the body says of a bot.
fn change(bot: &mut Bot, body: &Fields) -> Result<(), Refusal> {
    for (name, place, max) in
        [("name", &mut bot.name, MAX_NAME), ("description", &mut bot.description, MAX_DESCRIPTION)]
    {
        let Some(text) = body.text(name)? else { continue };
        if text.chars().count() > max {
            return Err(Refusal::param(format!("{name} has more than {max} characters")));
        }
        text.clone_into(place);
    }
    if let Some(prompt) = body.object("prompt_info")?.text("prompt")? {
        prompt.clone_into(&mut bot.prompt);
    }
    let onboarding = body.object("onboarding_info")?;
    if let Some(prologue) = onboarding.text("prologue")? {
        prologue.clone_into(&mut bot.prologue);
    }
    if onboarding.value("suggested_questions").is_some() {
        let questions = onboarding.list("suggested_questions")?.iter();
        bot.follow_ups = questions.filter_map(|question| question.as_str()).map(str::to_owned).collect();
    }
    Ok(())
}
