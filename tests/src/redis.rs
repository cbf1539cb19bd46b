use std::{
    io::{Read, Write},
    marker::PhantomData,
    net::TcpStream,
    process::Command,
};

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

    /// Stops the process where it is (SIGSTOP): it takes connections and requests, and answers none, until the guard is dropped.
    ///
    /// # Panics
    /// If there is no such process any more.
    pub fn pause(&self) -> Paused<'_> {
        let mut line = TcpStream::connect(("127.0.0.1", self.0.port)).expect("it runs");
        line.write_all(b"INFO server\r\nQUIT\r\n").expect("it listens");
        let mut info = String::new();
        line.read_to_string(&mut info).expect("it answers");
        let id = info.lines().find_map(|line| line.strip_prefix("process_id:")).expect("it says so").to_owned();
        signal("STOP", &id);
        Paused { id, redis: PhantomData }
    }
}

/// A Redis that does not answer, until this is dropped.
#[derive(Debug)]
pub struct Paused<'a> {
    id: String,
    redis: PhantomData<&'a Redis>,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        signal("CONT", &self.id);
    }
}

fn signal(name: &str, id: &str) {
    let status = Command::new("kill").args(["-s", name, id]).status().expect("there is a kill");
    assert!(status.success(), "{name} reaches process {id}");
}
