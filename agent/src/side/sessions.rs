//! Sessions with every database of a leader, opened before clients wait, and what is asked of the leader as a whole.

use std::time::Duration;

use futures::future::try_join_all;
use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use pgleap_proto::traffic::{SideDatabase, Timing};
use tokio::time::{Instant, sleep};

use super::view::View;
use crate::error::{Doing, Result, StepError};
use crate::fence::configuration_errors;
use crate::pg::sql::{self, Session};

/// How often a condition is looked at while clients wait.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// One database and the session with it.
pub(super) struct Database {
    pub facts: SideDatabase,
    pub session: Session,
}

impl Database {
    async fn open(node: &Node, facts: &SideDatabase) -> Result<Database> {
        let session = sql::connect(node, &facts.database).await?;
        let settings =
            "SET synchronous_commit = local; SET max_parallel_workers_per_gather = 0; SET jit = off";
        session.batch_execute(settings).await.doing(|| "preparing a session")?;
        Ok(Database { facts: facts.clone(), session })
    }
}

/// All of a leader's.
pub(super) struct Sessions(pub Vec<Database>);

impl Sessions {
    /// One session with every database. Commits wait for this server's disk and for no standby: a standby that hangs must
    /// not hold up clients, and what is written here is proven on the other side.
    pub async fn open(view: &View) -> Result<Sessions> {
        let open = view.cluster.databases.iter().map(|facts| Database::open(view.node(), facts));
        Ok(Sessions(try_join_all(open).await?))
    }

    /// Prepares in each of them what is asked while clients wait.
    pub async fn ready(&self, statements: &[&'static str]) -> Result<()> {
        let each =
            self.0.iter().flat_map(|database| statements.iter().map(|sql| database.session.ready(sql)));
        try_join_all(each).await.map(drop).doing(|| "preparing statements")
    }

    /// No statement runs for longer from now on; zero is without a limit, as for the server.
    pub async fn limit(&self, most: Duration) -> Result<()> {
        let set = format!("SET statement_timeout = '{}ms'", most.as_millis());
        let each = self.0.iter().map(|database| database.session.batch_execute(&set));
        try_join_all(each).await.map(drop).doing(|| "limiting how long a statement may run")
    }

    /// Whether the server has ended one of them: then all have to be opened anew.
    pub fn are_closed(&self) -> bool {
        self.0.iter().any(|database| database.session.is_closed())
    }

    /// Any of them, for what concerns the whole server.
    pub fn any(&self) -> Result<&Session> {
        let first = self.0.first().map(|database| &database.session);
        first.ok_or_else(|| StepError::new("the cluster has no database; this is a defect of pgleap"))
    }
}

/// Where a primary is.
pub(super) struct Place {
    pub timeline: u32,
    pub system_identifier: u64,
}

/// Refuses a standby, and a server with errors in its configuration, which a reload would not take.
pub(super) async fn check_primary(view: &View, session: &Session) -> Result<Place> {
    let node = view.node();
    if sql::in_recovery(session).await? {
        return Err(StepError::new(format!(
            "node {} is in recovery: it is not the leader of its side (any more); after a failover, correct the leader",
            node.name
        )));
    }
    let wrong = configuration_errors(session).await?;
    if let Some(first) = wrong.first() {
        return Err(StepError::new(format!(
            "the configuration of node {} has an error, so that a reload would not take it: {first}; correct it, then try \
             again",
            node.name
        ))
        .with_evidence(wrong));
    }
    // The name of a WAL file begins with the timeline that is written now; pg_control may still have the one before.
    let sql = "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), system_identifier::text \
               FROM pg_control_system()";
    let row = session.query_one(sql, &[]).await.doing(|| "asking for timeline and identity")?;
    Ok(Place {
        timeline: u32::from_str_radix(row.get(0), 16).doing(|| "reading the timeline")?,
        system_identifier: row.get::<_, &str>(1).parse().doing(|| "reading the system identifier")?,
    })
}

/// Refuses while there are prepared transactions: nobody knows whether they will be committed, and that would be a write.
pub(super) async fn check_none_prepared(view: &View, session: &Session) -> Result<()> {
    let sql = "SELECT database::text || ': ' || gid FROM pg_prepared_xacts ORDER BY 1";
    let rows = session.fetch(sql, &[]).await.doing(|| "looking for prepared transactions")?;
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    match found.first() {
        None => Ok(()),
        Some(first) => Err(StepError::new(format!(
            "node {} has {} prepared transactions ({first}); let them be committed or rolled back, then try again",
            view.node().name,
            found.len()
        ))
        .with_evidence(found)),
    }
}

pub(super) const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn()::text AS lsn";
pub(super) const EMIT: &str = "SELECT pg_logical_emit_message(true, 'pgleap', $1)";

/// Up to where WAL is on the disk.
pub(super) async fn flushed(session: &Session) -> Result<Lsn> {
    let row = session.fetch_one(FLUSHED, &[]).await;
    sql::lsn(&row.doing(|| "reading the WAL position")?, "lsn")
}

/// Makes everything committed before it durable, and tells up to where WAL is on the disk then. The message is what makes it a
/// write at all; nobody applies it.
pub(super) async fn make_durable(session: &Session, what: &str) -> Result<Lsn> {
    let doing = || "writing everything to the disk";
    let commit = async { session.fetch(EMIT, &[&what]).await.doing(doing) };
    let (_, lsn) = futures::future::try_join(commit, flushed(session)).await?;
    Ok(lsn)
}

/// Measures the parts of a call, for its reply.
pub(super) struct Watch {
    last: Instant,
    timings: Vec<Timing>,
}

impl Watch {
    pub fn start() -> Watch {
        Watch { last: Instant::now(), timings: Vec::new() }
    }

    /// The part since the last one has ended.
    pub fn lap(&mut self, name: &str) {
        let us = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.timings.push(Timing { name: name.to_owned(), us });
        self.last = Instant::now();
    }

    pub fn timings(self) -> Vec<Timing> {
        self.timings
    }
}

/// A limit for polling while clients wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    begun: Instant,
    limit: Duration,
}

impl Limit {
    pub fn of_ms(ms: u64) -> Limit {
        Limit { begun: Instant::now(), limit: Duration::from_millis(ms) }
    }

    pub fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.limit
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.begun.elapsed())
    }

    /// Waits for the next look; false when the time is over.
    pub async fn again(&self) -> bool {
        if self.is_over() {
            return false;
        }
        sleep(TICK).await;
        true
    }
}
