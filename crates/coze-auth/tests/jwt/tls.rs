//! Keys over TLS, from a server and through a client as they are.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use coze_auth::{Issuer, Jwt, JwtKeys, KeyFetch};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};

use crate::{
    fetched::{set, signed},
    token::{ISSUER, jwt, verdict},
};

/// A server with a certificate of its own.
struct Site {
    url: String,
    certificate: CertificateDer<'static>,
    /// The requests that came through.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// A server that is called `name` and answers with these texts, the last one again and again.
    async fn new(name: &str, answers: Vec<String>) -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).expect("made");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}/keys", listener.local_addr().expect("bound"));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not trust us goes away here.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a whole head"));
                }
                let number = {
                    let mut seen = seen.lock().expect("not poisoned");
                    seen.push(String::from_utf8(head).expect("text").to_ascii_lowercase());
                    seen.len() - 1
                };
                let answer = answers.get(number).or(answers.last()).expect("an answer");
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, certificate: cert.der().clone(), heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("not poisoned").clone()
    }

    /// A policy whose keys are got here by a client that trusts this certificate.
    fn policy(&self, trusted: &CertificateDer<'static>) -> Jwt {
        let fetch = KeyFetch::url(&self.url, client(trusted)).expect("https");
        jwt(Issuer::new(ISSUER, JwtKeys::fetched(fetch)))
    }
}

fn client(trusted: &CertificateDer<'static>) -> Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
    Client::builder(TokioExecutor::new()).build(connector)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn keys_come_over_tls_and_only_from_whom_the_client_trusts() {
    let good = || vec![answer("200 OK", "", &set(&["k1"]))];
    let (site, other) = (Site::new("127.0.0.1", good()).await, Site::new("127.0.0.1", good()).await);
    assert_eq!(verdict(&site.policy(&site.certificate), signed("k1")).await, "ok");
    let heads = site.heads();
    assert!(heads[0].starts_with("get /keys http/1.1\r\n"), "{heads:?}");
    assert!(heads[0].contains("\r\naccept: application/jwk-set+json, application/json\r\n"), "{heads:?}");

    assert_eq!(verdict(&site.policy(&other.certificate), signed("k1")).await, "keys_unavailable");
    let misnamed = Site::new("issuer.example", good()).await;
    assert_eq!(verdict(&misnamed.policy(&misnamed.certificate), signed("k1")).await, "keys_unavailable");
    assert_eq!((site.heads().len(), misnamed.heads().len()), (1, 0));
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    let first = answer("200 OK", "etag: \"v1\"\r\n", &set(&["k1"]));
    let site = Site::new("127.0.0.1", vec![first, answer("304 Not Modified", "etag: \"v1\"\r\n", "")]).await;
    let policy = site.policy(&site.certificate);
    assert_eq!(verdict(&policy, signed("k1")).await, "ok");
    assert_eq!(verdict(&policy, signed("k2")).await, "unknown_key");
    assert_eq!(verdict(&policy.cache(0), signed("k1")).await, "ok", "the keys are still there");
    let heads = site.heads();
    assert_eq!(heads.len(), 2);
    assert!(!heads[0].contains("if-none-match") && heads[1].contains("\r\nif-none-match: \"v1\"\r\n"), "{heads:?}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Site::new("127.0.0.1", vec![answer("200 OK", "", &set(&["k1"]))]).await;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let there = answer(status, &format!("location: {}\r\n", other.url), &set(&["k1"]));
        let site = Site::new("127.0.0.1", vec![there]).await;
        assert_eq!(verdict(&site.policy(&site.certificate), signed("k1")).await, "keys_unavailable", "{status}");
        assert_eq!((site.heads().len(), other.heads().len()), (1, 0));
    }
}
