use std::sync::Arc;

use coze_core::{Context, Error, Refusal};

/// An error for the caller, and what is noted of it besides.
#[derive(Debug)]
pub struct Refused {
    error: Error,
    noted: Refusal,
}

impl Refused {
    /// The true reason, where the caller is told another one.
    pub(crate) fn truly(mut self, reason: &'static str) -> Self {
        self.noted.reason = reason;
        self
    }

    /// The party whose request it is, or claims to be, by the name it has in our own configuration.
    pub(crate) fn of(mut self, client: Option<&Arc<str>>) -> Self {
        self.noted.client = client.cloned();
        self
    }

    /// Notes a refusal; what is left is for the caller.
    pub(crate) fn note(self, context: &Context) -> Error {
        context.refusal.get_or_init(|| self.noted);
        self.error
    }

    /// Notes what would have been a refusal.
    pub(crate) fn report(self, context: &Context) {
        context.reported.get_or_init(|| self.noted);
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let noted = Refusal::from(&error);
        Self { error, noted }
    }
}
