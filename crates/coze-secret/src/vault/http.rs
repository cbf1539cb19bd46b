use std::{error::Error as StdError, sync::Arc, time::Duration};

use bytes::Bytes;
use coze_core::{Error, Kind, Retry};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, LOCATION, RETRY_AFTER},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::wire;
use crate::SecretBytes;

/// The largest answer.
const MAX_ANSWER: usize = 1 << 20;
/// What an answer gets where its length is not announced.
const ROOM: usize = 16 << 10;
/// From a standby node to the active one, and once more if that changes meanwhile.
const MAX_REDIRECTS: usize = 3;

/// Speaks to one Vault. It makes single attempts; who asks decides about further ones.
#[derive(Debug)]
pub(crate) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    scheme: Scheme,
    authority: Authority,
    namespace: Option<HeaderValue>,
    timeout: Duration,
}

/// One request. Its body is a secret, so nothing shows it.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    method: Method,
    path: &'a str,
    token: Option<&'a SecretBytes>,
    body: Bytes,
}

impl<'a> Call<'a> {
    /// `path` is what follows `/v1/`.
    pub(crate) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, token: None, body: Bytes::new() }
    }

    pub(crate) fn post(path: &'a str) -> Self {
        Self { method: Method::POST, ..Self::get(path) }
    }

    pub(crate) fn token(self, token: &'a SecretBytes) -> Self {
        Self { token: Some(token), ..self }
    }

    /// JSON, which is wiped after it was sent.
    pub(crate) fn body(self, json: Zeroizing<Vec<u8>>) -> Self {
        Self { body: Bytes::from_owner(json), ..self }
    }
}

impl Client {
    pub(crate) fn new(
        uri: &Uri,
        namespace: Option<HeaderValue>,
        timeout: Duration,
        roots: Option<Arc<RootCertStore>>,
    ) -> Result<Self, Error> {
        // The provider is named, because where several are compiled in rustls would panic for want of a choice.
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(Kind::Internal, "vault_tls").with_source(error))?;
        let tls = match roots {
            Some(roots) => tls.with_root_certificates(roots),
            None => tls.with_webpki_roots(),
        };
        let tls = tls.with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let http = legacy::Client::builder(TokioExecutor::new())
            // A connection that waits for the next request keeps the last answer in its buffer. There is one a minute.
            .pool_max_idle_per_host(0)
            .build(connector);
        let scheme = uri.scheme().cloned().unwrap_or(Scheme::HTTPS);
        let authority = uri.authority().cloned().ok_or_else(|| Error::new(Kind::Invalid, "vault_url"))?;
        Ok(Self { http, scheme, authority, namespace, timeout })
    }

    /// The answer's body; empty where there is none.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Zeroizing<Vec<u8>>, Error> {
        let error = |_| Error::new(Kind::Timeout, "vault_timeout").with_message("vault did not answer in time");
        timeout(self.timeout, self.exchange(call)).await.map_err(error)?
    }

    async fn exchange(&self, call: Call<'_>) -> Result<Zeroizing<Vec<u8>>, Error> {
        let path = PathAndQuery::try_from(format!("/v1/{}", call.path)).map_err(|_| path_refused())?;
        let mut uri = self.uri(self.authority.clone(), path)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.http.request(self.request(&call, uri.clone())?).await.map_err(unreachable)?;
            let (parts, body) = response.into_parts();
            if let StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT = parts.status {
                uri = self.redirected(&uri, &parts.headers)?;
                continue;
            }
            let answer = read(Response::from_parts(parts.clone(), body)).await?;
            return match parts.status.is_success() {
                true => Ok(answer),
                false => Err(refused(parts.status, &parts.headers, &answer)),
            };
        }
        Err(standby("the nodes of vault redirect to each other"))
    }

    fn request(&self, call: &Call<'_>, uri: Uri) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        // Agents and listeners may ask for it, against forged requests (API docs).
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(namespace) = &self.namespace {
            headers.insert("x-vault-namespace", namespace.clone());
        }
        if let Some(token) = call.token {
            let mut value = HeaderValue::from_bytes(token.expose()).map_err(|_| {
                Error::new(Kind::Invalid, "vault_token").with_message("a token of vault is visible ascii")
            })?;
            value.set_sensitive(true);
            headers.insert("x-vault-token", value);
        }
        Ok(request)
    }

    /// A standby node names the active one. The token goes there, so never from TLS to no TLS.
    fn redirected(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri, Error> {
        let uri: Option<Uri> = headers.get(LOCATION).and_then(|value| value.to_str().ok()?.parse().ok());
        let parts = uri.map(Uri::into_parts).unwrap_or_default();
        match (parts.scheme, parts.authority, parts.path_and_query) {
            (Some(scheme), Some(authority), Some(path)) if scheme == self.scheme => self.uri(authority, path),
            // A proxy may leave out what stays the same (RFC 9110 §10.2.2).
            (None, None, Some(path)) => self.uri(from.authority().unwrap_or(&self.authority).clone(), path),
            _ => Err(standby("a standby node of vault redirects to nowhere, or away from tls")),
        }
    }

    fn uri(&self, authority: Authority, path: PathAndQuery) -> Result<Uri, Error> {
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(authority).path_and_query(path).build();
        uri.map_err(|_| path_refused())
    }
}

