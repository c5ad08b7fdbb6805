//! Scenarios of clusters that Patroni runs: what they are like, what they have Patroni do, and who runs what afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::harness::eventually;
use crate::harness::patroni::{Patroni, PatroniOptions};
use crate::scenario::{Options, Scenario};
use crate::switching::{self, Side};

/// Scope of the Patroni that new clusters are handed over to.
const NEW_SCOPE: &str = "ledger18";
/// Longest time until a failover has been noticed and told.
pub const NOTICED: Duration = Duration::from_secs(120);
/// Longest time until a daemon has done what it was told.
const LIMIT: Duration = Duration::from_secs(60);

impl PatroniOptions {
    /// One whose leader leads on through the pauses of a busy machine: what is claimed of it is not about failovers by themselves.
    pub fn steady() -> Self {
        PatroniOptions { ttl: 120, ..PatroniOptions::default() }
    }

    /// The same, for a new cluster beside the old one.
    #[must_use]
    pub fn for_new(self) -> Self {
        PatroniOptions { scope: NEW_SCOPE.into(), ..self }
    }
}

/// A scenario with traffic and few rows, its old cluster of so many members run by that Patroni.
pub fn options(members: usize, patroni: PatroniOptions) -> Options {
    let mut options = switching::options(&[]);
    options.rows = 300;
    let old = &mut options.fleet.old;
    old.tablespaces.clear();
    old.nodes = (1..=members).map(|n| format!("o{n}")).collect();
    old.patroni = Some(patroni);
    options
}

impl Scenario {
    /// Who runs a side, or is to.
    ///
    /// # Errors
    /// When nobody does.
    pub fn patroni(&self, side: Side) -> Result<&Patroni> {
        let patroni = match side {
            Side::Old => &self.fleet.old.patroni,
            Side::New => &self.fleet.new_patroni,
        };
        patroni.as_ref().with_context(|| format!("no Patroni runs the {side:?} side"))
    }

    /// The same, to start, stop or wait for daemons.
    ///
    /// # Errors
    /// When nobody does.
    pub fn patroni_mut(&mut self, side: Side) -> Result<&mut Patroni> {
        let patroni = match side {
            Side::Old => &mut self.fleet.old.patroni,
            Side::New => &mut self.fleet.new_patroni,
        };
        patroni.as_mut().with_context(|| format!("no Patroni runs the {side:?} side"))
    }

    /// Starts the daemon of a member of the old cluster.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_member(&mut self, index: usize) -> Result<()> {
        let patroni = self.fleet.old.patroni.as_mut().context("no Patroni runs the old side")?;
        patroni.start(&self.fleet.base, index)
    }

    /// Patroni of a side's first member, and the PostgreSQL that leads the side, have read their configuration again.
    ///
    /// # Errors
    /// When they have not.
    pub async fn reload_patroni(&self, side: Side) -> Result<()> {
        let load_time = "SELECT pg_conf_load_time()";
        let loaded = self.leader(side).value("postgres", load_time).await?;
        self.patroni(side)?.reload(0).await?;
        eventually("the reload", LIMIT, || async {
            Ok((self.leader(side).value("postgres", load_time).await? != loaded).then_some(()))
        })
        .await
    }

    /// Names of pgleap's slots on the leader of a side.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn pgleap_slots(&self, side: Side) -> Result<String> {
        let sql = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'pgleap%' AND NOT temporary";
        Ok(self.leader(side).value("postgres", sql).await?.unwrap_or_default())
    }

    /// Every new node runs as the Patroni that it was handed over to has started it.
    ///
    /// # Errors
    /// When one does not.
    pub async fn is_handed_over(&self) -> Result<()> {
        for node in &self.fleet.new {
            let started = node.value("postgres", "SHOW cluster_name").await?;
            ensure!(started.as_deref() == Some(NEW_SCOPE), "{}: cluster_name is {started:?}", node.name);
        }
        Ok(())
    }

    /// Writes move to the new side, back, and there again, some more written after each; never are both sides open.
    ///
    /// # Errors
    /// When it is otherwise.
    pub async fn there_back_and_there(&self) -> Result<()> {
        let watch = self.watch_sides();
        for _ in 0..3 {
            self.switch().await?;
            self.write_more(50).await?;
        }
        watch.end().await
    }
}
