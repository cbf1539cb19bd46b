//! The decision table: every row, and what stands above the rows.

use std::{fmt, sync::Mutex, time::Duration};

use crate::support::*;
use coze_core::{Error, Kind, Limit, Retry};
use coze_retry::{Backoff, Budget, Change, Policy, RetryLayer, Row, Wait, When};
use http::StatusCode;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

const SECONDS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0];
const SHORT: [f64; 5] = [0.1, 0.2, 0.4, 0.8, 1.6];

/// The waits after a failure that never ends.
async fn waits_of(policy: impl Policy + Clone, failure: impl Fn() -> Answer) -> Vec<f64> {
    let arrived = Mutex::new(Vec::new());
    let inner = service_fn(|_: Req| {
        arrived.lock().expect("not poisoned").push(Instant::now());
        std::future::ready(failure())
    });
    let _ = RetryLayer::new(policy).layer(inner).oneshot(get()).await;
    let arrived = arrived.into_inner().expect("not poisoned");
    let times: Vec<_> = arrived.iter().map(|time| *time - arrived[0]).collect();
    waits(&times).iter().map(Duration::as_secs_f64).collect()
}

/// The same with the deadline and the budget out of the way.
async fn row_of(failure: impl Fn() -> Answer) -> Vec<f64> {
    waits_of(policy().deadline(None).budget(Budget::new(0, 100)), failure).await
}

async fn row_of_kind(kind: Kind) -> Vec<f64> {
    row_of(|| fail(Error::new(kind, "x"))).await
}

/// A code as coze-errmap classifies it.
async fn row_of_code(platform_code: i64, kind: Kind) -> Vec<f64> {
    row_of(|| fail(code(Error::new(kind, "x"), platform_code))).await
}

