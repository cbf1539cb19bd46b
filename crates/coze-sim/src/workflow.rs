use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    bots::{ICON, MADE_AT},
    call::{Call, Fields},
    chat::Start,
    dialog,
    entity::{Bot, Workflow},
    message::Entered,
    reply::{Event, Refusal, Reply},
    state::{Shared, State},
};

/// An input that begins so makes the workflow ask back: `ask:Which city?`.
const ASK: &str = "ask:";
/// A question node interrupted the run (coze-platform.md §2.4).
const QUESTION: i64 = 2;
/// How often a run may be resumed before it fails.
const MAX_RESUMES: u32 = 3;
/// The most messages a chat with a workflow is started with.
const MAX_MESSAGES: usize = 50;

/// One execution of a workflow.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) id: String,
    workflow: String,
    account: String,
    user: String,
    bot: String,
    /// 0 synchronous, 1 streamed, 2 asynchronous.
    mode: u8,
    /// What was asked, while it waits for the answer.
    question: Option<String>,
    /// The interrupt that waits for an answer.
    event: String,
    resumes: u32,
    output: String,
    failed: bool,
    created: u64,
    updated: u64,
    logid: String,
    polls: u32,
    due: Option<Instant>,
    input: usize,
}

impl Run {
    fn debug_url(&self) -> String {
        format!("https://www.coze.cn/work_flow?execute_id={}&workflow_id={}", self.id, self.workflow)
    }

    /// The result, as the platform has it: JSON as text.
    fn result(&self) -> String {
        json!({ "output": self.output }).to_string()
    }

    fn usage(&self) -> Value {
        let (input, output) = (self.input, self.output.chars().count());
        json!({ "input_count": input, "output_count": output, "token_count": input + output })
    }

    fn interrupt(&self, question: &str) -> Value {
        json!({
            "event_id": self.event,
            "type": QUESTION,
            "data": json!({ "content_type": "text", "content": question }).to_string(),
            "required_parameters": { "answer": { "type": "string", "required": true } },
        })
    }
}

/// A new run of the workflow the body names.
fn start(shared: &Shared, state: &mut State, call: &Call, body: &Fields, mode: u8) -> Result<Run, Refusal> {
    let id = body.need_text("workflow_id")?;
    if !shared.config.workflows.iter().any(|workflow| workflow.id == id && workflow.published) {
        return Err(Refusal::new(4200, format!("The workflow {id} does not exist or is not published")));
    }
    let input = input(body)?;
    let ext = body.value("ext").and_then(|ext| ext["user_id"].as_str());
    Ok(Run {
        id: state.ids.id(),
        workflow: id.into(),
        account: call.grant.account.clone(),
        user: ext.unwrap_or(&call.grant.account).into(),
        bot: body.text("bot_id")?.unwrap_or("0").into(),
        mode,
        question: input.strip_prefix(ASK).map(|question| question.trim().to_owned()),
        event: String::new(),
        resumes: 0,
        input: input.chars().count(),
        output: input,
        failed: false,
        created: call.unix,
        updated: call.unix,
        logid: call.logid.clone(),
        polls: if mode == 2 { shared.config.pace.polls } else { 0 },
        due: call.now.checked_add(shared.config.pace.work),
    })
}

/// The parameter `input`, or all parameters as JSON. They come as an object or, as the document has it, as JSON text.
fn input(body: &Fields) -> Result<String, Refusal> {
    let parsed;
    let parameters = match body.value("parameters") {
        None => return Ok(String::new()),
        Some(Value::String(text)) if text.is_empty() => return Ok(String::new()),
        Some(Value::String(text)) => {
            parsed = serde_json::from_str(text).map_err(|_| Refusal::param("parameters is not valid JSON"))?;
            &parsed
        }
        Some(value) => value,
    };
    match parameters {
        Value::Object(map) => Ok(match map.get("input") {
            Some(Value::String(input)) => input.clone(),
            Some(input) => input.to_string(),
            None => parameters.to_string(),
        }),
        _ => Err(Refusal::param("parameters must be an object")),
    }
}

/// Gives the run an interrupt to be resumed with.
fn wait(state: &mut State, run: &mut Run) {
    run.event = format!("{}/{}", run.id, state.ids.id());
    state.interrupts.insert(run.event.clone(), run.id.clone());
}

/// Keeps the run, new or changed.
fn keep(state: &mut State, run: Run) {
    if let Some(known) = state.runs.get_mut(&run.id) {
        *known = run;
    } else {
        state.runs.insert(run.id.clone(), run);
    }
}

