//! What `--serve` tells a person who wants to go on.

use coze_sim::sign_webhook;

use super::world::{ACME, HOOLI, INITECH, KEY, VERIFY, World};

/// Addresses, and commands that can be pasted.
pub(super) fn text(world: &World) -> String {
    let (bot, platform) = (world.backend.url(), world.sim.url());
    let body = format!(r#"{{"bot_id":"{ACME}","conversation_id":"c1","user_id":"u1","content":"hi"}}"#);
    let signature = sign_webhook(KEY, body.as_bytes());
    let fault = r#"{"route":"/v3/chat","kind":{"html":{"status":504}}}"#;
    let push = format!(r#"{{"callback":{{"url":"{bot}/callback/{ACME}","verify_token":"{VERIFY}"}}}}"#);
    format!(
        "
Everything goes on running, until Ctrl-C or SIGTERM.

  the bot              {bot}
    messages           {bot}/webhook/{ACME}, also {HOOLI} and {INITECH}
    events             {bot}/callback/{ACME}, the same
    how it is          {bot}/healthz, /readyz, /metrics
  the platform         {platform}
    what it was asked  {platform}/_sim/counts, /_sim/requests
    what goes wrong    {platform}/_sim/faults

A message, signed with the key {KEY}. Two within a second are one too many:

  curl -isS {bot}/webhook/{ACME} -H 'X-Signature: {signature}' -d '{body}'

The next chat goes wrong:

  curl -sS {platform}/_sim/faults -d '{fault}'

The platform sends an event, signed with the token {VERIFY}:

  curl -sS {platform}/_sim/push -d '{push}'
"
    )
}
