use std::{
    fs,
    os::unix::fs::chown,
    path::Path,
    process::{Command, Output},
};

use crate::{
    part,
    server::{Launch, Server, User, folder},
};

/// A PostgreSQL of the test's own: an empty database on a free port of the loopback interface, without care for a crash of the
/// machine, which makes it fast. Its superuser needs no password; roles that a test makes log in with theirs. It ends when this
/// is dropped.
#[derive(Debug)]
pub struct Postgres(Server);

impl Postgres {
    /// Starts one, and returns when it accepts connections. Blocks the thread for about a second.
    ///
    /// # Panics
    /// If `initdb` or `postgres` is missing ([`part`]) or fails.
    #[must_use]
    pub fn start() -> Self {
        let (initdb, postgres) = (part("initdb"), part("postgres").display().to_string());
        let user = other_user();
        Self(Server::start(|port| {
            let folder = folder();
            init(&initdb, &folder, user);
            let data = folder.join("data").display().to_string();
            let settings = [
                format!("port={port}"),
                "listen_addresses=127.0.0.1".to_owned(),
                "unix_socket_directories=".to_owned(),
                "fsync=off".to_owned(),
                "synchronous_commit=off".to_owned(),
                "full_page_writes=off".to_owned(),
                // Passwords prove the same, and take none of the time that SCRAM is meant to take.
                "password_encryption=md5".to_owned(),
            ];
            let settings = settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]);
            let command = [postgres.clone(), "-D".to_owned(), data].into_iter().chain(settings).collect();
            // QUIT: end at once, without a checkpoint.
            Launch { command, folder, signal: "QUIT", ready: "ready to accept connections", user }
        }))
    }

    /// Where it is, as PostgreSQL clients want it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.0.port)
    }
}

/// Makes the empty database.
fn init(initdb: &Path, folder: &Path, user: Option<User>) {
    if let Some(User { uid, gid }) = user {
        chown(folder, Some(uid), Some(gid)).expect("root may give folders away");
    }
    let mut command = Command::new(initdb);
    command.arg("-D").arg(folder.join("data")).current_dir(folder);
    command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    if let Some(user) = user {
        user.run(&mut command);
    }
    let Output { status, stderr, .. } = command.output().expect("initdb was found");
    if !status.success() {
        let _ = fs::remove_dir_all(folder);
        panic!("initdb failed ({status}): {}", String::from_utf8_lossy(&stderr));
    }
    let trusted = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 md5\n";
    fs::write(folder.join("data/pg_hba.conf"), trusted).expect("the data folder was made");
}

/// PostgreSQL refuses to run as root: there its package's user takes over.
fn other_user() -> Option<User> {
    let id = |options: &[&str]| -> u32 {
        let output = Command::new("id").args(options).output().expect("there is an id command");
        let number = String::from_utf8_lossy(&output.stdout);
        number.trim().parse().unwrap_or_else(|_| panic!("`id {}` found no such user", options.join(" ")))
    };
    (id(&["-u"]) == 0).then(|| User { uid: id(&["-u", "postgres"]), gid: id(&["-g", "postgres"]) })
}
