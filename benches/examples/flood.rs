//! Ten million invented keys in ten seconds of a clock of its own: what they cost in memory, and that a known key stays exact.
//! `cargo xtask soak` runs it.

use std::{num::NonZeroU32, time::Duration};

use coze_benches::resident;
use coze_core::{Context, UserId};
use coze_ratelimit::{Level, Limits, Rate};
use http::Request;
use tokio::time::Instant;

const FLOOD: u64 = 10_000_000;
/// Between two invented keys.
const STEP: Duration = Duration::from_micros(1);
/// The known key comes once among so many.
const KNOWN: u64 = 50_000;
const RATE: NonZeroU32 = NonZeroU32::new(5).expect("not zero");

/// What the docs of `Level::max_keys` say of the default: 48 bytes for each of 65 536 keys, and the sketch.
const CELLS: u64 = 65_536 * 48;
const SKETCH: u64 = 128 * 1024;
/// A page that the allocator adds to each 128 KiB of them, and what else the process touches for the first time.
const BESIDES: u64 = (CELLS + SKETCH) / 32 + 64 * 1024;

fn level() -> Level {
    Level::per_user("user", Rate::per_second(RATE))
}

fn context(user: &str) -> Context {
    let context = Context::new();
    context.user.set(UserId::new(user).expect("valid")).expect("empty");
    context
}

fn main() {
    let parts = Request::new(()).into_parts().0;
    let (limits, alone) = (Limits::new().level(level()), Limits::new().level(level().max_keys(1)));
    let (known, beginning) = (context("known"), Instant::now().into_std());
    let (mut admitted, mut invented) = (0_u64, 0_u64);
    let before = resident();
    for n in 0..FLOOD {
        let now = beginning + STEP * u32::try_from(n).expect("ten million");
        if n % KNOWN == 0 {
            let expected = alone.check(&parts, &known, now).is_ok();
            assert_eq!(limits.check(&parts, &known, now).is_ok(), expected, "the known key at {n}");
            admitted += u64::from(expected);
        }
        invented += u64::from(limits.check(&parts, &context(&format!("invented-{n}")), now).is_ok());
    }
    let (took, bound) = (resident() - before, CELLS + SKETCH + BESIDES);
    println!("{FLOOD} invented keys, 1 µs apart, against 5 requests per second and user and at most 65 536 users");
    println!(
        "resident memory: {took} bytes more; bound: {bound} bytes ({CELLS} for the cells, {SKETCH} for the sketch)"
    );
    println!(
        "admitted: {invented} of the invented, {admitted} of {} of the known key, as if it were alone",
        FLOOD / KNOWN
    );
    assert!(took <= bound, "more than the bound");
}
