//! The demo, as the program plays it.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Stdio},
};

use coze_tests::Http;
use http::Request;
use serde_json::Value;
use tempfile::TempDir;

const STEPS: [&str; 25] = [
    "streamed answer",
    "polled answer",
    "event stream",
    "duplicate message",
    "one conversation",
    "bad signature",
    "unknown bot",
    "unknown tenant",
    "replayed callback",
    "resent event",
    "user: 1 a second",
    "app: 50 a second",
    "bot: 10 at once",
    "HTTP 429",
    "HTTP 502",
    "HTTP 503",
    "HTTP 504",
    "504 on a chat",
    "4009 in HTTP 200",
    "4011 in HTTP 200",
    "expired token",
    "cut stream",
    "cut event stream",
    "cancelled caller",
    "drained shutdown",
];

/// The demo in a process of its own, ended when this is dropped, with a folder for its temporary files.
struct Demo {
    child: Child,
    out: BufReader<ChildStdout>,
    folder: TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_bot-backend"))
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", folder.path())
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program is there");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out, folder }
    }

    /// Standard output up to the line that is `last`.
    fn read_to(&mut self, last: &str) -> String {
        let lines = self.out.by_ref().lines().map(|line| line.expect("text") + "\n");
        lines.take_while(|line| line.trim_end() != last).collect()
    }

    /// Exit code, and what is left of standard output and standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).expect("text");
        self.child.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
        let code = self.child.wait().expect("ended").code();
        assert_eq!(std::fs::read_dir(self.folder.path()).expect("the folder").count(), 0, "nothing is left behind");
        (code, out, err)
    }

    fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(sent.expect("there is a kill").success());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn all_steps_go_as_they_should_and_are_told_as_one_object() {
    let (code, out, err) = Demo::start(&["--json"]).end();
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let report: Value = serde_json::from_str(&out).expect("one JSON object and nothing else");
    assert_eq!(report["ok"], true);
    let steps = report["steps"].as_array().expect("a list");
    let names: Vec<_> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
    assert_eq!(names, STEPS);
    for step in steps {
        assert_eq!(step["ok"], true, "{step}");
        assert!(step["expected"].is_string() && step["got"].is_string() && step["ms"].is_u64(), "{step}");
    }
    let requests: u64 = steps.iter().filter_map(|step| step["platform_requests"].as_u64()).sum();
    let totals = &report["totals"];
    assert_eq!((&totals["steps"], &totals["ok"], &totals["failed"]), (&25.into(), &25.into(), &0.into()));
    assert_eq!(totals["platform_requests"], requests);
}

#[test]
fn a_step_that_fails_is_named_with_what_was_expected_and_makes_the_exit_code_1() {
    // Where it matters the step's own fault comes first, so only those who look at a finished chat fail.
    let fault = r#"{"route":"/v3/chat/message/list","kind":{"code":{"code":4011}}}"#;
    let (code, out, err) = Demo::start(&["--fault", fault]).end();
    assert_eq!(code, Some(1), "{out}");
    assert_eq!(err, "bot-backend: steps that failed: 5\n");
    assert!(!out.contains('\u{1b}'), "no colours where no terminal is");
    let widest = out.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(120), "{out}");
    let failed: BTreeSet<_> = STEPS
        .into_iter()
        .filter(|step| out.lines().any(|line| line.contains(&format!("  {step} ")) && line.ends_with("  FAILED")))
        .collect();
    assert_eq!(failed, ["polled answer", "bot: 10 at once", "HTTP 502", "HTTP 503", "HTTP 504"].into());
    assert!(out.contains("expected of the bot: 200 \"Hooli: hi\"\n"), "{out}");
    assert!(out.contains("\n5 FAILED: 25 steps, "), "{out}");
}

#[tokio::test]
async fn everything_goes_on_running_until_the_program_is_asked_to_stop() {
    let mut demo = Demo::start(&["--serve"]);
    let out = demo.read_to("The next chat goes wrong:");
    assert!(out.contains("All went as it should"), "{out}");
    let curl = out.lines().find(|line| line.contains("X-Signature: ")).expect("a command");
    let words: Vec<_> = curl.split('\'').collect();
    let url = words[0].split(' ').find(|word| word.starts_with("http://")).expect("a URL");
    let (name, value) = words[1].split_once(": ").expect("a header");
    let http = Http::new();
    let request = Request::post(url).header(name, value).body(words[3].to_owned().into()).expect("valid");
    let answer = http.send(request).await;
    assert_eq!((answer.status.as_u16(), answer.json()["data"]["content"].as_str()), (200, Some("Acme: hi")));

    let counts = out.lines().find_map(|line| line.split("what it was asked").nth(1)).expect("a line");
    let counts = http.get(counts.trim().split(',').next().expect("a URL")).await;
    assert_eq!(counts.json()["routes"]["POST /v3/chat"]["requests"], 2, "of the last step, and this one");
    let (bot, _) = url.split_once("/webhook").expect("a path");
    assert_eq!(http.get(&format!("{bot}/readyz")).await.status, 200);

    demo.terminate();
    assert_eq!(demo.end().0, Some(0));
}

#[test]
fn a_demo_that_is_broken_off_leaves_nothing_behind() {
    let mut demo = Demo::start(&[]);
    demo.read_to("The three limits");
    demo.terminate();
    let (code, _, err) = demo.end();
    assert_eq!((code, err.as_str()), (Some(1), "bot-backend: stopped before the last step\n"));
}

#[test]
fn a_fault_that_is_none_is_refused_with_what_is_wrong_with_it() {
    let (code, _, err) = Demo::start(&["--fault", r#"{"kind":"explode"}"#]).end();
    assert_eq!(code, Some(2));
    assert!(err.contains("unknown variant `explode`"), "{err}");
}
