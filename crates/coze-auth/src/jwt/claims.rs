use std::{borrow::Cow, sync::Arc, time::Duration};

use coze_core::{Error, Kind, Principal, TenantId};
use serde::de::{Error as _, IgnoredAny, MapAccess};
use serde_json::value::RawValue;

use super::{
    key::Algorithm,
    keys::{JwtKeys, unauthenticated},
    object::{self, Members, Text, Texts},
};
use crate::verify::malformed;

/// The end of the year 9999: a later time is one in other units than seconds.
const MAX_DATE: f64 = 253_402_300_799.0;

/// Who makes tokens: its name, its keys, and what its tokens must say.
#[derive(Clone, Debug)]
pub struct Issuer {
    name: Arc<str>,
    keys: JwtKeys,
    /// `None` is any.
    algorithms: Option<Vec<Algorithm>>,
    audiences: Vec<Box<str>>,
    pub(super) leeway: Duration,
    roles: Vec<(Box<str>, Vec<Box<str>>)>,
    /// `None` is any.
    tenants: Option<Vec<TenantId>>,
}

impl Issuer {
    /// An issuer whose tokens have exactly this `iss` and are signed by one of these keys.
    #[must_use]
    pub fn new(name: &str, keys: JwtKeys) -> Self {
        let leeway = Duration::from_secs(60);
        let (audiences, roles) = (Vec::new(), Vec::new());
        Self { name: name.into(), keys, algorithms: None, audiences, leeway, roles, tenants: None }
    }

    /// The algorithms that its tokens may be signed with (RFC 8725 §3.1); all that its keys are for unless set. That is best set
    /// where the keys are published, as keys are allowed to name none: whoever publishes them then chooses among few.
    #[must_use]
    pub fn algorithms(self, algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        Self { algorithms: Some(algorithms.into_iter().collect()), ..self }
    }

    /// An audience we are: a token must name one of them in `aud`. An issuer without audiences is believed only in tokens
    /// without `aud`, because others are meant for somebody else (RFC 7519 §4.1.3).
    #[must_use]
    pub fn audience(mut self, audience: &str) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// How far its clock may be from ours; 60 seconds unless set.
    #[must_use]
    pub fn leeway(self, leeway: Duration) -> Self {
        Self { leeway, ..self }
    }

    /// What a role permits: who has it in the claim `roles` has these scopes, besides those of the token. Without this the roles
    /// of a token say nothing; a role that is named twice permits both.
    #[must_use]
    pub fn role<'s>(mut self, role: &str, scopes: impl IntoIterator<Item = &'s str>) -> Self {
        self.roles.push((role.into(), scopes.into_iter().map(Into::into).collect()));
        self
    }

    /// The tenants that its tokens may name in the claim of [`Jwt::tenant`](crate::Jwt::tenant); any unless set. Where tenants
    /// have issuers of their own, this keeps each from speaking for another.
    #[must_use]
    pub fn tenants(self, tenants: impl IntoIterator<Item = TenantId>) -> Self {
        Self { tenants: Some(tenants.into_iter().collect()), ..self }
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn keys(&self) -> &JwtKeys {
        &self.keys
    }

    pub(super) fn allows(&self, algorithm: Algorithm) -> bool {
        self.algorithms.as_ref().is_none_or(|own| own.contains(&algorithm))
    }

    /// Believes in what a verified token says, or not.
    pub(super) fn accept(&self, claims: &Claims<'_>, now: f64) -> Result<Accepted, Error> {
        let leeway = self.leeway.as_secs_f64();
        let Some(end) = claims.exp else {
            return Err(malformed("the token has no exp".to_owned()));
        };
        if now >= end + leeway {
            return Err(unauthenticated("token_expired", "the token has expired"));
        }
        if [claims.nbf, claims.iat].into_iter().flatten().any(|start| start > now + leeway) {
            return Err(unauthenticated("token_not_yet_valid", "the token is not valid yet"));
        }
        let is_ours = match &claims.aud {
            None => self.audiences.is_empty(),
            Some(named) => named.iter().any(|name| self.audiences.iter().any(|audience| **audience == *name)),
        };
        if !is_ours {
            return Err(unauthenticated("audience_mismatch", "the token is meant for somebody else"));
        }
        let Some(subject) = claims.sub.as_deref().filter(|subject| !subject.is_empty()) else {
            return Err(malformed("the token has no sub".to_owned()));
        };
        let tenant = claims.tenant.as_deref().map(TenantId::new).transpose();
        let tenant = tenant.map_err(|_| malformed("the tenant in the token is not a tenant id".to_owned()))?;
        let is_its_own = |tenant: &TenantId| self.tenants.as_ref().is_none_or(|own| own.contains(tenant));
        if !tenant.as_ref().is_none_or(is_its_own) {
            return Err(Error::new(Kind::PermissionDenied, "policy_denied")
                .with_message("the issuer's tokens may not name this tenant"));
        }
        let of_roles = self.roles.iter().filter(|(role, _)| claims.has_role(role)).flat_map(|(_, scopes)| scopes);
        let scopes = claims.scopes().chain(of_roles.map(Box::as_ref));
        let principal = Principal::new("jwt", subject).with_scopes(scopes);
        Ok(Accepted { principal, tenant, end })
    }
}

