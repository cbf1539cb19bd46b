//! The ways a request ends.

use coze_core::{BoxError, Context, Error, Kind};
use coze_observe::{Observe, ObserveLayer};
use http::Method;
use http_body_util::BodyExt;
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};
use tower_test::mock;

use crate::{MS, Req, Res, get, inbound, observed, poll, request, response, script::Script, send, some, world::World};

#[tokio::test(start_paused = true)]
async fn an_answer_is_counted_timed_and_logged_when_its_body_ends() {
    let world = World::new();
    let (answer, seen) = send(inbound(), get(), Ok(response(200, Script::new(&["hello ", "world"])))).await;
    let answer = answer.expect("answered");
    assert_eq!((world.in_flight(), world.lines()), (1.0, vec![]));
    assert!(seen.extensions().get::<Context>().expect("inserted").start.get().is_some());

    advance(20 * MS).await;
    assert_eq!(answer.into_body().collect().await.expect("complete").to_bytes(), "hello world");
    let id = format!("{}ab", "0".repeat(30));
    let expected = [
        ("level", "INFO"),
        ("in_span", "http_server"),
        ("side", "server"),
        ("method", "GET"),
        ("route", "/bots/{id}"),
        ("status", "200"),
        ("outcome", "2xx"),
        ("request_id", &id),
        ("head_ms", "30.0"),
        ("total_ms", "50.0"),
        ("bytes", "11"),
    ];
    assert_eq!(world.the_only_line(), expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    let labels = "method=GET,outcome=2xx,route=/bots/{id}";
    assert_eq!(world.series("coze_http_server_duration_seconds")[labels], [0.03]);
    assert_eq!(world.series("coze_http_server_body_duration_seconds")[labels], [0.05]);
}

#[tokio::test(start_paused = true)]
async fn the_class_of_the_status_is_the_outcome() {
    for (status, outcome, level) in [
        (101, "1xx", "INFO"),
        (204, "2xx", "INFO"),
        (304, "3xx", "INFO"),
        (404, "4xx", "INFO"),
        (503, "5xx", "WARN"),
        (999, "5xx", "WARN"),
    ] {
        let line = observed(get(), Ok(response(status, Script::new(&["x"])))).await;
        assert_eq!((&*line["outcome"], &*line["level"]), (outcome, level), "{status}");
        assert_eq!(line["status"], status.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_inner_service_is_an_error_with_its_reason() {
    let world = World::new();
    let error = Error::new(Kind::Timeout, "no_answer").into();
    let (answer, _) = send(inbound(), get(), Err(error)).await;
    assert_eq!(Error::find(&*answer.expect_err("failed")).map(Error::reason), Some("no_answer"));
    let line = world.the_only_line();
    assert_eq!((&*line["outcome"], &*line["level"], &*line["total_ms"]), ("error", "WARN", "30.0"));
    assert_eq!(some(&line, ["kind", "reason", "status"]), [Some("timeout".into()), Some("no_answer".into()), None]);
    assert_eq!(world.metrics()["coze_failures_total{kind=timeout,reason=no_answer,side=server}"], [1.0]);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_failure_is_an_error_without_a_reason() {
    let line = observed(get(), Err("token pat_0123456789abcdef".into())).await;
    assert_eq!((&*line["outcome"], &*line["level"]), ("error", "WARN"));
    assert_eq!(some(&line, ["kind", "reason", "status"]), [None, None, None]);
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_before_the_head_is_cancelled() {
    let world = World::new();
    let (mock, mut handle) = mock::pair::<Req, Res>();
    let mut answer = Box::pin(Observe::new(mock, inbound()).oneshot(get()));
    assert!(poll(&mut answer).is_pending());
    assert!(handle.next_request().await.is_some());
    advance(5 * MS).await;
    assert_eq!(world.in_flight(), 1.0);
    drop(answer);
    let line = world.the_only_line();
    assert_eq!((&*line["outcome"], &*line["level"], &*line["total_ms"]), ("cancelled", "INFO", "5.0"));
    assert_eq!(some(&line, ["status", "head_ms", "reason"]), [None, None, None]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_polled_is_cancelled() {
    let world = World::new();
    let (mock, _handle) = mock::pair::<Req, Res>();
    let mut service = mock::Spawn::new(Observe::new(mock, inbound()));
    assert!(service.poll_ready().is_ready());
    drop(service.call(get()));
    assert_eq!(world.the_only_line()["outcome"], "cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_body_dropped_before_its_end_is_cancelled() {
    for frames_read in [0, 1] {
        let world = World::new();
        let (answer, _) = send(inbound(), get(), Ok(response(200, Script::new(&["12345"]).hangs()))).await;
        let mut body = answer.expect("answered").into_body();
        for _ in 0..frames_read {
            body.frame().await.expect("a frame").expect("data");
        }
        assert_eq!(world.in_flight(), 1.0);
        drop(body);
        let line = world.the_only_line();
        assert_eq!((&*line["outcome"], &*line["status"]), ("cancelled", "200"));
        assert_eq!(line["bytes"], (5 * frames_read).to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_is_an_error_with_its_reason() {
    let body = Script::new(&["12345"]).error(Error::new(Kind::Upstream, "stream_cut"));
    let line = observed(get(), Ok(response(200, body))).await;
    assert_eq!((&*line["outcome"], &*line["status"], &*line["bytes"]), ("error", "200", "5"));
    assert_eq!((&*line["kind"], &*line["reason"], &*line["level"]), ("upstream", "stream_cut", "WARN"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_ends_with_its_head() {
    let silent = || Script::new(&["never read"]).hangs();
    for (request, answer) in [
        (get(), response(200, Script::default().tells_its_end())),
        (request(Method::HEAD, "/"), response(200, silent())),
        (request(Method::CONNECT, "/"), response(200, silent())),
        (get(), response(101, silent())),
        (get(), response(204, silent())),
        (get(), response(304, silent())),
    ] {
        let world = World::new();
        let (answer, _) = send(inbound(), request, Ok(answer)).await;
        let line = world.the_only_line();
        assert_eq!(line["outcome"].len(), 3, "{line:?}");
        assert_eq!((&*line["total_ms"], &*line["bytes"]), ("30.0", "0"));
        drop(answer);
        world.the_only_line();
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_ends_with_its_last_frame_though_nobody_polls_again() {
    for (body, frames) in [
        (Script::new(&["a", "b"]).tells_its_end(), 2),
        (Script::new(&["a"]).trailers("grpc-status", "0"), 2),
        (Script::default().trailers("grpc-status", "0"), 1),
    ] {
        let world = World::new();
        let (answer, _) = send(inbound(), get(), Ok(response(200, body))).await;
        let mut body = answer.expect("answered").into_body();
        for _ in 0..frames {
            assert_eq!(world.in_flight(), 1.0);
            body.frame().await.expect("a frame").expect("no error");
        }
        assert_eq!(world.the_only_line()["outcome"], "2xx");
        assert!(body.frame().await.is_none());
        world.the_only_line();
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_announced_length_is_complete_when_that_much_was_read() {
    for (length, outcome) in [("5", "2xx"), ("6", "cancelled"), ("nonsense", "cancelled"), ("-5", "cancelled")] {
        let world = World::new();
        let mut answer = response(200, Script::new(&["12345"]).hangs());
        answer.headers_mut().insert("content-length", length.parse().expect("valid"));
        let (answer, _) = send(inbound(), get(), Ok(answer)).await;
        let mut body = answer.expect("answered").into_body();
        body.frame().await.expect("a frame").expect("data");
        drop(body);
        assert_eq!(world.the_only_line()["outcome"], outcome, "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_our_error() {
    let world = World::new();
    let service =
        ObserveLayer::new(inbound()).layer(service_fn(|_: Req| async { panic!("boom") as Result<Res, BoxError> }));
    assert!(tokio::spawn(service.oneshot(get())).await.expect_err("panicked").is_panic());
    let line = world.the_only_line();
    assert_eq!((&*line["outcome"], &*line["reason"], &*line["level"]), ("error", "panic", "ERROR"));
}
