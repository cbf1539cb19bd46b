use http::{HeaderMap, header::AUTHORIZATION};

use crate::{Token, digest, limit::Group, reply::Refusal, route::Route, state::State};

/// What an access token stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Whose limits count: the app, or the static token.
    pub(crate) app: String,
    /// Whose conversations it sees.
    pub(crate) account: String,
    /// Which of them: conversations of different sessions do not see each other (coze-platform.md §1.10).
    pub(crate) session: Option<String>,
    /// What it may do; `None` is everything.
    pub(crate) permissions: Option<Vec<String>>,
    /// The bots it may talk to; `None` is all.
    pub(crate) bots: Option<Vec<String>>,
    /// When it ends, in Unix seconds; `None` is never.
    pub(crate) expires: Option<u64>,
}

impl Grant {
    pub(crate) fn of_token(token: &Token) -> Self {
        Self {
            app: digest::fingerprint(&token.token),
            account: token.account.clone(),
            permissions: token.permissions.clone(),
            ..Self::default()
        }
    }

    /// May a token with these rights talk to this bot?
    pub(crate) fn allows_bot(&self, bot: &str) -> bool {
        self.bots.as_ref().is_none_or(|bots| bots.iter().any(|allowed| allowed == bot))
    }
}

/// The text after `Bearer `, exactly as it must be written.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let token = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    (!token.is_empty() && !token.contains(' ')).then_some(token)
}

/// Who calls, and may they?
///
/// A bad token is refused in two ways (coze-platform.md §2.2): starting chats and workflows with HTTP 200 and 4101 (4100
/// where it has expired), everything else with HTTP 401 and 700012006. A missing permission is HTTP 200 and 4101.
pub(crate) fn check(state: &State, route: &Route, headers: &HeaderMap, unix: u64) -> Result<Grant, Refusal> {
    let in_envelope = matches!(route.group, Group::Chat | Group::Workflow);
    let refuse = |code, msg: &str, gateway: &str| match in_envelope {
        true => Refusal::new(code, msg),
        false => Refusal { status: 401, ..Refusal::new(700_012_006, gateway) },
    };
    let incorrect = "The token you entered is incorrect. Please check and verify it";
    let Some(token) = bearer(headers) else {
        return Err(refuse(4101, incorrect, "cannot get access token from Authorization header"));
    };
    let Some(grant) = state.tokens.get(token).or_else(|| state.grants.get(token)) else {
        return Err(refuse(4101, incorrect, "access token invalid"));
    };
    if grant.expires.is_some_and(|expires| expires <= unix) {
        return Err(refuse(4100, "authentication is invalid: the access token has expired", "access token invalid"));
    }
    if let Some(permissions) = &grant.permissions
        && !route.permissions.iter().any(|needed| permissions.iter().any(|held| held == needed))
    {
        let needed = route.permissions.join(" or ");
        return Err(Refusal::new(4101, format!("The token does not have the permission {needed}")));
    }
    Ok(grant.clone())
}
