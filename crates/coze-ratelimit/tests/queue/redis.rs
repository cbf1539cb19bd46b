use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use coze_core::Error;
use coze_ratelimit::{End, Pushed, Queue, RedisQueue, Worker};
use coze_tests::Redis;
use redis::{Client, aio::ConnectionManager, aio::ConnectionManagerConfig};
use tokio::sync::Notify;

use crate::{either, job};

async fn connect(redis: &Redis) -> ConnectionManager {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(Duration::from_millis(500)))
        .set_response_timeout(Some(Duration::from_millis(500)))
        .set_number_of_retries(1);
    let client = Client::open(redis.url()).expect("a URL");
    ConnectionManager::new_with_config(client, config).await.expect("it runs")
}

fn queue(connection: &ConnectionManager, name: &str) -> RedisQueue<ConnectionManager> {
    RedisQueue::new(connection.clone(), name, 4).tries(3).poll(Duration::from_millis(5))
}

async fn flush(connection: &ConnectionManager) {
    redis::cmd("FLUSHALL").exec_async(&mut connection.clone()).await.expect("it runs");
}

#[tokio::test]
async fn it_does_what_every_queue_does() {
    let redis = Redis::start();
    let connection = connect(&redis).await;
    either::jobs_come_out_as_they_went_in(queue(&connection, "1")).await;
    either::a_job_is_known_while_it_waits_runs_and_was_done(queue(&connection, "2")).await;
    either::a_full_queue_refuses_with_a_time_to_come_back(queue(&connection, "3")).await;
    either::what_is_no_job_is_refused(queue(&connection, "4")).await;
    either::a_failed_job_is_tried_again_behind_the_others_and_given_up_in_the_end(queue(&connection, "5")).await;
    let dead = queue(&connection, "5").dead(10).await.expect("reachable");
    let dead: Vec<_> = dead.iter().map(|dead| (dead.job.clone(), dead.reason.as_str())).collect();
    assert_eq!(dead, [(job("a"), "bad_day"), (job("b"), "bad_day"), (job("a"), "hopeless")]);
    let short = queue(&connection, "6").with_lease(Duration::from_millis(30));
    either::a_job_whose_worker_is_gone_goes_to_the_next(short).await;
    let looking = tokio::spawn({
        let queue = queue(&connection, "6").with_lease(Duration::from_millis(30));
        async move { queue.take().await }
    });
    let dead = loop {
        // Ends when the last lease is over; the harness bounds the time.
        if let [dead, ..] = &queue(&connection, "6").dead(10).await.expect("reachable")[..] {
            break dead.clone();
        }
    };
    looking.abort();
    assert_eq!((dead.job, dead.reason.as_str()), (job("a"), "job_lost"));
}

#[tokio::test]
async fn an_id_is_forgotten_when_its_time_is_over() {
    let redis = Redis::start();
    let connection = connect(&redis).await;
    let queue = queue(&connection, "q").remember(Duration::from_millis(20));
    queue.push(job("a")).await.expect("there is room");
    let taken = queue.take().await.expect("there is one");
    queue.finish(&taken, End::Done).await.expect("reachable");
    // Ends when the id is forgotten; the harness bounds the time.
    while queue.push(job("a")).await.expect("reachable") == Pushed::Known {}
    assert_eq!(queue.len().await.expect("reachable"), 1);
}

#[tokio::test]
async fn two_processes_do_each_job_once() {
    let redis = Redis::start();
    let (here, there) = (connect(&redis).await, connect(&redis).await);
    let pusher = RedisQueue::new(here.clone(), "q", 1000);
    let counts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let all = Arc::new(Notify::new());
    let workers: Vec<_> = [here, there]
        .into_iter()
        .map(|connection| {
            let queue = RedisQueue::new(connection, "q", 1000).poll(Duration::from_millis(1));
            let (counts, all) = (counts.clone(), all.clone());
            let stop = all.clone();
            let handler = move |job: coze_ratelimit::Job| {
                let (counts, all) = (counts.clone(), all.clone());
                async move {
                    let mut counts = counts.lock().expect("whole");
                    *counts.entry(job.id).or_default() += 1;
                    if counts.len() == 200 {
                        all.notify_waiters();
                        all.notify_one();
                    }
                    Ok::<(), Error>(())
                }
            };
            tokio::spawn(Worker::new(queue).lanes(4).run(handler, async move { stop.notified().await }))
        })
        .collect();
    for n in 0..200 {
        assert_eq!(pusher.push(job(&n.to_string())).await.expect("there is room"), Pushed::Queued);
        assert_eq!(pusher.push(job(&n.to_string())).await.expect("reachable"), Pushed::Known);
    }
    for worker in workers {
        worker.await.expect("it ended");
    }
    let counts = counts.lock().expect("whole").clone();
    assert!(counts.len() == 200 && counts.values().all(|count| *count == 1), "{counts:?}");
    assert!(pusher.is_empty().await.expect("reachable"));
}

#[tokio::test]
async fn it_goes_on_after_a_flush_of_scripts_and_of_everything() {
    let redis = Redis::start();
    let connection = connect(&redis).await;
    let queue = queue(&connection, "q");
    queue.push(job("a")).await.expect("there is room");
    let taken = queue.take().await.expect("there is one");
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut connection.clone()).await.expect("it runs");
    queue.finish(&taken, End::Done).await.expect("the script is loaded again");
    flush(&connection).await;
    queue.finish(&taken, End::Done).await.expect("nobody's");
    assert_eq!(queue.push(job("a")).await.expect("there is room"), Pushed::Queued);
    assert_eq!(queue.take().await.expect("the group is made again").job, job("a"));
}

#[tokio::test]
async fn when_redis_is_away_every_call_fails_in_time_and_says_so() {
    let redis = Redis::start();
    let connection = connect(&redis).await;
    let queue = queue(&connection, "q").timeout(Duration::from_millis(50));
    queue.push(job("a")).await.expect("there is room");
    let taken = queue.take().await.expect("there is one");
    drop(redis);
    assert_eq!(queue.push(job("b")).await.expect_err("away").reason(), "queue_unavailable");
    assert_eq!(queue.take().await.expect_err("away").reason(), "queue_unavailable");
    assert_eq!(queue.finish(&taken, End::Done).await.expect_err("away").reason(), "queue_unavailable");
}
