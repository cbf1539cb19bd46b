use std::{fs::File, future::poll_fn, io::Read, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use coze_core::{BoxError, Error, Kind};
use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, IF_NONE_MATCH},
};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use tower_service::Service;

use super::{
    fetched::{FetchedKeys, KeyFetch, unavailable},
    jwk::{MAX_BYTES, is_object},
};

/// How often a file is read. It costs next to nothing.
const LOOK: Duration = Duration::from_secs(30);

impl KeyFetch {
    /// The key set that is published at `url`, got through `transport`: an HTTP client as a Tower service, which checks who
    /// answers and follows no redirects.
    ///
    /// What answers otherwise than with 200 or 304, or with more than 256 KiB, has no keys for us; the same is true of a
    /// redirect, because keys of another place are not those of the issuer.
    ///
    /// # Errors
    /// `endpoint_invalid`, [`Kind::Precondition`]: it is not an `https` address. One of `http` is good for a loopback address
    /// only, such as `http://127.0.0.1:8080/keys`, as whoever is on the way could put in keys of their own.
    pub fn url<S, B>(url: &str, transport: S) -> Result<Self, Error>
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Send> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let url = address(url)?;
        Ok(Self::new(move |etag| get(transport.clone(), url.clone(), etag)))
    }

    /// The key set that an issuer says is its own, in the document at `/.well-known/openid-configuration` below its name
    /// (OIDC Discovery 1.0 §4). Both are got anew each time, as [`KeyFetch::url`] gets keys.
    ///
    /// # Errors
    /// Those of [`KeyFetch::url`], for the issuer's name.
    pub fn discovered<S, B>(issuer: &str, transport: S) -> Result<Self, Error>
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Send> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let document = address(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')))?;
        let issuer: Arc<str> = issuer.into();
        Ok(Self::new(move |etag| {
            let (transport, document, issuer) = (transport.clone(), document.clone(), issuer.clone());
            async move {
                let found = get(transport.clone(), document.clone(), None).await?;
                let keys = published(&found.json.unwrap_or_default(), &issuer)?;
                // One who is asked over the network has no say in what is asked for on this machine.
                if keys.scheme() != document.scheme() {
                    return Err(
                        unavailable().with_source("the keys are at an address of another scheme than the issuer")
                    );
                }
                get(transport, keys, etag).await
            }
        }))
    }

    /// The key set in a file, which is read anew every 30 seconds unless [`KeyFetch::interval`] is set. Whoever changes it puts
    /// another one in its place: of one that is half written nothing is taken, and the keys we have stay. It has at most 256 KiB.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path: Arc<PathBuf> = Arc::new(path.into());
        let look = move |_| {
            let path = path.clone();
            async move {
                let read = tokio::task::spawn_blocking(move || {
                    let mut json = Vec::new();
                    // One byte more than is allowed is refused with the set.
                    File::open(&*path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut json)?;
                    Ok(json)
                });
                let json = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                json.map(FetchedKeys::new).map_err(|error| unavailable().with_source(error))
            }
        };
        Self::new(look).interval(LOOK)
    }
}

/// Where keys may be got: nobody on the way can put in others.
fn address(text: &str) -> Result<Uri, Error> {
    let is_safe = |uri: &Uri| {
        let host = uri.host().unwrap_or_default();
        let is_loopback = || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let is_plain = !host.is_empty() && !uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        is_plain && (uri.scheme_str() == Some("https") || uri.scheme_str() == Some("http") && is_loopback())
    };
    text.parse().ok().filter(is_safe).ok_or_else(|| {
        Error::new(Kind::Precondition, "endpoint_invalid").with_message(
            "the keys of an issuer are at an https address, or at an http address of this machine such as http://127.0.0.1",
        )
    })
}

async fn get<S, B>(mut transport: S, url: Uri, etag: Option<HeaderValue>) -> Result<FetchedKeys, Error>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Error: Into<BoxError>>,
{
    let failed = |error: BoxError| unavailable().with_source(error);
    // Who is not told otherwise may compress (RFC 9110 §12.5.3).
    let mut request = Request::get(url)
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(ACCEPT_ENCODING, "identity");
    if let Some(etag) = etag {
        request = request.header(IF_NONE_MATCH, etag);
    }
    let request = request.body(Full::default()).map_err(|error| failed(error.into()))?;
    poll_fn(|task| transport.poll_ready(task)).await.map_err(|error| failed(error.into()))?;
    let (head, body) = transport.call(request).await.map_err(|error| failed(error.into()))?.into_parts();
    let body = match head.status {
        StatusCode::OK => Limited::new(body, MAX_BYTES).collect().await.map_err(failed)?.to_bytes(),
        // There is nothing in it for us, however much it is.
        _ => Bytes::new(),
    };
    FetchedKeys::answered(head.status, &head.headers, body)
}

/// What an issuer's document says about its keys.
fn published(json: &[u8], issuer: &str) -> Result<Uri, Error> {
    #[derive(Deserialize)]
    struct Document {
        issuer: String,
        jwks_uri: String,
    }

    let document: Document = match is_object(json) {
        true => serde_json::from_slice(json).map_err(|error| unavailable().with_source(error))?,
        false => return Err(unavailable().with_source("the issuer's document is not an object")),
    };
    // Else one issuer could speak for another (§4.3).
    if document.issuer != issuer {
        return Err(unavailable().with_source("the issuer's document is that of another issuer"));
    }
    address(&document.jwks_uri).map_err(|error| unavailable().with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for good in [
            "https://i.example/keys?v=1",
            "https://10.0.0.1",
            "http://127.0.0.1:80/k",
            "http://[::1]/",
            "http://127.8.8.8",
        ] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/keys",
            "i.example/keys",
            "http://i.example/keys",
            "http://localhost/",
            "http://10.0.0.1/",
            "http://127.0.0.1.i.example/",
            "http://127.0.0.1@i.example/",
            "https://user:password@i.example/",
            "https:///keys",
            "file:///etc/keys",
            "HTTPS//i.example",
        ] {
            assert_eq!(address(bad).expect_err("refused").reason(), "endpoint_invalid", "{bad}");
        }
    }

    #[test]
    fn an_issuers_document_names_itself_and_its_keys() {
        let found = |json: &str| published(json.as_bytes(), "https://i.example");
        let good = r#"{"issuer":"https://i.example","jwks_uri":"https://keys.example/k","other":[1]}"#;
        assert_eq!(found(good).expect("good"), "https://keys.example/k");
        for bad in [
            "",
            "[]",
            r#"["https://i.example","https://keys.example/k"]"#,
            r#"{"jwks_uri":"https://keys.example/k"}"#,
            r#"{"issuer":"https://i.example"}"#,
            r#"{"issuer":"https://i.example/","jwks_uri":"https://keys.example/k"}"#,
            r#"{"issuer":"https://i.example","jwks_uri":"http://keys.example/k"}"#,
            r#"{"issuer":"https://i.example","jwks_uri":7}"#,
        ] {
            assert_eq!(found(bad).expect_err("refused").reason(), "keys_unavailable", "{bad}");
        }
    }
}
