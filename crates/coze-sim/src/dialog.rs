use serde_json::{Value, json};

use crate::{
    chat::{Chat, End},
    config::Pace,
    entity::Bot,
    ids::Ids,
    message::{Entered, Message},
    reply::Event,
};

/// A question that begins so makes the bot ask for a tool: `tool:{"city":"Beijing"}`.
const TOOL: &str = "tool:";

/// A tool the bot asks the caller to run.
#[derive(Clone, Debug)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) arguments: String,
}

impl ToolCall {
    /// `required_action` of a chat (coze-platform.md §7.2).
    pub(crate) fn required_action(&self) -> Value {
        json!({
            "type": "submit_tool_outputs",
            "submit_tool_outputs": { "tool_calls": [{
                "id": self.id,
                "type": "function",
                "function": { "name": "sim_tool", "arguments": self.arguments },
            }] },
        })
    }
}

/// Decides what the bot says to `question`: the messages of the chat, its usage, and how it ends.
pub(crate) fn plan(chat: &mut Chat, question: &str, bot: &Bot, ids: &mut Ids, unix: u64) {
    chat.input += question.chars().count();
    if let Some(arguments) = question.strip_prefix(TOOL) {
        let call = ToolCall { id: ids.secret("call_"), arguments: arguments.trim().to_owned() };
        let content = json!({ "name": "sim_tool", "arguments": call.arguments }).to_string();
        say(chat, ids, "function_call", content, unix);
        chat.end = End::Tool(call);
    } else {
        let fallback = "You said: {content}".to_owned();
        let answer = ids.choice.choice(&bot.answers).unwrap_or(&fallback);
        conclude(chat, &answer.replace("{content}", question), bot, ids, unix);
    }
}

/// The chat goes on with what the tools put out.
pub(crate) fn plan_after_tools(chat: &mut Chat, outputs: &[String], bot: &Bot, ids: &mut Ids, unix: u64) {
    for output in outputs {
        chat.input += output.chars().count();
        say(chat, ids, "tool_response", output.clone(), unix);
    }
    conclude(chat, &format!("The tool said: {}", outputs.join(", ")), bot, ids, unix);
}

fn conclude(chat: &mut Chat, answer: &str, bot: &Bot, ids: &mut Ids, unix: u64) {
    say(chat, ids, "answer", answer.to_owned(), unix);
    let finish = json!({ "msg_type": "generate_answer_finish", "data": "", "from_module": null, "from_unit": null });
    say(chat, ids, "verbose", finish.to_string(), unix);
    for question in &bot.follow_ups {
        say(chat, ids, "follow_up", question.clone(), unix);
    }
    chat.output += answer.chars().count();
    chat.end = End::Completed;
}

fn say(chat: &mut Chat, ids: &mut Ids, kind: &str, content: String, unix: u64) {
    let entered = Entered::assistant(kind, content);
    let mut message = Message::new(ids, &chat.conversation, &chat.section, entered, unix);
    message.bot.clone_from(&chat.bot);
    message.chat.clone_from(&chat.id);
    chat.messages.push(message);
}

/// The stream of a planned chat (coze-platform.md §2.3); `done` is the data of its last event.
pub(crate) fn events(chat: &Chat, is_new: bool, done: &Value, pace: &Pace, ids: &mut Ids, unix: u64) -> Vec<Event> {
    let mut events = Vec::new();
    if is_new {
        let mut created = chat.to_json();
        created["status"] = "created".into();
        events.push(Event::new("conversation.chat.created", &created));
    }
    events.push(Event::new("conversation.chat.in_progress", &chat.to_json()));
    for message in &chat.messages[chat.told..] {
        if message.entered.kind == "answer" {
            for chunk in chunks(&message.entered.content, pace.chunk_chars, &mut ids.choice) {
                let mut delta = message.in_stream();
                delta["content"] = chunk.into();
                events.push(Event::new("conversation.message.delta", &delta));
            }
        }
        events.push(Event::new("conversation.message.completed", &message.in_stream()));
    }
    let mut ended = chat.clone();
    ended.end(unix);
    let name = match chat.end {
        End::Completed => "conversation.chat.completed",
        End::Failed(..) => "conversation.chat.failed",
        End::Tool(_) => "conversation.chat.requires_action",
    };
    events.push(Event::new(name, &ended.to_json()));
    events.push(Event::new("done", done));
    events
}

/// Splits text into pieces of 1 to `max` characters.
pub(crate) fn chunks<'a>(text: &'a str, max: usize, choice: &mut fastrand::Rng) -> Vec<&'a str> {
    let mut rest = text;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let count = choice.usize(1..=max.max(1));
        let end = rest.char_indices().nth(count).map_or(rest.len(), |(at, _)| at);
        let (chunk, after) = rest.split_at(end);
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn chunks_of_any_text_are_the_text_again(text in ".*", max in 0_usize..9, seed in 0_u64..9) {
            let mut choice = fastrand::Rng::with_seed(seed);
            let chunks = chunks(&text, max, &mut choice);
            proptest::prop_assert_eq!(chunks.concat(), text.as_str());
            proptest::prop_assert!(chunks.iter().all(|chunk| (1..=max.max(1)).contains(&chunk.chars().count())));
        }
    }

    #[test]
    fn chunks_are_the_text_again_and_never_too_long() {
        let text = "好的，我们来谈谈 the weather 🌤 today";
        for max in [0, 1, 6, 100] {
            let mut choice = fastrand::Rng::with_seed(3);
            let chunks = chunks(text, max, &mut choice);
            assert_eq!(chunks.concat(), text);
            assert!(chunks.iter().all(|chunk| (1..=max.max(1)).contains(&chunk.chars().count())));
        }
    }
}
