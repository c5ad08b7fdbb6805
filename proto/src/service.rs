//! What both daemons tell the service manager and the journal, and how.
//!
//! Outside systemd every function here does nothing, but for [`log`], which then writes text. Restarting, ordering and limits are the
//! units' business (systemd/).

mod journal;

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal::Journal;
use sd_notify::NotifyState;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Prefix of pgleap's own fields in the journal: `PGLEAP_OPERATION`, `PGLEAP_STEP`, `PGLEAP_CLUSTER`, ….
pub const FIELD_PREFIX: &str = "PGLEAP";

/// Sets up logging: to the journal, with fields, when that is where standard error goes; else as text to standard error.
pub fn log(filter: EnvFilter) {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let journal = stderr_is_journal().then(|| Journal::at(Path::new(journal::SOCKET), &name).ok()).flatten();
    match journal {
        Some(journal) => tracing_subscriber::registry().with(filter).with(journal).init(),
        None => {
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
        }
    }
}

/// `$JOURNAL_STREAM` is device and inode of the journal's stream (systemd.exec(5)); whatever redirected standard error since
/// has not changed the variable, so they are compared.
fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let Ok(metadata) = std::fs::File::from(stderr).metadata() else { return false };
    device.parse() == Ok(metadata.dev()) && inode.parse() == Ok(metadata.ino())
}

/// It serves: units ordered after this one may start. The text is shown by `systemctl status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It was told to end and puts things in order.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the service manager again and again that this process is alive, as long as `answers` says so. When that hangs or
/// denies it, nothing is told, and the service manager ends the process and starts it anew. Waits for ever when no watchdog is set.
pub async fn keep_alive<F: Future<Output = bool>>(answers: impl Fn() -> F) -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(limit) => keep_telling(limit, answers, || tell(&[NotifyState::Watchdog])).await,
        None => std::future::pending().await,
    }
}

async fn keep_telling<F: Future<Output = bool>>(
    limit: Duration,
    answers: impl Fn() -> F,
    tell: impl Fn(),
) -> Infallible {
    loop {
        let alive = answers().await;
        if alive {
            tell();
        }
        // Often enough that two may be late on a busy host; and a refusal may be over in a moment.
        tokio::time::sleep(limit / if alive { 4 } else { 16 }).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // Whoever cannot be told has no watchdog either, or it will do what it is there for.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// The cluster of an operation, by its id: `CLUSTER-xxxxxx`.
pub fn cluster_of(operation: &str) -> &str {
    operation.rsplit_once('-').map_or(operation, |(cluster, _)| cluster)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const LIMIT: Duration = Duration::from_secs(30);

    /// How often it is told within a time, when every answer is as given.
    async fn told<F: Future<Output = bool>>(answers: impl Fn() -> F, within: Duration) -> u32 {
        let told = Cell::new(0);
        let telling = keep_telling(LIMIT, answers, || told.set(told.get() + 1));
        let _ = tokio::time::timeout(within, telling).await;
        told.get()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_answers_is_said_to_be_alive_well_within_the_limit() {
        assert!(told(async || true, LIMIT).await >= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_hangs_or_denies_it_is_not() {
        assert_eq!(told(async || false, LIMIT * 3).await, 0);
        assert_eq!(told(std::future::pending::<bool>, LIMIT * 3).await, 0);
    }

    #[test]
    fn an_operation_names_its_cluster() {
        assert_eq!(cluster_of("eu-ledger-9fce8c"), "eu-ledger");
        assert_eq!(cluster_of("rehearsal"), "rehearsal");
    }
}
