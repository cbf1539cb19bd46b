use std::time::Duration;

use coze_core::Error;
use coze_secret::Watch;
use tokio::time::timeout;

/// Calls `apply` whenever both of the secrets are new, or one of them is and the other did not follow within `wait`: sources are
/// looked at one after the other, so that one of two that were replaced at the same time is seen first; but who made a mistake
/// puts one of them right alone.
pub(super) async fn follow([mut one, mut other]: [Watch; 2], wait: Duration, apply: impl Fn() -> Result<(), Error>) {
    loop {
        tokio::select! {
            Some(_) = one.changed() => drop(timeout(wait, other.changed()).await),
            Some(_) = other.changed() => drop(timeout(wait, one.changed()).await),
            else => return,
        }
        if let Err(error) = apply() {
            tracing::warn!(reason = error.reason(), %error, "new secrets are refused: the last ones stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use coze_secret::{Secret, SecretBytes};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_secrets_are_taken_together_and_one_alone_after_a_while() {
        let (mut keys, key) = Secret::rotating("key", SecretBytes::new("k1"));
        let (mut ids, id) = Secret::rotating("id", SecretBytes::new("i1"));
        let watches = [key.watch(), id.watch()];
        let taken = RefCell::new(Vec::new());
        let apply = || {
            let text = |secret: &Secret| secret.current().map(|text| text.expose_str().unwrap_or_default().to_owned());
            taken.borrow_mut().push(format!("{} {}", text(&key)?, text(&id)?));
            Ok(())
        };
        let followed = follow(watches, Duration::from_secs(60), apply);
        let rotated = async {
            let until = |seconds| sleep(Duration::from_secs(seconds));
            until(1).await;
            keys.publish(SecretBytes::new("k2"));
            until(59).await;
            ids.publish(SecretBytes::new("i2"));
            until(1).await;
            ids.publish(SecretBytes::new("i3"));
            keys.publish(SecretBytes::new("k3"));
            until(1).await;
            assert_eq!(*taken.borrow(), ["k2 i2", "k3 i3"]);
            ids.publish(SecretBytes::new("i4"));
            until(59).await;
            assert_eq!(taken.borrow().len(), 2);
            until(2).await;
            assert_eq!(*taken.borrow().last().expect("taken"), "k3 i4");
            // It ends when nothing can come any more.
            drop((keys, ids));
        };
        tokio::join!(followed, rotated);
        assert_eq!(taken.borrow().len(), 3);
    }
}