/// `GET /v1/workflows`: those of every workspace and app, published unless asked for otherwise.
pub(crate) fn list(shared: &Shared, _: &mut State, call: &Call) -> Result<Reply, Refusal> {
    if call.query("workspace_id").or_else(|| call.query("app_id")).is_none() {
        return Err(Refusal::param("workspace_id or app_id is required"));
    }
    let published = match call.query("publish_status").unwrap_or("published_online") {
        "published_online" => Some(true),
        "unpublished_draft" => Some(false),
        "all" => None,
        _ => return Err(Refusal::param("publish_status is not one of its values")),
    };
    let number = call.query_number("page_num", 1, 1, usize::MAX)?;
    let size = call.query_number("page_size", 10, 1, 100)?;
    let all = shared.config.workflows.iter();
    let all: Vec<_> = all.filter(|it| published.is_none_or(|published| it.published == published)).collect();
    let start = (number - 1).saturating_mul(size);
    let page: Vec<_> = all.iter().skip(start).take(size).map(|workflow| basic(workflow)).collect();
    Ok(Reply::Data(json!({ "items": page, "has_more": all.len() > start.saturating_add(size) })))
}

/// `GET /v1/workflows/:workflow_id`.
pub(crate) fn retrieve(shared: &Shared, _: &mut State, call: &Call) -> Result<Reply, Refusal> {
    match shared.config.workflows.iter().find(|workflow| workflow.id == call.args[0]) {
        Some(workflow) => Ok(Reply::Data(json!({ "workflow_detail": basic(workflow) }))),
        None => Err(Refusal::new(4200, format!("The workflow {} does not exist", call.args[0]))),
    }
}

fn basic(workflow: &Workflow) -> Value {
    json!({
        "workflow_id": workflow.id, "workflow_name": workflow.name, "description": "A simulated workflow",
        "icon_url": ICON, "app_id": "0", "created_at": MADE_AT, "updated_at": MADE_AT,
        "creator": { "id": crate::ACCOUNT, "name": "Simulated" },
    })
}

/// `POST /v1/workflow/run`.
pub(crate) fn run(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let is_async = body.flag("is_async", false)?;
    if is_async && shared.config.limits.level == "free" {
        return Err(Refusal::new(6003, "Workflows can only be run asynchronously with a paid plan"));
    }
    let run = start(shared, state, call, &body, if is_async { 2 } else { 0 })?;
    Ok(answer(state, run))
}

/// Answers without a stream: with the result, with what is asked back, or, asynchronously, with neither.
fn answer(state: &mut State, mut run: Run) -> Reply {
    let mut fields = json!({ "execute_id": run.id, "debug_url": run.debug_url() });
    if let Some(question) = run.question.clone() {
        wait(state, &mut run);
        fields["interrupt_data"] = run.interrupt(&question);
        fields["data"] = "".into();
    } else if run.mode != 2 {
        fields["data"] = run.result().into();
        fields["usage"] = run.usage();
    }
    keep(state, run);
    Reply::fields(fields)
}

/// `POST /v1/workflow/stream_run`.
pub(crate) fn stream(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let run = start(shared, state, call, &call.object()?, 1)?;
    Ok(events(shared, state, run))
}

/// Answers with a stream. The numbers begin at 0, also after a resume.
fn events(shared: &Shared, state: &mut State, mut run: Run) -> Reply {
    let pace = &shared.config.pace;
    let mut events = Vec::new();
    if pace.ping {
        events.push(Event::new("PING", &json!({ "content": "{}" })));
    }
    let mut say = |text: &str, title: &str| {
        let chunks = dialog::chunks(text, pace.chunk_chars, &mut state.ids.choice);
        for (at, chunk) in chunks.iter().enumerate() {
            let is_last = at + 1 == chunks.len();
            let data = json!({
                "content": chunk, "content_type": "text", "node_title": title, "node_seq_id": at.to_string(),
                "node_is_finish": is_last,
            });
            events.push(Event::new("Message", &data));
        }
    };
    if run.failed {
        let data = json!({ "error_code": 720_701_013_i64, "error_message": "Workflow execution failure: no answer" });
        events.push(Event::new("Error", &data));
    } else if let Some(question) = run.question.clone() {
        say(&question, "Question");
        wait(state, &mut run);
        let data = json!({ "interrupt_data": run.interrupt(&question), "node_title": "Question" });
        events.push(Event::new("Interrupt", &data));
    } else {
        say(&run.output, "Message");
        let data = json!({
            "content": run.result(), "content_type": "text", "node_title": "End", "node_seq_id": "0",
            "node_is_finish": true, "cost": "0.00", "token": 0, "usage": run.usage(),
        });
        events.push(Event::new("Message", &data));
        events.push(Event::new("Done", &json!({ "debug_url": run.debug_url() })));
    }
    for (at, event) in events.iter_mut().enumerate() {
        event.id = Some(at);
    }
    keep(state, run);
    Reply::Stream { events, chat: None }
}

