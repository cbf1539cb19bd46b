use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::{
    auth::Grant,
    call::Call,
    ids::Ids,
    message::{Entered, Message, check_content},
    reply::{Refusal, Reply},
    state::{Shared, State},
};

/// The most messages a conversation is created with, and the most in one page of a list.
const MAX_MESSAGES: usize = 50;

/// A conversation: messages that belong together. Only its account and session see it.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) id: String,
    account: String,
    session: Option<String>,
    bot: String,
    name: String,
    /// The part of the conversation that a bot still knows.
    pub(crate) section: String,
    meta: Map<String, Value>,
    created: u64,
    updated: u64,
    messages: VecDeque<Message>,
    cap: usize,
}

impl Conversation {
    /// Adds a message; the oldest goes where there are too many.
    pub(crate) fn push(&mut self, message: Message) {
        self.updated = message.created;
        if self.messages.len() >= self.cap {
            self.messages.pop_front();
        }
        self.messages.push_back(message);
    }

    /// What the user said last.
    pub(crate) fn last_text(&self) -> String {
        let last = self.messages.iter().rev().find(|message| message.entered.role == "user");
        last.map(|message| message.entered.text()).unwrap_or_default()
    }

    /// A new conversation of the caller.
    pub(crate) fn new(shared: &Shared, ids: &mut Ids, call: &Call, bot: &str, name: &str) -> Self {
        Self {
            id: ids.id(),
            account: call.grant.account.clone(),
            session: call.grant.session.clone(),
            bot: bot.into(),
            name: name.into(),
            section: ids.id(),
            meta: Map::new(),
            created: call.unix,
            updated: call.unix,
            messages: VecDeque::new(),
            cap: shared.config.keep.messages.max(1),
        }
    }

    fn is_seen_by(&self, grant: &Grant) -> bool {
        self.account == grant.account && self.session == grant.session
    }

    fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "created_at": self.created,
            "updated_at": self.updated,
            "creator_id": self.account,
            "connector_id": "1024",
            "last_section_id": self.section,
            "meta_data": self.meta,
        })
    }
}

/// The conversation of this id, if the caller sees it (else 4002).
pub(crate) fn find<'a>(state: &'a mut State, grant: &Grant, id: &str) -> Result<&'a mut Conversation, Refusal> {
    let found = state.conversations.get_mut(id).filter(|conversation| conversation.is_seen_by(grant));
    found.ok_or_else(|| Refusal::new(4002, "The conversation does not exist, or you have no permission to see it"))
}

/// `POST /v1/conversation/create`.
pub(crate) fn create(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let messages = Entered::list(&body, "messages", MAX_MESSAGES)?;
    let (bot, name) = (body.text("bot_id")?.unwrap_or_default(), body.text("name")?);
    let first = messages.first().map(Entered::text).unwrap_or_default();
    let mut conversation = Conversation::new(shared, &mut state.ids, call, bot, name.unwrap_or(&first));
    conversation.meta = body.meta_data()?;
    for entered in messages {
        let message = Message::new(&mut state.ids, &conversation.id, &conversation.section, entered, call.unix);
        conversation.push(message);
    }
    let reply = Reply::Data(conversation.to_json());
    state.conversations.insert(conversation.id.clone(), conversation);
    Ok(reply)
}

/// `GET /v1/conversation/retrieve`.
pub(crate) fn retrieve(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let conversation = find(state, &call.grant, call.need_query("conversation_id")?)?;
    Ok(Reply::Data(conversation.to_json()))
}

/// `GET /v1/conversations`: those of a bot, the newest first unless `sort_order` is `ASC`.
pub(crate) fn list(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let bot = call.need_query("bot_id")?;
    let number = call.query_number("page_num", 1, 1, usize::MAX)?;
    let size = call.query_number("page_size", 50, 1, 50)?;
    let mut seen: Vec<_> =
        state.conversations.iter().filter(|it| it.bot == bot && it.is_seen_by(&call.grant)).collect();
    if !call.query("sort_order").is_some_and(|order| order.eq_ignore_ascii_case("asc")) {
        seen.reverse();
    }
    let start = (number - 1).saturating_mul(size);
    let page: Vec<_> = seen.iter().skip(start).take(size).map(|conversation| conversation.to_json()).collect();
    let has_more = seen.len() > start.saturating_add(size);
    Ok(Reply::Data(json!({ "conversations": page, "has_more": has_more })))
}

/// `PUT /v1/conversations/:conversation_id`.
pub(crate) fn rename(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let conversation = find(state, &call.grant, &call.args[0])?;
    if let Some(name) = body.text("name")? {
        if name.chars().count() > 100 {
            return Err(Refusal::param("name has more than 100 characters"));
        }
        name.clone_into(&mut conversation.name);
        conversation.updated = call.unix;
    }
    Ok(Reply::Data(conversation.to_json()))
}

/// `DELETE /v1/conversations/:conversation_id`.
pub(crate) fn delete(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    find(state, &call.grant, &call.args[0])?;
    state.conversations.remove(&call.args[0]);
    Ok(Reply::Fields(Map::new()))
}

/// `POST /v1/conversations/:conversation_id/clear`: a new section begins, the messages stay.
pub(crate) fn clear(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let section = state.ids.id();
    let conversation = find(state, &call.grant, &call.args[0])?;
    conversation.section.clone_from(&section);
    Ok(Reply::Data(json!({ "id": section, "conversation_id": conversation.id })))
}

