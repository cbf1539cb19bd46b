//! What every queue does. Each function takes an empty one with 3 tries and room for 4.

use coze_ratelimit::{End, Job, MAX_ID, MAX_PAYLOAD, Pushed, Queue};

use crate::job;

pub(crate) async fn jobs_come_out_as_they_went_in(queue: impl Queue) {
    for id in ["a", "b", "c"] {
        assert_eq!(queue.push(job(id)).await.expect("there is room"), Pushed::Queued);
    }
    for id in ["a", "b", "c"] {
        let taken = queue.take().await.expect("there is one");
        assert_eq!((taken.job.clone(), taken.attempt), (job(id), 1));
        queue.finish(&taken, End::Done).await.expect("reachable");
    }
}

pub(crate) async fn a_job_is_known_while_it_waits_runs_and_was_done(queue: impl Queue) {
    queue.push(job("a")).await.expect("there is room");
    assert_eq!(queue.push(job("a")).await.expect("reachable"), Pushed::Known, "waiting");
    let taken = queue.take().await.expect("there is one");
    assert_eq!(queue.push(job("a")).await.expect("reachable"), Pushed::Known, "running");
    queue.finish(&taken, End::Done).await.expect("reachable");
    assert_eq!(queue.push(job("a")).await.expect("reachable"), Pushed::Known, "done");
    queue.push(job("b")).await.expect("there is room");
    assert_eq!(queue.take().await.expect("there is one").job, job("b"), "and nothing of a");
}

pub(crate) async fn a_full_queue_refuses_with_a_time_to_come_back(queue: impl Queue) {
    for id in ["a", "b", "c", "d"] {
        queue.push(job(id)).await.expect("there is room");
    }
    let taken = queue.take().await.expect("there is one");
    let refused = queue.push(job("e")).await.expect_err("what runs takes room too");
    assert_eq!(refused.reason(), "queue_full");
    assert!(refused.retry_after().is_some());
    assert_eq!(queue.push(job("b")).await.expect("known before full"), Pushed::Known);
    queue.finish(&taken, End::Done).await.expect("reachable");
    assert_eq!(queue.push(job("e")).await.expect("there is room again"), Pushed::Queued);
}

pub(crate) async fn what_is_no_job_is_refused(queue: impl Queue) {
    let large = Job { id: "a".to_owned(), payload: vec![0; MAX_PAYLOAD + 1].into() };
    for bad in [job(""), job(&"x".repeat(MAX_ID + 1)), large] {
        assert_eq!(queue.push(bad).await.expect_err("invalid").reason(), "job_invalid");
    }
    let largest = Job { id: "\u{0}令牌".repeat(73), payload: vec![0xff; MAX_PAYLOAD].into() };
    queue.push(largest.clone()).await.expect("just at the bound");
    assert_eq!(queue.take().await.expect("there is one").job, largest, "byte for byte");
}

pub(crate) async fn a_failed_job_is_tried_again_behind_the_others_and_given_up_in_the_end(queue: impl Queue) {
    queue.push(job("a")).await.expect("there is room");
    queue.push(job("b")).await.expect("there is room");
    for (id, attempt) in [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 3)] {
        let taken = queue.take().await.expect("there is one");
        assert_eq!((taken.job.id.as_str(), taken.attempt), (id, attempt));
        queue.finish(&taken, End::Again("bad_day")).await.expect("reachable");
    }
    assert_eq!(queue.push(job("a")).await.expect("reachable"), Pushed::Queued, "whoever sends it again wants it done");
    let taken = queue.take().await.expect("there is one");
    assert_eq!((taken.job.id.as_str(), taken.attempt), ("a", 1));
    queue.finish(&taken, End::Dead("hopeless")).await.expect("reachable");
}

/// The lease is to be short.
pub(crate) async fn a_job_whose_worker_is_gone_goes_to_the_next(queue: impl Queue) {
    queue.push(job("a")).await.expect("there is room");
    let lost = queue.take().await.expect("there is one");
    let taken = queue.take().await.expect("after the lease");
    assert_eq!((taken.job.clone(), taken.attempt), (job("a"), 2));
    queue.finish(&lost, End::Dead("late")).await.expect("reachable");
    queue.finish(&lost, End::Done).await.expect("reachable");
    let third = queue.take().await.expect("what the late one said changed nothing");
    assert_eq!((third.job.clone(), third.attempt), (job("a"), 3));
    queue.push(job("b")).await.expect("there is room");
    let next = queue.take().await.expect("there is one");
    assert_eq!(next.job, job("b"), "the last try is not followed by another");
}
