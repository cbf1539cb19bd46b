use std::path::PathBuf;

use coze_core::TenantId;
use serde::Deserialize;

use super::value::list_parsed;

/// What the programs of a tenant's own may read, with a JSON web token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// The claim that names the tenant. Default `tenant`.
    pub tenant_claim: String,
    /// What clients call this service: an https URL, under which its metadata are served (RFC 9728). Default: none, and then
    /// there are none.
    pub resource: Option<String>,
    /// Who makes the tokens. Without one there is no API.
    pub issuers: Vec<Issuer>,
}

/// Who makes tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// What its tokens call it: `iss`.
    pub name: String,
    /// What its tokens call this service: `aud`.
    pub audience: String,
    /// Where its keys are; https, or http on this machine.
    pub jwks_url: Option<String>,
    /// Or the file they are in. With neither, the issuer is asked where they are (OIDC Discovery).
    pub jwks_file: Option<PathBuf>,
    /// The tenants that its tokens may name; any unless set.
    #[serde(default, deserialize_with = "list_parsed")]
    pub tenants: Vec<TenantId>,
}

impl Api {
    /// What is wrong, and with which key.
    pub(super) fn check(&self) -> Result<(), (String, &'static str)> {
        for (index, issuer) in self.issuers.iter().enumerate() {
            let key = |name| format!("issuers[{index}].{name}");
            for (name, text) in [("name", &issuer.name), ("audience", &issuer.audience)] {
                if text.is_empty() {
                    return Err((key(name), "expected a text that is not empty"));
                }
            }
            if issuer.jwks_url.is_some() && issuer.jwks_file.is_some() {
                return Err((key("jwks_url"), "there is a jwks_file too: keep one of them"));
            }
            if self.issuers[..index].iter().any(|other| other.name == issuer.name) {
                return Err((key("name"), "the issuer is there twice"));
            }
        }
        Ok(())
    }
}

impl Default for Api {
    fn default() -> Self {
        Self { tenant_claim: "tenant".to_owned(), resource: None, issuers: Vec::new() }
    }
}
