//! What a [`Word`](crate::word::Word) is made of. Its test with loom brings its own.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
