use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// A starting server that says nothing for so long is stuck.
const SILENCE: Duration = Duration::from_secs(60);
/// How much of what a failed server said is shown.
const KEPT_LINES: usize = 30;
/// Another process may take the free port before the server does.
const TRIES: usize = 5;

/// Runs a server, and ends it and removes its folder as soon as stdin is closed. The system closes that when this process
/// ends, in whatever way, so not even a killed test leaves a server behind. The shell lets go of its output so that the
/// end of the output is the end of the server.
const KEEPER: &str = r#"
    folder=$1 signal=$2
    shift 2
    "$@" 2>&1 &
    echo "$!" > "$folder/keeper.pid"
    exec >/dev/null 2>&1
    trap '' HUP INT TERM
    cat
    kill -s "$signal" $!
    wait
    rm -rf "$folder"
"#;

/// A port of the loopback interface on which nobody listens at this moment.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("the loopback interface has a free port");
    listener.local_addr().expect("it is bound").port()
}

/// How to start a server.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// The server's folder, removed with it.
    pub(crate) folder: PathBuf,
    /// What ends the server at once.
    pub(crate) signal: &'static str,
    /// What it prints when it is ready.
    pub(crate) ready: &'static str,
    /// Whose rights it has, where not our own.
    pub(crate) user: Option<User>,
}

/// A user of the system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// Gives the process this user's rights.
    pub(crate) fn run(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// An empty folder of a server, which removes it when it ends.
pub(crate) fn folder() -> PathBuf {
    tempfile::Builder::new().prefix("coze-server-").tempdir().expect("the temporary folder is writable").keep()
}

/// A running server. It ends when this is dropped, and with this process at the latest.
#[derive(Debug)]
pub(crate) struct Server {
    keeper: Child,
    pub(crate) port: u16,
    folder: PathBuf,
}

impl Server {
    /// Starts a server on a free port, and returns when it is ready.
    pub(crate) fn start(launch: impl Fn(u16) -> Launch) -> Self {
        let mut log = String::new();
        for _ in 0..TRIES {
            let port = free_port();
            match Self::try_start(&launch(port), port) {
                Ok(server) => return server,
                Err(said) => log = said,
            }
        }
        panic!("the server did not start; it said:\n{log}");
    }

    /// Starts a server on a port that was its own a moment ago, and returns when it is ready.
    pub(crate) fn start_at(port: u16, launch: impl Fn(u16) -> Launch) -> Self {
        for _ in 0..TRIES {
            if let Ok(server) = Self::try_start(&launch(port), port) {
                return server;
            }
        }
        panic!("the server did not start again");
    }

    /// The id of the server's process.
    pub(crate) fn pid(&self) -> u32 {
        let pid = std::fs::read_to_string(self.folder.join("keeper.pid")).expect("the keeper wrote it");
        pid.trim().parse().expect("a number")
    }

    /// # Errors
    /// The end of what the server said before it ended, or before the time was up.
    fn try_start(launch: &Launch, port: u16) -> Result<Self, String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", KEEPER, "keeper"]).arg(&launch.folder).arg(launch.signal).args(&launch.command);
        command.current_dir(&launch.folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(user) = launch.user {
            user.run(&mut command);
        }
        let mut keeper = command.spawn().expect("there is a shell");
        let output = keeper.stdout.take().expect("piped");
        let server = Self { keeper, port, folder: launch.folder.clone() };
        let lines = lines(output);
        let mut said = VecDeque::new();
        // The limit is on silence: a slow machine may take longer as long as the server goes on.
        while let Ok(line) = lines.recv_timeout(SILENCE) {
            if line.contains(launch.ready) {
                return Ok(server);
            }
            said.push_back(line);
            if said.len() > KEPT_LINES {
                said.pop_front();
            }
        }
        Err(Vec::from(said).join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // Nothing to do where it fails: the keeper ends by itself.
        let _ = self.keeper.wait();
    }
}

/// The lines of a stream, read to its end even when nobody listens any more, so that the writer never blocks.
fn lines(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(script: &str) -> Launch {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Launch { command, folder: folder(), signal: "KILL", ready: "ready", user: None }
    }

    #[test]
    fn a_server_that_ends_before_it_is_ready_is_an_error_with_its_words_and_leaves_no_folder() {
        let launch = launch("echo starting; echo port taken >&2; exit 1");
        assert_eq!(Server::try_start(&launch, 1).expect_err("it ended"), "starting\nport taken");
        assert!(!launch.folder.exists());
    }

    #[test]
    fn a_server_goes_on_after_it_is_ready_and_ends_with_its_guard() {
        let launch = launch("echo ready; trap '' TERM; while :; do read -r line; done < /dev/zero");
        let server = Server::try_start(&launch, 1).expect("ready");
        assert!(launch.folder.exists());
        drop(server);
        assert!(!launch.folder.exists(), "the keeper waited for its end and cleaned up");
    }

    #[test]
    fn a_free_port_can_be_bound() {
        assert!(TcpListener::bind(("127.0.0.1", free_port())).is_ok());
    }
}
