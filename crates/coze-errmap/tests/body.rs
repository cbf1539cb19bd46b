//! What the outbound policy does to bodies: nothing that shows, whatever way they come.

use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context as Task, Poll, Waker},
};

use bytes::Bytes;
use coze_core::{BoxError, Error};
use coze_errmap::{Classifier, ErrMap, ResponseBody};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use proptest::prelude::*;
use tower::{Service, service_fn};

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Pending,
    Break,
}

/// A body that comes as it is told to. Counts the steps that were taken; the counter is shared while it lives.
#[derive(Debug)]
struct Script {
    steps: VecDeque<Step>,
    taken: Arc<AtomicUsize>,
    tells_end: bool,
    left: usize,
}

impl Script {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let steps: VecDeque<Step> = steps.into_iter().collect();
        let left = steps.iter().map(|step| if let Step::Data(data) = step { data.len() } else { 0 }).sum();
        Self { steps, taken: Arc::default(), tells_end: false, left }
    }

    fn of(text: &str) -> Self {
        Self::new([Step::Data(text.to_owned().into())])
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(step) = self.steps.pop_front() else { return Poll::Ready(None) };
        self.taken.fetch_add(1, Relaxed);
        match step {
            Step::Data(data) => {
                self.left -= data.len();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Step::Trailers(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Step::Break => Poll::Ready(Some(Err("broken".into()))),
            Step::Pending => {
                task.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.tells_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

type Answer = Result<Response<ResponseBody<Script>>, BoxError>;

/// What the head of an answer of this status with this body becomes; `None` if it waits after so many polls.
fn looked_at(policy: Classifier, status: u16, media_type: &str, body: Script, polls: usize) -> Option<Answer> {
    let response = Response::builder().status(status).header("content-type", media_type).header("content-length", "77");
    let response = std::cell::Cell::new(Some(response.body(body).expect("valid")));
    let mut service =
        ErrMap::new(service_fn(|_| std::future::ready(Ok::<_, BoxError>(response.take().expect("once")))), policy);
    let mut task = Task::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut task).is_ready());
    let mut future = pin!(service.call(Request::new(())));
    (0..polls).find_map(|_| match future.as_mut().poll(&mut task) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    })
}

fn json(body: Script) -> Answer {
    looked_at(Classifier::new(), 200, "application/json", body, 100_000).expect("it is decided")
}

fn code(answer: &Answer) -> Option<i64> {
    let error = Error::find(&**answer.as_ref().err()?).expect("ours");
    error.platform().map(|platform| platform.code)
}

/// All that comes out of a body, without the waits. Checks what it says about itself on the way.
fn drained(answer: Answer) -> Vec<Step> {
    let response = answer.expect("it passes");
    assert_eq!(response.headers()["content-length"], "77", "the head stays as it is");
    let mut body = pin!(response.into_body());
    let mut task = Task::from_waker(Waker::noop());
    let mut left = body.size_hint().exact().expect("exact");
    let mut steps = Vec::new();
    loop {
        let ended = body.is_end_stream();
        match body.as_mut().poll_frame(&mut task) {
            Poll::Pending => {}
            Poll::Ready(None) => break,
            Poll::Ready(Some(frame)) => {
                assert!(!ended, "a body that says it is over is over");
                steps.push(match frame.map(Frame::into_data) {
                    Err(_) => Step::Break,
                    Ok(Ok(data)) => {
                        left -= data.len() as u64;
                        Step::Data(data)
                    }
                    Ok(Err(frame)) => Step::Trailers(frame.into_trailers().expect("the only other kind")),
                });
                assert_eq!(body.size_hint().exact(), Some(left));
            }
        }
    }
    assert_eq!(left, 0);
    steps
}

fn split(text: &[u8], cuts: &[usize]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = text;
    for cut in cuts {
        let (piece, tail) = rest.split_at((*cut).min(rest.len()));
        steps.push(Step::Data(piece.to_vec().into()));
        if cut % 3 == 0 {
            steps.push(Step::Pending);
        }
        rest = tail;
    }
    steps.push(Step::Data(rest.to_vec().into()));
    steps
}

fn trailers() -> Step {
    Step::Trailers([(http::header::ETAG, "x".parse().expect("valid"))].into_iter().collect())
}

/// Envelopes and other JSON, whole and broken.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just("0".to_owned()),
        Just("\"0\"".to_owned()),
        Just("null".to_owned()),
        Just("4009".to_owned()),
        Just("-7".to_owned()),
        Just("4000.0".to_owned()),
        Just("[{\"code\":1},\"忙\"]".to_owned()),
        Just("{\"status\":\"failed\",\"last_error\":{\"code\":5000,\"msg\":\"x\"}}".to_owned()),
        Just("{\"last_error\":{\"code\":4028},\"x\":{\"status\":\"failed\"},\"status\":\"completed\"}".to_owned()),
        Just("{\"logid\":\"log-1\"}".to_owned()),
        "\"[a-z忙 ]{0,30}\"",
        "\\PC{0,10}",
    ];
    let key =
        prop_oneof![Just("code"), Just("code"), Just("data"), Just("msg"), Just("detail"), Just("error"), Just("x")];
    let member = (key, value).prop_map(|(key, value)| format!("\"{key}\": {value}"));
    let object =
        proptest::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(" ,")).into_bytes());
    prop_oneof![8 => object, 1 => proptest::collection::vec(any::<u8>(), 0..60)]
}

