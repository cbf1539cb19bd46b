//! The listening side: connections with bounds, and a shutdown that finishes what was accepted.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{config::Http, idle::Idle};

/// Bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// Time for what the end of a drain cuts off to put itself in order.
const CLEANUP: Duration = Duration::from_secs(6);

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    connections: TaskTracker,
    /// Accept nothing more, finish what runs.
    drain: CancellationToken,
    /// End what still runs.
    end: CancellationToken,
}

impl Server {
    /// Serves the routes until [`Server::stop`].
    ///
    /// HTTP/1.1 only: it stands behind a proxy that ends TLS, and a protocol less is an attack surface less.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(crate) async fn start(listen: SocketAddr, http: &Http, routes: Router) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let server = Self {
            address: listener.local_addr()?,
            connections: TaskTracker::new(),
            drain: CancellationToken::new(),
            end: CancellationToken::new(),
        };
        let accept = accept(
            listener,
            http.clone(),
            routes,
            server.connections.clone(),
            server.drain.clone(),
            server.end.clone(),
        );
        server.connections.spawn(accept);
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, waits for the connections and the `tasks` at most for `drain`, then ends them. Says whether all came
    /// to their end by themselves.
    pub(crate) async fn stop(&self, drain: Duration, tasks: &TaskTracker, end_tasks: &CancellationToken) -> bool {
        self.drain.cancel();
        self.connections.close();
        tasks.close();
        let all = || async { tokio::join!(self.connections.wait(), tasks.wait()) };
        if timeout(drain, all()).await.is_ok() {
            return true;
        }
        tracing::warn!(
            connections = self.connections.len(),
            answers = tasks.len(),
            "the drain timeout is over, what still runs is ended"
        );
        // First the answers, so that their callers are told.
        end_tasks.cancel();
        let _ = timeout(CLEANUP / 2, all()).await;
        self.end.cancel();
        let _ = timeout(CLEANUP, all()).await;
        false
    }
}

async fn accept(
    listener: TcpListener,
    http: Http,
    routes: Router,
    connections: TaskTracker,
    drain: CancellationToken,
    end: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(http.connections.get().min(Semaphore::MAX_PERMITS)));
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.expect("nobody closes the semaphore");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            () = drain.cancelled() => return,
            next = next => next,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Such as too many open files: other connections must end first.
                tracing::warn!(%error, "no connection could be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (routes, drain, end) = (routes.clone(), drain.clone(), end.clone());
        let http = http.clone();
        connections.spawn(async move {
            tokio::select! {
                () = serve(stream, &http, routes, drain) => {}
                () = end.cancelled() => {}
            }
            drop(slot);
        });
    }
}

async fn serve(stream: TcpStream, http: &Http, routes: Router, drain: CancellationToken) {
    // Small answers do not wait for more; without it they are only slower.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Idle::new(stream, http.idle_timeout));
    let service = TowerToHyperService::new(routes.map_request(|request: Request<Incoming>| request.map(Body::new)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(http.header_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Callers who go away, send no HTTP or nothing at all: nothing to be done about.
        tracing::debug!(error = %error, "a connection ended with an error");
    }
}
