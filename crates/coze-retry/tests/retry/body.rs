//! The request body, sent again.

use std::sync::Mutex;

use bytes::Bytes;
use coze_core::{Error, Kind, Retry as MayRetry};
use coze_retry::{ReplayBody, RetryLayer, Standard};
use http::{HeaderMap, Request};
use http_body::{Body, Frame};
use proptest::prelude::*;
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::*;

type Read = Vec<Frame<Bytes>>;

fn put(body: Script) -> Request<Script> {
    Request::put("/v1/files").body(body).expect("a request")
}

async fn next(body: &mut ReplayBody<Script>) -> Option<Result<Frame<Bytes>, &'static str>> {
    std::future::poll_fn(|task| std::pin::Pin::new(&mut *body).poll_frame(task)).await
}

/// At most so many frames of a body, which ends early on an error.
async fn read(body: &mut ReplayBody<Script>, frames: usize) -> Read {
    let mut read = Read::new();
    while read.len() < frames
        && let Some(Ok(frame)) = next(body).await
    {
        read.push(frame);
    }
    read
}

/// Sends a body to an inner service that reads so many frames of it in each attempt and then fails, but for the last one: what
/// came out, and what each attempt read.
async fn send_body(policy: Standard, body: Script, reads: &[usize]) -> (String, Vec<Read>) {
    let seen = Mutex::new(Vec::new());
    let inner = service_fn(|request: Req| {
        let seen = &seen;
        async move {
            let mut body = request.into_body();
            let attempt = seen.lock().expect("not poisoned").len();
            let frames = read(&mut body, reads[attempt.min(reads.len() - 1)]).await;
            seen.lock().expect("not poisoned").push(frames);
            if attempt + 1 < reads.len() { status(503, &[]) } else { ok() }
        }
    });
    let policy = policy.tries(u32::try_from(reads.len()).expect("few") + 1);
    let answer = RetryLayer::new(policy).layer(inner).oneshot(put(body)).await;
    (outcome(&answer), seen.into_inner().expect("not poisoned"))
}

fn all(frames: &Read) -> (Vec<u8>, Option<HeaderMap>) {
    let data = frames.iter().filter_map(Frame::data_ref).flatten().copied().collect();
    (data, frames.last().and_then(Frame::trailers_ref).cloned())
}

fn ones(count: usize) -> Vec<Step> {
    vec![data("1"); count]
}

const EVERYTHING: usize = usize::MAX;

