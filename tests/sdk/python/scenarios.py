"""What takes several calls: tokens that end, what lives from its making to its end, lists of several pages."""

import asyncio

from common import (
    BAD_ANSWERS,
    BOT,
    CLIENT,
    REDIRECT,
    SECRET,
    SETTINGS,
    URL,
    WORKFLOW,
    WORKSPACE,
    ask,
    code_of,
    consent,
    control,
    conversation,
    coze,
    events,
    finished,
    jwt_app,
    me,
    token,
    workflow_events,
)
from cozepy import (
    AsyncCoze,
    AsyncTokenAuth,
    BotOnboardingInfo,
    BotPromptInfo,
    Coze,
    JWTAuth,
    TokenAuth,
    VariableValue,
    WebOAuthApp,
)


def sessions():
    """Two sessions of one service account: what one opens, the other does not see."""
    app = jwt_app()
    one, other = (
        Coze(auth=TokenAuth(app.get_access_token(session_name=name).access_token), base_url=URL) for name in ("a", "b")
    )
    opened = one.conversations.create(bot_id=BOT).id
    seen = one.conversations.retrieve(conversation_id=opened).id == opened
    return {"own": seen, "other": code_of(lambda: other.conversations.retrieve(conversation_id=opened))}


def expired():
    """A token that ends: what the calls say that need one, and that another one serves."""
    app = jwt_app()
    client = Coze(auth=TokenAuth(app.get_access_token().access_token), base_url=URL)
    control.post("/tokens/expire").raise_for_status()
    codes = [code_of(lambda: client.chat.create(**ask())), code_of(client.users.me)]
    return {"codes": codes, "renewed": me(Coze(auth=JWTAuth(oauth_app=app), base_url=URL))["has_id"]}


def refreshed_twice():
    """A refresh token serves once."""
    app = WebOAuthApp(CLIENT, SECRET, base_url=URL)
    first = app.get_access_token(REDIRECT, consent(app.get_oauth_url(REDIRECT, "state")))
    app.refresh_access_token(first.refresh_token)
    return token(app.refresh_access_token(first.refresh_token))


def bots():
    """A bot from its making to its end: how it is listed, and what a chat with it says, at each step."""
    made = coze.bots.create(space_id=WORKSPACE, name="Sales", description="sells").bot_id
    greeting = BotOnboardingInfo(prologue="Hello!", suggested_questions=["How much?"])
    coze.bots.update(bot_id=made, name="Sale", prompt_info=BotPromptInfo(prompt="Sell."), onboarding_info=greeting)
    told = coze.bots.retrieve(bot_id=made, use_api_version=2)
    said = [told.name, told.description, told.prompt_info.prompt, told.onboarding_info.prologue]
    listed = lambda: made in [bot.bot_id for bot in coze.bots.list(space_id=WORKSPACE, page_size=2)]
    talk = lambda: coze.chat.create(bot_id=made, user_id="user_1", additional_messages=ask()["additional_messages"])
    draft = [listed(), code_of(talk)]
    coze.bots.publish(bot_id=made)
    published = [listed(), talk().status.value]
    coze.bots.unpublish(bot_id=made, connector_id="1024")
    return {"said": said, "draft": draft, "published": published, "unpublished": [listed(), code_of(talk)]}


def template():
    made = coze.templates.duplicate(template_id=BOT, workspace_id=WORKSPACE, name="Copy")
    return {"type": made.entity_type.value, "name": coze.bots.retrieve(bot_id=made.entity_id).name}


def variables():
    """What is set for one user, and that another one does not have it."""
    values = [VariableValue(keyword="color", value="red"), VariableValue(keyword="size", value="")]
    coze.variables.update(connector_uid="user_1", bot_id=BOT, data=values)
    read = lambda user: coze.variables.retrieve(connector_uid=user, bot_id=BOT, keywords=["size", "color", "none"])
    return {"own": {one.keyword: one.value for one in read("user_1")}, "other": len(list(read("user_2")))}


