//! What a cancel has to leave behind: the old cluster as it was found, and nothing of the new one; and what a finish: one side without
//! anything of pgleap.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::{Server, eventually};
use crate::scenario::Scenario;
use crate::snapshot::Snapshot;
use crate::switching::Side;

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

    /// Nothing that pgleap made is in the catalogs of a server, but on a new one the slots by which its replicas stream.
    ///
    /// # Errors
    /// Names what is.
    pub async fn is_clean(&self, server: &Server) -> Result<()> {
        let is_new = self.fleet.new.iter().any(|node| node.name == server.name);
        let slots = if is_new { "slot_type = 'logical'" } else { "true" };
        let sql = format!(
            "SELECT string_agg(what, ', ') FROM (SELECT pubname::text FROM pg_publication UNION ALL SELECT nspname FROM pg_namespace \
             UNION ALL SELECT subname FROM pg_subscription \
             UNION ALL SELECT slot_name FROM pg_replication_slots WHERE {slots}) AS made (what) WHERE what LIKE 'pgleap%'"
        );
        for database in &self.databases {
            let left = server.value(database, &sql).await?;
            ensure!(left.is_none(), "left in {database} of {}: {left:?}", server.name);
        }
        Ok(())
    }

    /// No slot, publication, subscription, schema, origin or fence of pgleap on the leader of the side that stays after `finish`.
    ///
    /// # Errors
    /// Names what is, or says that clients cannot write there.
    pub async fn nothing_is_left(&self, side: Side) -> Result<()> {
        let leader = self.leader(side);
        ensure!(self.open_sides().await.contains(&side), "clients cannot write to {}", leader.name);
        let all = "SELECT string_agg(what, ', ') FROM (
            SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE slot_type = 'logical'
            UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
            UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
            UNION ALL SELECT 'publication ' || pubname FROM pg_publication
            UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE 'pgleap%'
            UNION ALL SELECT 'rule ' || line_number || ' ' || auth_method FROM pg_hba_file_rules
                WHERE auth_method = 'reject') AS left_over (what)";
        for database in self.databases.iter().map(String::as_str).chain(["postgres"]) {
            let left = leader.value(database, all).await?;
            ensure!(left.is_none(), "left in {database} of {}: {}", leader.name, left.unwrap_or_default());
        }
        Ok(())
    }
}
