//! What `--serve` tells a person who wants to go on.

use super::world::{ACME, GLOBEX, INITECH, KEY, VERIFY, World};

/// Addresses, and commands that can be pasted.
pub(super) fn text(world: &World) -> String {
    let (bot, platform) = (world.backend.url(), world.sim.url());
    format!(
        r#"
Everything runs on, until Ctrl-C.

  The bot              {bot}
    messages           POST /webhook/{ACME}  /webhook/{GLOBEX}  /webhook/{INITECH}   key {KEY}
    events             POST /callback/{ACME}  …                                   token {VERIFY}
    how it is          GET  {bot}/healthz  /readyz  /metrics
  The platform         {platform}
    what it was asked  GET  {platform}/_sim/counts  /_sim/requests
    let it go wrong    POST {platform}/_sim/faults

A message:

  body='{{"bot_id":"{ACME}","conversation_id":"c1","user_id":"me","content":"hello"}}'
  signature=$(printf %s "$body" | openssl dgst -sha256 -hmac {KEY} -r | cut -d' ' -f1)
  curl -isS {bot}/webhook/{ACME} -H "X-Signature: $signature" -d "$body"

The next chat fails, and the one after it is fine again:

  curl -sS {platform}/_sim/faults -d '{{"route":"/v3/chat","kind":{{"html":{{"status":504}}}}}}'
"#
    )
}
