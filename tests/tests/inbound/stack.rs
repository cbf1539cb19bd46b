use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use coze_auth::{AuthLayer, Key, Webhook, WebhookKeys};
use coze_core::{BotId, Context, TenantId, UserId};
use coze_errmap::{ErrMapLayer, Responder};
use coze_observe::{Inbound, ObserveLayer};
use coze_ratelimit::{Level, Limits, Quota, RateLimitLayer};
use coze_tenant::{Registry, TenantLayer};
use http::{Extensions, Response};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tower::{
    ServiceBuilder,
    layer::util::{Identity, Stack},
};

pub(crate) const KEY: &str = "key of b1";

/// The documented order, outermost last.
type InStack<A> = Stack<
    RateLimitLayer<Limits>,
    Stack<
        TenantLayer<Registry>,
        Stack<AuthLayer<A>, Stack<ErrMapLayer<Responder>, Stack<ObserveLayer<Inbound>, Identity>>>,
    >,
>;

/// The whole stack of the way in, with the bot `b1` of the tenant `t1`, which works on one message at once.
pub(crate) fn in_stack<A>(auth: A) -> ServiceBuilder<InStack<A>> {
    let inbound = Inbound::new(["/webhook", "/webhook/{bot_id}"]).expect("valid routes");
    let tenants = Registry::new([tenant("t1")]).bot(bot(), tenant("t1"));
    let one = std::num::NonZeroU32::MIN;
    let limits = Limits::new().level(Level::per_bot("bot", Quota::Concurrency(one)));
    ServiceBuilder::new()
        .layer(ObserveLayer::new(inbound))
        .layer(ErrMapLayer::new(Responder::new()))
        .layer(AuthLayer::new(auth))
        .layer(TenantLayer::new(tenants))
        .layer(RateLimitLayer::new(limits))
}

pub(crate) fn webhook() -> Webhook {
    let keys = WebhookKeys::new();
    keys.set(&bot(), [Key::new(KEY).expect("not empty")]).expect("one key");
    Webhook::new(keys).path("/webhook").limit(1024).user(|_| UserId::new("u1").ok())
}

pub(crate) fn bot() -> BotId {
    BotId::new("b1").expect("valid")
}

fn tenant(text: &str) -> TenantId {
    TenantId::new(text).expect("valid")
}

/// The handler behind the stack: counts what reaches it, and answers with a permit of the test.
#[derive(Clone, Debug)]
pub(crate) struct Handler {
    pub(crate) reached: Arc<AtomicUsize>,
    pub(crate) may_answer: Arc<Semaphore>,
}

impl Handler {
    pub(crate) fn new() -> Self {
        Self { reached: Arc::default(), may_answer: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) }
    }

    pub(crate) fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    pub(crate) async fn answer(self, mut extensions: Extensions, body: &str) -> Response<Full<bytes::Bytes>> {
        self.reached.fetch_add(1, Ordering::SeqCst);
        self.may_answer.acquire().await.expect("never closed").forget();
        let context = Context::of(&mut extensions);
        let (tenant, user) = (context.tenant.get().expect("resolved"), context.user.get().expect("read"));
        Response::new(Full::from(format!("{tenant}/{user}: {body}")))
    }
}
