//! A pace that outlives the runtimes in which calls wait for it.

use std::{
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use coze_core::Context;
use coze_ratelimit::{Decision, Pace, PaceFuture, PaceLevel, PacePermit, PaceRate, Policy};
use http::Request;
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};

/// Ten calls a second, of which one may wait.
fn pace() -> Pace {
    let rate = PaceRate::per_second(const { NonZeroU32::new(10).unwrap() });
    Pace::new().level(PaceLevel::new("app", rate)).max_waiting(1)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

fn ask(pace: &Pace) -> Decision<PacePermit, PaceFuture> {
    ask_at(pace, Instant::now())
}

fn ask_at(pace: &Pace, now: Instant) -> Decision<PacePermit, PaceFuture> {
    let (parts, ()) = Request::post("/v3/chat").body(()).expect("valid").into_parts();
    pace.decide(&parts, &Context::new(), now.into_std())
}

/// In a runtime of its own, so many calls one after the other: how long the last one waited.
fn calls(pace: &Pace, calls: usize) -> Duration {
    runtime().block_on(async {
        let mut began = Instant::now();
        for _ in 0..calls {
            began = Instant::now();
            match ask(pace) {
                Decision::Now(permit) => drop(permit.expect("room")),
                Decision::Wait(turn) | Decision::Later(turn) => drop(turn.await.expect("its turn")),
            }
        }
        began.elapsed()
    })
}

#[test]
fn calls_wait_in_one_runtime_after_the_other() {
    let pace = pace();
    // In the first one it ends before the task that would wake the call has run.
    runtime().block_on(async {
        assert!(matches!(ask(&pace), Decision::Now(Ok(_))));
        assert!(matches!(ask(&pace), Decision::Wait(_)));
    });
    for _ in 0..3 {
        let waited = calls(&pace, 3);
        assert!(waited < Duration::from_millis(150), "{waited:?}");
    }
    // In this one while the task runs.
    runtime().block_on(async {
        let Decision::Wait(turn) = ask(&pace) else { return };
        assert!(tokio::time::timeout(Duration::from_millis(1), turn).await.is_err());
    });
    assert!(calls(&pace, 3) < Duration::from_millis(150));
}

#[test]
fn a_call_that_would_wait_without_a_runtime_leaves_nothing_behind() {
    // Outside of a runtime the clock goes on, while a panic is printed: so all come at the same time.
    let (pace, now) = (pace(), Instant::now());
    assert!(matches!(ask_at(&pace, now), Decision::Now(Ok(_))));
    for _ in 0..2 {
        catch_unwind(AssertUnwindSafe(|| drop(ask_at(&pace, now)))).expect_err("there is no runtime");
    }
    assert!(calls(&pace, 3) < Duration::from_millis(150));
}
