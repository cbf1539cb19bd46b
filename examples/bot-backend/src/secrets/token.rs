use std::{future::Pending, sync::Arc};

use arc_swap::ArcSwap;
use coze_auth::{Decision, Token, TokenSource};
use coze_core::{Error, Kind, Retry};
use coze_secret::{SecretBytes, Watch};

/// A token that is given, and may be given anew. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Given(Arc<ArcSwap<Token>>);

impl Given {
    pub(super) fn new(secret: &SecretBytes) -> Result<Self, Error> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(token(secret)?))))
    }

    /// Takes new versions, one after the other.
    pub(super) async fn follow(self, mut watch: Watch) {
        while let Some(secret) = watch.changed().await {
            match token(&secret) {
                Ok(token) => {
                    let generation = self.0.load().generation() + 1;
                    self.0.store(Arc::new(token.with_generation(generation)));
                }
                Err(error) => {
                    tracing::warn!(reason = error.reason(), %error, "a new token is refused: the last one stays");
                }
            }
        }
    }
}

fn token(secret: &SecretBytes) -> Result<Token, Error> {
    let text = secret.expose_str();
    Token::bearer(text.ok_or_else(|| Error::new(Kind::Internal, "token_malformed").with_message("a token is text"))?)
}

impl TokenSource for Given {
    type Future = Pending<Result<Token, Error>>;

    fn token(&self) -> Decision<Token, Self::Future> {
        Decision::Now(Ok(Token::clone(&self.0.load())))
    }

    /// Another one is there only if it was given meanwhile.
    fn reject(&self, generation: u64) -> Option<Retry> {
        (self.0.load().generation() != generation).then_some(Retry::Safe)
    }
}
