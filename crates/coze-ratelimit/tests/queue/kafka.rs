use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use coze_core::{Error, Kind};
use coze_ratelimit::{End, Job, KafkaQueue, Pushed, Queue, Worker};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    config::FromClientConfig,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    mocking::{MockCluster, MockCoordinator},
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tokio::sync::Notify;

use crate::{either, job};

type Kafka = MockCluster<'static, DefaultProducerContext>;

/// Three brokers, with the topics of these queues.
fn kafka(names: &[&str], partitions: i32) -> Kafka {
    let kafka = MockCluster::new(3).expect("loopback");
    for topic in names.iter().flat_map(|name| [format!("{name}.jobs"), format!("{name}.dead")]) {
        kafka.create_topic(&topic, partitions, 3).expect("new");
    }
    kafka
}

fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.bootstrap_servers());
    // The mock forms a first group after three seconds, and any other a second before a session would time out.
    config.set("session.timeout.ms", "4000").set("heartbeat.interval.ms", "50");
    config
}

fn queue(kafka: &Kafka, name: &str) -> KafkaQueue {
    KafkaQueue::new(&config(kafka), name, 4).expect("a configuration").tries(3)
}

/// What was given up: id, payload, tries and reason.
fn dead(kafka: &Kafka, name: &str, count: usize) -> Vec<(Job, String, String)> {
    let mut config = config(kafka);
    let consumer = BaseConsumer::from_config(config.set("group.id", "looker")).expect("a configuration");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&format!("{name}.dead"), 0, Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("it is there");
    let mut found = Vec::new();
    while found.len() < count {
        let message = consumer.poll(None).expect("no end of time").expect("reachable");
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.expect("there").to_vec()).expect("text");
        let header =
            |key| text(message.headers().expect("two").iter().find(|header| header.key == key).expect("it").value);
        let payload = message.payload().expect("there").to_vec().into();
        found.push((Job { id: text(message.key()), payload }, header("tries"), header("reason")));
    }
    found
}

/// Says it until Kafka hears it.
async fn finish(queue: &KafkaQueue, taken: &coze_ratelimit::Taken, end: End) {
    while queue.finish(taken, end).await.is_err() {}
}

#[tokio::test]
async fn it_does_what_every_queue_does() {
    let kafka = kafka(&["1", "2", "3", "4", "5", "6"], 1);
    let short = queue(&kafka, "6").with_lease(Duration::from_millis(300));
    tokio::join!(
        either::jobs_come_out_as_they_went_in(queue(&kafka, "1")),
        either::a_job_is_known_while_it_waits_runs_and_was_done(queue(&kafka, "2")),
        either::a_full_queue_refuses_with_a_time_to_come_back(queue(&kafka, "3")),
        either::what_is_no_job_is_refused(queue(&kafka, "4")),
        either::a_failed_job_is_tried_again_behind_the_others_and_given_up_in_the_end(queue(&kafka, "5")),
        either::a_job_whose_worker_is_gone_goes_to_the_next(short),
    );
    let dead = |name, count| {
        let found = dead(&kafka, name, count).into_iter();
        found.map(|(job, tries, reason)| format!("{} {tries} {reason}", job.id)).collect::<Vec<_>>()
    };
    assert_eq!(dead("5", 3), ["a 3 bad_day", "b 3 bad_day", "a 1 hopeless"]);
    assert_eq!(dead("6", 1), ["a 3 job_lost"]);
}

#[tokio::test]
async fn what_a_process_left_goes_to_another_and_what_it_did_does_not() {
    let kafka = kafka(&["q"], 1);
    let first = queue(&kafka, "q");
    for id in ["a", "b", "c"] {
        first.push(job(id)).await.expect("there is room");
    }
    let (a, b) = (first.take().await.expect("a"), first.take().await.expect("b"));
    let c = first.take().await.expect("c");
    first.finish(&a, End::Done).await.expect("reachable");
    first.finish(&c, End::Done).await.expect("reachable, though b before it is not done");
    assert_eq!(first.len().await.expect("reachable"), 2, "b, and c behind it");
    drop((first, b));
    let second = queue(&kafka, "q");
    for id in ["b", "c"] {
        let taken = second.take().await.expect("there is one");
        assert_eq!((taken.job.clone(), taken.attempt), (job(id), 1));
        second.finish(&taken, End::Done).await.expect("reachable");
    }
    assert!(second.is_empty().await.expect("reachable"));
}

#[tokio::test]
async fn copies_that_two_processes_pushed_are_done_once() {
    let kafka = kafka(&["q"], 3);
    let (here, there) = (queue(&kafka, "q"), queue(&kafka, "q"));
    assert_eq!(here.push(job("a")).await.expect("there is room"), Pushed::Queued);
    assert_eq!(there.push(job("a")).await.expect("there is room"), Pushed::Queued, "it cannot know");
    let taken = here.take().await.expect("there is one");
    assert_eq!(there.push(job("a")).await.expect("there is room"), Pushed::Known);
    here.finish(&taken, End::Done).await.expect("reachable");
    there.push(job("b")).await.expect("there is room");
    let next = here.take().await.expect("there is one");
    assert_eq!(next.job, job("b"), "and no further a");
    here.finish(&next, End::Done).await.expect("reachable");
    while !here.is_empty().await.expect("reachable") {}
}

