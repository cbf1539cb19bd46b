//! Credentials of a database, under the paused clock.

use coze_secret::{Credentials, Database, Health, Secret, Versions};
use coze_sim::vault::{Config, DATABASE_ROLE, Fault, Lease, LeaseState, Vault};
use tokio::time::sleep;

use crate::support::{client, count, reason, root, secs, session, simulated, simulated_with, until};

fn database() -> Database {
    Database::new(DATABASE_ROLE)
}

fn user(secret: &Secret<Credentials>) -> String {
    secret.current().expect("live").username().to_owned()
}

fn lease_of(vault: &Vault, user: &str) -> Lease {
    vault.leases().into_iter().find(|lease| lease.username == user).expect("a lease")
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_before_it_ends_and_the_credentials_stay() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let credentials = session.database(database()).await.expect("given");
    let first = user(&credentials);
    sleep(secs(10 * 3600)).await;
    assert_eq!((user(&credentials), credentials.read(Versions::number)), (first.clone(), 1));
    let lease = lease_of(&vault, &first);
    assert_eq!(lease.state, LeaseState::Active);
    assert!((13..=17).contains(&lease.renewals), "each after 60 to 75 % of an hour: {}", lease.renewals);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_replaced_before_their_last_end_and_the_old_ones_are_revoked_later() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let credentials = session.database(database().overlap(secs(90))).await.expect("given");
    let (first, mut watch) = (user(&credentials), credentials.watch());
    let second = watch.changed().await.expect("replaced");
    let old = lease_of(&vault, &first);
    assert_eq!(old.state, LeaseState::Active, "nobody lost a connection yet");
    assert_ne!(second.username(), first);
    assert!(credentials.read(|v| v.previous().is_some_and(|previous| previous.username() == first)));
    sleep(secs(89)).await;
    assert_eq!(lease_of(&vault, &first).state, LeaseState::Active);
    sleep(secs(3)).await;
    assert_eq!(lease_of(&vault, &first).state, LeaseState::Revoked);
    assert!(credentials.read(|v| v.previous().is_none()));
}

#[tokio::test(start_paused = true)]
async fn at_every_moment_of_a_day_the_current_credentials_work() {
    let config = Config {
        lease_ttl: secs(600),
        lease_max_ttl: secs(3600),
        token_ttl: secs(1000),
        token_max_ttl: secs(5000),
        ..Config::default()
    };
    let vault = simulated_with(config).await;
    let session = session(&vault).await;
    let credentials = session.database(database()).await.expect("given");
    for second in 0..(24 * 360) {
        let lease = lease_of(&vault, &user(&credentials));
        assert_eq!(lease.state, LeaseState::Active, "after {second}0 s: {lease:?}");
        sleep(secs(10)).await;
    }
    assert_eq!((credentials.health(), session.health()), (Health::Good, Health::Good));
    let active = vault.leases().iter().filter(|lease| lease.state == LeaseState::Active).count();
    assert!(active <= 2, "nothing is left behind: {active}");
    assert!(credentials.read(Versions::number) > 25);
}

