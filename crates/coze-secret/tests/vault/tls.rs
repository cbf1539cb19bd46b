//! Vault behind TLS.

use std::sync::Arc;

use coze_secret::{SecretBytes, Vault};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer},
};

use crate::support::reason;

/// A server with a certificate of its own: where it is, and the certificate as PEM text.
async fn server(name: &str) -> (String, String) {
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
    let url = format!("https://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us goes away here.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"data\":{\"key\":\"v\"}}").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (url, cert.pem())
}

#[tokio::test(start_paused = true)]
async fn only_the_authority_that_is_given_is_trusted() {
    let token = SecretBytes::new("t");
    let (url, pem) = server("127.0.0.1").await;
    let (_, foreign) = server("127.0.0.1").await;
    let vault = Vault::new(&url).expect("valid");
    let trusting = vault.clone().certificate_authority(pem.as_bytes()).expect("a certificate");
    assert!(trusting.unwrap(&token).await.expect("trusted").get("key").is_some_and(|key| key.matches(b"v")));
    assert_eq!(reason(vault.unwrap(&token)).await, "vault_unreachable", "the public ones do not know it");
    let other = vault.certificate_authority(foreign.as_bytes()).expect("a certificate");
    assert_eq!(reason(other.unwrap(&token)).await, "vault_unreachable", "another one does not either");

    let (url, pem) = server("vault.example.com").await;
    let vault = Vault::new(&url).expect("valid").certificate_authority(pem.as_bytes()).expect("a certificate");
    assert_eq!(reason(vault.unwrap(&token)).await, "vault_unreachable", "a certificate of another name");
}
