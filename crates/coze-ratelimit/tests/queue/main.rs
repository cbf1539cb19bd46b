//! Jobs that are done later, in memory, in a real Redis, and in a Kafka of librdkafka.

mod either;
#[cfg(feature = "kafka")]
mod kafka;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod worker;

use bytes::Bytes;
use coze_ratelimit::Job;

fn job(id: &str) -> Job {
    Job { id: id.to_owned(), payload: Bytes::from(format!("about {id}")) }
}