def message_life():
    made, api = conversation().id, coze.conversations.messages
    ids = {"conversation_id": made}
    ids["message_id"] = api.create(**ids, content="hi", role="user", content_type="text", meta_data={"a": "b"}).id
    api.update(**ids, content="ho", content_type="text")
    found = api.retrieve(**ids)
    api.delete(**ids)
    return {"content": found.content, "meta_data": found.meta_data, "gone": code_of(lambda: api.retrieve(**ids))}


def conversation_life():
    made, api = conversation().id, coze.conversations
    ids = {"conversation_id": made}
    name = api.update(**ids, name="trip").name
    section = api.clear(**ids).id == api.retrieve(**ids).last_section_id
    api.delete(**ids)
    return {"name": name, "section": section, "gone": code_of(lambda: api.retrieve(**ids))}


def pages():
    """The SDK turns the pages by itself, in either order."""
    made, api = conversation().id, coze.conversations.messages
    for content in "abcde":
        api.create(conversation_id=made, content=content, role="user", content_type="text")
    read = lambda order: "".join(one.content for one in api.list(conversation_id=made, order=order, limit=2))
    return {order: read(order) for order in ("asc", "desc")}


def feedback():
    chat = finished()
    message = coze.chat.messages.list(conversation_id=chat.conversation_id, chat_id=chat.id)[0]
    ids, api = {"conversation_id": chat.conversation_id, "message_id": message.id}, coze.conversations.messages.feedback
    api.create(**ids, feedback_type="like", reason_types=["fast"], comment="thanks")
    api.delete(**ids)
    return {"unknown": code_of(lambda: api.delete(**{**ids, "message_id": "1"}))}


def file_again():
    made = coze.files.upload(file=("报告; 1.txt", b"hello"))
    return {"name": coze.files.retrieve(file_id=made.id).file_name, "bytes": made.bytes}


def resumed():
    first = list(coze.workflows.runs.stream(workflow_id=WORKFLOW, parameters={"input": "ask:Which city?"}))
    asked = first[-1].interrupt.interrupt_data
    ids = {"workflow_id": WORKFLOW, "event_id": asked.event_id, "interrupt_type": asked.type}
    again = coze.workflows.runs.resume(**ids, resume_data="Paris")
    return {"asked": first[-1].event.value, **workflow_events(again)}


def history():
    run = coze.workflows.runs.create(workflow_id=WORKFLOW, parameters={"input": "hi"})
    found = coze.workflows.runs.run_histories.retrieve(workflow_id=WORKFLOW, execute_id=run.execute_id)
    return {"status": found.execute_status.value, "output": found.output}


def workflow_chat():
    messages = ask()["additional_messages"]
    return coze.workflows.chat.stream(workflow_id=WORKFLOW, bot_id=BOT, additional_messages=messages)


def workflows():
    listed = [one.workflow_name for one in coze.workflows.list(workspace_id=WORKSPACE)]
    return {"listed": listed, "name": coze.workflows.retrieve(workflow_id=WORKFLOW).workflow_detail.workflow_name}


async def at_last():
    """The same with the SDK's other client: calls at the same time, a stream, an upload, a list that turns its pages."""
    client = AsyncCoze(auth=AsyncTokenAuth(SETTINGS["token"]), base_url=URL)
    users = await asyncio.gather(*(client.users.me() for _ in range(8)))
    text = [event.message.content async for event in client.chat.stream(**ask()) if event.event.value.endswith("delta")]
    made = await client.files.upload(file=BAD_ANSWERS)
    listed = [one.id async for one in await client.conversations.list(bot_id=BOT, page_size=2)]
    return {"users": len(users), "text": "".join(text), "file_name": made.file_name, "pages": len(listed) > 2}


SCENARIOS = {
    "oauth.sessions": sessions,
    "oauth.expired": expired,
    "oauth.refreshed_twice": refreshed_twice,
    "bots.life": bots,
    "templates.duplicate": template,
    "variables": variables,
    "conversations.messages.life": message_life,
    "conversations.life": conversation_life,
    "conversations.messages.pages": pages,
    "conversations.messages.feedback": feedback,
    "files.retrieve": file_again,
    "workflows.runs.resume": resumed,
    "workflows.runs.run_histories": history,
    "workflows.chat.stream": lambda: events(workflow_chat()),
    "workflows.list": workflows,
    "async": lambda: asyncio.run(at_last()),
}