proptest! {
    #[test]
    fn a_body_stays_intact_and_means_the_same_however_it_is_split(
        text in texts(),
        cuts in proptest::collection::vec(0usize..9, 0..40),
        cap in prop_oneof![Just(64 * 1024usize), 0usize..80],
        tells_end: bool,
        with_trailers: bool,
    ) {
        let policy = || Classifier::new().cap(cap);
        let whole = looked_at(policy(), 200, "application/json", Script::new([Step::Data(text.clone().into())]), 1).expect("decided");
        // Empty frames count against the cap, so that there cannot be any number of them: here there are none.
        let cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut > 0).collect();
        let mut steps = split(&text, &cuts);
        steps.retain(|step| *step != Step::Data(Bytes::new()));
        steps.extend(with_trailers.then(trailers));
        let body = Script { tells_end, ..Script::new(steps.clone()) };
        let parts = looked_at(policy(), 200, "application/json", body, 100).expect("decided");
        prop_assert_eq!(parts.is_ok(), whole.is_ok());
        prop_assert_eq!(code(&parts), code(&whole));
        if parts.is_ok() {
            steps.retain(|step| *step != Step::Pending);
            prop_assert_eq!(drained(parts), steps);
        }
    }
}

#[test]
fn the_head_waits_only_until_the_envelope_is_understood() {
    let never = || Step::Pending;
    let waits = |text: &str| {
        let steps = [Step::Data(text.to_owned().into()), never(), never(), never()];
        looked_at(Classifier::new(), 200, "application/json", Script::new(steps), 3).is_none()
    };
    for understood in [
        r#"{"code":0,"msg":"","data":[{"id":"1"},"#,
        r#"{"code":0,"data":{"id":"1","status":"completed","#,
        r#"{"code":0,"data":"{}","#,
        r#"{"data":null,"code":0,"#,
        r#"{"data":{"x":1}}"#,
        r#"{"code":4000}"#,
        "[]",
        "{]",
    ] {
        assert!(!waits(understood), "{understood}");
    }
    for open in [
        "",
        "{",
        "  ",
        r#"{"code":0"#,
        r#"{"code":0,"data":{"id":"1","#,
        r#"{"code":0,"data":{"status":"failed","last_error":{"code":"#,
        r#"{"code":4000,"msg":"#,
        r#"{"data":[],"code":0"#,
        "[1,",
        "12",
    ] {
        assert!(waits(open), "{open}");
    }
}

#[test]
fn a_stream_and_a_foreign_body_are_not_touched() {
    for media_type in
        ["text/event-stream", "text/event-stream; charset=utf-8", "audio/mpeg", "application/grpc+json", ""]
    {
        let body = Script::new([Step::Pending, Step::Data("{\"code\":4000}".into()), trailers()]);
        let (taken, steps) = (body.taken.clone(), body.steps.clone());
        let answer = looked_at(Classifier::new(), 200, media_type, body, 1).expect("at once");
        assert_eq!(taken.load(Relaxed), 0, "{media_type}");
        assert_eq!(drained(answer), steps.into_iter().skip(1).collect::<Vec<_>>());
    }
}