#[tokio::test(start_paused = true)]
async fn what_was_read_is_sent_again_and_the_rest_follows() {
    let steps = [data("ab"), Step::Pending, data("cd"), data("e"), Step::Trailers(trailers())];
    for reads in [[0, EVERYTHING], [1, EVERYTHING], [2, EVERYTHING], [3, EVERYTHING], [4, EVERYTHING], [EVERYTHING; 2]]
    {
        for sized in [true, false] {
            let (answer, attempts) = send_body(policy(), Script::new(sized, steps.clone()), &reads).await;
            assert_eq!(answer, "200");
            assert_eq!(attempts.len(), 2);
            assert_eq!(all(&attempts[1]), (b"abcde".to_vec(), Some(trailers())), "{reads:?} {sized}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn frames_are_kept_without_a_copy() {
    let original = Bytes::from("abc".repeat(100));
    let (_, attempts) = send_body(policy(), Script::new(true, [Step::Data(original.clone())]), &[1, 1]).await;
    for attempt in attempts {
        assert_eq!(attempt[0].data_ref().map(|data| data.as_ptr()), Some(original.as_ptr()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_up_to_the_cap_is_sent_again_and_a_longer_one_is_not() {
    let policy = policy().body_cap(8);
    for sized in [true, false] {
        let at_the_cap = Script::new(sized, [data("1234"), data("5678")]);
        assert_eq!(send_body(policy.clone(), at_the_cap, &[EVERYTHING; 2]).await.0, "200");

        let longer = || Script::new(sized, [data("1234"), data("5678"), data("9")]);
        let (answer, attempts) = send_body(policy.clone(), longer(), &[EVERYTHING; 2]).await;
        assert_eq!((answer.as_str(), attempts.len()), ("503", 1), "sent as it came, and not again");
        assert_eq!(all(&attempts[0]).0, b"123456789");
        assert_eq!(send_body(policy.clone(), longer(), &[0, EVERYTHING]).await.0, "200", "nobody has read it yet");

        // Of a body that says how long it is nothing is kept in vain; of the other one what was read fits.
        let expected = if sized { "503" } else { "200" };
        assert_eq!(send_body(policy.clone(), longer(), &[1, EVERYTHING]).await.0, expected);
    }
    assert_eq!(send_body(policy.body_cap(0), Script::text("1"), &[1, 1]).await.0, "503");
}

#[tokio::test(start_paused = true)]
async fn the_default_cap_is_64_kib() {
    let kib = || Step::Data(Bytes::from(vec![7; 1024]));
    let body = |frames| Script::new(false, vec![kib(); frames]);
    assert_eq!(send_body(policy(), body(64), &[EVERYTHING; 2]).await.0, "200");
    assert_eq!(send_body(policy(), body(65), &[EVERYTHING; 2]).await.0, "503");
}

#[tokio::test(start_paused = true)]
async fn small_frames_are_bounded_and_empty_ones_are_not_kept() {
    let (answer, attempts) = send_body(policy(), Script::new(false, ones(1024)), &[EVERYTHING; 2]).await;
    assert_eq!((answer.as_str(), all(&attempts[1]).0), ("200", vec![b'1'; 1024]));
    let (answer, attempts) = send_body(policy(), Script::new(false, ones(1025)), &[EVERYTHING; 2]).await;
    assert_eq!((answer.as_str(), all(&attempts[0]).0), ("503", vec![b'1'; 1025]));

    let empties = (0..3000).map(|_| data("")).chain([data("ab")]);
    let (answer, attempts) = send_body(policy(), Script::new(false, empties), &[EVERYTHING; 2]).await;
    assert_eq!((answer.as_str(), attempts[1].len(), all(&attempts[1]).0), ("200", 1, b"ab".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn trailers_count_for_the_cap() {
    let body = || Script::new(false, [data("ab"), Step::Trailers(trailers())]);
    assert_eq!(send_body(policy().body_cap(8), body(), &[EVERYTHING; 2]).await.0, "200", "2 bytes, x-sum and 7");
    let (answer, attempts) = send_body(policy().body_cap(7), body(), &[EVERYTHING; 2]).await;
    assert_eq!((answer.as_str(), all(&attempts[0]).1), ("503", Some(trailers())));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_not_sent_again() {
    let inner = service_fn(|request: Req| async move {
        let mut body = request.into_body();
        read(&mut body, 1).await;
        assert_eq!(next(&mut body).await.expect("an error").err(), Some("the file is gone"));
        fail(Error::new(Kind::Unavailable, "broken_body").with_retry(MayRetry::Safe))
    });
    let body = Script::new(false, [data("ab"), Step::Fail, data("cd")]);
    let answer = RetryLayer::new(policy()).layer(inner).oneshot(put(body)).await;
    assert_eq!(outcome(&answer), "broken_body");
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_is_empty_each_time() {
    let sent = Mutex::new(0);
    let inner = service_fn(|request: Req| {
        assert!(request.body().is_end_stream());
        assert_eq!(request.body().size_hint().exact(), Some(0));
        *sent.lock().expect("not poisoned") += 1;
        let sent = *sent.lock().expect("not poisoned");
        async move {
            assert!(next(&mut request.into_body()).await.is_none());
            if sent < 3 { status(503, &[]) } else { ok() }
        }
    });
    let answer = RetryLayer::new(policy()).layer(inner).oneshot(put(Script::new(true, []))).await;
    assert_eq!((outcome(&answer).as_str(), *sent.lock().expect("not poisoned")), ("200", 3));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_still_being_sent_is_not_sent_twice() {
    // Somebody, such as the task of a connection, keeps the body of the first attempt for so long, and reads so much more of it
    // than fits; the wait is 1.5 s.
    for (kept, more, expected) in [(1.0, 0, "200"), (2.0, 0, "busy"), (1.0, 1, "busy")] {
        let first = Mutex::new(true);
        let inner = service_fn(|request: Req| {
            let first = std::mem::take(&mut *first.lock().expect("not poisoned"));
            async move {
                let mut body = request.into_body();
                if !first {
                    assert_eq!(all(&read(&mut body, EVERYTHING).await).0, b"abcd");
                    return ok();
                }
                read(&mut body, 1).await;
                tokio::spawn(async move {
                    sleep(seconds(kept)).await;
                    read(&mut body, more).await;
                });
                fail(Error::new(Kind::Unavailable, "busy"))
            }
        });
        let body = Script::new(false, [data("ab"), Step::Pending, data("cd")]);
        let answer = RetryLayer::new(policy().body_cap(3)).layer(inner).oneshot(put(body)).await;
        assert_eq!(outcome(&answer), expected, "{kept} {more}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_is_let_go_when_there_is_too_much_of_it() {
    let inner = service_fn(|request: Req| async move {
        let mut body = request.into_body();
        let frames = read(&mut body, 2).await;
        assert!(
            frames.iter().all(|frame| frame.data_ref().is_some_and(Bytes::is_unique)),
            "nobody else has a reference"
        );
        status(503, &[])
    });
    let body = Script::new(false, [data("ab"), data("cd"), data("ef")]);
    let answer = RetryLayer::new(policy().body_cap(3)).layer(inner).oneshot(put(body)).await;
    assert_eq!(outcome(&answer), "503");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_once_an_answer_was_handed_on() {
    let held = Mutex::new(None);
    let inner = service_fn(|request: Req| {
        *held.lock().expect("not poisoned") = Some(request.into_body());
        std::future::ready(ok())
    });
    let answer = RetryLayer::new(policy()).layer(inner).oneshot(put(Script::new(true, [data("ab"), data("cd")]))).await;
    assert_eq!(outcome(&answer), "200");
    let mut body = held.into_inner().expect("not poisoned").expect("a body");
    let frames = read(&mut body, 2).await;
    assert!(frames.iter().all(|frame| frame.data_ref().is_some_and(Bytes::is_unique)), "nobody else has a reference");
    assert_eq!(all(&frames).0, b"abcd");
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_request_that_is_never_sent_again_passes_untouched() {
    let inner = service_fn(|request: Req| async move {
        let mut body = request.into_body();
        assert_eq!(body.size_hint().exact(), Some(2));
        let frames = read(&mut body, 1).await;
        assert!(frames[0].data_ref().is_some_and(Bytes::is_unique), "nobody keeps it");
        assert!(body.is_end_stream());
        status(503, &[])
    });
    let answer = RetryLayer::new(policy().tries(0)).layer(inner).oneshot(put(Script::text("ab"))).await;
    assert_eq!(outcome(&answer), "503");
}

/// Reads so many frames and checks at each moment what the body says of itself: `size` is its length.
async fn read_and_check(body: &mut ReplayBody<Script>, frames: usize, size: u64, sized: bool) -> Read {
    let (mut frames_read, mut left) = (Read::new(), size);
    loop {
        let hint = body.size_hint();
        assert!(hint.lower() <= left && hint.upper().is_none_or(|upper| left <= upper), "{hint:?} {left}");
        assert!(!sized || hint.exact() == Some(left), "{hint:?} {left}");
        let told_end = body.is_end_stream();
        if frames_read.len() == frames {
            return frames_read;
        }
        let Some(frame) = next(body).await else { break };
        let frame = frame.expect("it does not fail");
        assert!(!told_end, "told its end before {frame:?}");
        assert!(!frames_read.last().is_some_and(Frame::is_trailers), "nothing follows the trailers");
        left -= frame.data_ref().map_or(0, |data| data.len() as u64);
        frames_read.push(frame);
    }
    assert_eq!(left, 0);
    assert!(body.is_end_stream() || !sized);
    assert!(next(body).await.is_none(), "an end is an end");
    frames_read
}

fn script() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => "[a-z]{0,6}".prop_map(|text| data(&text)),
        1 => Just(Step::Pending),
    ];
    (prop::collection::vec(step, 0..12), any::<bool>()).prop_map(|(mut steps, with_trailers)| {
        steps.extend(with_trailers.then(|| Step::Trailers(trailers())));
        steps
    })
}

proptest! {
    #[test]
    fn each_attempt_sends_the_original_from_its_beginning(
        steps in script(), sized: bool, reads in prop::collection::vec(0usize..14, 0..5)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let data_of = |step: &Step| if let Step::Data(data) = step { data.to_vec() } else { Vec::new() };
        let original: Vec<u8> = steps.iter().flat_map(data_of).collect();
        let original_trailers = steps.iter().any(|step| matches!(step, Step::Trailers(_))).then(trailers);
        let seen = Mutex::new(Vec::new());
        let inner = service_fn(|request: Req| {
            let (seen, reads, size) = (&seen, &reads, original.len() as u64);
            async move {
                let mut body = request.into_body();
                let attempt = seen.lock().expect("not poisoned").len();
                let frames = reads.get(attempt).copied().unwrap_or(EVERYTHING);
                let frames = read_and_check(&mut body, frames, size, sized).await;
                seen.lock().expect("not poisoned").push(frames);
                if attempt < reads.len() { status(429, &[]) } else { ok() }
            }
        });
        let body = Script::new(sized, steps);
        let answer = runtime.block_on(RetryLayer::new(policy()).layer(inner).oneshot(put(body)));
        prop_assert_eq!(outcome(&answer), "200");
        let seen = seen.into_inner().expect("not poisoned");
        prop_assert_eq!(seen.len(), reads.len() + 1);
        for attempt in &seen {
            prop_assert!(original.starts_with(&all(attempt).0));
        }
        prop_assert_eq!(all(&seen[reads.len()]), (original, original_trailers));
    }
}
