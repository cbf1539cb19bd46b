//! Jobs that are done later, in memory and in a real Redis.

mod either;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod worker;

use bytes::Bytes;
use coze_ratelimit::Job;

fn job(id: &str) -> Job {
    Job { id: id.to_owned(), payload: Bytes::from(format!("about {id}")) }
}
