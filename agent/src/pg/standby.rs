//! A physical standby: what makes a stopped data directory one, how it is started, and the wait until it streams.

use std::path::Path;
use std::time::Duration;

use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};

use super::ctl::{self, ServerState};
use super::server_log::ServerLog;
use super::sql::{self, Session};
use super::upstream::{self, Identity};
use super::{auto_conf, conninfo};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::wait::Wait;

/// How long a standby may neither stream nor replay before that is a failure. Longer than wal_retrieve_retry_interval
/// (5 s) and than a primary takes to accept connections after a restart.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a reason that does not pass by itself may be repeated in the log before it is believed.
const DOOMED: Duration = Duration::from_secs(10);
/// As many looks in a row have to find it streaming before it counts: a receiver that is refused its WAL says
/// "streaming" for a moment, at each of its attempts.
const STEADY: u32 = 20;
/// How long replay may stand still while WAL streams in: a query on the standby may hold it back for
/// max_standby_streaming_delay, or a recovery_min_apply_delay was configured.
const STANDSTILL: Duration = Duration::from_secs(900);

/// The connection string a standby of ours uses, named after the node so that the upstream shows who it is.
pub fn primary_conninfo(node: &Node, upstream: &Conninfo) -> String {
    conninfo(upstream, None, &node.name)
}

/// Settings that make a stopped node itself and not a second copy of its origin.
///
/// # Errors
/// When the file cannot be written.
pub fn write_identity(node: &Node) -> Result<()> {
    let port = node.port.to_string();
    let changes: [(&str, Option<&str>); 12] = [
        ("port", Some(&port)),
        ("unix_socket_directories", Some(&node.socket_dir)),
        ("cluster_name", Some(&node.name)),
        // Left over where the origin itself was restored once; the files of PostgreSQL 19 exist because of them.
        ("recovery_target", None),
        ("recovery_target_name", None),
        ("recovery_target_time", None),
        ("recovery_target_xid", None),
        ("recovery_target_lsn", None),
        ("recovery_target_inclusive", None),
        ("recovery_target_action", None),
        ("recovery_target_timeline", None),
        ("recovery_min_apply_delay", None),
    ];
    auto_conf::edit(Path::new(&node.data_dir), &changes)
}

/// Points a stopped node at its upstream and makes it a standby; durable when it returns.
///
/// # Errors
/// When the files cannot be written.
pub fn write_upstream(node: &Node, upstream: &Conninfo, slot: &str) -> Result<()> {
    let data_dir = Path::new(&node.data_dir);
    let conninfo = primary_conninfo(node, upstream);
    let changes = [("primary_conninfo", Some(conninfo.as_str())), ("primary_slot_name", Some(slot))];
    auto_conf::edit(data_dir, &changes)?;
    let signal = data_dir.join("standby.signal");
    crate::durable::write(&signal, b"").doing(|| format!("writing {}", signal.display()))?;
    remove_recovery_signal(node)
}

/// Tools that restore a backup leave `recovery.signal`, and Patroni puts `standby.signal` beside it. PostgreSQL goes by the latter, removes
/// only that one at its promotion, and at the next start wants to recover from an archive.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_recovery_signal(node: &Node) -> Result<()> {
    let signal = Path::new(&node.data_dir).join("recovery.signal");
    if !signal.exists() {
        return Ok(());
    }
    crate::durable::remove(&signal).doing(|| format!("removing {}", signal.display()))
}

/// Command-line settings of a standby that pgleap starts: it has nothing to do with an archive, follows its
/// upstream's promotion, and its log is found.
pub fn start_settings() -> Vec<(&'static str, &'static str)> {
    vec![
        ("hot_standby", "on"),
        ("archive_mode", "off"),
        // WAL comes from upstream alone: the old cluster's archive goes on past the slots, on the timeline that the new one leaves.
        ("restore_command", ""),
        ("archive_cleanup_command", ""),
        ("recovery_target_timeline", "latest"),
        ("recovery_min_apply_delay", "0"),
        // A copied setting would overwrite the file of the server it was copied from, on the same host.
        ("external_pid_file", ""),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_min_messages", "warning"),
    ]
}

