//! Looks at one node once: what it is, and what it holds of every database. Reads only.

use std::collections::HashMap;

use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use pgleap_proto::step::KeepTraffic;
use pgleap_proto::traffic::{SideDatabase, SlotAt, SlotState};

use super::clock::now_us;
use super::lag::{self, Held, Lag, Own, Side};
use super::leaders::Leaders;
use crate::error::{Doing, Result};
use crate::fence::Scheduler;
use crate::pg::sql::{self, Session};

/// A node at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// On this agent's clock.
    pub at_us: i64,
    /// What the server said; else why it said nothing.
    pub server: Result<Server, String>,
    /// Clients are kept out by pgleap's fence; none when that could not be told.
    pub fenced: Option<bool>,
    /// A scheduler inside the server that launches jobs there.
    pub scheduler: Option<Scheduler>,
    /// Side that takes writes; none when unknown.
    pub writer: Option<Side>,
    /// Behind that side; else why that is unknown.
    pub lag: Result<Lag, String>,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// It is a standby.
    pub in_recovery: bool,
    /// Of what it writes or replays.
    pub timeline: u32,
    /// Of its cluster.
    pub system_identifier: u64,
    /// Replayed on a standby, written on a primary.
    pub lsn: Lsn,
    /// Databases in which a subscription of pgleap is enabled.
    pub following: Vec<String>,
    /// How far its subscriptions of the other side have come.
    pub origins: Vec<SlotAt>,
    /// What the other side has confirmed to its slots.
    pub confirmed: Vec<SlotAt>,
    /// The same slots, and what they are good for.
    pub slots: Vec<SlotState>,
    /// Databases in which its subscription has received something over its present connection.
    pub receiving: Vec<String>,
}

const SERVER: &str = "SELECT pg_is_in_recovery() AS in_recovery, \
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text AS lsn, \
    (SELECT system_identifier FROM pg_control_system()) AS system_identifier, \
    CASE WHEN pg_is_in_recovery() \
         THEN coalesce((SELECT max(received_tli) FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint())) \
         ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS timeline";
/// The catalogs and the origins' progress are replayed on physical replicas too (`xact_redo_commit` advances the origin).
const SUBSCRIPTIONS: &str = "SELECT d.datname::text AS database, s.subname::text AS name, s.subenabled AS enabled, \
    o.remote_lsn::text AS remote, EXISTS (SELECT 1 FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.pid IS NOT NULL \
      AND w.received_lsn > '0/0') AS receiving \
    FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
    LEFT JOIN pg_replication_origin_status o ON o.external_id = 'pg_' || s.oid \
    WHERE s.subname::text = ANY ($1) ORDER BY 1";
/// Columns that came with 16 and 17 are read from the row as JSON.
const SLOTS: &str = "SELECT database::text AS database, slot_name::text AS slot, confirmed_flush_lsn::text AS confirmed, temporary, \
    coalesce((to_jsonb(s) ->> 'failover')::boolean, false) AS failover, coalesce((to_jsonb(s) ->> 'synced')::boolean, false) AS synced, \
    (coalesce(wal_status, '') IN ('lost', 'unreserved', '') OR coalesce((to_jsonb(s) ->> 'conflicting')::boolean, false) \
     OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL) AS lost \
    FROM pg_replication_slots s WHERE slot_name::text = ANY ($1) AND slot_type = 'logical' ORDER BY 1";

/// Sessions with one node, kept from one look to the next.
pub struct Sampler {
    kept: KeepTraffic,
    side: Side,
    sessions: HashMap<String, Session>,
}

impl Sampler {
    /// Nothing is open yet.
    pub fn new(kept: KeepTraffic, side: Side) -> Sampler {
        Sampler { kept, side, sessions: HashMap::new() }
    }

    fn node(&self) -> Node {
        self.kept.node.clone().unwrap_or_default()
    }

    /// Looks once. A server that cannot be asked is part of the answer.
    pub async fn look(&mut self, leaders: &Leaders) -> Sample {
        let seen = self.server(leaders).await;
        let at_us = now_us();
        let state = match self.sessions.values().next() {
            Some(session) => crate::fence::state_by(session).await.ok(),
            None => None,
        };
        let fenced = state.as_ref().map(|state| state.operation().is_some());
        let scheduler = state.and_then(|state| state.scheduler);
        let writer = leaders.writer(at_us);
        let side = writer.as_ref().ok().map(|writer| writer.side);
        match seen {
            Ok((server, databases)) => {
                let databases = databases.map(|databases| Own {
                    side: self.side,
                    in_recovery: server.in_recovery,
                    lsn: server.lsn,
                    databases,
                });
                let lag = writer.and_then(|writer| lag::hybrid(at_us, &databases?, &writer));
                Sample { at_us, server: Ok(server), fenced, scheduler, writer: side, lag }
            }
            Err(error) => {
                self.sessions.clear();
                let lag = Err(error.message.clone());
                Sample { at_us, server: Err(error.message), fenced, scheduler, writer: side, lag }
            }
        }
    }

