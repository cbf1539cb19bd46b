use std::{future::Pending, sync::Arc};

use arc_swap::ArcSwap;
use coze_auth::{Decision, Token, TokenSource};
use coze_core::{Error, Retry};
use coze_secret::SecretBytes;

use super::text;

/// A token that is given, and may be given anew. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Given(Arc<ArcSwap<Token>>);

impl Given {
    pub(super) fn new(secret: &SecretBytes) -> Result<Self, Error> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Token::bearer(text(secret)?)?))))
    }

    /// Gives another one from now on. One task does that.
    pub(super) fn set(&self, secret: &SecretBytes) -> Result<(), Error> {
        let generation = self.0.load().generation() + 1;
        self.0.store(Arc::new(Token::bearer(text(secret)?)?.with_generation(generation)));
        Ok(())
    }
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
