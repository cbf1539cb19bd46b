//! gRPC: the status is in the trailers, or in the head of an answer that has nothing else.

use std::{collections::VecDeque, sync::Mutex, task::Poll};

use coze_core::{BoxError, Error};
use coze_retry::{Idempotent, ResponseBody, RetryLayer, Standard};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::*;

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn call(body: Script) -> Request<Script> {
    let call = Request::post("/coze.Bots/Get").header("content-type", "application/grpc").extension(Idempotent);
    call.body(body).expect("a call")
}

/// An answer of status 200 with these headers and this body.
fn answer(headers: &[(&'static str, &'static str)], steps: impl IntoIterator<Item = Step>) -> Response<Script> {
    let mut answer = Response::new(Script::new(false, steps));
    *answer.headers_mut() = fields(headers);
    answer
}

fn trailers_only(status: &'static str) -> Response<Script> {
    answer(&[("grpc-status", status)], [])
}

fn in_trailers(status: &'static str) -> Response<Script> {
    answer(&[], [Step::Pending, Step::Trailers(fields(&[("grpc-status", status)]))])
}

fn message() -> Response<Script> {
    answer(&[], [data("message"), Step::Trailers(fields(&[("grpc-status", "0")]))])
}

/// Sends a call to an inner service that gives these answers, in turn: what came out, and how many were asked for.
async fn send_call(
    policy: Standard,
    call: Request<Script>,
    answers: Vec<Response<Script>>,
) -> (Result<Response<ResponseBody<Script>>, BoxError>, usize) {
    let count = answers.len();
    let answers = Mutex::new(VecDeque::from(answers));
    let inner = service_fn(|request: Req| {
        let answer = answers.lock().expect("not poisoned").pop_front().expect("not so often");
        async move {
            request.into_body().collect().await?;
            Ok::<_, BoxError>(answer)
        }
    });
    let out = RetryLayer::new(policy).layer(inner).oneshot(call).await;
    let left = answers.lock().expect("not poisoned").len();
    (out, count - left)
}