/// Reads an answer into memory that is wiped, also where it grows.
async fn read(response: Response<Incoming>) -> Result<Zeroizing<Vec<u8>>, Error> {
    let declared = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let too_large = || {
        Error::new(Kind::Upstream, "vault_answer")
            .with_message("an answer of vault is larger than 1 MiB")
            .with_retry(Retry::Never)
    };
    let mut body = response.into_body();
    let mut answer = Zeroizing::new(Vec::with_capacity(declared.unwrap_or(ROOM).min(MAX_ANSWER)));
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(|error| broken(error.into()))?.into_data() else { continue };
        if answer.len() + data.len() > MAX_ANSWER {
            return Err(too_large());
        }
        if answer.len() + data.len() > answer.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity((answer.len() + data.len()) * 2));
            larger.extend_from_slice(&answer);
            answer = larger;
        }
        answer.extend_from_slice(&data);
    }
    Ok(answer)
}

/// What a status means (API docs: HTTP status codes) and whether another try may help.
fn refused(status: StatusCode, headers: &HeaderMap, answer: &[u8]) -> Error {
    let (kind, reason, retry, message) = match status.as_u16() {
        400 => (Kind::Invalid, "vault_refused", Retry::Never, "vault refuses the request"),
        403 => (Kind::PermissionDenied, "vault_denied", Retry::Never, "vault denies it: the token is over, or may not"),
        404 => (Kind::NotFound, "vault_not_found", Retry::Never, "vault has no such secret"),
        // Data that is not replicated yet.
        412 => (Kind::Unavailable, "vault_behind", Retry::Safe, "a node of vault is behind"),
        429 => (Kind::RateLimited, "vault_busy", Retry::Safe, "vault limits our requests"),
        472 | 473 => (Kind::Unavailable, "vault_standby", Retry::Safe, "a standby node of vault does not answer this"),
        503 => (Kind::Unavailable, "vault_sealed", Retry::Safe, "vault is sealed, or down for maintenance"),
        500..=599 => (Kind::Upstream, "vault_failed", Retry::IfIdempotent, "vault failed"),
        _ => (Kind::Upstream, "vault_answer", Retry::Never, "vault answers with a status that it does not have"),
    };
    let mut error = Error::new(kind, reason).with_message(message).with_retry(retry);
    let words = wire::words(answer).unwrap_or_default();
    error = error.with_source(format!("status {}: {words}", status.as_u16()));
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    match seconds {
        Some(seconds) => error.with_retry_after(Duration::from_secs(seconds)),
        None => error,
    }
}

fn unreachable(error: legacy::Error) -> Error {
    match error.is_connect() {
        true => Error::new(Kind::Unavailable, "vault_unreachable")
            .with_message("there is no connection to vault")
            .with_retry(Retry::Safe)
            .with_source(error),
        false => broken(error.into()),
    }
}

fn broken(error: Box<dyn StdError + Send + Sync>) -> Error {
    Error::new(Kind::Unavailable, "vault_unreachable")
        .with_message("the connection to vault broke off")
        .with_source(error)
}

fn standby(message: &'static str) -> Error {
    Error::new(Kind::Unavailable, "vault_standby").with_message(message).with_retry(Retry::Safe)
}

fn path_refused() -> Error {
    Error::new(Kind::Invalid, "vault_path").with_message("that is no path in vault")
}

/// A path of the API: names as they are configured, with all that is not unreserved (RFC 3986 §2.3) encoded.
pub(crate) fn path(parts: &[&str]) -> Result<String, Error> {
    let mut path = String::new();
    for name in parts.iter().flat_map(|part| part.trim_matches('/').split('/')) {
        if matches!(name, "" | "." | "..") {
            return Err(path_refused());
        }
        if !path.is_empty() {
            path.push('/');
        }
        for byte in name.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
                _ => path.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    Ok(path)
}

/// The certificates of a PEM text.
pub(crate) fn roots_of(pem: &[u8]) -> Result<RootCertStore, Error> {
    let refused = |what| Error::new(Kind::Invalid, "vault_certificate").with_message(what);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate.map_err(|_| ()).and_then(|certificate| roots.add(certificate).map_err(|_| ()));
        added.map_err(|()| refused("a certificate authority for vault is malformed"))?;
    }
    match roots.is_empty() {
        true => Err(refused("there is no certificate in the pem text")),
        false => Ok(roots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_encoded_and_never_climbs() {
        assert_eq!(path(&["secret", "data", "/a/b c/"]).expect("valid"), "secret/data/a/b%20c");
        assert_eq!(path(&["a?b#c%"]).expect("valid"), "a%3Fb%23c%25");
        for bad in ["", "/", "a//b", "..", "a/../b", "./a"] {
            assert_eq!(path(&["x", bad]).expect_err("refused").reason(), "vault_path", "{bad}");
        }
    }

    #[test]
    fn each_status_has_its_reason_and_says_whether_to_try_again() {
        let of = |status| {
            let status = StatusCode::from_u16(status).expect("valid");
            let error = refused(status, &HeaderMap::new(), br#"{"errors":["why"]}"#);
            (error.reason(), error.retry())
        };
        assert_eq!(of(400), ("vault_refused", Retry::Never));
        assert_eq!(of(403), ("vault_denied", Retry::Never));
        assert_eq!(of(404), ("vault_not_found", Retry::Never));
        assert_eq!(of(412), ("vault_behind", Retry::Safe));
        assert_eq!(of(429), ("vault_busy", Retry::Safe));
        assert_eq!(of(473), ("vault_standby", Retry::Safe));
        assert_eq!(of(500), ("vault_failed", Retry::IfIdempotent));
        assert_eq!(of(503), ("vault_sealed", Retry::Safe));
        assert_eq!(of(302), ("vault_answer", Retry::Never));
    }

    #[test]
    fn a_certificate_authority_that_is_none_is_refused() {
        for pem in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(roots_of(pem.as_bytes()).expect_err("refused").reason(), "vault_certificate");
        }
    }
}
