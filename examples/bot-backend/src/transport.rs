//! The way to the platform: a pool of connections, with a bound on each wait.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use coze_auth::Endpoint;
use coze_core::{BoxError, Error, Kind, Retry};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;
use tower_service::Service;

use crate::config::Platform;

/// Connections that wait for the next call, per host, and how long.
const POOL: (usize, Duration) = (32, Duration::from_secs(60));

/// The way to what is asked seldom: for tokens and keys.
pub(crate) type Transport = BoxCloneSyncService<Request<Full<Bytes>>, Response<Incoming>, Error>;

/// Where the platform gives out tokens.
///
/// # Errors
/// When the platform's address is none.
pub(crate) fn endpoint(platform: &Platform) -> Result<Endpoint<Transport>, Error> {
    let base = platform.url.join("/").map_err(|e| Error::new(Kind::Internal, "platform_url").with_source(e))?;
    Endpoint::new(&base.to_string(), seldom(platform))
}

/// A way that shares no connections with the platform's calls.
pub(crate) fn seldom(platform: &Platform) -> Transport {
    BoxCloneSyncService::new(transport(platform.connect_timeout, platform.silence_timeout))
}

/// A service that sends requests to the host they name. It knows `http` and `https`, HTTP/1.1 and HTTP/2.
///
/// It fails with `platform_unreachable` when no connection came about within `connect`, or one was closed before the request
/// was sent (either way it certainly did not run), `platform_silent` when the head of the answer did not come within `silence`, and `platform_connection` when the connection
/// broke.
pub(crate) fn transport<B>(
    connect: Duration,
    silence: Duration,
) -> impl Service<
    Request<B>,
    Response = Response<Incoming>,
    Error = Error,
    Future: Future<Output = Result<Response<Incoming>, Error>> + Send + 'static,
> + Clone
+ Send
+ Sync
+ 'static
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect));
    tcp.enforce_http(false);
    let tls = HttpsConnectorBuilder::new()
        // Named, because a second provider among the dependencies would make the choice a panic.
        .with_provider_and_webpki_roots(rustls::crypto::aws_lc_rs::default_provider())
        .expect("the provider has the default protocol versions")
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(tcp);
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(POOL.0)
        .pool_idle_timeout(POOL.1)
        .pool_timer(TokioTimer::new())
        .build(tls);
    tower::service_fn(move |request: Request<B>| {
        let answer = client.request(request);
        async move {
            match timeout(silence, answer).await {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(error)) if is_unsent(&error) => Err(Error::new(Kind::Unavailable, "platform_unreachable")
                    .with_message("the platform cannot be reached")
                    .with_retry(Retry::Safe)
                    .with_source(error)),
                Ok(Err(error)) => Err(Error::new(Kind::Unavailable, "platform_connection")
                    .with_message("the connection to the platform broke")
                    .with_source(error)),
                Err(_) => {
                    Err(Error::new(Kind::Timeout, "platform_silent")
                        .with_message("the platform did not answer in time"))
                }
            }
        }
    })
}

/// Did the platform certainly look at nothing of the request? hyper gives one back that came to a connection that was closed already,
/// and sends it again itself if the connection was from the pool; so this remains for a new one. A server of HTTP/2 says which
/// it did not look at: it refuses the stream, or says goodbye with the last one that it knows (RFC 9113, section 8.7); h2 reports a
/// goodbye only to streams behind that one.
fn is_unsent(error: &legacy::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
    let h2 = cause.and_then(|cause| cause.source()?.downcast_ref::<h2::Error>()).filter(|error| error.is_remote());
    let is_unread = h2.is_some_and(|error| error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
    error.is_connect() || cause.is_some_and(hyper::Error::is_canceled) || is_unread
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http_body_util::Empty;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const REFUSED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    const CANCELED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
    const GOODBYE_BEFORE: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const GOODBYE_BEHIND: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        (listener, address)
    }

    /// What becomes of a request over HTTP/2 to whose head (of stream 1) the server says this, and closes.
    async fn told(answer: &'static [u8]) -> legacy::Error {
        let (listener, address) = listen().await;
        let server = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.expect("a connection");
            tcp.read_exact(&mut [0; 24]).await.expect("the preface");
            tcp.write_all(SETTINGS).await.expect("open");
            loop {
                let mut head = [0; 9];
                tcp.read_exact(&mut head).await.expect("a frame");
                let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                tcp.read_exact(&mut vec![0; length]).await.expect("its payload");
                if head[3] == 1 {
                    break;
                }
            }
            tcp.write_all(answer).await.expect("open");
            tcp.shutdown().await.expect("open");
            // Until the client has read it and gone.
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        });
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
        let request = Request::post(format!("http://{address}/v3/chat")).body(Empty::new()).expect("valid");
        let error = client.request(request).await.expect_err("no answer");
        drop(client);
        server.await.expect("no panic");
        error
    }

    #[tokio::test]
    async fn a_request_that_the_server_says_it_did_not_look_at_is_unsent() {
        assert!(is_unsent(&told(REFUSED).await), "REFUSED_STREAM");
        assert!(is_unsent(&told(GOODBYE_BEFORE).await), "GOAWAY before it");
    }

    #[tokio::test]
    async fn a_request_that_may_have_run_is_not() {
        for answer in [CANCELED, GOODBYE_BEHIND, &[]] {
            let error = told(answer).await;
            assert!(!is_unsent(&error), "{answer:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn of_a_server_that_closes_only_one_that_had_the_request_may_have_run_it() {
        let send = |address| {
            let mut service = transport(Duration::from_secs(5), Duration::from_secs(5));
            let request = Request::post(format!("http://{address}/v3/chat")).body(Full::from("hi")).expect("valid");
            async move { service.call(request).await.expect_err("no answer") }
        };
        let (listener, address) = listen().await;
        let read = async {
            let (mut tcp, _): (TcpStream, _) = listener.accept().await.expect("a connection");
            let mut seen = Vec::new();
            while !seen.ends_with(b"hi") {
                tcp.read_buf(&mut seen).await.expect("the request");
            }
        };
        let (error, ()) = tokio::join!(send(address), read);
        assert_eq!((error.reason(), error.retry()), ("platform_connection", Retry::IfIdempotent));
        drop(listener);
        let error = send(address).await;
        assert_eq!((error.reason(), error.retry()), ("platform_unreachable", Retry::Safe));
    }

    #[tokio::test]
    async fn a_connection_of_the_pool_that_was_closed_costs_a_request_nothing() {
        let (listener, address) = listen().await;
        let mut service = transport(Duration::from_secs(5), Duration::from_secs(5));
        let request = || Request::post(format!("http://{address}/v3/chat")).body(Full::from("hi")).expect("valid");
        for _ in 0..3 {
            let answer = async {
                let (mut tcp, _) = listener.accept().await.expect("a connection of its own");
                let mut seen = Vec::new();
                while !seen.ends_with(b"hi") {
                    tcp.read_buf(&mut seen).await.expect("the request");
                }
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("open");
            };
            let (response, ()) = tokio::join!(service.call(request()), answer);
            assert_eq!(response.expect("an answer").status(), 200);
        }
    }
}