#[tokio::test(start_paused = true)]
async fn the_shortest_lease_there_is_leaves_no_gap() {
    for leases_renewable in [true, false] {
        let (ttl, max) = (secs(1), secs(3));
        let config = Config { lease_ttl: ttl, lease_max_ttl: max, leases_renewable, ..Config::default() };
        let vault = simulated_with(config).await;
        let session = session(&vault).await;
        let credentials = session.database(database()).await.expect("given");
        for step in 0..600 {
            let lease = lease_of(&vault, &user(&credentials));
            assert_eq!(lease.state, LeaseState::Active, "after {step} times 50 ms: {lease:?}");
            sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(credentials.read(Versions::number) >= 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_may_not_be_renewed_is_replaced() {
    let vault = simulated_with(Config { leases_renewable: false, ..Config::default() }).await;
    let session = session(&vault).await;
    let credentials = session.database(database()).await.expect("given");
    let first = user(&credentials);
    sleep(secs(2750)).await;
    assert_ne!(user(&credentials), first);
    assert_eq!(count(&vault, "POST sys/leases/renew", 400), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_an_operator_revoked_is_replaced_at_the_next_renewal() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let credentials = session.database(database()).await.expect("given");
    let first = user(&credentials);
    vault.revoke_lease(&lease_of(&vault, &first).id);
    until("replacement", || user(&credentials) != first).await;
    assert_eq!(credentials.health(), Health::Good);
}

#[tokio::test(start_paused = true)]
async fn credentials_serve_until_their_lease_ends_and_not_longer() {
    let vault = simulated().await;
    let session = client(&vault).connect(root()).await.expect("logged in");
    let credentials = session.database(database()).await.expect("given");
    let first = user(&credentials);
    vault.fault(Fault { times: u64::MAX, ..Fault::default() });
    sleep(secs(3590)).await;
    assert_eq!((user(&credentials), credentials.health()), (first, Health::Stale("vault_sealed")));
    sleep(secs(11)).await;
    let error = credentials.current().expect_err("over");
    assert_eq!((error.reason(), credentials.health()), ("secret_expired", Health::Expired("vault_sealed")));
    let mut watch = credentials.watch();
    vault.clear_faults();
    let next = watch.changed().await.expect("replaced");
    assert_eq!(lease_of(&vault, next.username()).state, LeaseState::Active);
    assert_eq!(credentials.health(), Health::Good);
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_with_its_token_so_both_are_replaced_together() {
    let config = Config { token_ttl: secs(100), token_max_ttl: secs(250), ..Config::default() };
    let vault = simulated_with(config).await;
    let session = session(&vault).await;
    let credentials = session.database(database()).await.expect("given");
    let first = user(&credentials);
    until("replacement", || user(&credentials) != first).await;
    assert_ne!(lease_of(&vault, &first).state, LeaseState::Expired, "not too late");
    assert_eq!(count(&vault, "POST auth/approle/login", 200), 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_revokes_every_lease_and_the_token() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let first = session.database(database()).await.expect("given");
    let second = session.database(database()).await.expect("given");
    session.shutdown().await;
    assert!(vault.leases().iter().all(|lease| lease.state == LeaseState::Revoked));
    assert_eq!(count(&vault, "POST sys/leases/revoke", 204), 2);
    assert_eq!(count(&vault, "POST auth/token/revoke-self", 204), 1);
    for credentials in [first, second] {
        assert_eq!(credentials.current().expect_err("over").reason(), "secret_expired");
        assert_eq!(credentials.health(), Health::Expired("vault_session_ended"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_without_vault_ends_after_its_time() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let _credentials = session.database(database()).await.expect("given");
    vault.fault(Fault { delay: secs(9), times: u64::MAX, ..Fault::default() });
    let begun = tokio::time::Instant::now();
    session.shutdown().await;
    assert!(begun.elapsed() <= secs(11), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_revokes_the_token_although_no_lease_can_be() {
    for fault in [Fault::default(), Fault { delay: secs(100), ..Fault::default() }] {
        let vault = simulated().await;
        let session = session(&vault).await;
        let credentials = session.database(database()).await.expect("given");
        vault.fault(Fault { path: "sys/leases/".into(), status: Some(500), times: u64::MAX, ..fault });
        let begun = tokio::time::Instant::now();
        session.shutdown().await;
        assert!(begun.elapsed() <= secs(8), "{:?}", begun.elapsed());
        assert_eq!(count(&vault, "POST auth/token/revoke-self", 204), 1);
        assert_eq!(vault.leases()[0].state, LeaseState::Revoked, "with its token");
        assert_eq!(credentials.current().expect_err("over").reason(), "secret_expired");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_renewal_under_way() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let credentials = session.database(database()).await.expect("given");
    vault.fault(Fault { path: "sys/leases/renew".into(), delay: secs(9), times: u64::MAX, ..Fault::default() });
    until("a renewal", || count(&vault, "POST sys/leases/renew", 503) > 0).await;
    sleep(secs(2)).await;
    let begun = tokio::time::Instant::now();
    session.shutdown().await;
    assert!(begun.elapsed() <= secs(1), "{:?}", begun.elapsed());
    assert_eq!(vault.leases()[0].state, LeaseState::Revoked);
    assert_eq!(credentials.current().expect_err("over").reason(), "secret_expired");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_given_is_not_revoked() {
    let vault = simulated().await;
    let session = client(&vault).connect(root()).await.expect("logged in");
    let _credentials = session.database(database()).await.expect("given");
    session.shutdown().await;
    assert_eq!(count(&vault, "POST auth/token/revoke-self", 204), 0);
    assert_eq!(vault.leases()[0].state, LeaseState::Revoked, "but the lease is ours");
}

#[tokio::test(start_paused = true)]
async fn credentials_that_nobody_holds_are_revoked() {
    let vault = simulated().await;
    let session = session(&vault).await;
    let credentials = session.database(database()).await.expect("given");
    let clone = credentials.clone();
    drop(credentials);
    sleep(secs(10)).await;
    assert_eq!(vault.leases()[0].state, LeaseState::Active);
    drop(clone);
    until("revocation", || vault.leases()[0].state == LeaseState::Revoked).await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_role_is_refused_at_once() {
    let vault = simulated().await;
    let session = session(&vault).await;
    assert_eq!(reason(session.database(Database::new("nobody"))).await, "vault_refused");
    assert_eq!(count(&vault, "GET database/creds/nobody", 400), 1);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_that_fails_is_made_up_for() {
    let vault = simulated_with(Config { leases_renewable: false, ..Config::default() }).await;
    let session = session(&vault).await;
    let credentials = session.database(database().overlap(secs(10))).await.expect("given");
    let (first, mut watch) = (user(&credentials), credentials.watch());
    vault.fault(Fault { path: "sys/leases/revoke".into(), times: 3, ..Fault::default() });
    watch.changed().await.expect("replaced");
    until("revocation", || lease_of(&vault, &first).state != LeaseState::Active).await;
    assert_eq!(lease_of(&vault, &first).state, LeaseState::Revoked);
    assert_eq!(count(&vault, "POST sys/leases/revoke", 503), 3);
}
