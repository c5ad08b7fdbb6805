//! Lets the short programs of a cancelled step come to their end.
//!
//! A step is cancelled by dropping its future at an await. Killing the program it waits for at that moment would
//! leave the world in motion: a killed `pg_ctl start` has forked a postmaster that has not written its pid file yet,
//! so the undo would see no server, remove the directory, and meet the server afterwards. So the programs of a step
//! run in tasks of their own, and whoever cancels the step waits for them before anything else acts.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

tokio::task_local! {
    static CURRENT: InFlight;
}

/// The short programs that one run of a step has started and that have not ended. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct InFlight {
    programs: TaskTracker,
    kill: CancellationToken,
}

impl InFlight {
    /// Runs a step's future; the programs it starts are counted here. Tasks it spawns are not: their programs are
    /// killed with them.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// Waits until all programs have ended, and kills those that have not after `grace`.
    pub async fn drain(&self, grace: Duration) {
        self.programs.close();
        if tokio::time::timeout(grace, self.programs.wait()).await.is_err() {
            self.kill.cancel();
            self.programs.wait().await;
        }
    }
}

/// Runs a future so that it outlives the cancellation of the step that awaits it.
pub(super) async fn keep<F>(future: F) -> Result<F::Output, JoinError>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Ok(current) = CURRENT.try_with(Clone::clone) else { return Ok(future.await) };
    let kill = current.kill.clone();
    let task = current.programs.spawn(async move {
        tokio::select! {
            output = future => Some(output),
            () = kill.cancelled() => None,
        }
    });
    match task.await {
        Ok(Some(output)) => Ok(output),
        // Only whoever dropped the step kills: nobody waits here any more.
        Ok(None) => std::future::pending().await,
        Err(error) => Err(error),
    }
}
