use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::{
    call::{Call, Fields},
    conversation::{self, Conversation},
    dialog::{self, ToolCall},
    entity::Bot,
    message::{Entered, Message},
    reply::{Refusal, Reply},
    state::{Shared, State},
};

/// The most messages a chat is started with.
const MAX_MESSAGES: usize = 100;

/// A chat: one call of a bot in a conversation.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    pub(crate) id: String,
    pub(crate) conversation: String,
    pub(crate) section: String,
    /// Empty where a workflow answers.
    pub(crate) bot: String,
    pub(crate) status: Status,
    /// What it ends with, once its time has come.
    pub(crate) end: End,
    /// Can it be looked at later?
    pub(crate) saved: bool,
    /// How many retrieves still say that it is in progress; a stream ends by itself.
    pub(crate) polls: Option<u32>,
    pub(crate) created: u64,
    pub(crate) ended: Option<u64>,
    pub(crate) meta: Map<String, Value>,
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) error: (i64, String),
    /// What it said, or is going to say.
    pub(crate) messages: Vec<Message>,
    /// How many of them are in the conversation.
    pub(crate) told: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    InProgress,
    Completed,
    Failed,
    RequiresAction,
    Canceled,
}

/// What a chat ends with.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Completed,
    Failed(i64, String),
    Tool(ToolCall),
}

impl Chat {
    /// A new chat that runs.
    pub(crate) fn new(id: String, conversation: &str, section: &str, bot: &str, unix: u64) -> Self {
        Self {
            id,
            conversation: conversation.into(),
            section: section.into(),
            bot: bot.into(),
            status: Status::InProgress,
            end: End::Completed,
            saved: true,
            polls: None,
            created: unix,
            ended: None,
            meta: Map::new(),
            input: 0,
            output: 0,
            error: (0, String::new()),
            messages: Vec::new(),
            told: 0,
        }
    }

    /// From now on it is going to fail, with nothing more said.
    fn doom(&mut self, code: i64, msg: &str) {
        self.end = End::Failed(code, msg.to_owned());
        self.messages.truncate(self.told);
    }

    /// Ends a chat that runs; says whether it did.
    pub(crate) fn end(&mut self, unix: u64) -> bool {
        if self.status != Status::InProgress {
            return false;
        }
        self.status = match &self.end {
            End::Completed => Status::Completed,
            End::Tool(_) => Status::RequiresAction,
            End::Failed(code, msg) => {
                self.error = (*code, msg.clone());
                Status::Failed
            }
        };
        self.ended = Some(unix);
        true
    }

    /// The platform's Chat object.
    pub(crate) fn to_json(&self) -> Value {
        let over = self.status != Status::InProgress;
        let (input, output) = if over { (self.input, self.output) } else { (0, 0) };
        let mut value = json!({
            "id": self.id,
            "conversation_id": self.conversation,
            "section_id": self.section,
            "created_at": self.created,
            "last_error": { "code": self.error.0, "msg": self.error.1 },
            "meta_data": self.meta,
            "status": match self.status {
                Status::InProgress => "in_progress",
                Status::Completed => "completed",
                Status::Failed => "failed",
                Status::RequiresAction => "requires_action",
                Status::Canceled => "canceled",
            },
            "usage": { "input_count": input, "output_count": output, "token_count": input + output },
        });
        if !self.bot.is_empty() {
            value["bot_id"] = self.bot.clone().into();
        }
        match (self.status, &self.end) {
            (Status::Completed, _) => value["completed_at"] = self.ended.into(),
            (Status::Failed, _) => value["failed_at"] = self.ended.into(),
            (Status::RequiresAction, End::Tool(call)) => value["required_action"] = call.required_action(),
            _ => {}
        }
        value
    }
}

/// The bot a request names.
fn bot(state: &State, call: &Call, id: &str) -> Result<Arc<Bot>, Refusal> {
    let Some(bot) = state.bots.iter().find(|bot| bot.id == id) else {
        return Err(Refusal::new(4006, format!("The requested bot {id} does not exist, please check bot_id")));
    };
    if !call.grant.allows_bot(id) {
        return Err(Refusal::new(4101, format!("The token does not have permission to talk to the bot {id}")));
    }
    if !bot.published {
        return Err(Refusal::new(4015, "The bot is not published to the channel Agent As API"));
    }
    Ok(bot.clone())
}

