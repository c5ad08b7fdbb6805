//! Named places where a test can end or hold a process of pgleap. Debug builds only, and only when the variable
//! `PGLEAP_FAILPOINTS` names a directory; otherwise [`reach`] does nothing.
//!
//! In that directory, with NAME for the place:
//!
//! | file | effect when the place is reached |
//! | --- | --- |
//! | `NAME.abort` | removed, then the process ends at once, without any clean-up: as by SIGKILL |
//! | `NAME.hold` | `NAME.held` is made, and the place waits until `NAME.hold` is gone |
//! | `NAME.fail` | removed, and [`reach`] returns an error |
//!
//! A place that many things come to (steps) is also named `NAME@THING`, for one of them only. A number N in `NAME.abort`
//! ends the process when the place is reached the N-th time.
//!
//! Files rather than variables, because a test decides while the process runs, and tells several processes apart by
//! giving each a directory of its own.

use std::future::Future;

/// Places that every step comes to when it is done, in this order, on its agent. `@STEP` is the step's name as it is on the
/// wire: its id with `:` for `/`.
pub const STEP_PLACES: [&str; 5] = [
    // The fence is not in the journal yet.
    "step.before-journal",
    // It is, and nothing acts yet.
    "step.after-journal",
    // The act waits for something, wherever that is; reached again each time it does. Not by an act that never waits.
    "step.during-act",
    // The act has ended, nothing is verified or recorded.
    "step.after-act",
    // The outcome is in the journal, and nobody was told.
    "step.before-reply",
];

/// The same when it is taken back.
pub const UNDO_PLACES: [&str; 5] =
    ["undo.before-journal", "undo.after-journal", "undo.during-act", "undo.after-act", "undo.before-reply"];

/// A long program of a step runs under its supervisor, and the agent is about to follow it. `@STEP`, too.
pub const JOB_STARTED: &str = "job.started";

/// The place of a step or of its undo.
pub fn step_place(undo: bool, index: usize) -> &'static str {
    let places = if undo { UNDO_PLACES } else { STEP_PLACES };
    places.get(index).copied().unwrap_or_default()
}

/// A failpoint asked for a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {0}: a test asked for a failure here")]
pub struct Asked(pub &'static str);

/// Does what a test asked for at this place.
///
/// # Errors
/// When a test asked for one.
pub async fn reach(name: &'static str) -> Result<(), Asked> {
    reach_of(name, "").await
}

/// The same at a place to which many things come, for this one.
///
/// # Errors
/// When a test asked for one.
pub async fn reach_of(name: &'static str, thing: &str) -> Result<(), Asked> {
    #[cfg(debug_assertions)]
    for place in asked::places(name, thing) {
        place.strike();
        if place.fails() {
            return Err(Asked(name));
        }
        place.hold().await;
    }
    let _ = (name, thing);
    Ok(())
}

/// Comes to the place whenever the future has to wait for something; held, or failed, only the first time.
///
/// # Errors
/// When a test asked for one: then the future is dropped where it waits.
#[cfg(debug_assertions)]
pub async fn during<F: Future>(name: &'static str, thing: &str, future: F) -> Result<F::Output, Asked> {
    use std::task::Poll;
    if asked::places(name, thing).is_empty() {
        return Ok(future.await);
    }
    let mut future = std::pin::pin!(future);
    if let Poll::Ready(output) = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        return Ok(output);
    }
    reach_of(name, thing).await?;
    let polled = std::future::poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            asked::places(name, thing).iter().for_each(asked::Place::strike);
        }
        polled
    });
    Ok(polled.await)
}

/// Just the future in a release build.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
pub async fn during<F: Future>(_name: &'static str, _thing: &str, future: F) -> Result<F::Output, Asked> {
    Ok(future.await)
}

/// What tests ask for, in files.
#[cfg(debug_assertions)]
mod asked {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::Duration;

    /// One name of a place.
    pub(super) struct Place(PathBuf);

    /// The names by which a test may ask; none when no test asks at all.
    pub(super) fn places(name: &str, thing: &str) -> Vec<Place> {
        static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
        let directory = DIRECTORY.get_or_init(|| std::env::var_os("PGLEAP_FAILPOINTS").map(PathBuf::from));
        let Some(directory) = directory else { return Vec::new() };
        let special = (!thing.is_empty()).then(|| directory.join(format!("{name}@{thing}")));
        special.into_iter().chain([directory.join(name)]).map(Place).collect()
    }

    impl Place {
        fn file(&self, kind: &str) -> PathBuf {
            let mut file = self.0.clone().into_os_string();
            file.push(".");
            file.push(kind);
            file.into()
        }

        /// Ends the process if that is asked for.
        pub(super) fn strike(&self) {
            let file = self.file("abort");
            let Ok(text) = fs::read_to_string(&file) else { return };
            match text.trim().parse::<u64>() {
                Ok(times) if times > 1 => {
                    let _ = fs::write(&file, (times - 1).to_string());
                }
                // Removing is what claims it: of several tasks at one place only one is hit.
                _ if fs::remove_file(&file).is_ok() => std::process::abort(),
                _ => {}
            }
        }

        /// Whether it is asked to fail.
        pub(super) fn fails(&self) -> bool {
            fs::remove_file(self.file("fail")).is_ok()
        }

        /// Waits as long as that is asked for.
        pub(super) async fn hold(&self) {
            if !self.file("hold").exists() {
                return;
            }
            // A test that cannot be told waits in vain and says so.
            let _ = fs::write(self.file("held"), "");
            while self.file("hold").exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let _ = fs::remove_file(self.file("held"));
        }
    }
}
