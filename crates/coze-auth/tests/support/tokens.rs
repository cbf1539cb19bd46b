//! Sources of tokens whose fetches are counted, and what a caller does with a source.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coze_auth::{Decision, Renewing, Token, TokenSource};
use coze_core::Error;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

/// Counts fetches; the token of the n-th is `t<n>`.
#[derive(Clone, Default)]
pub(crate) struct Endpoint(Arc<AtomicU64>);

impl Endpoint {
    pub(crate) fn fetches(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A source whose fetches take a second, and end as `end` says of the token of their number.
    pub(crate) fn source(
        &self,
        end: impl Fn(u64, Token) -> Result<Token, Error> + Copy + Send + Sync + 'static,
    ) -> impl TokenSource<Future: Send> + Clone + Send + Sync + fmt::Debug + 'static {
        let fetches = self.0.clone();
        Renewing::new(move || {
            let n = fetches.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                sleep(SECOND).await;
                end(n, Token::bearer(&format!("t{n}")).expect("valid"))
            }
        })
    }
}

pub(crate) fn lives(seconds: u64) -> impl Fn(u64, Token) -> Result<Token, Error> + Copy + Send + Sync {
    move |_, token| Ok(token.with_lifetime(Duration::from_secs(seconds)))
}

pub(crate) async fn get(source: &impl TokenSource) -> Result<Token, Error> {
    match source.token() {
        Decision::Now(token) => token,
        Decision::Later(token) => token.await,
    }
}

/// The text of a token, without `Bearer`.
pub(crate) async fn text(source: &impl TokenSource) -> String {
    let token = get(source).await.expect("a token");
    token.header().to_str().expect("ascii").strip_prefix("Bearer ").expect("a bearer token").to_owned()
}

pub(crate) fn is_ready(source: &impl TokenSource) -> bool {
    matches!(source.token(), Decision::Now(Ok(_)))
}