#[tokio::test]
async fn two_processes_do_every_job_and_few_of_them_twice() {
    let kafka = kafka(&["q"], 4);
    let counts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let (some, all) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let work = || {
        let queue = KafkaQueue::new(&config(&kafka), "q", 1000).expect("a configuration");
        let (counts, some, all) = (counts.clone(), some.clone(), all.clone());
        let stop = all.clone();
        let handler = move |job: Job| {
            let (counts, some, all) = (counts.clone(), some.clone(), all.clone());
            async move {
                let mut counts = counts.lock().expect("whole");
                *counts.entry(job.id).or_default() += 1;
                some.notify_one();
                if counts.len() == 400 {
                    all.notify_waiters();
                    all.notify_one();
                }
                Ok::<(), Error>(())
            }
        };
        tokio::spawn(Worker::new(queue).lanes(4).run(handler, async move { stop.notified().await }))
    };
    let pusher = KafkaQueue::new(&config(&kafka), "q", 1000).expect("a configuration");
    let first = work();
    for n in 0..200 {
        assert_eq!(pusher.push(job(&n.to_string())).await.expect("there is room"), Pushed::Queued);
        assert_eq!(pusher.push(job(&n.to_string())).await.expect("reachable"), Pushed::Known);
    }
    some.notified().await;
    let second = work();
    for n in 200..400 {
        pusher.push(job(&n.to_string())).await.expect("there is room");
    }
    first.await.expect("it ended");
    second.await.expect("it ended");
    let counts = counts.lock().expect("whole").clone();
    let done: u32 = counts.values().sum();
    assert!(
        counts.len() == 400 && (400..500).contains(&done),
        "only what was on its way while partitions moved: {done}"
    );
}

#[tokio::test]
async fn more_than_is_held_in_hand_comes_in_order() {
    let kafka = kafka(&["q"], 1);
    let queue = KafkaQueue::new(&config(&kafka), "q", 1000).expect("a configuration");
    for n in 0..300 {
        queue.push(job(&n.to_string())).await.expect("there is room");
    }
    for n in 0..300 {
        let taken = queue.take().await.expect("there is one");
        assert_eq!(taken.job, job(&n.to_string()));
        queue.finish(&taken, End::Done).await.expect("reachable");
    }
    assert!(queue.is_empty().await.expect("reachable"));
}

#[tokio::test]
async fn errors_that_pass_are_got_over_and_others_are_said() {
    let kafka = kafka(&["q"], 1);
    let queue = queue(&kafka, "q");
    let passing = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION; 2];
    kafka.request_errors(RDKafkaApiKey::Produce, &passing);
    assert_eq!(queue.push(job("a")).await.expect("after two more tries"), Pushed::Queued);
    kafka.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_POLICY_VIOLATION]);
    assert_eq!(queue.push(job("b")).await.expect_err("not allowed").reason(), "queue_unavailable");
    assert_eq!(queue.push(job("b")).await.expect("allowed"), Pushed::Queued, "what failed is not known");

    let a = queue.take().await.expect("there is one");
    let refusing = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED];
    kafka.request_errors(RDKafkaApiKey::OffsetCommit, &refusing);
    assert_eq!(queue.finish(&a, End::Done).await.expect_err("not allowed").reason(), "queue_unavailable");
    queue.finish(&a, End::Done).await.expect("said again");
    let b = queue.take().await.expect("there is one");
    assert_eq!(b.job, job("b"));
    kafka.coordinator(MockCoordinator::Group("q.workers".to_owned()), 2).expect("there is one");
    finish(&queue, &b, End::Done).await;
    assert!(queue.is_empty().await.expect("reachable"), "the coordinator is another now");
}

#[tokio::test]
async fn when_the_brokers_are_away_every_call_fails_in_time_and_it_goes_on_when_they_are_back() {
    let kafka = kafka(&["q"], 1);
    let mut config = config(&kafka);
    config.set("message.timeout.ms", "300");
    let queue = KafkaQueue::new(&config, "q", 4).expect("a configuration");
    queue.push(job("a")).await.expect("there is room");
    let taken = queue.take().await.expect("there is one");
    kafka.broker_down(-1).expect("all");
    assert_eq!(queue.push(job("b")).await.expect_err("away").reason(), "queue_unavailable");
    assert_eq!(queue.take().await.expect_err("away").reason(), "queue_unavailable");
    assert_eq!(queue.finish(&taken, End::Done).await.expect_err("away").reason(), "queue_unavailable");
    let away = queue.len().await.expect_err("away");
    assert_eq!((away.kind(), away.reason()), (Kind::Unavailable, "queue_unavailable"));
    kafka.broker_up(-1).expect("all");
    while queue.len().await.is_err() {}
    finish(&queue, &taken, End::Done).await;
    while queue.push(job("b")).await.is_err() {}
    let next = loop {
        if let Ok(taken) = queue.take().await {
            break taken;
        }
    };
    assert_eq!(next.job, job("b"));
    finish(&queue, &next, End::Done).await;
}

#[tokio::test]
async fn a_setting_that_is_none_is_named_without_its_value() {
    let mut config = ClientConfig::new();
    config.set("sasl.pasword", "geheim");
    let error = KafkaQueue::new(&config, "q", 4).expect_err("misspelt");
    assert_eq!((error.kind(), error.reason()), (Kind::Invalid, "queue_config"));
    assert!(format!("{error}").contains("sasl.pasword") && !format!("{error:?}").contains("geheim"), "{error:?}");
}
