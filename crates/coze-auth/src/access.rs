use std::{fmt, sync::Arc};

use coze_core::{Error, Kind, Principal};
use http::{Method, request::Parts};

/// Decides whether somebody who is authenticated may do what the request asks for.
///
/// [`Routes`] asks for scopes by method and path. A closure is one too, such as for a policy engine:
///
/// ```
/// use coze_auth::Access;
/// use coze_core::{Error, Kind, Principal};
/// use http::Method;
///
/// let office_hours = |method: &Method, _: &str, principal: &Principal| match *method == Method::GET || is_open() {
///     true => Ok(()),
///     false => Err(Error::new(Kind::PermissionDenied, "policy_denied")),
/// };
/// assert!(office_hours.permit(&Method::GET, "/", &Principal::new("jwt", "a")).is_ok());
/// # fn is_open() -> bool { false }
/// ```
pub trait Access {
    /// Looks at one request. Must not wait.
    ///
    /// # Errors
    /// Why not: [`Kind::PermissionDenied`], with the reason `missing_scope`, best with all scopes that are needed
    /// ([`Error::with_scope`]), or `policy_denied`.
    fn permit(&self, method: &Method, path: &str, principal: &Principal) -> Result<(), Error>;
}

impl<F> Access for F
where
    F: Fn(&Method, &str, &Principal) -> Result<(), Error>,
{
    fn permit(&self, method: &Method, path: &str, principal: &Principal) -> Result<(), Error> {
        self(method, path, principal)
    }
}

/// Scopes that are required by method and path.
///
/// All rules that match a request count, in whatever order they were given, and a request that none matches is refused: so a
/// path written in another way than the rules have it (`//`, `%2e`) finds no way around them, as long as no rule is for
/// everything. Paths are compared letter by letter, nothing is decoded.
///
/// ```
/// use coze_auth::{Access, Routes};
/// use coze_core::Principal;
/// use http::Method;
///
/// let routes = Routes::new()
///     .require(Method::GET, "/bots/{bot}", ["bot:read"])
///     .require(None, "/admin/{*rest}", ["admin"])
///     .require(Method::GET, "/health", []);
/// let reader = Principal::new("jwt", "alice").with_scopes(["bot:read"]);
/// assert!(routes.permit(&Method::GET, "/bots/b1", &reader).is_ok());
/// assert!(routes.permit(&Method::GET, "/health", &reader).is_ok());
/// assert!(routes.permit(&Method::POST, "/admin/keys/new", &reader).is_err());
/// assert!(routes.permit(&Method::GET, "/elsewhere", &reader).is_err());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Routes {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    method: Option<Method>,
    pattern: Box<str>,
    scopes: Vec<Box<str>>,
}

impl Routes {
    /// No rule, and so no request that is permitted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires all of these scopes of requests by this method, or any, whose path has this pattern: `{name}` stands for one
    /// part between slashes, and `{*name}` at the end for all that is left, at least one byte. A rule for `GET` is one for
    /// `HEAD` too.
    #[must_use]
    pub fn require<'s>(
        mut self,
        method: impl Into<Option<Method>>,
        pattern: &str,
        scopes: impl IntoIterator<Item = &'s str>,
    ) -> Self {
        let scopes = scopes.into_iter().map(Into::into).collect();
        self.rules.push(Rule { method: method.into(), pattern: pattern.into(), scopes });
        self
    }
}

impl Access for Routes {
    fn permit(&self, method: &Method, path: &str, principal: &Principal) -> Result<(), Error> {
        let rules = || self.rules.iter().filter(|rule| rule.matches(method, path));
        let mut is_known = false;
        for rule in rules() {
            is_known = true;
            if let Some(missing) = rule.scopes.iter().find(|scope| !principal.has_scope(scope)) {
                let mut needed: Vec<_> = rules().flat_map(|rule| &rule.scopes).map(Box::as_ref).collect();
                needed.sort_unstable();
                needed.dedup();
                return Err(Error::new(Kind::PermissionDenied, "missing_scope")
                    .with_message(format!("the scope {missing} is required"))
                    .with_scope(needed.join(" ")));
            }
        }
        match is_known {
            true => Ok(()),
            false => {
                Err(Error::new(Kind::PermissionDenied, "policy_denied").with_message("no rule permits this request"))
            }
        }
    }
}

impl Rule {
    fn matches(&self, method: &Method, path: &str) -> bool {
        let is_method =
            self.method.as_ref().is_none_or(|own| own == method || own == Method::GET && method == Method::HEAD);
        is_method && fits(&self.pattern, path)
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern, path);
    loop {
        if pattern.starts_with("{*") && pattern.ends_with('}') && !pattern.contains('/') {
            return !path.is_empty();
        }
        let (own, own_rest) = pattern.split_once('/').map_or((pattern, None), |(part, rest)| (part, Some(rest)));
        let (part, rest) = path.split_once('/').map_or((path, None), |(part, rest)| (part, Some(rest)));
        let is_name = own.starts_with('{') && own.ends_with('}');
        if !(own == part || is_name && !part.is_empty()) {
            return false;
        }
        match (own_rest, rest) {
            (None, None) => return true,
            (Some(own), Some(rest)) => (pattern, path) = (own, rest),
            _ => return false,
        }
    }
}

/// What a policy asks whoever is authenticated for: nothing, unless told.
#[derive(Clone, Default)]
pub(crate) struct Rules(Option<Arc<dyn Access + Send + Sync>>);

impl Rules {
    pub(crate) fn new(access: impl Access + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(access)))
    }

    pub(crate) fn permit(&self, head: &Parts, principal: &Principal) -> Result<(), Error> {
        match &self.0 {
            Some(access) => access.permit(&head.method, head.uri.path(), principal),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_fits_the_paths_it_is_meant_for_and_no_other() {
        for (pattern, path) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/{x}", "/a"),
            ("/a/{x}/c", "/a/b/c"),
            ("/{*x}", "/a/b//c"),
            ("/a/{*x}", "/a/b"),
            ("/a/{x}/{*y}", "/a/b/c/d"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/a", "/a/"),
            ("/a", "//a"),
            ("/a", "/A"),
            ("/a", "/%61"),
            ("/a", ""),
            ("/{x}", "/"),
            ("/{x}", "/a/b"),
            ("/a/{x}/c", "/a//c"),
            ("/a/{*x}", "/a"),
            ("/a/{*x}", "/a/"),
            ("/a/{*x}/c", "/a/b/d"),
            ("a", "/a"),
            ("", "/"),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_without_names_fits_only_itself(pattern in "[/a-c]{0,8}", path in "[/a-c]{0,8}") {
            prop_assert_eq!(fits(&pattern, &path), pattern == path);
        }

        #[test]
        fn a_rule_more_never_permits_more(
            rules in prop::collection::vec(("/[ab]", "[xy]"), 1..5), extra in "[xy]", path in "/[ab]", scope in "[xy]",
        ) {
            let routes = rules.iter().fold(Routes::new(), |routes, (p, s)| routes.require(None, p, [s.as_str()]));
            let principal = Principal::new("jwt", "a").with_scopes([scope.as_str()]);
            let is_known = rules.iter().any(|(pattern, _)| *pattern == path);
            let before = routes.permit(&Method::GET, &path, &principal).is_ok();
            let after = routes.require(None, &path, [extra.as_str()]).permit(&Method::GET, &path, &principal).is_ok();
            prop_assert!(before || !after || !is_known);
        }
    }
}
