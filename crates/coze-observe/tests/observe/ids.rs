//! The request id on its way in, back and out.

use coze_core::{Context, RequestId};
use coze_observe::{Inbound, Outbound, Policy, REQUEST_ID_HEADER};
use http::{HeaderMap, HeaderValue};

use crate::{Req, get, inbound, outbound, response, script::Script, send};

const OURS: &str = "000000000000000000000000000000ab";

/// A request with these values of the header.
fn with_ids(values: &[&[u8]]) -> Req {
    let mut request = get();
    for value in values {
        request.headers_mut().append(REQUEST_ID_HEADER, HeaderValue::from_bytes(value).expect("valid"));
    }
    request
}

/// The same, on behalf of a request of this id.
fn on_behalf_of(id: &str, values: &[&[u8]]) -> Req {
    let parent = Context::new();
    parent.request_id.set(RequestId::new(id).expect("valid")).expect("empty");
    let mut request = with_ids(values);
    request.extensions_mut().insert(parent.child());
    request
}

fn ids(headers: &HeaderMap) -> Vec<&str> {
    headers.get_all(REQUEST_ID_HEADER).iter().map(|id| id.to_str().expect("ASCII")).collect()
}

/// The id that the inner service and the caller see, which is the one of the context.
async fn inbound_id(policy: impl Policy + Clone, request: Req) -> String {
    let mut answer = response(200, Script::default());
    answer.headers_mut().insert(REQUEST_ID_HEADER, HeaderValue::from_static("somebody-elses"));
    let (answer, seen) = send(policy, request, Ok(answer)).await;
    let answer = answer.expect("answered");
    let noted = seen.extensions().get::<Context>().and_then(|c| c.request_id.get()).expect("noted").as_str();
    assert_eq!((ids(seen.headers()), ids(answer.headers())), (vec![noted], vec![noted]));
    noted.to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_callers_id_is_kept_and_returned() {
    assert_eq!(inbound_id(inbound(), with_ids(&[b"req-1"])).await, "req-1");
    let longest = "r".repeat(128);
    assert_eq!(inbound_id(inbound(), with_ids(&[longest.as_bytes()])).await, longest);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_missing_or_bad_is_replaced_by_ours() {
    let bad: [&[&[u8]]; 8] = [
        &[],
        &[b""],
        &[&[b'r'; 129]],
        &[b"two words"],
        &[b"\xff\xfe"],
        &["张三".as_bytes()],
        &[b"req-1", b"req-2"],
        &[b"pat_0123456789abcdef"],
    ];
    for values in bad {
        assert_eq!(inbound_id(inbound(), with_ids(values)).await, OURS, "{values:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_that_an_outer_layer_noted_stays() {
    assert_eq!(inbound_id(inbound(), on_behalf_of("outer", &[b"req-1"])).await, "outer");
}

#[tokio::test(start_paused = true)]
async fn ids_of_ours_are_128_random_bits() {
    let policy = Inbound::new([""; 0]).expect("valid");
    let (one, two) = (inbound_id(policy.clone(), get()).await, inbound_id(policy, get()).await);
    assert_ne!(one, two);
    assert!([one, two].iter().all(|id| id.len() == 32 && id.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))));
}

#[tokio::test(start_paused = true)]
async fn outbound_the_id_of_the_context_goes_out_and_a_forged_one_does_not() {
    for (request, expected) in [
        (on_behalf_of("req-1", &[]), "req-1"),
        (on_behalf_of("req-1", &[b"forged", b"twice"]), "req-1"),
        (with_ids(&[]), OURS),
        (with_ids(&[b"forged"]), OURS),
    ] {
        let (answer, seen) = send(outbound(), request, Ok(response(200, Script::default()))).await;
        assert_eq!(ids(seen.headers()), [expected]);
        assert!(ids(answer.expect("answered").headers()).is_empty(), "the platform's answer stays as it is");
    }
    let defaults = Outbound::new([""; 0]).expect("valid");
    let (_, seen) = send(defaults, get(), Ok(response(200, Script::default()))).await;
    assert_eq!(ids(seen.headers())[0].len(), 32);
}
