use std::time::Duration;

use coze_core::Error;
use coze_retry::{Budget, Change, Hedge, Standard};
use serde::Deserialize;

use super::value::{seconds, some_seconds};

/// How calls to the platform that failed are sent again.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// How often one call is sent again at most, whatever the table says. Default 8.
    pub tries: u32,
    /// Time for all attempts of a call together, until the head of its answer. Default 120 s.
    #[serde(rename = "deadline_seconds", deserialize_with = "seconds")]
    pub deadline: Duration,
    /// Retries for so many of a hundred calls of a tenant. Default 20.
    pub budget_percent: u32,
    /// And so many of them saved up. Default 10.
    pub budget_reserve: u32,
    /// A read whose answer is later than this is sent once more beside the first. Default never.
    #[serde(rename = "hedge_seconds", deserialize_with = "some_seconds")]
    pub hedge: Option<Duration>,
    /// Changes to rows of the decision table, which the documentation of coze-retry shows.
    pub rows: Vec<Row>,
}

/// A change to the rows of one name; what is not said stays as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Row {
    /// Their name.
    pub name: String,
    /// The wait; where it grows, the first one.
    #[serde(rename = "wait_seconds", deserialize_with = "some_seconds")]
    pub wait: Option<Duration>,
    /// How often a call is sent again because of them.
    pub tries: Option<u32>,
    /// What one retry costs, in per cent of one.
    pub cost: Option<u32>,
    /// Do they speak for leaving the platform alone for a while?
    pub marks: Option<bool>,
    /// Are people told?
    pub alerts: Option<bool>,
    /// Further codes of the platform that they are for.
    pub codes: Vec<i64>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 8,
            deadline: Duration::from_secs(120),
            budget_percent: 20,
            budget_reserve: 10,
            hedge: None,
            rows: Vec::new(),
        }
    }
}

impl Retry {
    /// The policy that does so.
    ///
    /// # Errors
    /// The change that the table refuses, and why.
    pub(crate) fn policy(&self) -> Result<Standard, (usize, Error)> {
        let policy = Standard::new()
            .tries(self.tries)
            .deadline(self.deadline)
            .budget(Budget::new(self.budget_percent, self.budget_reserve).accounts(256))
            .hedge(self.hedge.map(Hedge::after));
        self.rows.iter().enumerate().try_fold(policy, |policy, (index, row)| {
            let Row { name, wait, tries, cost, marks, alerts, codes } = row.clone();
            policy
                .change(&Change { row: name, wait, tries, cost, marks, alerts, codes })
                .map_err(|error| (index, error))
        })
    }
}