/// `POST /v3/chat`.
pub(crate) fn create(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let id = body.need_text("bot_id")?;
    body.need_text("user_id")?;
    let stream = body.flag("stream", false)?;
    let saved = body.flag("auto_save_history", true)?;
    let meta = body.meta_data()?;
    let entered = Entered::list(&body, "additional_messages", MAX_MESSAGES)?;
    let bot = &*bot(state, call, id)?;
    if !stream && !saved {
        return Err(Refusal::new(4007, "stream=false is only supported with auto_save_history=true"));
    }
    let start = Start { conversation: call.query("conversation_id"), bot, bot_id: id, entered, saved, meta };
    start.begin(shared, state, call, stream, &json!("[DONE]"))
}

/// A chat about to begin.
pub(crate) struct Start<'a> {
    pub(crate) conversation: Option<&'a str>,
    pub(crate) bot: &'a Bot,
    /// What the chat shows as its bot; empty where a workflow answers.
    pub(crate) bot_id: &'a str,
    pub(crate) entered: Vec<Entered>,
    pub(crate) saved: bool,
    pub(crate) meta: Map<String, Value>,
}

impl Start<'_> {
    pub(crate) fn begin(
        self,
        shared: &Shared,
        state: &mut State,
        call: &Call,
        stream: bool,
        done: &Value,
    ) -> Result<Reply, Refusal> {
        state.settle(call.now, call.unix);
        let conversation = match self.conversation {
            Some(id) => conversation::find(state, &call.grant, id)?.id.clone(),
            None => {
                let new = Conversation::new(shared, &mut state.ids, call, self.bot_id, "");
                let id = new.id.clone();
                state.conversations.insert(id.clone(), new);
                id
            }
        };
        if shared.config.limits.one_chat_per_conversation && state.running.is_busy(&conversation) {
            let msg = "The current conversation already has a running chat, please wait for it to end";
            return Err(Refusal::new(4016, msg));
        }
        let State { ids, conversations, .. } = state;
        let opened = conversations.get_mut(&conversation).expect("it was found or opened just now");
        let mut question = opened.last_text();
        let mut chat = Chat::new(ids.id(), &conversation, &opened.section, self.bot_id, call.unix);
        (chat.saved, chat.meta) = (self.saved, self.meta);
        let mut inserted = Vec::new();
        for entered in self.entered {
            question = entered.text();
            let mut message = Message::new(ids, &conversation, &chat.section, entered, call.unix);
            message.bot.clone_from(&chat.bot);
            message.chat.clone_from(&chat.id);
            inserted.push(json!({ "id": message.id }));
            if self.saved {
                opened.push(message);
            }
        }
        dialog::plan(&mut chat, &question, self.bot, ids, call.unix);
        let mut reply = run(shared, state, call, chat, &self.bot.id, Run { is_new: true, stream, done });
        if let Reply::Data(data) = &mut reply {
            data["inserted_additional_messages"] = inserted.into();
        }
        Ok(reply)
    }
}

struct Run<'a> {
    is_new: bool,
    stream: bool,
    done: &'a Value,
}

/// Lets a planned chat run, and answers with its stream or with what it is now.
fn run(shared: &Shared, state: &mut State, call: &Call, mut chat: Chat, counted_as: &str, how: Run<'_>) -> Reply {
    let pace = &shared.config.pace;
    let reply = if how.stream {
        let events = dialog::events(&chat, how.is_new, how.done, pace, &mut state.ids, call.unix);
        Reply::Stream { events, chat: Some(chat.id.clone()) }
    } else {
        chat.polls = Some(pace.polls);
        Reply::Data(chat.to_json())
    };
    if let Some((code, msg)) = call.fault.failure() {
        chat.doom(code, msg);
    }
    // A time too far away to be expressed is never.
    let due = if how.stream { None } else { call.now.checked_add(pace.work) };
    state.begin_chat(chat, counted_as, due);
    reply
}

