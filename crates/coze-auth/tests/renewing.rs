//! The renewing source: one fetch for all, when a token is renewed, and what a failure of that means.

mod support;

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coze_auth::{Decision, Renewing, Token, TokenSource};
use coze_core::{Error, Kind, Retry};
use support::{
    log::Log,
    reason,
    tokens::{Endpoint, get, is_ready, lives, text},
};
use tokio::time::{Instant, advance, sleep};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_thousand_cold_callers_share_one_fetch() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let source = source.clone();
            tokio::spawn(async move { text(&source).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), "t1");
    }
    assert_eq!(endpoint.fetches(), 1);
    assert!(is_ready(&source), "warm from now on");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_does_not_end_the_fetch() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    drop(source.token());
    let Decision::Later(first) = source.token() else { panic!("there is no token yet") };
    tokio::select! {
        _ = first => panic!("too early"),
        () = sleep(SECOND / 2) => {}
    }
    let before = Instant::now();
    assert_eq!(text(&source).await, "t1");
    assert_eq!((before.elapsed(), endpoint.fetches()), (SECOND / 2, 1));
}

/// Lives, and how long before its end a token is renewed at the earliest; at the latest it is half of that.
const MARGINS: [(u64, u64); 3] = [(900, 60), (300, 30), (100, 10)];

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_ahead_of_its_end_while_it_still_serves() {
    for (life, margin) in MARGINS {
        let endpoint = Endpoint::default();
        let source = endpoint.source(lives(life));
        let asked = Instant::now();
        assert_eq!(text(&source).await, "t1");
        let due = asked + Duration::from_secs(life - margin);
        advance(due - Instant::now() - Duration::from_millis(1)).await;
        assert_eq!(text(&source).await, "t1");
        tokio::task::yield_now().await;
        assert_eq!(endpoint.fetches(), 1, "a fetch would have begun by now");
        advance(Duration::from_millis(margin * 500 + 2)).await;
        assert!(is_ready(&source), "nobody waits");
        assert_eq!(text(&source).await, "t1");
        sleep(SECOND / 2).await;
        assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t1", 2));
        sleep(SECOND).await;
        assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t2", 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_in_use_is_renewed_although_nobody_comes_when_it_is_due() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    for n in 1..=5 {
        let expected = format!("t{n}");
        assert_eq!(text(&source).await, expected);
        assert_eq!(text(&source).await, expected, "taken by somebody who did not wait for it");
        // A minute before the end of this one at most, so that the next one is there and this one over.
        sleep(Duration::from_secs(899)).await;
        assert!(is_ready(&source), "nobody waits");
    }
    assert_eq!(endpoint.fetches(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_uses_or_whose_source_is_gone_is_left_to_expire() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    assert_eq!(text(&source).await, "t1");
    sleep(Duration::from_secs(86_400)).await;
    assert_eq!(endpoint.fetches(), 1, "not taken again");
    assert_eq!((text(&source).await, text(&source).await), ("t2".into(), "t2".into()));
    drop(source);
    sleep(Duration::from_secs(86_400)).await;
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn many_sources_do_not_renew_all_at_once() {
    let mut times = Vec::new();
    for seed in 0..100 {
        let (asked, at) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let noted = at.clone();
        let source = Renewing::new(move || {
            let passed = u64::try_from(asked.elapsed().as_millis()).expect("short");
            noted.store(passed, Ordering::Relaxed);
            async { Ok(Token::bearer("t").expect("valid").with_lifetime(Duration::from_secs(900))) }
        });
        let source = source.seed(seed);
        get(&source).await.expect("a token");
        assert!(is_ready(&source));
        sleep(Duration::from_secs(880)).await;
        times.push(at.load(Ordering::Relaxed));
    }
    assert!(times.iter().all(|at| (840_000..=870_001).contains(at)), "{times:?}");
    let (first, last) = (times.iter().min().expect("some"), times.iter().max().expect("some"));
    assert!(last - first > 25_000, "{first} to {last}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_in_the_background_that_fails_is_tried_again_unless_it_is_refused_for_good() {
    for (kind, expected) in [(Kind::Unavailable, 4), (Kind::Unauthenticated, 2)] {
        let endpoint = Endpoint::default();
        let source = endpoint.source(move |n, token| match n {
            2 | 3 => Err(Error::new(kind, "refused")),
            _ => Ok(token.with_lifetime(Duration::from_secs(900))),
        });
        assert_eq!(text(&source).await, "t1");
        assert!(is_ready(&source));
        sleep(Duration::from_secs(895)).await;
        assert_eq!(endpoint.fetches(), expected);
        assert!(is_ready(&source), "it serves to its end");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_used() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(100));
    let asked = Instant::now();
    assert_eq!(text(&source).await, "t1");
    advance(asked + Duration::from_secs(100) - Instant::now()).await;
    assert!(!is_ready(&source));
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t2", 2));
}

#[tokio::test(start_paused = true)]
async fn a_token_without_an_end_serves_until_it_is_refused() {
    let endpoint = Endpoint::default();
    for life in [None, Some(Duration::MAX)] {
        let before = endpoint.fetches();
        let source = endpoint.source(move |_, token| Ok(life.map_or(token.clone(), |life| token.with_lifetime(life))));
        get(&source).await.expect("a token");
        advance(Duration::from_secs(365 * 86_400)).await;
        get(&source).await.expect("a token");
        assert_eq!(endpoint.fetches(), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_seems_to_be_over_serves_for_the_cooldown() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(0));
    assert_eq!(text(&source).await, "t1");
    advance(Duration::from_millis(999)).await;
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t1", 1));
    advance(Duration::from_millis(1)).await;
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t2", 2));
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_is_told_to_all_and_tried_again_after_the_cooldown() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(|n, token| match n {
        1 => Err(Error::new(Kind::Unavailable, "endpoint_down").with_message("out")),
        2 => Err(Error::new(Kind::Unauthenticated, "invalid_client")),
        _ => Ok(token),
    });
    let (one, two) = tokio::join!(get(&source), get(&source));
    for error in [one, two].map(|outcome| outcome.expect_err("the fetch failed")) {
        assert_eq!((error.kind(), error.reason(), error.message()), (Kind::Unavailable, "endpoint_down", "out"));
        assert_eq!((error.retry(), error.retry_after()), (Retry::Safe, Some(SECOND)), "the request did not run");
        assert!(error.source().is_some());
    }
    advance(Duration::from_millis(999)).await;
    let Decision::Now(Err(at_once)) = source.token() else { panic!("nobody waits for what just failed") };
    assert_eq!((at_once.reason(), at_once.retry_after()), ("endpoint_down", Some(Duration::from_millis(1))));
    assert_eq!(endpoint.fetches(), 1);

    advance(Duration::from_millis(1)).await;
    let refused = get(&source).await.expect_err("the second failure");
    assert_eq!((refused.reason(), refused.retry(), refused.retry_after()), ("invalid_client", Retry::Never, None));
    advance(SECOND).await;
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t3", 3));
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_leaves_a_valid_token_in_service() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(|n, token| match n {
        1 => Ok(token.with_lifetime(Duration::from_secs(100))),
        _ => Err(Error::new(Kind::Unavailable, "endpoint_down").with_retry_after(Duration::from_secs(7))),
    });
    let asked = Instant::now();
    assert_eq!(text(&source).await, "t1");
    // At the latest when it is due, half of a tenth of its life before its end.
    advance(Duration::from_secs(95)).await;
    let mut last = 1;
    while Instant::now() < asked + Duration::from_secs(99) {
        assert_eq!(text(&source).await, "t1");
        assert!(endpoint.fetches() <= last + 1);
        last = endpoint.fetches();
        sleep(Duration::from_millis(100)).await;
    }
    // A fetch takes a second and the cool-down after it another.
    assert!((2..=4).contains(&endpoint.fetches()), "{}", endpoint.fetches());
    sleep(SECOND).await;
    let error = get(&source).await.expect_err("expired by now");
    assert_eq!(error.reason(), "endpoint_down");
    assert!(error.retry_after().is_some_and(|left| left < Duration::from_secs(7)), "counted from now: {error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_says_how_long_to_wait_is_obeyed_up_to_a_minute() {
    for (asked, wait) in [(7, 7), (0, 1), (3600, 60)] {
        let endpoint = Endpoint::default();
        let source = endpoint.source(move |n, token| match n {
            1 => Err(Error::new(Kind::RateLimited, "busy").with_retry_after(Duration::from_secs(asked))),
            _ => Ok(token),
        });
        let wait = Duration::from_secs(wait);
        assert_eq!(get(&source).await.expect_err("busy").retry_after(), Some(wait));
        let at = Instant::now();
        for left in [wait, SECOND / 10] {
            advance(at + wait - left - Instant::now()).await;
            let Decision::Now(Err(error)) = source.token() else { panic!("too early") };
            assert_eq!((error.reason(), error.retry_after(), endpoint.fetches()), ("busy", Some(left), 1));
        }
        advance(SECOND / 10).await;
        assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t2", 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_at_once_is_tried_once_per_cooldown_however_many_callers() {
    let fetches = Arc::new(AtomicU64::new(0));
    let counted = fetches.clone();
    let source = Renewing::new(move || {
        let n = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            match n {
                0 => Ok(Token::bearer("t").expect("valid").with_lifetime(Duration::from_secs(100))),
                _ => Err(Error::new(Kind::Unavailable, "endpoint_down")),
            }
        }
    });
    get(&source).await.expect("a token");
    advance(Duration::from_secs(90)).await;
    // More often than a timer ticks, so that callers come before whoever waits for the time.
    for _ in 0..98_000 {
        assert!(is_ready(&source));
        advance(Duration::from_micros(100)).await;
    }
    let tries = fetches.load(Ordering::Relaxed);
    assert!((5..=11).contains(&tries), "{tries} in at most 10 seconds");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_to_be_renewed_comes_back_where_there_is_no_other_one() {
    for kind in [Kind::Unavailable, Kind::Unauthenticated] {
        let endpoint = Endpoint::default();
        let source = endpoint.source(move |n, token| match n {
            2 => Err(Error::new(kind, "endpoint_down")),
            _ => Ok(token.with_lifetime(Duration::from_secs(900))),
        });
        let first = get(&source).await.expect("a token").generation();
        for _ in 0..10 {
            source.renew(first);
            assert_eq!(text(&source).await, "t1");
        }
        assert_eq!(endpoint.fetches(), 2, "nor is it asked for before the cool-down is over");
        assert_eq!(source.reject(first), Some(Retry::Safe));
        assert!(!is_ready(&source), "what is refused does not come back");
        advance(SECOND).await;
        assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t3", 3));
        source.renew(first);
        assert!(is_ready(&source), "an older one is renewed already");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_refused_or_over_while_it_is_renewed_does_not_come_back() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(|n, token| match n {
        1 => Ok(token.with_lifetime(SECOND)),
        3 => Ok(token.with_lifetime(Duration::from_secs(900))),
        _ => Err(Error::new(Kind::Unavailable, "endpoint_down")),
    });
    source.renew(get(&source).await.expect("a token").generation());
    assert_eq!(reason(get(&source).await), Some("endpoint_down"), "it is over");
    advance(SECOND).await;
    let third = get(&source).await.expect("a token").generation();
    advance(SECOND).await;
    source.renew(third);
    let Decision::Later(waiting) = source.token() else { panic!("it is renewed") };
    source.reject(third);
    assert_eq!(reason(waiting.await), Some("endpoint_down"), "it is refused");
}

#[tokio::test(start_paused = true)]
async fn each_failed_fetch_warns_how_long_it_is_until_nobody_is_served() {
    let (log, _second, _guard) = Log::record();
    let endpoint = Endpoint::default();
    let source = endpoint.source(|n, token| match n {
        1 => Ok(token.with_lifetime(Duration::from_secs(100))),
        2 => Err(Error::new(Kind::Unavailable, "endpoint_down")),
        _ => {
            Err(Error::new(Kind::Unauthenticated, "refused").with_message(String::from("pat_0123456789abcdef is bad")))
        }
    });
    assert_eq!(text(&source).await, "t1");
    assert_eq!((is_ready(&source), log.count("WARN")), (true, 0));
    sleep(Duration::from_secs(99)).await;
    assert_eq!((endpoint.fetches(), log.count("WARN coze::token: no new access token: ")), (3, 2));
    assert_eq!(log.count("reason=\"endpoint_down\" is_final=false"), 1);
    assert_eq!(log.count("reason=\"refused\" is_final=true"), 1);
    assert!((1..10).any(|left| log.count(&format!("is_final=false left_seconds={left}\n")) == 1));
    sleep(SECOND).await;
    assert_eq!(reason(get(&source).await), Some("refused"));
    assert_eq!((log.count("is_final=true left_seconds=0\n"), log.count("0123456789")), (1, 0), "locked out");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_hangs_is_given_up() {
    let hangs = Renewing::new(std::future::pending::<Result<Token, Error>>).timeout(3 * SECOND);
    let before = Instant::now();
    let error = get(&hangs).await.expect_err("given up");
    assert_eq!((error.kind(), error.reason(), error.retry()), (Kind::Timeout, "token_timeout", Retry::Safe));
    assert_eq!(before.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_is_a_failure_like_others() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(|n, token| if n == 1 { panic!("a bug in the closure") } else { Ok(token) });
    let error = get(&source).await.expect_err("panicked");
    assert_eq!((error.kind(), error.reason()), (Kind::Internal, "token_fetch_ended"));
    advance(SECOND).await;
    assert_eq!(text(&source).await, "t2");
}

#[test]
fn a_runtime_that_ends_ends_the_fetch_and_nobody_waits_for_ever() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let first = runtime();
    let Decision::Later(waiting) = first.block_on(async { source.token() }) else { panic!("there is no token yet") };
    drop(first);
    assert_eq!(reason(runtime().block_on(waiting)), Some("token_fetch_ended"));
    assert_eq!(endpoint.fetches(), 0, "it never began");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_an_older_token_leaves_the_newer_one_alone() {
    let endpoint = Endpoint::default();
    let source = endpoint.source(lives(900));
    let old = get(&source).await.expect("a token").generation();
    for _ in 0..3 {
        assert_eq!(source.reject(old), Some(Retry::Safe), "again before the next is there, and after");
    }
    let new = get(&source).await.expect("a token").generation();
    assert!(new > old);
    assert_eq!(source.clone().reject(old), Some(Retry::Safe));
    assert_eq!((text(&source).await.as_str(), endpoint.fetches()), ("t2", 2));
}
