//! One chat at a time in a conversation, the clock paused.

use std::time::Duration;

use coze_core::{Kind, Retry};
use coze_ratelimit::{Conversations, Turn};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

fn soon() -> std::time::Instant {
    (Instant::now() + Duration::from_secs(60)).into()
}

async fn turn(conversations: &Conversations, conversation: &str) -> Turn {
    conversations.turn(conversation, soon()).await.expect("a turn")
}

/// How many conversations are remembered, and how many wait.
fn sizes(conversations: &Conversations) -> String {
    format!("{conversations:?}")
}

const NOTHING: &str = "Conversations { running: 0, waiting: 0, .. }";

#[tokio::test(start_paused = true)]
async fn chats_of_a_conversation_run_one_after_the_other_in_their_order() {
    let conversations = Conversations::new(100, 100);
    let mut chats = JoinSet::new();
    let began = Instant::now();
    for number in 0..10_u32 {
        let conversations = conversations.clone();
        chats.spawn(async move {
            let _turn = turn(&conversations, "c").await;
            sleep(Duration::from_secs(1)).await;
            number
        });
        tokio::task::yield_now().await;
    }
    for number in 0..10 {
        assert_eq!(chats.join_next().await.expect("another").expect("no panic"), number);
        assert_eq!(began.elapsed(), Duration::from_secs(u64::from(number) + 1));
    }
    assert_eq!(sizes(&conversations), NOTHING, "a conversation without a chat is forgotten");
}

#[tokio::test(start_paused = true)]
async fn conversations_do_not_wait_for_each_other() {
    let conversations = Conversations::new(1, 1);
    let (began, mut turns) = (Instant::now(), Vec::new());
    for number in 0..100 {
        turns.push(turn(&conversations, &number.to_string()).await);
    }
    assert_eq!((began.elapsed(), turns.len()), (Duration::ZERO, 100));
    assert_eq!(sizes(&conversations), "Conversations { running: 100, waiting: 0, .. }");
    drop(turns);
    assert_eq!(sizes(&conversations), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn so_many_wait_and_no_more() {
    let conversations = Conversations::new(2, 3);
    let held = (turn(&conversations, "a").await, turn(&conversations, "b").await);
    let mut waiting = JoinSet::new();
    for conversation in ["a", "a", "b"] {
        let conversations = conversations.clone();
        waiting.spawn(async move { drop(turn(&conversations, conversation).await) });
        tokio::task::yield_now().await;
    }
    // Of a there are two, in all there are three.
    for conversation in ["a", "b"] {
        let refused = conversations.turn(conversation, soon()).await.expect_err("full");
        assert_eq!((refused.kind(), refused.reason()), (Kind::Conflict, "conversation_busy"));
        assert_eq!((refused.retry(), refused.retry_after()), (Retry::Safe, Some(Duration::from_secs(1))));
    }
    drop(held);
    assert_eq!(waiting.join_all().await.len(), 3);
    assert_eq!(sizes(&conversations), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_takes_no_turn_and_no_room() {
    let conversations = Conversations::new(2, 2);
    let held = turn(&conversations, "c").await;
    for _ in 0..100 {
        let mut given_up = Box::pin(conversations.turn("c", soon()));
        assert!(timeout(Duration::from_millis(1), &mut given_up).await.is_err());
        drop(given_up);
    }
    assert_eq!(sizes(&conversations), "Conversations { running: 1, waiting: 0, .. }");
    // One that is given its turn and never looks at it lets the next one go.
    let mut first = Box::pin(conversations.turn("c", soon()));
    assert!(timeout(Duration::from_millis(1), &mut first).await.is_err());
    let mut second = Box::pin(conversations.turn("c", soon()));
    assert!(timeout(Duration::from_millis(1), &mut second).await.is_err());
    drop(held);
    drop(first);
    drop(second.await.expect("its turn"));
    assert_eq!(sizes(&conversations), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_past_the_deadline() {
    let conversations = Conversations::new(2, 2);
    let held = turn(&conversations, "c").await;
    let (began, wait) = (Instant::now(), Duration::from_millis(1500));
    let late = conversations.turn("c", (began + wait).into()).await.expect_err("too late");
    assert_eq!((late.reason(), began.elapsed()), ("conversation_busy", wait));
    drop(held);
    drop(turn(&conversations, "c").await);
    assert_eq!(sizes(&conversations), NOTHING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_threads_no_two_chats_run_at_once_and_no_turn_is_lost() {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    let conversations = Conversations::new(1000, 1000);
    let running: Arc<[AtomicUsize; 3]> = Arc::default();
    let mut chats = JoinSet::new();
    for number in 0..600_usize {
        let (conversations, running) = (conversations.clone(), running.clone());
        chats.spawn(async move {
            let which = number % 3;
            let turn = conversations.turn(["a", "b", "c"][which], soon());
            // Every fifth goes away when it has waited a moment.
            let patience = if number % 5 == 0 { Duration::from_micros(number as u64) } else { Duration::from_secs(60) };
            let Ok(turn) = timeout(patience, turn).await else { return };
            let turn = turn.expect("a turn");
            assert_eq!(running[which].fetch_add(1, Ordering::SeqCst), 0, "alone");
            tokio::task::yield_now().await;
            running[which].fetch_sub(1, Ordering::SeqCst);
            drop(turn);
        });
    }
    chats.join_all().await;
    assert_eq!(sizes(&conversations), NOTHING);
}