/// `POST /v1/conversation/message/create`.
pub(crate) fn create_message(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let id = call.need_query("conversation_id")?;
    let entered = Entered::read(&call.object()?)?;
    find(state, &call.grant, id)?;
    let State { ids, conversations, .. } = state;
    let conversation = conversations.get_mut(id).expect("it was found just now");
    let message = Message::new(ids, id, &conversation.section, entered, call.unix);
    let reply = Reply::Data(message.listed());
    conversation.push(message);
    Ok(reply)
}

/// `POST /v1/conversation/message/list`. `before_id` and `after_id` mean positions in the order that was asked for.
pub(crate) fn list_messages(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    state.settle(call.now, call.unix);
    let conversation = find(state, &call.grant, call.need_query("conversation_id")?)?;
    let chat = body.text("chat_id")?.filter(|id| !id.is_empty());
    let limit = match body.number("limit")? {
        None => MAX_MESSAGES,
        Some(limit) => usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=MAX_MESSAGES).contains(limit))
            .ok_or_else(|| Refusal::param(format!("limit must be from 1 to {MAX_MESSAGES}")))?,
    };
    let mut all: Vec<_> =
        conversation.messages.iter().filter(|message| chat.is_none_or(|chat| message.chat == chat)).collect();
    match body.text("order")?.unwrap_or("desc") {
        "asc" => {}
        "desc" => all.reverse(),
        _ => return Err(Refusal::param("order must be asc or desc")),
    }
    let place = |name: &str| -> Result<Option<usize>, Refusal> {
        match body.text(name)? {
            None | Some("" | "0") => Ok(None),
            Some(id) => match all.iter().position(|message| message.id == id) {
                Some(at) => Ok(Some(at)),
                None => Err(Refusal::param(format!("{name} is not a message of this conversation"))),
            },
        }
    };
    let (before, after) = (place("before_id")?, place("after_id")?);
    // After a position the page begins there; before one it ends there, if it is not told to begin somewhere else.
    let end = before.unwrap_or(all.len());
    let start = after.map_or_else(|| before.map_or(0, |end| end.saturating_sub(limit)), |at| at + 1).min(end);
    let page = &all[start..end.min(start + limit)];
    let has_more = if before.is_some() && after.is_none() { start > 0 } else { start + page.len() < end };
    let id = |message: Option<&&Message>| message.map(|message| message.id.clone()).unwrap_or_default();
    Ok(Reply::fields(json!({
        "data": page.iter().map(|message| message.listed()).collect::<Vec<_>>(),
        "first_id": id(page.first()),
        "last_id": id(page.last()),
        "has_more": has_more,
    })))
}

/// The message the two query parameters mean (else 4005).
fn find_message<'a>(state: &'a mut State, call: &Call) -> Result<&'a mut Message, Refusal> {
    let id = call.need_query("message_id")?;
    message_of(state, &call.grant, call.need_query("conversation_id")?, id)
}

fn message_of<'a>(
    state: &'a mut State,
    grant: &Grant,
    conversation: &str,
    id: &str,
) -> Result<&'a mut Message, Refusal> {
    let found = find(state, grant, conversation)?.messages.iter_mut().find(|message| message.id == id);
    found.ok_or_else(|| Refusal::new(4005, "The message does not exist"))
}

/// `GET /v1/conversation/message/retrieve`.
pub(crate) fn retrieve_message(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    Ok(Reply::Data(find_message(state, call)?.listed()))
}

/// `POST /v1/conversation/message/modify`; the answer is in `message`, not in `data`.
pub(crate) fn modify_message(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let (content, content_type) = (body.text("content")?, body.text("content_type")?);
    let meta = body.value("meta_data").map(|_| body.meta_data()).transpose()?;
    if content.is_none() && meta.is_none() {
        return Err(Refusal::param("content or meta_data is required"));
    }
    let message = find_message(state, call)?;
    if let Some(content) = content {
        let content_type = content_type.unwrap_or(&message.entered.content_type).to_owned();
        check_content(content, &content_type)?;
        message.entered.content = content.into();
        message.entered.content_type = content_type;
    }
    message.entered.meta = meta.unwrap_or_else(|| std::mem::take(&mut message.entered.meta));
    message.updated = call.unix;
    Ok(Reply::fields(json!({ "message": message.listed() })))
}

/// `POST /v1/conversations/:conversation_id/messages/:message_id/feedback`. It is taken and not kept.
pub(crate) fn feedback(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    if !matches!(body.need_text("feedback_type")?, "like" | "unlike") {
        return Err(Refusal::param("feedback_type must be like or unlike"));
    }
    body.list("reason_types")?;
    body.text("comment")?;
    take_feedback_back(shared, state, call)
}

/// `DELETE /v1/conversations/:conversation_id/messages/:message_id/feedback`, also where there was none.
pub(crate) fn take_feedback_back(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    message_of(state, &call.grant, &call.args[0], &call.args[1])?;
    Ok(Reply::Data(json!({})))
}

/// `POST /v1/conversation/message/delete`.
pub(crate) fn delete_message(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let message = find_message(state, call)?.listed();
    let conversation = find(state, &call.grant, call.need_query("conversation_id")?)?;
    conversation.messages.retain(|kept| message["id"] != kept.id.as_str());
    Ok(Reply::Data(message))
}