    /// The server, and what it holds; the latter may be unknown while the former is not.
    async fn server(&mut self, leaders: &Leaders) -> Result<(Server, Result<Vec<Held>, String>)> {
        let node = self.node();
        let session = any(&mut self.sessions, &node, &self.kept).await?;
        let doing = || format!("looking at node {}", node.name);
        let row = session.fetch_one(SERVER, &[]).await.doing(doing)?;
        let cluster = self.kept.cluster.clone().unwrap_or_default();
        let names = [cluster.tag.clone(), cluster.reverse_tag.clone()];
        let rows = session.fetch(SUBSCRIPTIONS, &[&names.as_slice()]).await.doing(doing)?;
        let own_name = &names[usize::from(self.side == Side::Old)];
        let (mut following, mut origins, mut receiving) = (Vec::new(), HashMap::new(), Vec::new());
        for row in &rows {
            let (database, name): (String, String) = (row.get("database"), row.get("name"));
            if name == *own_name {
                receiving.extend(row.get::<_, bool>("receiving").then(|| database.clone()));
                origins.insert(database.clone(), sql::lsn(row, "remote")?);
            }
            if row.get("enabled") {
                following.push(database);
            }
        }
        let slots = |database: &SideDatabase| match self.side {
            Side::Old => {
                (database.database.clone(), database.forward_slot.clone(), database.reverse_slot.clone())
            }
            Side::New => {
                (database.database.clone(), database.reverse_slot.clone(), database.forward_slot.clone())
            }
        };
        let slots: Vec<_> = cluster.databases.iter().map(slots).collect();
        let reached = slots.iter().filter_map(|(database, _, slot)| {
            let lsn = origins.get(database).filter(|lsn: &&Lsn| lsn.is_valid())?.0;
            Some(SlotAt { database: database.clone(), slot: slot.clone(), lsn })
        });
        let reached = reached.collect();
        let own: Vec<&String> = slots.iter().map(|(_, slot, _)| slot).collect();
        let rows = session.fetch(SLOTS, &[&own]).await.doing(doing)?;
        let (mut confirmed, mut states) = (Vec::new(), Vec::new());
        for row in &rows {
            let (database, slot): (String, String) = (row.get("database"), row.get("slot"));
            let lsn = sql::lsn(row, "confirmed")?;
            if lsn.is_valid() {
                confirmed.push(SlotAt { database: database.clone(), slot: slot.clone(), lsn: lsn.0 });
            }
            states.push(SlotState {
                database,
                slot,
                failover: row.get("failover"),
                synced: row.get("synced"),
                temporary: row.get("temporary"),
                lost: row.get::<_, bool>("lost") || !lsn.is_valid(),
            });
        }
        let timeline = row.get::<_, Option<i32>>("timeline").unwrap_or_default().cast_unsigned();
        let server = Server {
            origins: reached,
            confirmed,
            slots: states,
            receiving,
            in_recovery: row.get("in_recovery"),
            timeline,
            system_identifier: row.get::<_, i64>("system_identifier").cast_unsigned(),
            lsn: sql::lsn(&row, "lsn")?,
            following,
        };
        let mut databases = Vec::new();
        for database in cluster.databases.iter().map(|database| &database.database) {
            match self.mark(&node, database, &cluster.tag, leaders).await {
                Ok(mark_us) => databases.push(Held {
                    database: database.clone(),
                    mark_us,
                    origin: origins.get(database).copied().filter(|lsn| lsn.is_valid()),
                }),
                Err(error) => {
                    self.sessions.remove(database);
                    return Ok((server, Err(error.message)));
                }
            }
        }
        Ok((server, Ok(databases)))
    }

    /// The younger of the marker rows whose clock is known, on this agent's clock.
    async fn mark(
        &mut self,
        node: &Node,
        database: &str,
        tag: &str,
        leaders: &Leaders,
    ) -> Result<Option<i64>> {
        let session = session(&mut self.sessions, node, database).await?;
        let statement = format!(
            "SELECT side, (extract(epoch FROM at) * 1000000)::bigint FROM {}.marker WHERE isfinite(at)",
            sql::ident(tag)
        );
        let doing = || format!("reading the marker of database \"{database}\" of node {}", node.name);
        let rows = session.query(&statement, &[]).await.doing(doing)?;
        let times = rows.iter().filter_map(|row| {
            let side =
                [Side::Old, Side::New].into_iter().find(|side| side.name() == row.get::<_, &str>(0))?;
            leaders.local_us(side, row.get(1))
        });
        let youngest = times.max();
        if database == "template1" {
            // A session there would keep CREATE DATABASE from working.
            self.sessions.remove(database);
        }
        Ok(youngest)
    }
}

/// The kept session with a database, or a new one.
async fn session<'s>(
    sessions: &'s mut HashMap<String, Session>,
    node: &Node,
    database: &str,
) -> Result<&'s Session> {
    if sessions.get(database).is_none_or(|session| session.is_closed()) {
        sessions.insert(database.to_owned(), sql::connect(node, database).await?);
    }
    match sessions.get(database) {
        Some(session) => Ok(session),
        None => unreachable!("it was put there above"),
    }
}

/// A session with any database: one of the cluster's, so that none is needed beside those.
async fn any<'s>(
    sessions: &'s mut HashMap<String, Session>,
    node: &Node,
    kept: &KeepTraffic,
) -> Result<&'s Session> {
    let databases = kept.cluster.iter().flat_map(|cluster| &cluster.databases);
    let first = databases.map(|database| database.database.as_str()).find(|name| *name != "template1");
    session(sessions, node, first.unwrap_or("postgres")).await
}