#[tokio::test(start_paused = true)]
async fn a_status_has_its_row() {
    assert_eq!(row_of(|| status(429, &[])).await, SECONDS[..5]);
    assert_eq!(row_of(|| status(502, &[])).await, [1.5, 1.5]);
    assert_eq!(row_of(|| status(503, &[])).await, [1.5, 1.5]);
    assert_eq!(row_of(|| status(504, &[])).await, [3.0]);
    for other in [400, 401, 404, 408, 409, 425, 500, 501, 505, 599] {
        assert_eq!(row_of(|| status(other, &[])).await, [0.0; 0], "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_has_its_row() {
    for kind in Kind::ALL {
        let expected: &[f64] = match kind {
            Kind::RateLimited | Kind::Overloaded => &SECONDS[..5],
            Kind::Upstream | Kind::Unavailable => &[1.5, 1.5],
            Kind::Timeout => &[3.0],
            _ => &[],
        };
        assert_eq!(row_of_kind(*kind).await, expected, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_of_the_platform_has_its_row() {
    assert_eq!(row_of_code(4009, Kind::Overloaded).await, SECONDS[..5]);
    for minute in [4020, 702_112_103, 702_093_018] {
        assert_eq!(row_of_code(minute, Kind::RateLimited).await, SECONDS, "{minute}");
    }
    assert!(SECONDS.iter().sum::<f64>() > 60.0, "a minute is over then");
    for short in [4013, 702_112_101] {
        assert_eq!(row_of_code(short, Kind::Upstream).await, SHORT, "{short}");
    }
    for short in [5000, 702_112_106] {
        assert_eq!(row_of_code(short, Kind::Unavailable).await, SHORT, "{short}");
    }
    assert_eq!(row_of_code(702_112_113, Kind::Overloaded).await, SHORT);
    let risk = || fail(code(Error::new(Kind::PermissionDenied, "x").with_retry(Retry::Safe), 4102));
    assert_eq!(row_of(risk).await, [5.0]);
    for (other, kind) in
        [(4008, Kind::Quota), (4011, Kind::Billing), (4016, Kind::Conflict), (4101, Kind::PermissionDenied)]
    {
        assert_eq!(row_of_code(other, kind).await, [0.0; 0], "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_sent_again_soon() {
    let unsent = || fail(Error::new(Kind::Unavailable, "platform_unreachable").with_retry(Retry::Safe));
    assert_eq!(row_of(unsent).await, SHORT[..3]);
    let (answer, _) = send(policy(), chat(), vec![unsent(), ok()]).await;
    assert_eq!(outcome(&answer), "200", "whatever it is");
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_once_and_at_once() {
    let refused = || fail(Error::new(Kind::Unauthenticated, "token_invalid").with_retry(Retry::Safe));
    assert_eq!(row_of(refused).await, [0.0]);
    assert_eq!(row_of_kind(Kind::Unauthenticated).await, [0.0; 0], "there is no other token");
}

#[tokio::test(start_paused = true)]
async fn the_platform_without_requests_left_gets_a_pause_and_people_an_alert() {
    let events = Events::record();
    let raw = || status(429, &[("x-ratelimit-remaining", "0")]);
    assert_eq!(row_of(raw).await, [60.0, 60.0]);
    let alerts = events.take().into_iter().filter(|line| line.contains("coze::alert"));
    let expected = "WARN coze::alert: the platform takes no more requests for now alert=\"exhausted\" pause_ms=60000";
    assert_eq!(alerts.collect::<Vec<_>>(), [expected; 3]);

    let typed = || fail(Error::new(Kind::RateLimited, "too_many_requests").with_limit(platform_limit(0)));
    assert_eq!(row_of(typed).await, [60.0, 60.0]);
    let some_left = || fail(Error::new(Kind::RateLimited, "too_many_requests").with_limit(platform_limit(1)));
    assert_eq!(row_of(some_left).await, SECONDS[..5]);
    assert_eq!(row_of(|| status(429, &[("x-ratelimit-remaining", "1")])).await, SECONDS[..5]);
    assert_eq!(row_of(|| status(503, &[("x-ratelimit-remaining", "0")])).await, [1.5, 1.5], "no limit refused it");
    let unavailable = || fail(Error::new(Kind::Unavailable, "x").with_limit(platform_limit(0)));
    assert_eq!(row_of(unavailable).await, [1.5, 1.5]);
}

#[tokio::test(start_paused = true)]
async fn our_own_limiter_is_waited_for_as_it_says_and_alarms_nobody() {
    let events = Events::record();
    let limit = Limit { name: "app", ..platform_limit(0) };
    let refused = || Error::new(Kind::RateLimited, "app").with_limit(limit);
    assert_eq!(row_of(|| fail(refused().with_retry_after(seconds(0.25)))).await, [0.25, 0.25, 0.4, 0.8, 1.6]);
    assert_eq!(row_of(|| fail(refused())).await, SECONDS[..5], "a limiter that does not know when");
    assert!(!events.take().iter().any(|line| line.contains("coze::alert")));
}

#[tokio::test(start_paused = true)]
async fn who_says_when_to_come_back_is_obeyed() {
    let first =
        |value: &'static str| async move { row_of(|| status(503, &[("retry-after", value)])).await.first().copied() };
    assert_eq!(first("7").await, Some(7.0));
    assert_eq!(first("Mon, 23 Nov 2026 12:00:09 GMT").await, Some(9.0));
    assert_eq!(first("soon").await, Some(1.5), "garbage says nothing, so the row does");
    assert_eq!(first("60").await, Some(60.0));
    assert_eq!(first("61").await, None, "longer than the cap: coming back earlier would be in vain");
    assert_eq!(first("99999999999999999999").await, None);
    let twice = || status(503, &[("retry-after", "2"), ("retry-after", "5")]);
    assert_eq!(row_of(twice).await, [5.0, 5.0], "the longest of two");
    let exhausted = || status(429, &[("x-ratelimit-remaining", "0"), ("retry-after", "5")]);
    assert_eq!(row_of(exhausted).await, [5.0, 5.0], "instead of the pause");
    let typed = || fail(Error::new(Kind::Unavailable, "x").with_retry_after(seconds(4.0)));
    assert_eq!(row_of(typed).await, [4.0, 4.0]);
    let short_cap = policy().retry_after_cap(seconds(4.0));
    assert_eq!(waits_of(short_cap, || status(503, &[("retry-after", "5")])).await, [0.0; 0]);
}

#[tokio::test(start_paused = true)]
async fn who_says_now_is_not_hammered() {
    for now in ["0", "Mon, 23 Nov 2026 11:59:59 GMT"] {
        assert_eq!(row_of(|| status(429, &[("retry-after", now)])).await, SHORT, "{now}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_is_none_of_ours_may_have_run() {
    let broken = || Err("the connection broke".into());
    assert_eq!(row_of(broken).await, [1.5, 1.5]);
    assert_eq!(outcome(&send(policy(), chat(), vec![broken()]).await.0), "the connection broke");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_found_behind_others() {
    #[derive(Debug)]
    struct Outer(Error);
    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the call failed")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let behind = || Err(Outer(Error::new(Kind::Timeout, "x")).into());
    assert_eq!(row_of(behind).await, [3.0]);
}

#[tokio::test(start_paused = true)]
async fn what_would_fail_the_same_way_is_never_sent_again() {
    let never = || fail(code(Error::new(Kind::RateLimited, "x").with_retry(Retry::Never), 5000));
    assert_eq!(row_of(never).await, [0.0; 0]);
}

#[tokio::test(start_paused = true)]
async fn each_row_counts_its_own_tries_and_all_together_are_bounded() {
    let (answer, arrived) = send(
        policy(),
        get(),
        vec![status(502, &[]), status(504, &[]), status(503, &[]), status(429, &[]), status(502, &[])],
    )
    .await;
    assert_eq!(outcome(&answer), "502", "the third of its row");
    assert_eq!(waits(&arrived), [1.5, 3.0, 1.5, 1.0].map(seconds));
    assert_eq!(waits_of(policy().tries(3), || status(429, &[])).await, SECONDS[..3]);
    assert_eq!(waits_of(policy().tries(0), || status(429, &[])).await, [0.0; 0]);
}

#[tokio::test(start_paused = true)]
async fn chance_makes_a_wait_longer() {
    let waits = waits_of(policy().random(|| 0.5), || status(429, &[])).await;
    assert_eq!(waits, [1.15, 2.3, 4.6, 9.2, 16.0]);
}

#[tokio::test(start_paused = true)]
async fn the_table_is_data() {
    let slow = Backoff { base: seconds(2.0), jitter: 0.0, cap: seconds(3.0) };
    let rows = [
        Row::new("early", When::Status(StatusCode::TOO_EARLY), Wait::Backoff(slow), 3),
        Row::new("gateway_error", When::Kind(Kind::Upstream), Wait::Fixed(Duration::ZERO), 1),
    ];
    let policy = policy().rows(rows.into_iter().chain(Row::DEFAULTS.iter().copied()));
    assert_eq!(waits_of(policy.clone(), || status(425, &[])).await, [2.0, 3.0, 3.0]);
    assert_eq!(waits_of(policy.clone(), || status(502, &[])).await, [0.0], "the first row that matches");
    assert_eq!(waits_of(policy.clone(), || status(504, &[])).await, [3.0]);
    assert_eq!(waits_of(policy.rows([]), || status(504, &[])).await, [0.0; 0]);
}

fn change(row: &str) -> Change {
    Change { row: row.to_owned(), ..Change::default() }
}

#[tokio::test(start_paused = true)]
async fn a_configuration_changes_the_rows_of_a_name() {
    let waits_of = |change: Change, failure: fn() -> Answer| {
        let policy = policy().deadline(None).budget(Budget::new(0, 6)).change(&change).expect("a row");
        waits_of(policy, failure)
    };
    let busy = || status(429, &[]);
    assert_eq!(waits_of(change("rate_limited"), busy).await, SECONDS[..5], "what is not said stays");
    assert_eq!(waits_of(Change { tries: Some(2), ..change("rate_limited") }, busy).await, SECONDS[..2]);
    let half = Change { wait: Some(seconds(0.5)), tries: Some(3), ..change("rate_limited") };
    assert_eq!(waits_of(half, busy).await, [0.5, 1.0, 2.0], "a wait that grows goes on growing");
    assert_eq!(waits_of(Change { cost: Some(300), ..change("rate_limited") }, busy).await, SECONDS[..2], "6 are there");
    assert_eq!(waits_of(Change { wait: Some(seconds(0.5)), ..change("timeout") }, || status(504, &[])).await, [0.5]);
    let further = || fail(code(Error::new(Kind::Upstream, "x"), 720_701_013));
    assert_eq!(waits_of(change("server_error"), further).await, [1.5, 1.5]);
    let codes = || Change { codes: vec![720_701_013, 4009], ..change("server_error") };
    assert_eq!(waits_of(codes(), further).await, SHORT);
    assert_eq!(
        waits_of(codes(), || fail(code(Error::new(Kind::Overloaded, "x"), 4009))).await,
        SHORT,
        "it had another row"
    );
}

#[tokio::test(start_paused = true)]
async fn a_configuration_says_what_is_marked_and_who_is_told() {
    let events = Events::record();
    let told = Change { alerts: Some(true), ..change("gateway_error") };
    let silent = Change { alerts: Some(false), ..change("exhausted") };
    let policy = policy().change(&told).and_then(|policy| policy.change(&silent)).expect("rows").tries(1);
    waits_of(policy.clone(), || status(429, &[("x-ratelimit-remaining", "0")])).await;
    assert!(!events.take().iter().any(|line| line.contains("coze::alert")));
    waits_of(policy, || status(503, &[])).await;
    assert!(events.take().iter().any(|line| line.contains("alert=\"gateway_error\"")));
}

#[test]
fn a_change_that_makes_no_sense_is_refused() {
    let refused = |change: Change| policy().change(&change).expect_err("refused").message().to_owned();
    let message = refused(change("rate-limited"));
    assert!(message.contains("`rate-limited`") && message.contains("minute_limit, risk_control"), "{message}");
    refused(Change { codes: vec![1; 300], ..change("timeout") });
    let full = 256 - Row::DEFAULTS.len();
    assert!(policy().change(&Change { codes: vec![1; full], ..change("timeout") }).is_ok());
    refused(Change { codes: vec![1; full + 1], ..change("timeout") });
}
