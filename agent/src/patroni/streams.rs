//! The wait until a member of a standby cluster streams: the leader from the old cluster, a replica from the leader. How it is made is
//! Patroni's affair and takes as long as it takes; this tells slow from stuck.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};

use super::daemon::{Role, Seen};
use super::seed::Seed;
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::{sql, standby};
use crate::wait::Wait;

/// How long it may be away from its REST API before it counts as ended.
const AWAY: Duration = Duration::from_secs(30);
/// How long nothing may move, unless the node is being made just then.
const SILENCE: Duration = Duration::from_secs(180);
/// How often it may begin to make the node before that counts as stuck: a method that fails is tried again for ever.
const TRIES: u32 = 3;
/// Its state while a method makes the node.
const MAKING: &str = "creating replica";

/// What the member is to be.
pub struct Streams<'s> {
    /// The node.
    pub node: &'s Node,
    /// It leads the standby cluster.
    pub leader: bool,
    /// The slot by which it streams; empty for whichever.
    pub slot: &'s str,
    /// What it streams from; none for whatever.
    pub from: Option<&'s Conninfo>,
}

#[async_trait]
impl Role for Streams<'_> {
    async fn is_played(&self, Seen { member, config }: &Seen) -> Result<bool> {
        let leads = matches!(member.role.as_str(), "standby_leader" | "leader");
        // "streaming" since Patroni 3.1, "running" before.
        let runs = matches!(member.state.as_str(), "streaming" | "running");
        if leads != self.leader || member.role == "leader" || !runs || !config {
            return Ok(false);
        }
        let session = sql::connect_any(self.node).await?;
        let sql = "SELECT coalesce(slot_name, ''), coalesce(sender_port, 0) FROM pg_catalog.pg_stat_wal_receiver \
                   WHERE status = 'streaming' AND pg_is_in_recovery()";
        let rows = session.query(sql, &[]).await;
        let rows = rows.doing(|| format!("looking at the stream of node {}", self.node.name))?;
        let Some(row) = rows.first() else { return Ok(false) };
        let slot = self.slot.is_empty() || row.get::<_, &str>(0) == self.slot;
        // A name and an address cannot be compared.
        let from = self.from.is_none_or(|from| row.get::<_, i32>(1).unsigned_abs() == from.port);
        Ok(slot && from)
    }
}

impl Streams<'_> {
    /// Whether it is that.
    ///
    /// # Errors
    /// When Patroni or the server cannot be asked.
    pub async fn is_there(&self, seed: &Seed<'_>) -> Result<bool> {
        match seed.look().await? {
            Some(seen) => self.is_played(&seen).await,
            None => Ok(false),
        }
    }

    /// Waits for it.
    ///
    /// # Errors
    /// When Patroni has ended, makes the node again and again, or nothing moves any more.
    pub async fn wait(&self, cx: &Context, seed: &Seed<'_>) -> Result<()> {
        let (mut away, mut silence) = (Wait::of(AWAY), Wait::of(SILENCE));
        let (mut last, mut moved, mut tries) = (String::new(), Movement::default(), 0);
        let mut known = BTreeSet::new();
        loop {
            let looked = seed.look().await;
            if looked.is_ok() {
                away.restart();
            } else if away.is_over() {
                return Err(self.stuck(seed, "it does not answer any more, so that it has probably ended"));
            }
            let (state, making) = match looked {
                Ok(Some(seen)) if self.is_played(&seen).await.unwrap_or(false) => return Ok(()),
                Ok(Some(Seen { member, config })) => {
                    let config = if config { "" } else { ", without a configuration in its store" };
                    (format!("{} is {}{config}", member.role, member.state), member.state == MAKING)
                }
                Ok(None) => ("it is no member of its cluster".to_owned(), false),
                Err(error) => (error.message, false),
            };
            if state != last {
                cx.report.log("pgleap", format!("Patroni of node {}: {state}", self.node.name));
                tries += u32::from(making);
                last.clone_from(&state);
            }
            if tries > TRIES {
                return Err(self.stuck(seed, "its method of making the node fails again and again"));
            }
            // Bitwise: each has to be looked at.
            if making | known.insert(state) | moved.look(self.node).await {
                silence.restart();
            }
            if !silence.again().await {
                return Err(self.stuck(seed, &last));
            }
        }
    }

    fn stuck(&self, seed: &Seed<'_>, why: &str) -> StepError {
        let Node { name, host, .. } = self.node;
        StepError::new(format!(
            "Patroni of node {name} on host {host} was started, and the node does not stream: {why}; its log says why, repair that and \
             retry. \"waiting for standby_leader to bootstrap\" there: it was killed while it made the first node; remove its keys ({}), \
             then retry",
            seed.removal()
        ))
    }
}

/// What moves in a server that starts: before it lets anybody in only its files tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Movement {
    files: [Option<SystemTime>; 2],
    replayed: Lsn,
}

impl Movement {
    /// Whether anything has moved since the last look.
    async fn look(&mut self, node: &Node) -> bool {
        let data_dir = Path::new(&node.data_dir);
        let files = ["global/pg_control", "pg_wal"]
            .map(|name| std::fs::metadata(data_dir.join(name)).and_then(|metadata| metadata.modified()).ok());
        let replayed = match sql::connect_any(node).await {
            Ok(session) => standby::receiver(&session).await.unwrap_or_default().replayed,
            Err(_) => self.replayed,
        };
        let now = Movement { files, replayed };
        let moved = *self != now;
        *self = now;
        moved
    }
}