/// What a token that was accepted says.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) principal: Principal,
    pub(super) tenant: Option<TenantId>,
    /// When it expires, in seconds of the Unix clock, without leeway.
    pub(super) end: f64,
}

/// What we read of the claims (RFC 7519 §4.1, RFC 8693 §4.2 for `scope`).
#[derive(Default)]
pub(super) struct Claims<'a> {
    pub(super) iss: Option<Cow<'a, str>>,
    pub(super) jti: Option<Cow<'a, str>>,
    sub: Option<Cow<'a, str>>,
    aud: Option<Texts<'a>>,
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    scope: Option<Texts<'a>>,
    scp: Option<Texts<'a>>,
    roles: Option<Texts<'a>>,
    tenant: Option<Cow<'a, str>>,
}

impl<'a> Claims<'a> {
    /// Reads claims; `tenant` is the name of the claim that names one.
    pub(super) fn parse(json: &'a [u8], tenant: Option<&str>) -> Result<Self, Error> {
        let mut reader = Reader { claims: Self::default(), tenant };
        match object::read(json, &mut reader) {
            Ok(()) => Ok(reader.claims),
            Err(_) => Err(malformed("the claims of the token are not ones we can take".to_owned())),
        }
    }

    /// Of `scope`, or else of `scp`, where both may be a text with spaces or a list.
    fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope
            .as_ref()
            .or(self.scp.as_ref())
            .into_iter()
            .flat_map(Texts::iter)
            .flat_map(str::split_ascii_whitespace)
    }
}

impl Claims<'_> {
    /// Letter by letter (RFC 9068 §2.2.3.1); a text is one role, whatever is in it.
    fn has_role(&self, role: &str) -> bool {
        self.roles.as_ref().is_some_and(|roles| roles.iter().any(|own| own == role))
    }
}

struct Reader<'a, 't> {
    claims: Claims<'a>,
    tenant: Option<&'t str>,
}

impl<'de> Members<'de> for Reader<'de, '_> {
    fn member<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let claims = &mut self.claims;
        match name {
            _ if Some(name) == self.tenant => claims.tenant = Some(map.next_value::<Text<'de>>()?.0),
            "iss" => claims.iss = Some(map.next_value::<Text<'de>>()?.0),
            "sub" => claims.sub = Some(map.next_value::<Text<'de>>()?.0),
            "jti" => claims.jti = Some(map.next_value::<Text<'de>>()?.0),
            "aud" => claims.aud = Some(map.next_value()?),
            "scope" => claims.scope = Some(map.next_value()?),
            "scp" => claims.scp = Some(map.next_value()?),
            // Some have objects here (RFC 9068 §2.2.3.1 leaves it open): they name no role of ours.
            "roles" => claims.roles = serde_json::from_str(map.next_value::<&RawValue>()?.get()).ok(),
            "exp" => claims.exp = Some(date(map)?),
            "nbf" => claims.nbf = Some(date(map)?),
            "iat" => claims.iat = Some(date(map)?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// Seconds of the Unix clock, with a fraction or without (RFC 7519 §2).
fn date<'de, A: MapAccess<'de>>(map: &mut A) -> Result<f64, A::Error> {
    let date = map.next_value::<f64>()?;
    if (0.0..=MAX_DATE).contains(&date) { Ok(date) } else { Err(A::Error::custom("not a time in seconds")) }
}
