//! What a cancel has to leave behind: the old cluster as it was found, and nothing of the new one.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::eventually;
use crate::scenario::Scenario;
use crate::snapshot::Snapshot;

impl Scenario {
    /// Every node of the old cluster as it is now.
    ///
    /// # Errors
    /// When one cannot be looked at.
    pub async fn old_cluster(&self) -> Result<Vec<Snapshot>> {
        let mut all = Vec::new();
        for node in &self.fleet.old.nodes {
            all.push(Snapshot::take(&self.fleet.base, node).await?);
        }
        Ok(all)
    }

    /// The old cluster is as it was, and nothing of the new one is left.
    ///
    /// # Errors
    /// When it is otherwise.
    pub async fn as_found(&self, before: &[Snapshot]) -> Result<()> {
        self.old_as_found(before).await?;
        self.nothing_of_the_new_cluster()
    }

    /// The old cluster is as it was.
    ///
    /// # Errors
    /// When it is otherwise.
    pub async fn old_as_found(&self, before: &[Snapshot]) -> Result<()> {
        for (node, before) in self.fleet.old.nodes.iter().zip(before) {
            let what = format!("{} to be as it was found", node.name);
            // A walsender that was ended shows for a moment longer.
            eventually(&what, Duration::from_secs(10), || async {
                before.require_same(&Snapshot::take(&self.fleet.base, node).await?)?;
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// No server, data directory or tablespace of the new cluster is left.
    ///
    /// # Errors
    /// Names what is.
    pub fn nothing_of_the_new_cluster(&self) -> Result<()> {
        for node in &self.fleet.new {
            for server in [node.clone(), self.fleet.seed(node)] {
                ensure!(!server.is_running(), "{} still runs in {}", node.name, server.data_dir.display());
                let left = std::fs::read_dir(&server.data_dir).map(|entries| entries.count()).unwrap_or(0);
                ensure!(left == 0, "{} still has {left} entries", server.data_dir.display());
            }
            let spaces = self.fleet.base.join(format!("{}/space", node.name));
            for space in std::fs::read_dir(&spaces).into_iter().flatten() {
                let space = space?.path();
                ensure!(std::fs::read_dir(&space)?.count() == 0, "{} is not empty", space.display());
            }
        }
        Ok(())
    }
}