#[test]
fn a_large_body_is_read_up_to_the_cap_and_not_a_byte_further() {
    const CAP: usize = 64 * 1024;
    // Nothing in it decides: neither a code nor an end.
    let text = format!("{{\"data\":\"{}\",\"code\":4000}}", "x".repeat(10 << 20));
    let bytes = Bytes::from(text);
    let rest = bytes.slice(2 * CAP..);
    let tiny = (0..2 * CAP).map(|at| bytes.slice(at..=at));
    let tiny = Script::new(tiny.chain([rest]).map(Step::Data));
    let (taken, steps) = (tiny.taken.clone(), tiny.steps.clone());
    let answer = json(tiny);
    assert_eq!(taken.load(Relaxed), CAP, "one byte a frame");
    assert!(drained(answer) == steps.into_iter().collect::<Vec<_>>(), "intact");

    let one = Script::new([Step::Data(bytes.clone())]);
    assert!(drained(json(one)) == [Step::Data(bytes)], "a frame larger than the cap is handed on whole");

    let empty = Script::new(std::iter::repeat_n(Step::Data(Bytes::new()), 2 * CAP));
    let taken = empty.taken.clone();
    let answer = json(empty);
    assert_eq!(taken.load(Relaxed), CAP, "empty frames do not go on for ever");
    assert_eq!(drained(answer).len(), 2 * CAP);
}

#[test]
fn an_envelope_counts_up_to_the_cap_and_not_beyond() {
    // The code is understood with the byte after it, 14 bytes after what stands before it.
    for (before, found) in [(113, true), (114, true), (115, false)] {
        let text = format!("{{\"x\":\"{}\",\"code\":4000}}{}", "x".repeat(before - 6), " ".repeat(99));
        let answer = looked_at(Classifier::new().cap(128), 200, "application/json", Script::of(&text), 1);
        assert_eq!(code(&answer.expect("decided")).is_some(), found, "{before}");
    }
    // A number that the cap cuts is not there.
    let cut = looked_at(Classifier::new().cap(10), 200, "application/json", Script::of(r#"{"code":4000}"#), 1);
    assert!(cut.expect("decided").is_ok());
    let failed = looked_at(Classifier::new().cap(10), 500, "application/json", Script::of(r#"{"code":4000}"#), 1);
    assert_eq!(code(&failed.expect("decided")), Some(500));
    let unread = looked_at(Classifier::new().cap(0), 200, "application/json", Script::of(r#"{"code":4000}"#), 1);
    assert!(unread.expect("decided").is_ok());
}

#[test]
fn a_body_that_breaks_off_fails_where_it_is_looked_at_and_breaks_off_later_where_it_is_not() {
    let broken = |text: &str| Script::new([Step::Data(text.to_owned().into()), Step::Break]);
    let answer = json(broken("{\"data\":"));
    let error = answer.expect_err("it broke");
    assert_eq!(Error::find(&*error).map(Error::reason), Some("transport"));

    let answer = looked_at(Classifier::new(), 503, "application/json", broken("{\"data\":"), 1).expect("decided");
    let error = answer.expect_err("503");
    assert_eq!(Error::find(&*error).map(Error::reason), Some("service_unavailable"), "the status says more");

    assert_eq!(code(&json(broken(r#"{"code":4000,"msg":"#))), Some(4000), "the code was there");

    let passed = drained(json(broken(r#"{"code":0,"data":[1,"#)));
    assert_eq!(passed, [Step::Data(r#"{"code":0,"data":[1,"#.into()), Step::Break]);
}

#[test]
fn a_future_that_is_dropped_while_it_looks_drops_the_body() {
    let body = Script::new([Step::Data("{".into()), Step::Pending, Step::Data("}".into())]);
    let taken = body.taken.clone();
    assert!(looked_at(Classifier::new(), 200, "application/json", body, 1).is_none());
    assert_eq!((taken.load(Relaxed), Arc::strong_count(&taken)), (2, 1));
}

#[test]
fn a_failure_drops_what_is_left_of_the_body() {
    for (status, media_type, text) in [(200, "application/json", r#"{"code":4000}"#), (504, "text/html", "<html>")] {
        let body = Script::of(text);
        let taken = body.taken.clone();
        assert!(looked_at(Classifier::new(), status, media_type, body, 1).expect("decided").is_err());
        assert_eq!(Arc::strong_count(&taken), 1);
    }
}
