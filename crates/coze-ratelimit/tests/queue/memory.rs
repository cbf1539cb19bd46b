use std::time::Duration;

use coze_ratelimit::{Dead, End, MemoryQueue, Queue};
use tokio::time::{Instant, advance};

use crate::{either, job};

fn queue() -> MemoryQueue {
    MemoryQueue::new(4).tries(3)
}

#[tokio::test(start_paused = true)]
async fn it_does_what_every_queue_does() {
    either::jobs_come_out_as_they_went_in(queue()).await;
    either::a_job_is_known_while_it_waits_runs_and_was_done(queue()).await;
    either::a_full_queue_refuses_with_a_time_to_come_back(queue()).await;
    either::what_is_no_job_is_refused(queue()).await;
    either::a_failed_job_is_tried_again_behind_the_others_and_given_up_in_the_end(queue()).await;
    either::a_job_whose_worker_is_gone_goes_to_the_next(queue()).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_when_it_was_said_to_and_not_before() {
    let queue = queue().with_lease(Duration::from_secs(7));
    queue.push(job("a")).await.expect("there is room");
    let began = Instant::now();
    queue.take().await.expect("there is one");
    queue.take().await.expect("after the lease");
    assert_eq!(began.elapsed().as_secs(), 7);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_kept_with_its_reason() {
    let queue = queue().with_lease(Duration::from_secs(1));
    for id in ["a", "b", "c"] {
        queue.push(job(id)).await.expect("there is room");
    }
    let taken = queue.take().await.expect("there is one");
    queue.finish(&taken, End::Dead("hopeless")).await.expect("in memory");
    for attempt in 1..=3 {
        let (b, c) = (queue.take().await.expect("b"), queue.take().await.expect("c"));
        assert_eq!((b.attempt, c.attempt), (attempt, attempt));
        advance(Duration::from_secs(1)).await;
    }
    queue.push(job("d")).await.expect("there is room");
    assert_eq!(queue.take().await.expect("the others are gone").job, job("d"));
    let dead = |id: &str, reason: &str| Dead { job: job(id), reason: reason.to_owned() };
    assert_eq!(queue.dead(), [dead("a", "hopeless"), dead("b", "job_lost"), dead("c", "job_lost")]);
}

#[tokio::test(start_paused = true)]
async fn the_dead_and_the_ids_of_the_done_are_bounded() {
    let queue = queue();
    for n in 0..1100 {
        queue.push(job(&n.to_string())).await.expect("there is room");
        let taken = queue.take().await.expect("there is one");
        queue.finish(&taken, End::Dead("hopeless")).await.expect("in memory");
    }
    assert_eq!((queue.dead().len(), queue.dead()[0].job.id.as_str()), (1000, "100"));
    for n in 0..9 {
        queue.push(job(&n.to_string())).await.expect("there is room");
        let taken = queue.take().await.expect("there is one");
        queue.finish(&taken, End::Done).await.expect("in memory");
    }
    queue.push(job("4")).await.expect("forgotten, so it is new");
    assert_eq!(queue.len(), 1);
    for n in 5..9 {
        queue.push(job(&n.to_string())).await.expect("known");
    }
    assert_eq!(queue.len(), 1, "the last four are known");
}

#[tokio::test(start_paused = true)]
async fn every_waiting_worker_gets_a_job_and_none_gets_one_twice() {
    let queue = MemoryQueue::new(100);
    let workers: Vec<_> = (0..50)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.take().await.expect("there is one").job.id })
        })
        .collect();
    for n in 0..50 {
        queue.push(job(&n.to_string())).await.expect("there is room");
    }
    let mut seen = Vec::new();
    for worker in workers {
        seen.push(worker.await.expect("it ended").parse::<u32>().expect("a number"));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn it_does_not_show_what_a_job_is_about() {
    assert_eq!(format!("{:?}", job("a")), r#"Job { id: "a", bytes: 7 }"#);
}
