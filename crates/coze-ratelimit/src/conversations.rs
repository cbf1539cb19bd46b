use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use coze_core::{Error, Kind, Retry};
use tokio::{sync::oneshot, time::timeout_at};

/// When another try is worth it, where nobody knows.
const ANOTHER_TRY: Duration = Duration::from_secs(1);

/// One running chat in each conversation, as the platform has it (4016, coze-platform.md §4): whoever comes next waits for its turn,
/// in the order in which they came.
///
/// A turn is held as long as the chat runs: also where that is longer than the call that began it, as without a stream. Clones
/// share the turns. It is of this process: a chat that another node runs in the conversation is refused by the platform.
///
/// ```
/// use std::time::Duration;
///
/// use coze_ratelimit::Conversations;
/// use tokio::time::Instant;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), coze_core::Error> {
/// let conversations = Conversations::new(8, 1000);
/// let deadline = (Instant::now() + Duration::from_secs(10)).into();
/// let turn = conversations.turn("7300000000000000001", deadline).await?;
/// // Here the chat runs, to its end.
/// drop(turn);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Conversations(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    per_conversation: usize,
    in_all: usize,
}

#[derive(Default)]
struct State {
    /// The conversations in which a chat runs, and who waits there.
    running: HashMap<Arc<str>, VecDeque<Waiting>>,
    waiting: usize,
    tickets: u64,
}

struct Waiting {
    ticket: u64,
    tell: oneshot::Sender<Turn>,
}

/// The turn of one chat in its conversation. Dropping it lets the next one go.
#[must_use = "dropped, the next chat may begin"]
pub struct Turn(Option<(Conversations, Arc<str>)>);

/// One that waits; dropped, it leaves.
struct Leaving<'a> {
    of: &'a Conversations,
    conversation: &'a str,
    ticket: u64,
}

impl Conversations {
    /// At most so many wait in each conversation, and in all of them together.
    #[must_use]
    pub fn new(per_conversation: usize, in_all: usize) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), per_conversation, in_all }))
    }

    /// Waits for the turn in a conversation, at most until `deadline`. Whoever drops the future has left, and takes no turn.
    ///
    /// A conversation is whatever text stands for one; it is remembered as long as a chat runs there.
    ///
    /// # Errors
    /// [`Kind::Conflict`] with the reason `conversation_busy`, which may be sent again in a second: as many wait already as may, or the
    /// deadline came first.
    pub async fn turn(&self, conversation: &str, deadline: Instant) -> Result<Turn, Error> {
        let busy = || {
            Error::new(Kind::Conflict, "conversation_busy")
                .with_message("the conversation has a running chat, and others wait for its end")
                .with_retry(Retry::Safe)
                .with_retry_after(ANOTHER_TRY)
        };
        let (told, leaving) = {
            let mut state = self.state();
            let State { running, waiting, tickets } = &mut *state;
            let Some(queue) = running.get_mut(conversation) else {
                let conversation: Arc<str> = conversation.into();
                running.insert(conversation.clone(), VecDeque::new());
                return Ok(Turn(Some((self.clone(), conversation))));
            };
            if queue.len() >= self.0.per_conversation || *waiting >= self.0.in_all {
                return Err(busy());
            }
            let (tell, told) = oneshot::channel();
            *tickets += 1;
            *waiting += 1;
            queue.push_back(Waiting { ticket: *tickets, tell });
            (told, Leaving { of: self, conversation, ticket: *tickets })
        };
        let turn = timeout_at(deadline.into(), told).await;
        drop(leaving);
        turn.ok().and_then(Result::ok).ok_or_else(busy)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next who waits in a conversation, in which no chat runs any more; forgets it if there is none.
    fn next(&self, conversation: &Arc<str>) -> Option<oneshot::Sender<Turn>> {
        let mut state = self.state();
        let State { running, waiting, .. } = &mut *state;
        let Entry::Occupied(mut entry) = running.entry(conversation.clone()) else { return None };
        let Some(next) = entry.get_mut().pop_front() else {
            entry.remove();
            return None;
        };
        *waiting -= 1;
        Some(next.tell)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The turn goes on to the first who takes it. One who left in this moment gives it back, or drops it, which is the same.
        let Some((conversations, conversation)) = self.0.take() else { return };
        let mut turn = (conversations, conversation);
        while let Some(tell) = turn.0.next(&turn.1) {
            match tell.send(Self(Some(turn))) {
                Ok(()) => return,
                Err(mut back) => turn = back.0.take().expect("it was given a moment ago"),
            }
        }
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut state = self.of.state();
        let State { running, waiting, .. } = &mut *state;
        if let Some(queue) = running.get_mut(self.conversation)
            && let Ok(index) = queue.binary_search_by_key(&self.ticket, |waiting| waiting.ticket)
        {
            queue.remove(index);
            *waiting -= 1;
        }
    }
}

impl fmt::Debug for Conversations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Conversations")
            .field("running", &state.running.len())
            .field("waiting", &state.waiting)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Turn").field(&self.0.as_ref().map(|(_, conversation)| conversation)).finish()
    }
}
