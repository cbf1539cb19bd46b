use std::fmt;

use crate::{ACCOUNT, WORKSPACE};

/// A bot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bot {
    /// Its id: a 64-bit number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The workspace it lives in. Default [`WORKSPACE`].
    pub workspace: String,
    /// May it be called? Default true; a chat with another is refused with 4015.
    pub published: bool,
    /// What it answers: one of these, by the seed, with `{content}` replaced by the last user message. Default one,
    /// `You said: {content}`.
    pub answers: Vec<String>,
    /// Questions it suggests after each answer. Default none.
    pub follow_ups: Vec<String>,
    /// What it was told to be; it answers all the same. Default empty.
    pub prompt: String,
    /// What it opens a conversation with. Default `I am ` and its name.
    pub prologue: String,
}

impl Bot {
    /// A published bot that repeats what it is told.
    #[must_use]
    pub fn new(id: impl Into<String>, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            id: id.into(),
            prologue: format!("I am {name}"),
            name,
            prompt: String::new(),
            description: "A simulated bot".into(),
            workspace: WORKSPACE.into(),
            published: true,
            answers: vec!["You said: {content}".into()],
            follow_ups: Vec::new(),
        }
    }
}

/// A workflow. It gives back its parameter `input`, or all its parameters as JSON where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workflow {
    /// Its id: a 64-bit number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// May it be run? Running another is refused with 4200.
    pub published: bool,
}

/// A workspace. The default one is [`WORKSPACE`], a team's, in no enterprise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its id: a 64-bit number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The caller's role: `owner`, `admin` or `member`.
    pub role: String,
    /// `personal` or `team`.
    pub kind: String,
    /// The enterprise it belongs to, or empty.
    pub enterprise: String,
}

impl Default for Workspace {
    fn default() -> Self {
        let [id, name, role, kind] = [WORKSPACE, "Simulated", "owner", "team"].map(Into::into);
        Self { id, name, role, kind, enterprise: String::new() }
    }
}

/// A personal or service access token: it does not expire and isolates no sessions.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub token: String,
    /// Whose it is: tokens of one account see the same conversations. Default [`ACCOUNT`].
    pub account: String,
    /// What it may do, in the platform's names (`chat`, `getChat`, …). Default `None`: everything.
    pub permissions: Option<Vec<String>>,
}

impl Token {
    /// A token that may do everything.
    #[must_use]
    pub fn new(token: impl Into<String>) -> Self {
        Self { token: token.into(), account: ACCOUNT.into(), permissions: None }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("token", &crate::fingerprint(&self.token))
            .field("account", &self.account)
            .field("permissions", &self.permissions)
            .finish()
    }
}

/// An OAuth app.
#[derive(Clone, PartialEq, Eq)]
pub struct App {
    /// Its client id, `<digits>.app.coze`.
    pub client_id: String,
    /// Its secret, asked of every exchange without PKCE. Default none: a public app.
    pub client_secret: Option<String>,
    /// Its name, shown in refusals.
    pub name: String,
    /// The account its tokens belong to, unless a token is asked for another. Default [`ACCOUNT`].
    pub account: String,
    /// What its tokens may do. Default `None`: everything.
    pub permissions: Option<Vec<String>>,
    /// Where codes may be sent. Default empty: anywhere.
    pub redirect_uris: Vec<String>,
    /// Keys that verify JWT assertions: the key id and the public key, PEM. Default none: not a JWT app.
    pub keys: Vec<(String, String)>,
    /// Is the app switched on? Default true; every token request of another is refused with `access_deny`.
    pub active: bool,
}

impl Default for App {
    fn default() -> Self {
        Self {
            client_id: String::new(),
            client_secret: None,
            name: String::new(),
            account: ACCOUNT.into(),
            permissions: None,
            redirect_uris: Vec::new(),
            keys: Vec::new(),
            active: true,
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.keys.iter().map(|(kid, _)| kid).collect();
        f.debug_struct("App")
            .field("client_id", &self.client_id)
            .field("client_secret", &self.client_secret.as_ref().map(|_| "[redacted]"))
            .field("name", &self.name)
            .field("account", &self.account)
            .field("permissions", &self.permissions)
            .field("redirect_uris", &self.redirect_uris)
            .field("keys", &keys)
            .field("active", &self.active)
            .finish()
    }
}
