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
//! Files rather than variables, because a test decides while the process runs, and tells several processes apart by
//! giving each a directory of its own.

/// A failpoint asked for a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {0}: a test asked for a failure here")]
pub struct Asked(pub &'static str);

/// Does what a test asked for at this place.
///
/// # Errors
/// When a test asked for one.
#[cfg(debug_assertions)]
pub async fn reach(name: &'static str) -> Result<(), Asked> {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::Duration;

    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| std::env::var_os("PGLEAP_FAILPOINTS").map(PathBuf::from));
    let Some(directory) = directory else { return Ok(()) };
    let file = |kind: &str| directory.join(format!("{name}.{kind}"));
    // Removing is what claims it: of several tasks at one place only one is hit.
    if fs::remove_file(file("abort")).is_ok() {
        std::process::abort();
    }
    if fs::remove_file(file("fail")).is_ok() {
        return Err(Asked(name));
    }
    if file("hold").exists() {
        // A test that cannot be told waits in vain and says so.
        let _ = fs::write(file("held"), "");
        while file("hold").exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let _ = fs::remove_file(file("held"));
    }
    Ok(())
}

/// Does nothing in a release build.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
pub async fn reach(_name: &'static str) -> Result<(), Asked> {
    Ok(())
}
