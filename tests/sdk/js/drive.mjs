// Drives a platform through @coze/api and prints what came of each call as one JSON object: {"calls":[{"name","ok","got"}]}.
//
// Usage: COZE_SDK=folder drive.mjs URL SETTINGS. First every call of coze-platform.md 7.2 and scenarios.mjs, then every
// bad answer of ../bad_answers.json. `got` says in the same words as drive.py what the SDK returned, or what it threw. Last come the calls of
// ../gateway.json, through gateways.

import { createReadStream, readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';

import { scenarios } from './scenarios.mjs';

const require = createRequire(`${process.env.COZE_SDK}/package.json`);
const oauth = require('@coze/api');

const [baseURL, settings] = [process.argv[2], JSON.parse(process.argv[3])];
const { bot: bot_id, workflow: workflow_id, client_id: clientId, client_secret: clientSecret } = settings;
const BAD_ANSWERS = new URL('../bad_answers.json', import.meta.url);
const redirectUrl = 'http://localhost/back';
const coze = new oauth.CozeAPI({ baseURL, token: settings.token });
const calls = [];

/** Makes one call and notes what came of it, with the words of a failure or without them. */
async function record(name, call, words = false) {
  try {
    calls.push({ name, ok: true, got: await call() });
  } catch (error) {
    const { status, code, logid, msg } = error;
    const said = words ? { msg } : {};
    calls.push({ name, ok: false, got: { type: error.constructor.name, status, code, logid: Boolean(logid), ...said } });
  }
}

const ask = (text = 'hello') => ({
  bot_id,
  user_id: 'user_1',
  auto_save_history: true,
  additional_messages: [{ role: 'user', type: 'question', content: text, content_type: 'text' }],
});

/** A chat that has its answer. */
const finished = async (text, client = coze) => (await client.chat.createAndPoll(ask(text))).chat;

const shown = chat => ({ status: chat.status, has_ids: Boolean(chat.id && chat.conversation_id) });

const kinds = messages => messages.map(message => `${message.role}/${message.type}`);

/** The events of a chat stream, repetitions left out, and the text of its deltas. */
async function events(stream) {
  const names = [];
  let text = '';
  for await (const { event, data } of stream) {
    if (!names.includes(event)) names.push(event);
    if (event === 'conversation.message.delta') text += data.content;
  }
  return { events: names.map(String), text };
}

/** The same of a workflow. */
async function workflowEvents(stream) {
  const names = [];
  let text = '';
  for await (const { event, data } of stream) {
    if (!names.includes(event)) names.push(event);
    text += data?.content ?? '';
  }
  return { events: names, text };
}

const token = answer => ({ has_token: Boolean(answer.access_token), absolute: answer.expires_in > 1_000_000_000 });

const create = async (client = coze) => shown(await client.chat.create(ask()));
const stream = (client = coze) => events(client.chat.stream(ask()));
const messages = async (chat, client = coze) => kinds(await client.chat.messages.list(chat.conversation_id, chat.id));

async function retrieve() {
  const chat = await coze.chat.create(ask());
  return shown(await coze.chat.retrieve(chat.conversation_id, chat.id));
}

async function cancel() {
  const chat = await coze.chat.create(ask());
  return shown(await coze.chat.cancel(chat.conversation_id, chat.id));
}

async function createAndPoll() {
  const done = await coze.chat.createAndPoll(ask());
  return { ...shown(done.chat), messages: kinds(done.messages), tokens: done.chat.usage.token_count > 0 };
}

async function submit(stream) {
  const chat = await finished('tool:{"city":"Beijing"}');
  const needed = chat.required_action.submit_tool_outputs.tool_calls;
  const tool_outputs = needed.map(call => ({ tool_call_id: call.id, output: '42' }));
  const { id: chat_id, conversation_id } = chat;
  const answer = coze.chat.submitToolOutputs({ conversation_id, chat_id, tool_outputs, stream });
  // Without a stream, the SDK's generator yields nothing and returns the chat.
  return stream ? events(answer) : shown((await answer.next()).value);
}

const conversation = () => coze.conversations.create({ bot_id });

const conversations = async () => (await coze.conversations.list({ bot_id, page_num: 1, page_size: 50 })).conversations;

async function conversationsList() {
  const made = await conversation();
  return { found: (await conversations()).some(one => one.id === made.id) };
}

async function conversationMessages() {
  const made = (await conversation()).id;
  const added = await coze.conversations.messages.create(made, { role: 'user', content: 'hi', content_type: 'text' });
  const found = await coze.conversations.messages.list(made, {});
  return { found: found.data.some(one => one.id === added.id), has_more: found.has_more };
}

async function upload(client = coze) {
  const made = await client.files.upload({ file: createReadStream(BAD_ANSWERS) });
  return { file_name: made.file_name, whole: made.bytes === statSync(BAD_ANSWERS).size };
}

async function workflow() {
  const run = await coze.workflows.runs.create({ workflow_id, parameters: { input: 'hi' } });
  return { is_json: typeof JSON.parse(run.data) === 'object', has_debug_url: Boolean(run.debug_url) };
}

const workflowStream = (client = coze) =>
  workflowEvents(client.workflows.runs.stream({ workflow_id, parameters: { input: 'hi' } }));

const workspaces = async () => ({ some: (await coze.workspaces.list({ page_num: 1, page_size: 20 })).workspaces.length > 0 });

const me = async (client = coze) => ({ has_id: Boolean((await client.users.me()).user_id) });

function jwtToken(sessionName) {
  const { client_id: appId, key_id: keyid, key: privateKey } = settings.jwt;
  return oauth.getJWTToken({ baseURL, appId, aud: new URL(baseURL).host, keyid, privateKey, sessionName });
}

/** The code that somebody gets who says yes to everything. */
async function consent(url) {
  while (!url.startsWith(redirectUrl)) {
    const answer = await fetch(url, { redirect: 'manual' });
    url = new URL(answer.headers.get('location'), url).href;
  }
  return new URL(url).searchParams.get('code');
}

const webToken = code => oauth.getWebOAuthToken({ baseURL, clientId, clientSecret, redirectUrl, code });

async function web() {
  const first = await webToken(await consent(oauth.getWebAuthenticationUrl({ baseURL, clientId, redirectUrl, state: 's' })));
  const second = await oauth.refreshOAuthToken({ baseURL, clientId, clientSecret, refreshToken: first.refresh_token });
  return { ...token(second), rotated: first.refresh_token !== second.refresh_token };
}

async function pkce() {
  const { url, codeVerifier } = await oauth.getPKCEAuthenticationUrl({ baseURL, clientId, redirectUrl, state: 's' });
  const code = await consent(url);
  return token(await oauth.getPKCEOAuthToken({ baseURL, clientId, redirectUrl, code, codeVerifier }));
}

/** Asks the simulator itself for something. */
async function control(path, body, method = 'POST') {
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(baseURL + path, { method, headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path} was refused: ${await answer.text()}`);
}

async function device(approve) {
  const code = await oauth.getDeviceCode({ baseURL, clientId, workspaceId: settings.workspace });
  if (approve !== undefined) await control('/_sim/device/approve', { user_code: code.user_code, approve });
  const answer = await oauth.getDeviceToken({ baseURL, clientId, deviceCode: code.device_code });
  return { ...token(answer), has_url: Boolean(code.verification_uri) };
}

const NORMAL = {
  'chat.create': create,
  'chat.stream': stream,
  'chat.retrieve': retrieve,
  'chat.messages.list': async () => messages(await finished()),
  'chat.cancel': cancel,
  'chat.create_and_poll': createAndPoll,
  'chat.submit_tool_outputs': () => submit(false),
  'chat.submit_tool_outputs.stream': () => submit(true),
  'bots.retrieve': async () => ({ bot_id: (await coze.bots.retrieve({ bot_id })).bot_id }),
  'bots.retrieve.new': async () => ({ bot_id: (await coze.bots.retrieveNew(bot_id)).bot_id }),
  'conversations.create': async () => ({ has_id: Boolean((await conversation()).id) }),
  'conversations.retrieve': async () => ({
    has_id: Boolean((await coze.conversations.retrieve((await conversation()).id)).id),
  }),
  'conversations.list': conversationsList,
  'conversations.messages': conversationMessages,
  'files.upload': upload,
  'workflows.runs.create': workflow,
  'workflows.runs.stream': workflowStream,
  'workspaces.list': workspaces,
  'users.me': () => me(),
  'oauth.jwt': async () => token(await jwtToken()),
  'oauth.web': web,
  'oauth.pkce': pkce,
  'oauth.device': () => device(true),
  'oauth.device.pending': () => device(undefined),
  'oauth.device.refused': () => device(false),
};
const tell = { ask, control, consent, events, jwtToken, me, redirectUrl, token, workflowEvents };
const more = scenarios({ coze, oauth, settings, baseURL, tell });
for (const [name, call] of Object.entries({ ...NORMAL, ...more })) await record(name, () => call());

// Each bad answer meets a call that makes one request; what that needs was there before. What the simulator never says comes
// as it stands there from a server of canned answers, one per path.
const chat = await finished();
const ONE_REQUEST = {
  'chat.create': create,
  'chat.stream': stream,
  'chat.messages.list': () => messages(chat),
  'conversations.list': async () => ({ items: (await conversations()).length }),
  'workspaces.list': workspaces,
  'workflows.runs.stream': workflowStream,
  oauth: () => webToken('code_x'),
};
for (const [number, row] of JSON.parse(readFileSync(BAD_ANSWERS)).entries()) {
  let client = coze;
  if (row.fault) {
    await control('/_sim/faults', row.fault);
  } else {
    client = new oauth.CozeAPI({ baseURL: `${settings.canned}/${number}`, token: 'pat_x' });
  }
  await record(row.name, () => ONE_REQUEST[row.call](client));
}

// Through a gateway, which has keys of its own: whose the call is, which gateway it goes to, and what else it says, are in the row.
const through = ({ key = 'acme', gateway = 'gateway', header } = {}) => {
  const headers = header && Object.fromEntries([header]);
  return new oauth.CozeAPI({ baseURL: settings.gateways[gateway], token: settings.keys[key], headers });
};

const issued = async () => (await (await fetch(`${baseURL}/_sim/counts`)).json()).tokens_issued;

/** Sixteen calls at the same time. */
const atOnce = async client => {
  const before = await issued();
  const answers = await Promise.all(Array.from({ length: 16 }, () => me(client)));
  return { calls: answers.filter(answer => answer.has_id).length, tokens: (await issued()) - before };
};

const mine = through();
const opened = await mine.conversations.create({ bot_id });
const talked = await finished('hello', mine);
const CALLS = {
  'chat.create': create,
  'chat.stream': stream,
  'chat.messages.list': client => messages(talked, client),
  'conversations.retrieve': async client => ({ same: (await client.conversations.retrieve(opened.id)).id === opened.id }),
  'files.upload': upload,
  'workflows.runs.stream': workflowStream,
  'users.me': me,
  'users.me, 16 at once': atOnce,
};
for (const row of JSON.parse(readFileSync(new URL('../gateway.json', import.meta.url)))) {
  for (const fault of row.faults ?? []) await control('/_sim/faults', fault);
  await record(row.name, () => CALLS[row.call](through(row.as)), true);
  // What it did not need would be the next one's.
  await control('/_sim/faults', undefined, 'DELETE');
}

console.log(JSON.stringify({ calls }));