/// What `pg_stat_wal_receiver` and replay say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receiver {
    /// `streaming` when it streams; empty when there is no receiver.
    pub status: String,
    /// Timeline of what is received.
    pub timeline: u32,
    /// Where it receives from.
    pub host: String,
    /// Where it receives from.
    pub port: u32,
    /// End of the last replayed record.
    pub replayed: Lsn,
}

impl Receiver {
    /// Whether WAL streams in.
    pub fn is_streaming(&self) -> bool {
        self.status == "streaming"
    }
}

/// Reads the receiver's state.
///
/// # Errors
/// When the server cannot be asked.
pub async fn receiver(session: &Session) -> Result<Receiver> {
    // The table function of replay in a sub-select: there is a row also without a receiver.
    let sql = "SELECT coalesce(r.status, ''), coalesce(r.received_tli, 0), coalesce(r.sender_host, ''), \
               coalesce(r.sender_port, 0), l.lsn::text AS replayed \
               FROM (SELECT pg_last_wal_replay_lsn() AS lsn) l LEFT JOIN pg_stat_wal_receiver r ON true";
    let row = session.query_one(sql, &[]).await.doing(|| "reading pg_stat_wal_receiver")?;
    Ok(Receiver {
        status: row.get(0),
        timeline: row.get::<_, i32>(1).unsigned_abs(),
        host: row.get(2),
        port: row.get::<_, i32>(3).unsigned_abs(),
        replayed: sql::lsn(&row, "replayed")?,
    })
}

/// What a standby has to reach.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// Replayed at least up to here.
    pub lsn: Lsn,
    /// On this timeline; 0 for any.
    pub timeline: u32,
}

impl Goal {
    /// All that upstream has now. Taken from upstream itself rather than from the receiver's `latest_end_lsn`: what a
    /// receiver knows of is no measure of what it misses.
    pub fn all_of(upstream: &Identity, timeline: u32) -> Goal {
        Goal { lsn: upstream.lsn, timeline }
    }

    /// Whether it is reached.
    pub fn reached(&self, receiver: &Receiver) -> bool {
        let timeline = self.timeline == 0 || receiver.timeline == self.timeline;
        receiver.is_streaming() && timeline && receiver.replayed >= self.lsn
    }
}

/// Waits until a running standby streams and has reached the goal, with progress in bytes.
///
/// # Errors
/// When it ends, or does not stream, or stands still: with the lines of its log that say why.
pub async fn wait_for(
    cx: &Context,
    node: &Node,
    upstream: &Conninfo,
    goal: Goal,
    log: &ServerLog,
) -> Result<Receiver> {
    let manager = ctl::manager(cx, node);
    let mut watch = Watch::new(node, upstream, goal);
    let mut session: Option<Session> = None;
    loop {
        if manager.state().await? == ServerState::Stopped {
            return Err(StepError::new(format!(
                "the standby {} ended while it was to catch up with {}; its log says why, repair that and retry",
                node.name,
                upstream::place(upstream)
            ))
            .with_evidence(log.evidence(20)));
        }
        if session.as_ref().is_none_or(|session| session.is_closed()) {
            session = sql::connect_any(node).await.ok();
        }
        let now = match &session {
            Some(session) => receiver(session).await.unwrap_or_default(),
            None => Receiver::default(),
        };
        if goal.reached(&now) {
            return Ok(now);
        }
        watch.look(cx, &now, log)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Tells slow from stuck.
struct Watch<'a> {
    node: &'a Node,
    upstream: &'a Conninfo,
    goal: Goal,
    from: Option<Lsn>,
    last: Lsn,
    silent: Wait,
    standing: Wait,
    doomed: Option<Wait>,
    /// Looks in a row that found it streaming.
    streak: u32,
}

impl<'a> Watch<'a> {
    fn new(node: &'a Node, upstream: &'a Conninfo, goal: Goal) -> Watch<'a> {
        let (silent, standing) = (Wait::of(SILENCE), Wait::of(STANDSTILL));
        Watch {
            node,
            upstream,
            goal,
            from: None,
            last: Lsn::INVALID,
            silent,
            standing,
            doomed: None,
            streak: 0,
        }
    }

    fn look(&mut self, cx: &Context, now: &Receiver, log: &ServerLog) -> Result<()> {
        if now.replayed > self.last {
            self.last = now.replayed;
            self.silent.restart();
            self.standing.restart();
        }
        self.streak = if now.is_streaming() { self.streak + 1 } else { 0 };
        if self.streak >= STEADY {
            self.silent.restart();
            self.doomed = None;
        }
        let from = *self.from.get_or_insert(now.replayed);
        let from = if from.is_valid() { from } else { now.replayed };
        self.from = Some(from);
        let message = if now.is_streaming() { "replaying" } else { "waiting for the WAL stream" };
        cx.report.progress(now.replayed.since(from), self.goal.lsn.since(from), "bytes", message);
        let doomed = if now.is_streaming() { None } else { log.lines().iter().find_map(|l| doom(l)) };
        if let Some(cure) = doomed
            && self.doomed.get_or_insert_with(|| Wait::of(DOOMED)).is_over()
        {
            return Err(self.stuck(now, cure).with_evidence(log.evidence(20)));
        }
        if self.silent.is_over() {
            let cure = "its log says why, repair that and retry";
            return Err(self.stuck(now, cure).with_evidence(log.evidence(20)));
        }
        if self.standing.is_over() {
            let cure = "a query on it may hold replay back (pg_stat_activity), or its replay is paused: end that, then retry";
            return Err(self.stuck(now, cure).with_evidence(log.evidence(20)));
        }
        Ok(())
    }

    fn stuck(&self, now: &Receiver, cure: &str) -> StepError {
        let timeline = match self.goal.timeline {
            0 => String::new(),
            wanted => format!(" on timeline {wanted} (it is on {})", now.timeline),
        };
        let how = if now.is_streaming() { "does not reach" } else { "does not stream and so cannot reach" };
        StepError::new(format!(
            "the standby {} {how} {}{timeline} of {}; it replayed up to {}: {cure}",
            self.node.name,
            self.goal.lsn,
            upstream::place(self.upstream),
            now.replayed,
        ))
    }
}