/// The chat a request means, in a conversation its caller sees.
fn find<'a>(state: &'a mut State, call: &Call, conversation: &str, chat: &str) -> Result<&'a mut Chat, Refusal> {
    state.settle(call.now, call.unix);
    conversation::find(state, &call.grant, conversation)?;
    let found = state.chats.get_mut(chat).filter(|found| found.conversation == conversation);
    found.ok_or_else(|| Refusal::new(4001, "The chat does not exist, or you have no permission to see it"))
}

/// The same by the two query parameters; a chat that is not saved cannot be looked at.
fn find_saved<'a>(state: &'a mut State, call: &Call) -> Result<&'a mut Chat, Refusal> {
    let conversation = call.need_query("conversation_id")?;
    let chat = find(state, call, conversation, call.need_query("chat_id")?)?;
    match chat.saved {
        true => Ok(chat),
        false => Err(Refusal::new(4001, "The chat was not saved (auto_save_history=false)")),
    }
}

/// `GET` and `POST /v3/chat/retrieve`.
pub(crate) fn retrieve(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let chat = find_saved(state, call)?;
    let mut ends = chat.polls == Some(0);
    chat.polls = chat.polls.map(|polls| polls.saturating_sub(1));
    if let Some((code, msg)) = call.fault.failure() {
        chat.status = Status::InProgress;
        chat.doom(code, msg);
        ends = true;
    }
    let id = chat.id.clone();
    if ends {
        state.end_chat(&id, call.unix);
    }
    let chat = state.chats.get(&id).map(Chat::to_json);
    Ok(Reply::Data(chat.unwrap_or_default()))
}

/// `GET /v3/chat/message/list`: what the chat said, once it is over.
pub(crate) fn messages(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let chat = find_saved(state, call)?;
    let said = if chat.status == Status::InProgress { &[][..] } else { &chat.messages[..] };
    Ok(Reply::Data(said.iter().map(Message::listed).collect()))
}

/// `POST /v3/chat/cancel`. An open stream goes on.
pub(crate) fn cancel(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let (conversation, id) = (body.need_text("conversation_id")?, body.need_text("chat_id")?);
    let chat = find(state, call, conversation, id)?;
    if !matches!(chat.status, Status::InProgress | Status::RequiresAction) {
        return Err(Refusal::new(4104, "The chat cannot be canceled in its current state"));
    }
    chat.status = Status::Canceled;
    let reply = Reply::Data(chat.to_json());
    state.running.end(id);
    Ok(reply)
}

/// `POST /v3/chat/submit_tool_outputs`.
pub(crate) fn submit(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let stream = body.flag("stream", false)?;
    let conversation = call.need_query("conversation_id")?;
    let mut chat = find(state, call, conversation, call.need_query("chat_id")?)?.clone();
    if !chat.saved {
        return Err(Refusal::new(5000, "The chat was not saved (auto_save_history=false)"));
    }
    let End::Tool(wanted) = &chat.end else {
        return Err(Refusal::param("the chat does not wait for tool_outputs"));
    };
    if chat.status != Status::RequiresAction {
        return Err(Refusal::param("the chat does not wait for tool_outputs"));
    }
    let outputs = tool_outputs(&body, &wanted.id)?;
    let bot = state.bots.iter().find(|bot| bot.id == chat.bot).cloned().unwrap_or_else(|| Bot::new("", "").into());
    chat.status = Status::InProgress;
    dialog::plan_after_tools(&mut chat, &outputs, &bot, &mut state.ids, call.unix);
    Ok(run(shared, state, call, chat, &bot.id, Run { is_new: false, stream, done: &json!("[DONE]") }))
}

fn tool_outputs(body: &Fields, wanted: &str) -> Result<Vec<String>, Refusal> {
    let mut outputs = Vec::new();
    for value in body.list("tool_outputs")? {
        let fields = Fields(value.as_object().cloned().unwrap_or_default());
        if fields.need_text("tool_call_id")? != wanted {
            return Err(Refusal::param("tool_call_id is not that of a tool call of this chat"));
        }
        outputs.push(fields.text("output")?.unwrap_or_default().to_owned());
    }
    match outputs.is_empty() {
        true => Err(Refusal::param("tool_outputs is required")),
        false => Ok(outputs),
    }
}
