//! Waiting for something that cannot notify us: ask, wait a little, ask again, up to a deadline.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::Result;

/// First pause between two questions; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two questions.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Asks until the answer is there, or `limit` has passed (then `None`). Asks at least once.
///
/// # Errors
/// The first error of `ask`.
pub async fn until<T, F, A>(limit: Duration, mut ask: F) -> Result<Option<T>>
where
    F: FnMut() -> A,
    A: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(Some(answer));
        }
        if Instant::now() + pause > deadline {
            return Ok(None);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gives_up_at_the_limit_and_not_before() {
        let start = Instant::now();
        let answer: Option<()> = until(Duration::from_secs(3), || async { Ok(None) }).await.unwrap();
        assert_eq!(answer, None);
        let waited = start.elapsed();
        assert!(waited > Duration::from_secs(2) && waited <= Duration::from_secs(3), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_as_soon_as_it_is_there() {
        let mut asked = 0;
        let answer = until(Duration::from_secs(3), || {
            asked += 1;
            let now = asked;
            async move { Ok((now == 3).then_some(now)) }
        });
        assert_eq!(answer.await.unwrap(), Some(3));
    }
}
