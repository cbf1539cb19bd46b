use crate::{
    part,
    server::{Launch, Server, folder},
};

/// A Redis of the test's own: empty, in memory, on a free port of the loopback interface. It ends when this is dropped.
#[derive(Debug)]
pub struct Redis(Server);

impl Redis {
    /// Starts one, and returns when it accepts connections. Blocks the thread for some milliseconds.
    ///
    /// # Panics
    /// If `redis-server` is missing ([`part`]) or does not start.
    #[must_use]
    pub fn start() -> Self {
        let program = part("redis-server").display().to_string();
        Self(Server::start(|port| {
            let folder = folder();
            let port = port.to_string();
            let options = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
            let command = [program.as_str()].into_iter().chain(options).map(str::to_owned).collect();
            Launch { command, folder, signal: "KILL", ready: "Ready to accept connections", user: None }
        }))
    }

    /// Where it is, as Redis clients want it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.0.port)
    }
}