/// The run an interrupt belongs to, with the answer in it.
fn resumed(state: &mut State, call: &Call) -> Result<Run, Refusal> {
    let body = call.object()?;
    let (workflow, event) = (body.need_text("workflow_id")?, body.need_text("event_id")?);
    let answer = body.text("resume_data")?.ok_or_else(|| Refusal::param("resume_data is required"))?;
    let kind = body.number("interrupt_type")?.ok_or_else(|| Refusal::param("interrupt_type is required"))?;
    let run = state.interrupts.get(event).and_then(|run| state.runs.get(run));
    let run = run.filter(|run| run.workflow == workflow && run.account == call.grant.account);
    let mut run = run.cloned().ok_or_else(|| Refusal::new(4314, "The execution record was not found"))?;
    if run.event != event || run.question.is_none() {
        return Err(Refusal::new(4315, "The execution has ended and cannot be resumed"));
    }
    if kind != QUESTION {
        return Err(Refusal::param(format!("interrupt_type must be {QUESTION}")));
    }
    (run.resumes, run.updated) = (run.resumes + 1, call.unix);
    if !answer.is_empty() {
        run.input += answer.chars().count();
        (run.output, run.question) = (answer.to_owned(), None);
    } else if run.resumes >= MAX_RESUMES {
        (run.failed, run.question) = (true, None);
    }
    Ok(run)
}

/// `POST /v1/workflow/stream_resume`. An empty answer is asked for again; the third fails the run.
pub(crate) fn stream_resume(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let run = resumed(state, call)?;
    Ok(events(shared, state, run))
}

/// `POST /v1/workflows/resume`, the same without a stream.
pub(crate) fn resume(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let run = resumed(state, call)?;
    if run.failed {
        keep(state, run);
        return Err(Refusal::new(720_701_013, "Workflow execution failure: no answer"));
    }
    Ok(answer(state, run))
}

/// `POST /v1/workflows/chat`: a chat in which the workflow answers, always a stream.
pub(crate) fn chat(shared: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let body = call.object()?;
    let mut run = start(shared, state, call, &body, 1)?;
    run.question = None;
    let bot = Bot::new(&run.workflow, "workflow");
    let done = json!({ "debug_url": run.debug_url() });
    let start = Start {
        conversation: body.text("conversation_id")?.filter(|id| !id.is_empty()),
        bot: &bot,
        bot_id: body.text("bot_id")?.unwrap_or_default(),
        entered: Entered::list(&body, "additional_messages", MAX_MESSAGES)?,
        saved: true,
        meta: serde_json::Map::new(),
    };
    let reply = start.begin(shared, state, call, true, &done)?;
    keep(state, run);
    Ok(reply)
}

/// `GET /v1/workflows/:workflow_id/run_histories/:execute_id`: a list of one, with `error_code` as text.
pub(crate) fn history(_: &Shared, state: &mut State, call: &Call) -> Result<Reply, Refusal> {
    let found = state.runs.get_mut(&call.args[1]);
    let found = found.filter(|run| run.workflow == call.args[0] && run.account == call.grant.account);
    let run = found.ok_or_else(|| Refusal::new(4314, "The execution record was not found"))?;
    let is_over =
        run.failed || run.question.is_none() && (run.polls == 0 || run.due.is_some_and(|due| due <= call.now));
    run.polls = run.polls.saturating_sub(1);
    let (status, output) = match (is_over, run.failed) {
        (_, true) => ("Fail", String::new()),
        (true, false) => ("Success", run.result()),
        (false, false) => ("Running", String::new()),
    };
    let mut item = json!({
        "execute_id": run.id, "execute_status": status, "bot_id": run.bot, "connector_id": "1024",
        "connector_uid": run.user, "run_mode": run.mode, "logid": run.logid, "create_time": run.created,
        "update_time": run.updated, "output": output, "token": "0", "usage": run.usage(), "debug_url": run.debug_url(),
        "error_code": if run.failed { "720701013" } else { "" },
        "error_message": if run.failed { "Workflow execution failure: no answer" } else { "" },
        "is_output_trimmed": false, "node_execute_status": {},
    });
    if let Some(question) = &run.question {
        item["interrupt_data"] = run.interrupt(question);
    }
    Ok(Reply::Data(json!([item])))
}