/// The cure for a logged reason that does not pass by itself.
fn doom(line: &str) -> Option<&'static str> {
    let known = [
        (
            "has already been removed",
            "WAL it needs is gone upstream: it has to be made anew: cancel, then start again",
        ),
        (
            "forked off current database system timeline",
            "it replayed past the fork: it has to be made anew: cancel, then start again",
        ),
        (
            "is not a child of this server",
            "it left the upstream's history: it has to be made anew: cancel, then start again",
        ),
        (
            "database system identifier differs",
            "upstream is another cluster: cancel, correct the fleet file and apply it, start again",
        ),
        (
            "\" does not exist",
            "the slot or the user is absent upstream: make the user there, then retry; when it is the slot, cancel, then start again",
        ),
        (
            "authentication failed",
            "upstream refuses the user: correct user, password file or pg_hba.conf, then retry",
        ),
        (
            "no pg_hba.conf entry",
            "upstream's pg_hba.conf lets no replication in from this host: add it, then retry",
        ),
        (
            "number of requested standby connections exceeds",
            "upstream needs a higher max_wal_senders: raise it there, then retry",
        ),
    ];
    let severe = line.contains("FATAL:") || line.contains("ERROR:") || line.contains("new timeline");
    known.iter().find(|(text, _)| severe && line.contains(text)).map(|(_, cure)| *cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_needs_stream_position_and_timeline() {
        let goal = Goal { lsn: Lsn(100), timeline: 2 };
        let there =
            Receiver { status: "streaming".into(), timeline: 2, replayed: Lsn(100), ..Default::default() };
        assert!(goal.reached(&there));
        assert!(!goal.reached(&Receiver { status: "starting".into(), ..there.clone() }));
        assert!(!goal.reached(&Receiver { timeline: 1, ..there.clone() }));
        assert!(!goal.reached(&Receiver { replayed: Lsn(99), ..there.clone() }));
        assert!(Goal { timeline: 0, ..goal }.reached(&Receiver { timeline: 1, ..there }));
    }

    #[test]
    fn knows_what_does_not_pass_by_itself() {
        let gone = "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has already been removed";
        assert!(doom(gone).unwrap().contains("made anew"));
        assert!(doom("LOG:  new timeline 2 forked off current database system timeline 1 before current recovery point 0/5000").is_some());
        assert_eq!(doom("FATAL:  could not connect to the primary server: Connection refused"), None);
        assert_eq!(doom("LOG:  started streaming WAL from primary at 0/3000000 on timeline 1"), None);
    }
}
