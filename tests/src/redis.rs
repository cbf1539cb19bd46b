use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use crate::{
    part,
    server::{Launch, Server, folder, free_port},
};

/// A server that takes longer for an answer is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for an answer that is to come, and the pause in between.
const LOOKS: usize = 4000;
const PAUSE: Duration = Duration::from_millis(5);

/// A Redis of the test's own: empty, in memory, on a free port of the loopback interface. It ends when this is dropped.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    options: Vec<String>,
}

impl Redis {
    /// Starts one, and returns when it accepts connections. Blocks the thread for some milliseconds.
    ///
    /// # Panics
    /// If `redis-server` is missing ([`part`]) or does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further options, such as `["--replicaof", "127.0.0.1 6379"]`.
    ///
    /// # Panics
    /// As [`Redis::start`].
    #[must_use]
    pub fn start_with(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Self { server: Server::start(|port| launch(port, &options)), options }
    }

    /// Starts a sentinel that watches this server as `mymaster`, and by itself decides that another one takes over.
    ///
    /// # Panics
    /// As [`Redis::start`].
    #[must_use]
    pub fn sentinel(&self) -> Self {
        let program = part("redis-server").display().to_string();
        let watched = self.port();
        let server = Server::start(|port| {
            let folder = folder();
            let file = folder.join("sentinel.conf");
            let settings = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {watched} 1\n\
                 sentinel down-after-milliseconds mymaster 300\nsentinel failover-timeout mymaster 1000\n"
            );
            std::fs::write(&file, settings).expect("the folder is writable");
            let command = vec![program.clone(), file.display().to_string(), "--sentinel".to_owned()];
            Launch { command, folder, signal: "KILL", ready: "+monitor master", user: None }
        });
        Self { server, options: Vec::new() }
    }

    /// Kills it, if it runs, and starts it anew and empty on the same port.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        let port = self.server.port;
        self.signal("KILL");
        // The port is free when its process is gone, which may take a moment.
        self.server = Server::start_at(port, |port| launch(port, &self.options));
    }

    /// Sends its process a signal: `STOP` and `CONT` pause and resume it, `KILL` ends it at once.
    ///
    /// # Panics
    /// If there is no `kill`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.server.pid().to_string()]).status();
        // It may be gone already.
        let _ = status.expect("there is kill");
    }

    /// Stops the process where it is (SIGSTOP): it takes connections and requests, and answers none, until the guard is dropped.
    pub fn pause(&self) -> Paused<'_> {
        self.signal("STOP");
        Paused(self)
    }

    /// Lets it execute a command, and returns the answer as it comes: all lines of an array or text.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> String {
        command(self.port(), words).expect("it answers")
    }

    /// Waits until a command's answer is right, because other servers have to agree. Blocks the thread.
    ///
    /// # Panics
    /// If that takes longer than twenty seconds.
    pub fn wait_for(&self, words: &[&str], is_right: impl Fn(&str) -> bool) {
        for _ in 0..LOOKS {
            if command(self.port(), words).is_ok_and(|answer| is_right(&answer)) {
                return;
            }
            std::thread::park_timeout(PAUSE);
        }
        panic!("{words:?} has no right answer: {:?}", command(self.port(), words));
    }

    /// Its port of the loopback interface.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Where it is, as Redis clients want it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }
}

/// A Redis that does not answer, until this is dropped.
#[derive(Debug)]
pub struct Paused<'a>(&'a Redis);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.signal("CONT");
    }
}

/// Three masters of a cluster, each with a third of the slots, and a replica of the first one.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters, then the replica.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the four, and returns when they agree.
    ///
    /// # Panics
    /// As [`Redis::start`].
    #[must_use]
    pub fn start() -> Self {
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--cluster-require-full-coverage"];
        // The bus is on a free port of its own: the usual one, 10 000 above, may not exist.
        let node = |_| {
            let bus = free_port().to_string();
            Redis::start_with(&[&options[..], &["no", "--cluster-port", &bus]].concat())
        };
        let nodes: Vec<_> = (0..4).map(node).collect();
        for (node, [from, to]) in nodes.iter().zip([["0", "5460"], ["5461", "10922"], ["10923", "16383"]]) {
            assert_eq!(node.command(&["CLUSTER", "ADDSLOTSRANGE", from, to]), "+OK");
        }
        for node in &nodes[1..] {
            let bus = node.options.last().expect("the bus");
            let port = node.port().to_string();
            assert_eq!(nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]), "+OK");
        }
        let all = |answer: &str| answer.matches("connected").count() >= 4 && !answer.contains("handshake");
        nodes.iter().for_each(|node| node.wait_for(&["CLUSTER", "NODES"], all));
        let first = nodes[0].command(&["CLUSTER", "MYID"]);
        let first = first.lines().last().expect("an id").to_owned();
        nodes[3].wait_for(&["CLUSTER", "REPLICATE", &first], |answer| answer == "+OK");
        nodes.iter().for_each(|node| node.wait_for(&["CLUSTER", "INFO"], |info| info.contains("cluster_state:ok")));
        nodes[3].wait_for(&["INFO", "replication"], |info| info.contains("master_link_status:up"));
        Self { nodes }
    }

    /// The URLs of all nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }
}

fn launch(port: u16, options: &[String]) -> Launch {
    let program = part("redis-server").display().to_string();
    let port = port.to_string();
    let usual = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let command = [program.as_str()].into_iter().chain(usual).map(str::to_owned).chain(options.to_vec()).collect();
    Launch { command, folder: folder(), signal: "KILL", ready: "Ready to accept connections", user: None }
}

/// One command on a connection of its own (RESP2).
fn command(port: u16, words: &[&str]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        write!(request, "${}\r\n{word}\r\n", word.len()).expect("a text takes everything");
    }
    stream.write_all(request.as_bytes())?;
    let mut lines = Vec::new();
    answer(&mut BufReader::new(stream), &mut lines)?;
    Ok(lines.join("\n"))
}

fn answer(stream: &mut impl BufRead, lines: &mut Vec<String>) -> std::io::Result<()> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    match (line.get(..1), line.get(1..).and_then(|number| number.parse::<usize>().ok())) {
        (Some("$"), Some(length)) => {
            let mut text = vec![0; length + 2];
            stream.read_exact(&mut text)?;
            text.truncate(length);
            lines.push(String::from_utf8_lossy(&text).into_owned());
        }
        (Some("*"), Some(count)) => (0..count).try_for_each(|_| answer(stream, lines))?,
        _ => lines.push(line.to_owned()),
    }
    Ok(())
}
