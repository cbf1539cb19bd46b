//! Tokens that are remembered, and tokens that are revoked.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use coze_auth::{Algorithm, Issuer, JwtKey, JwtKeys};

use crate::{
    support::reason,
    token::{ISSUER, NOW, at, issuer, jwt, key, raw, token, valid, verdict},
};

thread_local! {
    static TIME: Cell<u64> = const { Cell::new(NOW) };
}

/// A clock that a test turns: each test has a thread of its own.
fn clock() -> SystemTime {
    at(TIME.get())
}

#[tokio::test]
async fn a_remembered_token_is_accepted_with_the_same_principal_scopes_and_tenant() {
    let policy = jwt(issuer()).tenant("org");
    let token = token(&format!(r#""org":"acme","scope":"a b","exp":{}"#, NOW + 1));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (answer, context) = crate::token::ask(&policy, crate::token::bearing(&token)).await;
        assert!(answer.is_ok());
        seen.push((context.principal.get().cloned(), context.tenant.get().cloned()));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[1], seen[2]);
}

#[tokio::test]
async fn a_remembered_token_ends_when_it_expires() {
    for policy in [jwt(issuer()), jwt(issuer()).cache(0)] {
        let policy = policy.clock(clock);
        TIME.set(NOW);
        let token = token(&format!(r#""exp":{}"#, NOW + 10));
        assert_eq!(verdict(&policy, &token).await, "ok");
        TIME.set(NOW + 69);
        assert_eq!(verdict(&policy, &token).await, "ok", "within the leeway");
        TIME.set(NOW + 70);
        assert_eq!(verdict(&policy, &token).await, "token_expired");
    }
}

#[tokio::test]
async fn a_remembered_token_is_forgotten_when_its_keys_are_replaced() {
    let (keys, others) = (JwtKeys::new([key(Algorithm::Hs256)]), JwtKeys::new([key(Algorithm::Es256)]));
    let (keys, others) = (keys.expect("one key"), others.expect("one key"));
    let policy = coze_auth::Jwt::new([Issuer::new(ISSUER, keys.clone()), Issuer::new("other", others)]);
    let policy = policy.expect("two issuers").clock(clock);
    let of_other =
        raw(r#"{"alg":"ES256"}"#, &format!(r#"{{"iss":"other","sub":"a","exp":{}}}"#, NOW + 9), Algorithm::Es256);
    assert_eq!((verdict(&policy, valid()).await, verdict(&policy, &of_other).await), ("ok", "ok"));
    keys.replace([JwtKey::new(Algorithm::Hs256, [9; 32]).expect("a key")]).expect("one key");
    assert_eq!((verdict(&policy, valid()).await, verdict(&policy, &of_other).await), ("signature_invalid", "ok"));
}

#[tokio::test]
async fn a_forged_token_is_not_found_under_the_hash_of_the_one_it_resembles() {
    let policy = jwt(issuer());
    let token = valid();
    assert_eq!(verdict(&policy, &token).await, "ok");
    let (message, signature) = token.rsplit_once('.').expect("three parts");
    let other = crate::token::token(&format!(r#""exp":{}"#, NOW + 9999));
    let (other, _) = other.rsplit_once('.').expect("three parts");
    assert_eq!(verdict(&policy, format!("{other}.{signature}")).await, "signature_invalid");
    assert_eq!(verdict(&policy, format!("{message}.{}", "A".repeat(43))).await, "signature_invalid");
}

#[tokio::test]
async fn a_revoked_token_is_refused_at_once_remembered_or_not_until_the_revocation_ends() {
    for cache in [0, 100] {
        TIME.set(NOW);
        let policy = jwt(issuer()).clock(clock).cache(cache);
        let clone = policy.clone();
        let token = valid();
        assert_eq!(verdict(&policy, &token).await, "ok");
        clone.revoke(&token, at(NOW + 100)).expect("there is room");
        assert_eq!(verdict(&policy, &token).await, "revoked");
        assert_eq!(
            verdict(&policy, crate::token::token(&format!(r#""exp":{}"#, NOW + 5))).await,
            "ok",
            "another token"
        );
        TIME.set(NOW + 100);
        assert_eq!(verdict(&policy, &token).await, "ok");
    }
}

#[tokio::test]
async fn a_token_that_is_revoked_until_it_expires_is_not_let_in_by_the_leeway() {
    TIME.set(NOW);
    let policy = jwt(issuer()).clock(clock).revocations(1);
    let with = |jti: &str| token(&format!(r#""jti":"{jti}","exp":{}"#, NOW + 10));
    policy.revoke_id(ISSUER, "a", at(NOW + 10)).expect("room");
    for (time, expected) in
        [(NOW + 9, "revoked"), (NOW + 10, "revoked"), (NOW + 69, "revoked"), (NOW + 70, "token_expired")]
    {
        TIME.set(time);
        assert_eq!(verdict(&policy, with("a")).await, expected, "{}", time - NOW);
        let room = reason(policy.revoke_id("elsewhere", "b", at(NOW)));
        assert_eq!(room, (time < NOW + 70).then_some("revocations_full"), "it is kept as long as it counts");
    }
}

#[tokio::test]
async fn a_jti_is_revoked_for_its_issuer_only() {
    let policy = jwt(issuer());
    let with = |jti: &str| token(&format!(r#""jti":"{jti}","exp":{}"#, NOW + 5));
    assert_eq!(verdict(&policy, with("a")).await, "ok");
    policy.revoke_id("elsewhere", "a", at(NOW + 100)).expect("room");
    assert_eq!(verdict(&policy, with("a")).await, "ok");
    policy.revoke_id(ISSUER, "a", at(NOW + 100)).expect("room");
    assert_eq!(verdict(&policy, with("a")).await, "revoked");
    assert_eq!(verdict(&policy, with("b")).await, "ok");
}

#[tokio::test]
async fn another_valid_signature_does_not_bring_a_revoked_token_back() {
    let policy = jwt(Issuer::new(ISSUER, JwtKeys::new([key(Algorithm::Es256)]).expect("one key")));
    let claims = format!(r#"{{"iss":"{ISSUER}","sub":"a","exp":{}}}"#, NOW + 5);
    let (first, second) =
        (raw(r#"{"alg":"ES256"}"#, &claims, Algorithm::Es256), raw(r#"{"alg":"ES256"}"#, &claims, Algorithm::Es256));
    assert_ne!(first, second, "ecdsa signs with a random number");
    policy.revoke(&first, at(NOW + 100)).expect("room");
    assert_eq!((verdict(&policy, &first).await, verdict(&policy, &second).await), ("revoked", "revoked"));
}

#[tokio::test]
async fn a_full_list_takes_no_more_until_a_revocation_ends_and_forgets_none() {
    TIME.set(NOW);
    let policy = jwt(issuer().leeway(Duration::ZERO)).clock(clock).revocations(2);
    for (jti, until, expected) in
        [("a", 10, None), ("b", 20, None), ("c", 30, Some("revocations_full")), ("b", 5, None), ("a", 40, None)]
    {
        assert_eq!(reason(policy.revoke_id(ISSUER, jti, at(NOW + until))), expected, "{jti}");
    }
    TIME.set(NOW + 19);
    let with = |jti: &str| token(&format!(r#""jti":"{jti}","exp":{}"#, NOW + 500));
    assert_eq!((verdict(&policy, with("a")).await, verdict(&policy, with("b")).await), ("revoked", "revoked"));
    TIME.set(NOW + 20);
    assert_eq!(reason(policy.revoke_id(ISSUER, "c", at(NOW + 60))), None);
    assert_eq!((verdict(&policy, with("b")).await, verdict(&policy, with("c")).await), ("ok", "revoked"));
}
