// What takes several calls: tokens that end, what lives from its making to its end, tools and workflows that go on.

/** The scenarios by name, for a client, the SDK, and how drive.mjs asks and tells. */
export function scenarios({ coze, oauth, settings, baseURL, tell }) {
  const { ask, control, consent, events, jwtToken, me, redirectUrl, token, workflowEvents } = tell;
  const { bot: bot_id, workflow: workflow_id, workspace, client_id: clientId, client_secret: clientSecret } = settings;
  const client = async session => new oauth.CozeAPI({ baseURL, token: (await jwtToken(session)).access_token });

  /** The code that a call fails with. */
  const codeOf = async call => {
    try {
      return `no failure: ${JSON.stringify(await call())}`;
    } catch (error) {
      return error.code;
    }
  };

  /** Two sessions of one service account: what one opens, the other does not see. */
  async function sessions() {
    const [one, other] = [await client('a'), await client('b')];
    const { id } = await one.conversations.create({ bot_id });
    const own = (await one.conversations.retrieve(id)).id === id;
    return { own, other: await codeOf(() => other.conversations.retrieve(id)) };
  }

  /** A token that ends: what the calls say that need one, and that a client which asks for one each time gets another. */
  async function expired() {
    const old = await client();
    await control('/_sim/tokens/expire', {});
    const codes = [await codeOf(() => old.chat.create(ask())), await codeOf(() => old.users.me())];
    const asking = new oauth.CozeAPI({ baseURL, token: async () => (await jwtToken()).access_token });
    return { codes, renewed: (await me(asking)).has_id };
  }

  /** A refresh token serves once. */
  async function refreshedTwice() {
    const code = await consent(oauth.getWebAuthenticationUrl({ baseURL, clientId, redirectUrl, state: 's' }));
    const first = await oauth.getWebOAuthToken({ baseURL, clientId, clientSecret, redirectUrl, code });
    const refresh = () =>
      oauth.refreshOAuthToken({ baseURL, clientId, clientSecret, refreshToken: first.refresh_token });
    await refresh();
    return token(await refresh());
  }

  /** A bot from its making on: how it is listed, and what a chat with it says, at each step. */
  async function bots() {
    const { bot_id: made } = await coze.bots.create({ space_id: workspace, name: 'Sales', description: 'sells' });
    const greeting = { prologue: 'Hello!', suggested_questions: ['How much?'] };
    await coze.bots.update({ bot_id: made, name: 'Sale', prompt_info: { prompt: 'Sell.' }, onboarding_info: greeting });
    const told = await coze.bots.retrieveNew(made);
    const said = [told.name, told.description, told.prompt_info.prompt, told.onboarding_info.prologue];
    const listed = async () => {
      const { space_bots } = await coze.bots.list({ space_id: workspace, page_index: 1, page_size: 50 });
      return space_bots.some(bot => bot.bot_id === made);
    };
    const talk = () => coze.chat.create({ ...ask(), bot_id: made });
    const draft = [await listed(), await codeOf(talk)];
    await coze.bots.publish({ bot_id: made, connector_ids: ['1024'] });
    return { said, draft, published: [await listed(), (await talk()).status] };
  }

  async function template() {
    const made = await coze.templates.duplicate(bot_id, { workspace_id: workspace, name: 'Copy' });
    return { type: made.entity_type, name: (await coze.bots.retrieveNew(made.entity_id)).name };
  }

  /** What is set for one user, and that another one does not have it. */
  async function variables() {
    const data = [{ keyword: 'color', value: 'red' }, { keyword: 'size', value: '' }];
    await coze.variables.update({ connector_uid: 'user_1', bot_id, data });
    const read = async connector_uid => {
      const found = await coze.variables.retrieve({ connector_uid, bot_id, keywords: ['size', 'color', 'none'] });
      return found.items;
    };
    const own = Object.fromEntries((await read('user_1')).map(({ keyword, value }) => [keyword, value]));
    return { own, other: (await read('user_2')).length };
  }

  async function messageLife() {
    const { id } = await coze.conversations.create({ bot_id });
    const api = coze.conversations.messages;
    const said = { role: 'user', content: 'hi', content_type: 'text', meta_data: { a: 'b' } };
    const { id: message } = await api.create(id, said);
    await api.update(id, message, { content: 'ho', content_type: 'text' });
    const { content, meta_data } = await api.retrieve(id, message);
    await api.delete(id, message);
    return { content, meta_data, gone: await codeOf(() => api.retrieve(id, message)) };
  }

  async function cleared() {
    const { id } = await coze.conversations.create({ bot_id });
    const section = await coze.conversations.clear(id);
    return { section: (await coze.conversations.retrieve(id)).last_section_id === section.id };
  }

  async function resumed() {
    let last;
    for await (const event of coze.workflows.runs.stream({ workflow_id, parameters: { input: 'ask:Which city?' } })) {
      last = event;
    }
    const { event_id, type: interrupt_type } = last.data.interrupt_data;
    const again = coze.workflows.runs.resume({ workflow_id, event_id, interrupt_type, resume_data: 'Paris' });
    return { asked: last.event, ...(await workflowEvents(again)) };
  }

  async function history() {
    const run = await coze.workflows.runs.create({ workflow_id, parameters: { input: 'hi' } });
    const [found] = await coze.workflows.runs.history(workflow_id, run.execute_id);
    return { status: found.execute_status, output: found.output };
  }

  const workflowChat = () =>
    coze.workflows.chat.stream({ workflow_id, bot_id, additional_messages: ask().additional_messages, parameters: {} });

  return {
    'oauth.sessions': sessions,
    'oauth.expired': expired,
    'oauth.refreshed_twice': refreshedTwice,
    'bots.life': bots,
    'templates.duplicate': template,
    variables,
    'conversations.messages.life': messageLife,
    'conversations.clear': cleared,
    'workflows.runs.resume': resumed,
    'workflows.runs.run_histories': history,
    'workflows.chat.stream': () => events(workflowChat()),
  };
}
