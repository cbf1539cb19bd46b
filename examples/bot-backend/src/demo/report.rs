//! What became of the steps.

use std::time::Duration;

use serde_json::{Value, json};

use super::step::Step;

/// A step that was played.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) step: Step,
    /// What the bot did.
    pub(super) bot: String,
    /// What the platform saw.
    pub(super) platform: String,
    /// How often the platform was asked.
    pub(super) requests: usize,
    pub(super) took: Duration,
    pub(super) ok: bool,
}

/// All that were played.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) steps: Vec<Played>,
}

impl Report {
    /// Whether all went as they should.
    pub(super) fn ok(&self) -> bool {
        self.failed() == 0
    }

    pub(super) fn failed(&self) -> usize {
        self.steps.iter().filter(|played| !played.ok).count()
    }

    /// How often the platform was asked.
    pub(super) fn requests(&self) -> usize {
        self.steps.iter().map(|played| played.requests).sum()
    }

    pub(super) fn took(&self) -> Duration {
        self.steps.iter().map(|played| played.took).sum()
    }

    pub(super) fn json(&self) -> Value {
        let steps: Vec<_> = self
            .steps
            .iter()
            .map(|played| {
                let Played { step, bot, platform, requests, took, ok } = played;
                json!({
                    "name": step.name,
                    "sent": step.sent,
                    "expected": format!("{}; platform: {}", step.bot, step.platform),
                    "got": format!("{bot}; platform: {platform}"),
                    "platform_requests": requests,
                    "ms": took.as_millis(),
                    "ok": ok,
                })
            })
            .collect();
        json!({
            "ok": self.ok(),
            "steps": steps,
            "totals": {
                "steps": self.steps.len(),
                "ok": self.steps.len() - self.failed(),
                "failed": self.failed(),
                "platform_requests": self.requests(),
                "ms": self.took().as_millis(),
            },
        })
    }
}
