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

/// Was nothing of the request sent? hyper gives one back that came to a connection that was closed already, and sends it again
/// itself if the connection was from the pool; so this remains for a new one.
fn is_unsent(error: &legacy::Error) -> bool {
    let cause = || error.source()?.downcast_ref::<hyper::Error>();
    error.is_connect() || cause().is_some_and(hyper::Error::is_canceled)
}
