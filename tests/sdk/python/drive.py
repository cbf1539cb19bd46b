"""Drives a platform through cozepy and prints what came of each call as one JSON object: {"calls":[{"name","ok","got"}]}.

Usage: drive.py URL SETTINGS. First every call of coze-platform.md 7.2 and scenarios.py, then every bad answer of
../bad_answers.json. `got` says in the same words as drive.mjs what the SDK returned, or what it raised. Last come the calls of
../gateway.json, through gateways.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache

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
    consent,
    control,
    conversation,
    coze,
    events,
    finished,
    jwt_app,
    kinds,
    me,
    shown,
    token,
    workflow_events,
)
from cozepy import Coze, DeviceOAuthApp, PKCEOAuthApp, SyncHTTPClient, TokenAuth, ToolOutput, WebOAuthApp
from scenarios import SCENARIOS

calls = []


def record(name, call, words=False):
    """Makes one call and notes what came of it, with the words of a failure or without them."""
    try:
        calls.append({"name": name, "ok": True, "got": call()})
    except Exception as error:  # The SDK raises whatever it likes: that is what we are here to see.
        got = {"type": type(error).__name__}
        if hasattr(error, "code"):
            got.update(code=error.code, logid=bool(error.logid))
        if words:
            got.update(msg=getattr(error, "msg", str(error)))
        calls.append({"name": name, "ok": False, "got": got})


def create(client=coze):
    return shown(client.chat.create(**ask()))


def stream(client=coze):
    return events(client.chat.stream(**ask()))


def retrieve():
    chat = coze.chat.create(**ask())
    return shown(coze.chat.retrieve(conversation_id=chat.conversation_id, chat_id=chat.id))


def cancel():
    chat = coze.chat.create(**ask())
    return shown(coze.chat.cancel(conversation_id=chat.conversation_id, chat_id=chat.id))


def messages(chat=None, client=coze):
    chat = chat or finished(client)
    return kinds(client.chat.messages.list(conversation_id=chat.conversation_id, chat_id=chat.id))


def create_and_poll():
    done = coze.chat.create_and_poll(**ask())
    return {**shown(done.chat), "messages": kinds(done.messages), "tokens": done.chat.usage.token_count > 0}


def submit(stream):
    chat = finished(text='tool:{"city":"Beijing"}')
    needed = chat.required_action.submit_tool_outputs.tool_calls
    outputs = [ToolOutput(tool_call_id=call.id, output="42") for call in needed]
    ids = {"conversation_id": chat.conversation_id, "chat_id": chat.id}
    answer = coze.chat.submit_tool_outputs(**ids, tool_outputs=outputs, stream=stream)
    return events(answer) if stream else shown(answer)


def conversations_list():
    made = conversation()
    return {"found": made.id in [one.id for one in coze.conversations.list(bot_id=BOT)]}


def conversation_messages():
    made = conversation().id
    added = coze.conversations.messages.create(conversation_id=made, content="hi", role="user", content_type="text")
    found = coze.conversations.messages.list(conversation_id=made)
    return {"found": added.id in [one.id for one in found], "has_more": found.has_more}


def upload(client=coze):
    made = client.files.upload(file=BAD_ANSWERS)
    return {"file_name": made.file_name, "whole": made.bytes == BAD_ANSWERS.stat().st_size}


def workflow():
    run = coze.workflows.runs.create(workflow_id=WORKFLOW, parameters={"input": "hi"})
    return {"is_json": isinstance(json.loads(run.data), dict), "has_debug_url": bool(run.debug_url)}


def workflow_stream(client=coze):
    return workflow_events(client.workflows.runs.stream(workflow_id=WORKFLOW, parameters={"input": "hi"}))


def workspaces():
    return {"some": len([one.name for one in coze.workspaces.list()]) > 0}


def jwt():
    return token(jwt_app().get_access_token(ttl=900))


def web():
    app = WebOAuthApp(CLIENT, SECRET, base_url=URL)
    first = app.get_access_token(REDIRECT, consent(app.get_oauth_url(REDIRECT, "state")))
    second = app.refresh_access_token(first.refresh_token)
    return {**token(second), "rotated": first.refresh_token != second.refresh_token}


def pkce():
    app, verifier = PKCEOAuthApp(CLIENT, base_url=URL), "v" * 43
    code = consent(app.get_oauth_url(REDIRECT, verifier, "S256", "state"))
    return token(app.get_access_token(REDIRECT, code, verifier))


def device(approved=True):
    app = DeviceOAuthApp(CLIENT, base_url=URL)
    code = app.get_device_code(workspace_id=WORKSPACE)
    if approved is not None:
        control.post("/device/approve", json={"user_code": code.user_code, "approve": approved}).raise_for_status()
    return {**token(app.get_access_token(code.device_code)), "has_url": bool(code.verification_url)}


NORMAL = {
    "chat.create": create,
    "chat.stream": stream,
    "chat.retrieve": retrieve,
    "chat.messages.list": messages,
    "chat.cancel": cancel,
    "chat.create_and_poll": create_and_poll,
    "chat.submit_tool_outputs": lambda: submit(False),
    "chat.submit_tool_outputs.stream": lambda: submit(True),
    "bots.retrieve": lambda: {"bot_id": coze.bots.retrieve(bot_id=BOT).bot_id},
    "bots.retrieve.new": lambda: {"bot_id": coze.bots.retrieve(bot_id=BOT, use_api_version=2).bot_id},
    "conversations.create": lambda: {"has_id": bool(conversation().id)},
    "conversations.retrieve": lambda: {"has_id": bool(coze.conversations.retrieve(conversation_id=conversation().id).id)},
    "conversations.list": conversations_list,
    "conversations.messages": conversation_messages,
    "files.upload": upload,
    "workflows.runs.create": workflow,
    "workflows.runs.stream": workflow_stream,
    "workspaces.list": workspaces,
    "users.me": me,
    "oauth.jwt": jwt,
    "oauth.web": web,
    "oauth.pkce": pkce,
    "oauth.device": device,
    "oauth.device.pending": lambda: device(approved=None),
    "oauth.device.refused": lambda: device(approved=False),
}
for name, call in {**NORMAL, **SCENARIOS}.items():
    record(name, call)

# Each bad answer meets a call that makes one request; what that needs was there before. What the simulator never says comes
# as it stands here from a server of canned answers, one per path.
chat = finished()
ONE_REQUEST = {
    "chat.create": lambda _: create(),
    "chat.stream": stream,
    "chat.messages.list": lambda _: messages(chat),
    "conversations.list": lambda _: {"items": len(coze.conversations.list(bot_id=BOT).items)},
    "workspaces.list": lambda _: workspaces(),
    "workflows.runs.stream": workflow_stream,
    "oauth": lambda _: WebOAuthApp(CLIENT, SECRET, base_url=URL).get_access_token(REDIRECT, "code_x"),
}
for number, row in enumerate(json.loads(BAD_ANSWERS.read_text())):
    client = coze
    if "fault" in row:
        control.post("/faults", json=row["fault"]).raise_for_status()
    else:
        client = Coze(auth=TokenAuth("pat_x"), base_url=f"{SETTINGS['canned']}/{number}")
    record(row["name"], lambda: ONE_REQUEST[row["call"]](client))

# Through a gateway, which has keys of its own: whose the call is, which gateway it goes to, and what else it says, are in the row.
GATEWAYS = SETTINGS["gateways"]


@cache
def through(key="acme", gateway="gateway", header=None):
    # The SDK sends nothing of the client's own headers, so a hook adds it.
    hooks = {"request": [lambda request: request.headers.update([header])] if header else []}
    client = SyncHTTPClient(event_hooks=hooks)
    return Coze(auth=TokenAuth(SETTINGS["keys"][key]), base_url=GATEWAYS[gateway], http_client=client)


def issued():
    return control.get("/counts").json()["tokens_issued"]


def at_once(client):
    """Sixteen calls at the same time."""
    before = issued()
    with ThreadPoolExecutor(16) as threads:
        calls = sum(threads.map(lambda _: me(client)["has_id"], range(16)))
    return {"calls": calls, "tokens": issued() - before}


mine = through()
opened = mine.conversations.create(bot_id=BOT)
talked = finished(mine)
CALLS = {
    "chat.create": create,
    "chat.stream": stream,
    "chat.messages.list": lambda client: messages(talked, client),
    "conversations.retrieve": lambda client: {"same": client.conversations.retrieve(conversation_id=opened.id).id == opened.id},
    "files.upload": upload,
    "workflows.runs.stream": workflow_stream,
    "users.me": me,
    "users.me, 16 at once": at_once,
}
for row in json.loads((BAD_ANSWERS.parent / "gateway.json").read_text()):
    for fault in row.get("faults", []):
        control.post("/faults", json=fault).raise_for_status()
    whose = {name: tuple(value) if name == "header" else value for name, value in row.get("as", {}).items()}
    record(row["name"], lambda: CALLS[row["call"]](through(**whose)), words=True)
    # What it did not need would be the next one's.
    control.delete("/faults").raise_for_status()

print(json.dumps({"calls": calls}))
