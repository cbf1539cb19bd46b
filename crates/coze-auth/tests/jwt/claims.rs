//! Who the caller is, and for how long a token is believed.

use coze_auth::{Algorithm, Issuer, Jwt};
use coze_core::{Kind, Retry, TenantId};
use http::{Request, header::AUTHORIZATION};

use crate::token::{ISSUER, NOW, ask, at, bearing, issuer, jwt, keys, raw, token, valid, verdict};

#[tokio::test]
async fn a_valid_token_is_accepted_and_its_subject_noted() {
    let (answer, context) = ask(&jwt(issuer()), bearing(valid())).await;
    assert!(answer.is_ok());
    let principal = context.principal.get().expect("noted");
    assert_eq!((principal.scheme, &*principal.subject, &*principal.scopes), ("jwt", "alice", ""));
    assert_eq!((context.auth(), context.tenant.get()), (Some("ok"), None));
}

#[tokio::test]
async fn every_algorithm_is_verified_by_its_key() {
    use Algorithm::{EdDsa, Es256, Es384, Es512, Hs256, Hs384, Hs512, Ps256, Rs256};
    for algorithm in [Hs256, Hs384, Hs512, Rs256, Ps256, Es256, Es384, Es512, EdDsa] {
        let policy = jwt(Issuer::new(ISSUER, keys(algorithm)));
        let claims = format!(r#"{{"iss":"{ISSUER}","sub":"a","exp":{}}}"#, NOW + 1);
        let token = raw(&format!(r#"{{"alg":"{}","typ":"JWT"}}"#, algorithm.as_str()), &claims, algorithm);
        assert_eq!(verdict(&policy, &token).await, "ok", "{algorithm:?}");
        let last = if token.ends_with('A') { "Q" } else { "A" };
        let forged = format!("{}{last}{}", &token[..token.len() - 5], &token[token.len() - 4..]);
        if forged != token {
            assert_eq!(verdict(&policy, &forged).await, "signature_invalid", "{algorithm:?}");
        }
    }
}

#[tokio::test]
async fn a_token_counts_from_nbf_and_iat_to_exp_and_60_seconds_around() {
    let policy = jwt(issuer());
    let exp = |exp: &str| token(&format!(r#""exp":{exp}"#));
    let since = |claim: &str, time: u64| token(&format!(r#""exp":{},"{claim}":{time}"#, NOW + 3600));
    let cases = [
        (exp(&(NOW - 59).to_string()), "ok"),
        (exp(&(NOW - 60).to_string()), "token_expired"),
        (exp(&format!("{}.5", NOW - 60)), "ok"),
        (exp(&format!("{}.0e0", NOW + 1)), "ok"),
        (exp("0"), "token_expired"),
        (since("nbf", NOW + 60), "ok"),
        (since("nbf", NOW + 61), "token_not_yet_valid"),
        (since("iat", NOW + 60), "ok"),
        (since("iat", NOW + 61), "token_not_yet_valid"),
        (since("iat", 0), "ok"),
    ];
    for (token, expected) in cases {
        assert_eq!(verdict(&policy, &token).await, expected, "{token}");
    }
    for (end, left) in [((NOW + 90).to_string(), 90), ((NOW - 1).to_string(), 0)] {
        let (_, context) = ask(&policy, bearing(exp(&end))).await;
        assert_eq!(context.token_life.get().map(std::time::Duration::as_secs), Some(left), "without the leeway");
    }
    let strict = jwt(issuer().leeway(std::time::Duration::ZERO));
    assert_eq!(verdict(&strict, exp(&NOW.to_string())).await, "token_expired");
    assert_eq!(verdict(&strict, exp(&(NOW + 1).to_string())).await, "ok");
}

#[tokio::test]
async fn a_date_that_is_not_one_is_a_parse_error() {
    let policy = jwt(issuer());
    for date in ["-1", "1e300", "253402300800", "\"1700003600\"", "null", "true", "[]", "1e400", "1700003600000"] {
        assert_eq!(verdict(&policy, token(&format!(r#""exp":{date}"#))).await, "parse_error", "{date}");
    }
    assert_eq!(verdict(&policy, token(r#""nbf":1"#)).await, "parse_error", "exp is missing");
}

#[tokio::test]
async fn the_audience_must_be_us_and_may_be_one_of_several() {
    let exp = NOW + 1;
    let named = |aud: &str| token(&format!(r#""exp":{exp},"aud":{aud}"#));
    let policy = jwt(issuer().audience("bots").audience("tools"));
    for aud in [r#""bots""#, r#""tools""#, r#"["x","tools"]"#, r#""b\u006fts""#] {
        assert_eq!(verdict(&policy, named(aud)).await, "ok", "{aud}");
    }
    for aud in [r#""Bots""#, r#""""#, "[]", r#"["x"]"#, r#""bots ""#] {
        assert_eq!(verdict(&policy, named(aud)).await, "audience_mismatch", "{aud}");
    }
    for aud in ["5", "null", r#"["bots",5]"#, r#"{"bots":1}"#, r#"[["bots"]]"#] {
        assert_eq!(verdict(&policy, named(aud)).await, "parse_error", "{aud}");
    }
    assert_eq!(verdict(&policy, valid()).await, "audience_mismatch", "aud is missing");
    assert_eq!(verdict(&jwt(issuer()), named(r#""bots""#)).await, "audience_mismatch", "we are nobody's audience");
}

#[tokio::test]
async fn each_issuer_is_believed_by_its_own_keys_audience_and_leeway() {
    let other = Issuer::new("other", keys(Algorithm::Es256)).leeway(std::time::Duration::from_secs(600)).audience("x");
    let policy = Jwt::new([issuer(), other]).expect("two issuers").clock(|| at(NOW));
    let of_other = |exp: u64, algorithm: Algorithm| {
        let header = format!(r#"{{"alg":"{}"}}"#, algorithm.as_str());
        raw(&header, &format!(r#"{{"iss":"other","sub":"a","aud":"x","exp":{exp}}}"#), algorithm)
    };
    assert_eq!(verdict(&policy, valid()).await, "ok");
    assert_eq!(verdict(&policy, of_other(NOW - 599, Algorithm::Es256)).await, "ok");
    assert_eq!(verdict(&policy, of_other(NOW - 600, Algorithm::Es256)).await, "token_expired");
    assert_eq!(verdict(&policy, of_other(NOW + 9, Algorithm::Hs256)).await, "signature_invalid", "another's key");
    for iss in [r#""iss":"nobody","#, "", r#""iss":"","#] {
        let token = raw(r#"{"alg":"HS256"}"#, &format!(r#"{{{iss}"sub":"a","exp":{}}}"#, NOW + 9), Algorithm::Hs256);
        assert_eq!(verdict(&policy, token).await, "issuer_mismatch", "{iss}");
    }
    assert!(Jwt::new([]).is_err());
    assert!(Jwt::new([issuer(), issuer()]).is_err());
    assert!(Jwt::new((0..64).map(|i| Issuer::new(&i.to_string(), keys(Algorithm::Hs256)))).is_ok());
    assert!(Jwt::new((0..65).map(|i| Issuer::new(&i.to_string(), keys(Algorithm::Hs256)))).is_err());
}

#[tokio::test]
async fn an_issuer_signs_with_no_algorithm_but_its_own() {
    let of = |algorithms: &[Algorithm]| jwt(issuer().algorithms(algorithms.iter().copied()));
    assert_eq!(verdict(&of(&[Algorithm::Rs256, Algorithm::Hs256]), valid()).await, "ok");
    for others in [&[][..], &[Algorithm::Hs384], &[Algorithm::Rs256, Algorithm::Es256]] {
        assert_eq!(verdict(&of(others), valid()).await, "signature_invalid", "{others:?}");
    }
}

#[tokio::test]
async fn scopes_are_read_from_scope_or_scp_as_text_or_list() {
    let policy = jwt(issuer());
    let cases = [
        (r#""scope":"chat bot:read""#, "chat bot:read"),
        (r#""scope":["chat","bot:read"]"#, "chat bot:read"),
        (r#""scp":["chat"]"#, "chat"),
        (r#""scp":"a b""#, "a b"),
        (r#""scope":"","scp":"a""#, ""),
        (r#""scope":"  a  ""#, "a"),
    ];
    for (claim, expected) in cases {
        let (_, context) = ask(&policy, bearing(token(&format!(r#"{claim},"exp":{}"#, NOW + 1)))).await;
        assert_eq!(&*context.principal.get().expect("accepted").scopes, expected, "{claim}");
    }
}

#[tokio::test]
async fn the_tenant_is_read_from_the_claim_that_was_named_and_no_other() {
    let with = |claim: &str| token(&format!(r#"{claim},"exp":{}"#, NOW + 1));
    let policy = jwt(issuer()).tenant("org");
    let (answer, context) = ask(&policy, bearing(with(r#""org":"acme","tenant":"evil""#))).await;
    assert!(answer.is_ok());
    assert_eq!(context.tenant.get().map(|tenant| tenant.as_str()), Some("acme"));
    for bad in [r#""org":"""#, r#""org":"a b""#, r#""org":5"#, r#""org":["a"]"#] {
        assert_eq!(verdict(&policy, with(bad)).await, "parse_error", "{bad}");
    }
    assert!(ask(&policy, bearing(valid())).await.1.tenant.get().is_none());
    let (_, context) = ask(&jwt(issuer()), bearing(with(r#""org":"acme""#))).await;
    assert!(context.tenant.get().is_none(), "no claim was named");
}

#[tokio::test]
async fn an_issuer_names_no_tenants_but_its_own() {
    let own = ["acme", "hooli"].map(|tenant| TenantId::new(tenant).expect("valid"));
    let with = |claim: &str| token(&format!(r#""exp":{},{claim}"#, NOW + 1));
    let policy = jwt(issuer().tenants(own)).tenant("org");
    for (claim, expected) in [
        (r#""org":"acme""#, "ok"),
        (r#""org":"hooli""#, "ok"),
        (r#""org":"evil""#, "policy_denied"),
        (r#""org":"Acme""#, "policy_denied"),
        (r#""a":1"#, "ok"),
    ] {
        assert_eq!(verdict(&policy, with(claim)).await, expected, "{claim}");
    }
    assert_eq!(verdict(&jwt(issuer().tenants([])).tenant("org"), with(r#""org":"acme""#)).await, "policy_denied");
}

#[tokio::test]
async fn a_tenant_claim_named_later_does_not_find_tokens_that_were_read_without() {
    let token = token(&format!(r#""org":"acme","exp":{}"#, NOW + 1));
    let without = jwt(issuer());
    assert_eq!(verdict(&without, &token).await, "ok");
    let (_, context) = ask(&without.clone().tenant("org"), bearing(&token)).await;
    assert!(context.tenant.get().is_some());
}

#[tokio::test]
async fn a_subject_is_required() {
    for sub in ["", r#""sub":"","#] {
        let claims = format!(r#"{{{sub}"iss":"{ISSUER}","exp":{}}}"#, NOW + 1);
        let token = raw(r#"{"alg":"HS256"}"#, &claims, Algorithm::Hs256);
        assert_eq!(verdict(&jwt(issuer()), token).await, "parse_error");
    }
}

#[tokio::test]
async fn a_request_without_a_bearer_token_misses_credentials() {
    let policy = jwt(issuer());
    let requests = [
        Request::builder().body(()),
        Request::builder().header(AUTHORIZATION, "Basic YTpi").body(()),
        Request::builder().header(AUTHORIZATION, "").body(()),
        Request::builder().header(AUTHORIZATION, "Bearer").body(()),
        Request::builder().header(AUTHORIZATION, format!("Bearer\t{}", valid())).body(()),
        Request::builder().header(AUTHORIZATION, valid()).body(()),
    ];
    for request in requests {
        let (answer, context) = ask(&policy, request.expect("a request")).await;
        let error = answer.expect_err("refused");
        assert_eq!(
            (error.reason(), error.kind(), error.retry()),
            ("missing_credentials", Kind::Unauthenticated, Retry::Never)
        );
        assert_eq!(context.auth(), Some("missing_credentials"));
    }
}

#[tokio::test]
async fn the_header_is_given_once_and_its_scheme_has_no_case() {
    let policy = jwt(issuer());
    let twice = Request::builder()
        .header(AUTHORIZATION, format!("Bearer {}", valid()))
        .header(AUTHORIZATION, format!("Bearer {}", valid()));
    let (answer, _) = ask(&policy, twice.body(()).expect("a request")).await;
    assert_eq!(answer.expect_err("refused").reason(), "parse_error");
    // RFC 6750 §2.1: one space or more.
    for scheme in ["bearer", "BEARER", "bEaReR", "Bearer  "] {
        let request = Request::builder().header(AUTHORIZATION, format!("{scheme} {}", valid())).body(());
        assert!(ask(&policy, request.expect("a request")).await.0.is_ok());
    }
}

#[test]
fn the_service_is_send_sync_and_clone_and_its_future_goes_anywhere() {
    use tower::{Service, service_fn};
    fn check<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    fn sends<F: Send + 'static>(_: F) {}
    let inner = service_fn(async |_: Request<()>| Ok::<_, coze_core::BoxError>(http::Response::new(())));
    let mut service = coze_auth::Auth::new(inner, jwt(issuer()));
    sends(service.call(bearing(valid())));
    check(&coze_auth::Auth::new((), jwt(issuer())));
}
