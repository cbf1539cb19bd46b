"""What the calls of both files have in common: the client, the simulator's own endpoints, and how answers are told."""

import json
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
from cozepy import Coze, CozeAPIError, JWTOAuthApp, Message, TokenAuth

URL, SETTINGS = sys.argv[1], json.loads(sys.argv[2])
BOT, WORKFLOW, CLIENT, SECRET = (SETTINGS[name] for name in ("bot", "workflow", "client_id", "client_secret"))
WORKSPACE = SETTINGS["workspace"]
BAD_ANSWERS = Path(__file__).parent.parent / "bad_answers.json"
REDIRECT = "http://localhost/back"
coze = Coze(auth=TokenAuth(SETTINGS["token"]), base_url=URL)
# The simulator's own endpoints. One client, because making one takes longer than what it is asked for.
control = httpx.Client(base_url=f"{URL}/_sim")


def ask(text="hello"):
    return {"bot_id": BOT, "user_id": "user_1", "additional_messages": [Message.build_user_question_text(text)]}


def finished(client=coze, text="hello"):
    """A chat that has its answer, or waits for the output of a tool. Polling would take a second."""
    return [event.chat for event in client.chat.stream(**ask(text)) if event.chat][-1]


def shown(chat):
    return {"status": chat.status.value, "has_ids": bool(chat.id and chat.conversation_id)}


def kinds(messages):
    return [f"{message.role.value}/{message.type.value}" for message in messages]


def events(stream):
    """The events of a chat stream, repetitions left out, and the text of its deltas."""
    names, text = [], ""
    for event in stream:
        if event.event.value not in names:
            names.append(event.event.value)
        if event.event.value == "conversation.message.delta":
            text += event.message.content
    return {"events": names, "text": text}


def workflow_events(stream):
    """The same of a workflow."""
    names, text = [], ""
    for event in stream:
        if event.event.value not in names:
            names.append(event.event.value)
        text += (event.message and event.message.content) or ""
    return {"events": names, "text": text}


def token(answer):
    return {"has_token": bool(answer.access_token), "absolute": answer.expires_in > 1_000_000_000}


def me(client=coze):
    return {"has_id": bool(client.users.me().user_id)}


def conversation():
    return coze.conversations.create(bot_id=BOT)


def consent(url):
    """The code that somebody gets who says yes to everything."""
    while not url.startswith(REDIRECT):
        url = str(httpx.get(url, follow_redirects=False).next_request.url)
    return parse_qs(urlsplit(url).query)["code"][0]


def jwt_app():
    key = SETTINGS["jwt"]
    return JWTOAuthApp(key["client_id"], key["key"], key["key_id"], base_url=URL)


def code_of(call):
    """The code that a call fails with."""
    try:
        return f"no failure: {call()}"
    except CozeAPIError as error:
        return error.code
