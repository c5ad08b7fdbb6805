//! What a replica's steps ask of the leader's agent, with patience while that agent restarts.

use std::path::PathBuf;
use std::time::Duration;

use pgleap_proto::agent::{ManifestEntry, ManifestRequest};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, Streaming};

use super::offer::OfferedTablespace;
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::peer_client;

/// How long an agent that does not answer is waited for: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts: nothing notifies that an agent is back.
const PAUSE: Duration = Duration::from_millis(500);

/// The leader's agent.
#[derive(Debug, Clone, Copy)]
pub struct Leader<'a> {
    /// Name of its host.
    pub host: &'a str,
    /// Address of its agent.
    pub agent: &'a str,
}

/// Where the leader has what it offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The old major's directory.
    pub seed: PathBuf,
    /// The new major's.
    pub data: PathBuf,
    /// `pg_wal` of the new one when it lies elsewhere.
    pub wal: Option<PathBuf>,
    /// Tablespaces of the new one.
    pub tablespaces: Vec<OfferedTablespace>,
}

/// Whether a call may succeed when it is made again: the connection broke, nothing was refused.
pub fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted | Code::DeadlineExceeded
    )
}

impl Leader<'_> {
    /// Asks where the offered directories are; waits for an agent that does not answer.
    ///
    /// # Errors
    /// When it refuses, or has not answered for two minutes.
    pub async fn layout(&self, cx: &Context) -> Result<Layout> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match self.try_layout(cx).await {
                Ok(layout) => return layout,
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            cx.report.log("pgleap", format!("waiting: {error}"));
            sleep(PAUSE).await;
        }
    }

    /// The outer error is worth another attempt.
    async fn try_layout(&self, cx: &Context) -> Result<Result<Layout>> {
        let doing = "asking for the offered files";
        let request = ManifestRequest {
            operation: cx.operation.clone(),
            layout_only: true,
            ..ManifestRequest::default()
        };
        let mut client = peer_client::connect(self.agent, self.host, &cx.tls).await?;
        let mut entries = Vec::new();
        let refused = |status: Status| {
            let error = peer_client::refused(self.host, doing, &status);
            if is_lost(&status) { Err(error) } else { Ok(Err(error)) }
        };
        let mut stream = match client.manifest(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return refused(status),
        };
        loop {
            match stream.message().await {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => break,
                Err(status) => return refused(status),
            }
        }
        Ok(layout_of(&entries).ok_or_else(|| {
            StepError::new(format!("{doing} on host {}: the answer is incomplete", self.host))
        }))
    }

    /// Opens the leader's manifest.
    ///
    /// # Errors
    /// The status it was refused or lost with, or no connection.
    pub async fn manifest(&self, cx: &Context, percent: u32) -> Result<Streaming<ManifestEntry>, Status> {
        let client = peer_client::connect(self.agent, self.host, &cx.tls).await;
        let mut client = client.map_err(|error| Status::unavailable(error.message))?;
        let request =
            ManifestRequest { operation: cx.operation.clone(), sample_percent: percent, layout_only: false };
        Ok(client.manifest(request).await?.into_inner())
    }
}

fn layout_of(entries: &[ManifestEntry]) -> Option<Layout> {
    let one = |root: &str| entries.iter().find(|entry| entry.root == root).map(|e| PathBuf::from(&e.target));
    let mut tablespaces = Vec::new();
    let spaces: Vec<&ManifestEntry> = entries.iter().filter(|e| e.root.starts_with("tblspc/")).collect();
    for pair in spaces.chunks(2) {
        let [old, new] = pair else { return None };
        tablespaces.push(OfferedTablespace {
            oid: old.root.strip_prefix("tblspc/")?.parse().ok()?,
            location: PathBuf::from(&old.target),
            old: old.path.clone(),
            new: new.path.clone(),
        });
    }
    Some(Layout { seed: one("seed")?, data: one("data")?, wal: one("wal"), tablespaces })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_leader_says() {
        let entry = |root: &str, path: &str, target: &str| ManifestEntry {
            root: root.into(),
            path: path.into(),
            target: target.into(),
            ..ManifestEntry::default()
        };
        let mut entries = vec![
            entry("seed", "", "/n3/15"),
            entry("data", "", "/n3/18"),
            entry("tblspc/16400", "PG_15_1", "/ts"),
            entry("tblspc/16400", "PG_18_2", "/ts"),
        ];
        let layout = layout_of(&entries).unwrap();
        assert_eq!((layout.wal, layout.tablespaces.len()), (None, 1));
        assert_eq!(layout.tablespaces[0].new, "PG_18_2");
        entries.pop();
        assert_eq!(layout_of(&entries), None);
        assert_eq!(layout_of(&entries[..1]), None);
    }
}
