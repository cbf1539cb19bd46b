use std::{fmt, future::Future, io, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::Instant};

use crate::{
    Callback, Challenge, Config, Counts, Fault, InvalidFault, Pushed, Recorded, Webhook, push, server, state::Shared,
};

/// A simulated platform that runs in a task. It stops when it is dropped.
pub struct Sim {
    shared: Arc<Shared>,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Sim {
    /// Starts a platform on [`Config::listen`].
    ///
    /// # Errors
    /// If it cannot listen there.
    pub async fn start(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let addr = listener.local_addr()?;
        let shared = shared(config, addr);
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(server::serve(shared.clone(), listener, shutdown));
        Ok(Self { shared, addr, stop: Some(stop), task })
    }

    /// Where it is reached, `http://host:port` without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops it: no further connections, and 2 s for the answers under way.
    pub async fn shutdown(mut self) {
        drop(self.stop.take());
        let _ = (&mut self.task).await;
    }

    /// Lets something go wrong.
    ///
    /// # Errors
    /// If the fault is not possible, or too many wait already.
    pub fn fault(&self, fault: Fault) -> Result<(), InvalidFault> {
        self.shared.lock().faults.add_all(vec![fault])
    }

    /// Forgets the faults that wait; says how many there were.
    pub fn clear_faults(&self) -> usize {
        self.shared.lock().faults.clear()
    }

    /// What it was sent and how it answered.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts()
    }

    /// The last requests, the oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.lock().record.requests()
    }

    /// Forgets counts and requests.
    pub fn clear_counts(&self) {
        self.shared.lock().record.clear();
    }

    /// Ends all access tokens that OAuth gave out; static ones stay.
    pub fn expire_tokens(&self) {
        self.shared.lock().expire_tokens();
    }

    /// Says for the person who typed `user_code` that the device may. False if no device waits with it.
    pub fn approve_device(&self, user_code: &str) -> bool {
        self.shared.lock().decide(user_code, true)
    }

    /// Says for the person who typed `user_code` that the device may not. False if no device waits with it.
    pub fn deny_device(&self, user_code: &str) -> bool {
        self.shared.lock().decide(user_code, false)
    }

    /// Sends a signed message to a bot.
    ///
    /// # Errors
    /// If the URL or a header is not valid. A bot that does not answer is no error, see [`Pushed::error`].
    pub async fn push_webhook(&self, webhook: &Webhook) -> io::Result<Pushed> {
        push::webhook(webhook).await
    }

    /// Sends a callback to a bot, again while it is not accepted.
    ///
    /// # Errors
    /// As [`Sim::push_webhook`].
    pub async fn push_callback(&self, callback: &Callback) -> io::Result<Pushed> {
        push::callback(&self.shared, callback).await
    }

    /// Asks a callback URL whether it is alive.
    ///
    /// # Errors
    /// As [`Sim::push_webhook`].
    pub async fn push_challenge(&self, challenge: &Challenge) -> io::Result<Pushed> {
        push::challenge(&self.shared, challenge).await
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // After a shutdown the task has ended and this does nothing.
        self.task.abort();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Serves a platform on `listener` until `shutdown`, then gives answers under way 2 s. [`Config::listen`] is not looked at.
///
/// # Errors
/// If the listener has no address.
pub async fn serve(config: Config, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let shared = shared(config, listener.local_addr()?);
    server::serve(shared, listener, shutdown).await;
    Ok(())
}

fn shared(config: Config, addr: SocketAddr) -> Arc<Shared> {
    Shared::new(config, format!("http://{addr}"), Instant::now())
}
