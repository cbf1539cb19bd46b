use std::net::SocketAddr;

use coze_core::{Context, Error, Kind};
use http::request::Parts;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request,
    metadata::MetadataValue,
    transport::{Channel, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::stack::{bot, in_stack};

/// Serves the stack around a tonic server; a token in the metadata stands for the signature.
async fn serve() -> SocketAddr {
    let auth = |parts: &mut Parts, context: &Context| match parts.headers.get("x-token") {
        Some(token) if token == "good" => {
            context.bot.get_or_init(bot);
            Ok(())
        }
        Some(_) => Err(Error::new(Kind::Unauthenticated, "unknown_key")),
        None => {
            Err(Error::new(Kind::Unauthenticated, "missing_credentials").with_message("the header x-token is missing"))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(in_stack(auth)).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn client(address: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("a valid URL");
    HealthClient::new(endpoint.connect().await.expect("it listens"))
}

fn check(headers: &[(&'static str, &'static str)]) -> Request<HealthCheckRequest> {
    let mut request = Request::new(HealthCheckRequest { service: String::new() });
    for (name, value) in headers {
        request.metadata_mut().insert(*name, MetadataValue::from_static(value));
    }
    request
}

#[tokio::test]
async fn a_good_call_is_answered() {
    let mut client = client(serve().await).await;
    let answer = client.check(check(&[("x-token", "good")])).await.expect("serving");
    assert_eq!(answer.into_inner().status, 1);
}

#[tokio::test]
async fn a_refusal_is_a_status_with_details() {
    let mut client = client(serve().await).await;
    let status = client.check(check(&[])).await.expect_err("no token");
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the header x-token is missing"));
    let details = String::from_utf8_lossy(status.details()).into_owned();
    assert!(details.contains("MISSING_CREDENTIALS") && details.contains("ErrorInfo"), "{details}");

    let status = client.check(check(&[("x-token", "good"), ("x-tenant-id", "t2")])).await.expect_err("not its tenant");
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_stream_keeps_its_place_until_it_ends() {
    let address = serve().await;
    let (mut first, mut second) = (client(address).await, client(address).await);
    let token = [("x-token", "good")];
    let mut stream = first.watch(check(&token)).await.expect("serving").into_inner();
    assert!(stream.message().await.expect("no error").is_some());

    let status = second.check(check(&token)).await.expect_err("the bot's only place is taken");
    assert_eq!(status.code(), Code::ResourceExhausted);

    drop(stream);
    // The server learns of it in its own time.
    while let Err(status) = second.check(check(&token)).await {
        assert_eq!(status.code(), Code::ResourceExhausted);
    }
}
