use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::part;

/// An SDK that polls for ever is stopped after this.
const LONGEST: Duration = Duration::from_secs(120);

/// A published SDK of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    /// `cozepy`.
    Python,
    /// `@coze/api`.
    Js,
}

/// One call that a driver made through its SDK.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Which call.
    pub name: String,
    /// Did the SDK return, rather than throw?
    pub ok: bool,
    /// What it returned or threw, in the driver's words.
    pub got: Value,
}

/// Runs the driver `tests/sdk/python/NAME.py` or `tests/sdk/js/NAME.mjs` against the platform at `url`. A driver gets the URL
/// and the settings (JSON) as its arguments and prints `{"calls":[{"name","ok","got"}]}`.
///
/// # Panics
/// If the SDK is missing ([`part`]), or the driver fails, takes longer than two minutes or prints something else.
pub async fn run_sdk(sdk: Sdk, name: &str, url: &str, settings: &Value) -> Vec<Call> {
    let (interpreter, script) = match sdk {
        Sdk::Python => (part("python3"), format!("sdk/python/{name}.py")),
        Sdk::Js => (part("node"), format!("sdk/js/{name}.mjs")),
    };
    let mut command = Command::new(interpreter);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(&script)).arg(url).arg(settings.to_string());
    match sdk {
        // Without bytecode, which would land beside the drivers.
        Sdk::Python => command.env("PYTHONPATH", part("sdk-python")).env("PYTHONDONTWRITEBYTECODE", "1"),
        Sdk::Js => command.env("COZE_SDK", part("sdk-js")),
    };
    // A proxy between us and the loopback interface would answer in the platform's stead.
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LONGEST, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{script} did not end in {LONGEST:?}")).expect("it was found");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} failed ({}): {words}", output.status);
    let report = serde_json::from_slice(&output.stdout).ok().and_then(|report| calls(&report));
    report.unwrap_or_else(|| panic!("{script} printed no report: {}\n{words}", String::from_utf8_lossy(&output.stdout)))
}

/// The calls of a report, if it is one.
fn calls(report: &Value) -> Option<Vec<Call>> {
    let one = |call: &Value| {
        let name = call["name"].as_str()?.to_owned();
        Some(Call { name, ok: call["ok"].as_bool()?, got: call["got"].clone() })
    };
    report["calls"].as_array()?.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_read_and_anything_else_is_none() {
        let report = json!({"calls": [{"name": "chat", "ok": true, "got": "hi"}]});
        assert_eq!(calls(&report), Some(vec![Call { name: "chat".into(), ok: true, got: json!("hi") }]));
        for bad in [json!({}), json!({"calls": [{"name": "chat"}]}), json!({"calls": "none"})] {
            assert_eq!(calls(&bad), None);
        }
    }
}