/// The data and the status that the caller sees.
async fn seen(out: Result<Response<ResponseBody<Script>>, BoxError>) -> (String, String) {
    let answer = out.expect("an answer");
    let head = answer.headers().get("grpc-status").cloned();
    let body = answer.into_body().collect().await.expect("complete");
    let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned().or(head);
    let status = status.map_or_else(String::new, |status| status.to_str().expect("ASCII").to_owned());
    (String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8"), status)
}

#[tokio::test(start_paused = true)]
async fn a_status_that_may_pass_is_tried_again_wherever_it_stands() {
    for failure in [trailers_only, in_trailers] {
        for passing in ["4", "8", "14"] {
            let (out, asked) = send_call(policy(), call(Script::text("m")), vec![failure(passing), message()]).await;
            assert_eq!((seen(out).await, asked), (("message".into(), "0".into()), 2), "{passing}");
        }
        for lasting in ["1", "2", "3", "5", "6", "7", "9", "10", "11", "12", "13", "15", "16", "99", ""] {
            let (out, asked) = send_call(policy(), call(Script::text("m")), vec![failure(lasting)]).await;
            assert_eq!((seen(out).await, asked), (("".into(), lasting.into()), 1), "it is handed on as it is");
        }
        let (out, asked) = send_call(policy(), call(Script::text("m")), vec![failure("0")]).await;
        assert_eq!((seen(out).await, asked), (("".into(), "0".into()), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_run_twice_is_not_sent_twice() {
    for failure in [trailers_only, in_trailers] {
        let mut once = call(Script::text("m"));
        once.extensions_mut().clear();
        let (out, asked) = send_call(policy(), once, vec![failure("14")]).await;
        assert_eq!((seen(out).await.1.as_str(), asked), ("14", 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_handed_on_is_final() {
    let broken = answer(&[], [data("message"), Step::Trailers(fields(&[("grpc-status", "14")]))]);
    let (out, asked) = send_call(policy(), call(Script::text("m")), vec![broken]).await;
    assert_eq!((seen(out).await, asked), (("message".into(), "14".into()), 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_before_its_first_message_is_tried_again() {
    let (out, asked) =
        send_call(policy(), call(Script::text("m")), vec![answer(&[], [Step::Pending, Step::Fail]), message()]).await;
    assert_eq!((seen(out).await.0.as_str(), asked), ("message", 2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_held_back_while_the_call_is_still_being_sent() {
    // The server answers the head first, and waits for the rest of the call.
    let inner = service_fn(|request: Req| {
        std::mem::forget(request.into_body());
        let steps = std::iter::repeat_n(Step::Pending, 3).chain([Step::Trailers(fields(&[("grpc-status", "14")]))]);
        std::future::ready(Ok::<_, BoxError>(answer(&[], steps)))
    });
    let mut out = Box::pin(RetryLayer::new(policy()).layer(inner).oneshot(call(Script::text("m"))));
    let Poll::Ready(out) = poll(&mut out).await else { panic!("it waits") };
    assert_eq!(seen(out).await.1, "14");
}

#[tokio::test(start_paused = true)]
async fn the_status_of_other_answers_is_not_looked_at() {
    let (out, asked) = send_call(policy(), get(), vec![trailers_only("14")]).await;
    assert!(out.is_ok());
    assert_eq!(asked, 1);
}

#[tokio::test(start_paused = true)]
async fn pushback_is_obeyed_to_the_millisecond_and_may_forbid() {
    for place in [true, false] {
        let pushed = |pushback| {
            let said = [("grpc-status", "14"), ("grpc-retry-pushback-ms", pushback)];
            if place { answer(&said, []) } else { answer(&[], [Step::Trailers(fields(&said))]) }
        };
        for (pushback, waited) in [("0", 0), ("7", 7), ("2500", 2500)] {
            let start = tokio::time::Instant::now();
            let (out, asked) = send_call(policy(), call(Script::text("m")), vec![pushed(pushback), message()]).await;
            assert_eq!((seen(out).await.0.as_str(), asked), ("message", 2));
            let took = start.elapsed().as_millis();
            assert!((waited..waited + 2).contains(&took), "{pushback}: {took}");
        }
        for never in ["-1", "soon", "", "61000"] {
            let (_, asked) = send_call(policy(), call(Script::text("m")), vec![pushed(never)]).await;
            assert_eq!(asked, 1, "{never}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_until_the_first_message() {
    let inner = service_fn(|request: Req| async move {
        request.into_body().collect().await?;
        Ok::<_, BoxError>(answer(&[], [Step::Never]))
    });
    for (policy, reason) in [
        (policy().deadline(seconds(2.0)), "deadline_passed"),
        (policy().attempt_timeout(seconds(2.0)).tries(0), "attempt_timeout"),
    ] {
        let out = RetryLayer::new(policy).layer(inner).oneshot(call(Script::text("m"))).await;
        if reason == "deadline_passed" {
            assert_eq!(Error::find(&*out.expect_err("too late")).map(Error::reason), Some(reason));
        } else {
            assert!(out.is_ok(), "what is never sent again is handed on at once");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_delay_in_the_details_of_a_status_is_waited_for_and_pushback_goes_before_it() {
    // google.rpc.Status with code 14 and a RetryInfo of 3.5 s.
    const DETAILS: &str = "CA4aNgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIKCggIAxCAyrXuAQ";
    for place in [true, false] {
        let told = |more: &[_]| {
            let said = [&[("grpc-status", "14"), ("grpc-status-details-bin", DETAILS)], more].concat();
            if place { answer(&said, []) } else { answer(&[], [Step::Trailers(fields(&said))]) }
        };
        for (more, waited) in [(&[][..], 3500), (&[("grpc-retry-pushback-ms", "7")], 7)] {
            let start = tokio::time::Instant::now();
            let (out, asked) = send_call(policy(), call(Script::text("m")), vec![told(more), message()]).await;
            assert_eq!((seen(out).await.0.as_str(), asked), ("message", 2));
            let took = start.elapsed().as_millis();
            assert!((waited..waited + 2).contains(&took), "{took}");
        }
    }
}
