//! The servers that tests start are real, and end with the test, however that ends.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    time::Duration,
};

use coze_tests::{Postgres, Redis};

/// A connection to the server at the end of `scheme://[user@]host:port[/database]`.
fn connect(url: &str) -> TcpStream {
    let address = url.split(['/', '@']).find(|part| part.starts_with("127.0.0.1:")).expect("an address");
    let stream = TcpStream::connect(address).expect("it accepts connections");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a valid timeout");
    stream
}

/// Waits until the other side is gone, which is when it closes the connection.
fn assert_ends(mut stream: TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "the server is still there"),
    }
}

#[test]
fn a_redis_answers_and_ends_with_its_guard() {
    let redis = Redis::start();
    let mut stream = connect(&redis.url());
    stream.write_all(b"PING\r\n").expect("connected");
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"+PONG\r\n");
    drop(redis);
    assert_ends(stream);
}

#[test]
fn a_postgres_answers_and_ends_with_its_guard() {
    let postgres = Postgres::start();
    let mut stream = connect(&postgres.url());
    // SSLRequest of the wire protocol; `N` is PostgreSQL's no.
    stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).expect("connected");
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"N");
    drop(postgres);
    assert_ends(stream);
}

#[test]
fn several_servers_run_side_by_side() {
    let (one, two) = (Redis::start(), Redis::start());
    assert_ne!(one.url(), two.url());
    drop(one);
    connect(&two.url());
}

#[test]
fn a_server_ends_when_its_test_panics() {
    let mut stream = None;
    let test = AssertUnwindSafe(|| {
        let redis = Redis::start();
        stream = Some(connect(&redis.url()));
        panic!("the test failed");
    });
    assert!(catch_unwind(test).is_err());
    assert_ends(stream.expect("it was connected"));
}

/// Runs only as the child of the test below, which kills it.
#[test]
fn child() {
    if env::var_os("COZE_TESTS_CHILD").is_none() {
        return;
    }
    let redis = Redis::start();
    println!("{}", redis.url());
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_server_ends_when_its_test_is_killed() {
    let mut child = Command::new(env::current_exe().expect("we run"))
        .args(["--exact", "child", "--nocapture"])
        .env("COZE_TESTS_CHILD", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("we can run ourselves");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let url =
        output.lines().map_while(Result::ok).find_map(|line| Some(line.get(line.find("redis://")?..)?.to_owned()));
    let stream = connect(&url.expect("the child prints it"));
    child.kill().expect("it runs");
    child.wait().expect("it was killed");
    assert_ends(stream);
}
