//! Ends everybody whom the narrowed rules would not let in any more, and proves that they are gone.
//!
//! The rules concern new connections only, and a connection that authenticates goes by those of the moment of its fork. The
//! postmaster is single-threaded: it signals its children and reads the rules in one handler, and what it forks after that
//! goes by the new ones. So the children that exist once the signal has arrived are all that can have come in before. Each
//! of them has to be gone, or to be known as somebody who may stay.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::error::{Doing, Result, StepError};
use crate::pg::hba::Kept;
use crate::pg::sql::{Session, TERMINATE};

/// How often is looked again: clients wait meanwhile.
const TICK: Duration = Duration::from_millis(1);
/// A process that is not in `pg_stat_activity` yet may be about to get there, where it can be judged.
const GRACE: Duration = Duration::from_millis(10);
/// A signal may come before its receiver can act on it.
const AGAIN: Duration = Duration::from_millis(250);

/// Flag of a process that the kernel has begun to take apart (Linux, include/linux/sched.h: PF_EXITING).
const EXITING: u64 = 0x4;

/// `backend_type` of the server's own processes: none of them runs a statement of a client. (miscinit.c,
/// `GetBackendTypeDesc`, and the names of replication's workers.)
const OWN: [&str; 20] = [
    "archiver",
    "autovacuum launcher",
    "autovacuum worker",
    "background writer",
    "checkpointer",
    "io worker",
    "logger",
    "logical replication apply worker",
    "logical replication launcher",
    "logical replication parallel worker",
    "logical replication tablesync worker",
    "logical replication worker",
    "slotsync worker",
    "slot sync worker",
    "startup",
    "stats collector",
    "walreceiver",
    "walsummarizer",
    "walwriter",
    "datachecksum launcher",
];

/// A process, told apart from a later one of the same id by its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Child {
    pid: i32,
    started: u64,
}

/// What `pg_stat_activity` says of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    pub pid: i32,
    pub kind: String,
    pub user: String,
    pub database: String,
    pub application: String,
    pub local: bool,
    pub leader: Option<i32>,
    pub has_xid: bool,
}

impl Activity {
    /// Whether it may go on while clients are kept out.
    pub(crate) fn may_stay(&self, kept: &Kept, all: &BTreeMap<i32, Activity>) -> bool {
        match self.kind.as_str() {
            "client backend" => self.is_agent(kept),
            // A physical one names no database, and cannot run statements.
            "walsender" => self.database.is_empty() || kept.logins.contains(&self.user),
            "parallel worker" => {
                let leader = self.leader.and_then(|leader| all.get(&leader));
                leader.is_some_and(|leader| leader.kind != "parallel worker" && leader.may_stay(kept, all))
            }
            kind => OWN.contains(&kind),
        }
    }

    fn is_agent(&self, kept: &Kept) -> bool {
        self.local && self.user == kept.superuser && self.application == "pgleap"
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "process {} ({}) of user \"{}\" in database \"{}\", application \"{}\"",
            self.pid, self.kind, self.user, self.database, self.application
        )
    }
}

const ACTIVITY: &str = "SELECT pid, coalesce(backend_type, ''), coalesce(usename::text, ''), coalesce(datname::text, ''), \
    coalesce(application_name, ''), client_addr IS NULL AND coalesce(client_port, -1) = -1, leader_pid, \
    backend_xid IS NOT NULL FROM pg_stat_activity WHERE pid IS NOT NULL";

/// Prepares what [`evict`] asks.
pub(super) async fn ready(session: &Session) -> Result<()> {
    let both = futures::future::try_join(session.ready(ACTIVITY), session.ready(TERMINATE)).await;
    both.map(drop).doing(|| "preparing to end the sessions of clients")
}

/// Everybody known.
pub(crate) async fn activity(session: &Session) -> Result<BTreeMap<i32, Activity>> {
    let rows = session.fetch(ACTIVITY, &[]).await.doing(|| "reading pg_stat_activity")?;
    let read = |row: &tokio_postgres::Row| Activity {
        pid: row.get(0),
        kind: row.get(1),
        user: row.get(2),
        database: row.get(3),
        application: row.get(4),
        local: row.get(5),
        leader: row.get(6),
        has_xid: row.get(7),
    };
    Ok(rows.iter().map(read).map(|row| (row.pid, row)).collect())
}

/// Ends everybody who may not stay, of those who exist now, and waits until they are gone. How many were ended.
///
/// # Errors
/// Names who is left when the time is over.
pub(super) async fn evict(session: &Session, postmaster: i32, kept: &Kept, limit: Duration) -> Result<u32> {
    let begun = Instant::now();
    let mut left = children(postmaster)?;
    let mut told: BTreeMap<i32, Instant> = BTreeMap::new();
    let mut ended = BTreeSet::new();
    loop {
        left.retain(Child::is_alive);
        // Who was told is on the way out: a look into the server would only take processor time from those who end.
        let leaving = |child: &Child| told.get(&child.pid).is_some_and(|at| at.elapsed() < AGAIN);
        if !left.is_empty() && left.iter().all(leaving) && begun.elapsed() < limit {
            sleep(TICK).await;
            continue;
        }
        let known = activity(session).await?;
        // Judged after the list was read: whoever is alive and not in it is not known to the server yet.
        left.retain(|child| {
            child.is_alive()
                && match known.get(&child.pid) {
                    Some(row) => !row.may_stay(kept, &known),
                    None => !is_own(&child.title()),
                }
        });
        if left.is_empty() {
            return Ok(u32::try_from(ended.len()).unwrap_or(u32::MAX));
        }
        if begun.elapsed() >= limit {
            return Err(still_there(&left, &known, limit));
        }
        let due = |pid: i32| told.get(&pid).is_none_or(|at| at.elapsed() >= AGAIN);
        let clients: Vec<i32> =
            left.iter().map(|child| child.pid).filter(|pid| known.contains_key(pid) && due(*pid)).collect();
        if !clients.is_empty() {
            session.fetch(TERMINATE, &[&clients]).await.doing(|| "ending the sessions of clients")?;
        }
        let starting: Vec<Child> = left
            .iter()
            .filter(|child| !known.contains_key(&child.pid) && begun.elapsed() >= GRACE && due(child.pid))
            .copied()
            .collect();
        for child in &starting {
            child.terminate();
        }
        for pid in clients.into_iter().chain(starting.iter().map(|child| child.pid)) {
            told.insert(pid, Instant::now());
            ended.insert(pid);
        }
        sleep(TICK).await;
    }
}

fn still_there(left: &[Child], known: &BTreeMap<i32, Activity>, limit: Duration) -> StepError {
    let describe = |child: &Child| match known.get(&child.pid) {
        Some(row) => row.describe(),
        None => format!("process {} (\"{}\"), which has not logged in yet", child.pid, child.title()),
    };
    let who: Vec<String> = left.iter().map(describe).collect();
    StepError::new(format!(
        "{} of the clients' processes did not end within {} ms of being told to, first: {}",
        who.len(),
        limit.as_millis(),
        who.first().map_or("", String::as_str)
    ))
    .with_evidence(who)
}

/// Ids of all living children of a process.
///
/// # Errors
/// When /proc cannot be read.
pub(crate) fn pids(parent: i32) -> Result<Vec<i32>> {
    Ok(children(parent)?.into_iter().map(|child| child.pid).collect())
}

/// All living children of a process: whoever exists during the whole scan is found, since /proc is read in the order of ids.
fn children(parent: i32) -> Result<Vec<Child>> {
    let doing = || format!("listing the processes that {parent} has started");
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").doing(doing)? {
        let name = entry.doing(doing)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some(stat) = stat(pid).filter(|stat| stat.parent == parent && stat.lives) {
            children.push(Child { pid, started: stat.started });
        }
    }
    Ok(children)
}

struct Stat {
    parent: i32,
    started: u64,
    lives: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): the name in parentheses may hold anything; then state, parent, as the 7th from there its flags, and as the 20th the start.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let after = bytes.iter().rposition(|byte| *byte == b')')? + 1;
    let fields: Vec<&str> = std::str::from_utf8(bytes.get(after..)?).ok()?.split_whitespace().collect();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        // A zombie does nothing any more; it only waits to be noticed. Nor does one that is being taken apart: it never returns to its
        // program, and giving back the memory that it shares takes it milliseconds, for which clients would wait.
        lives: !matches!(*fields.first()?, "Z" | "X") && fields.get(6)?.parse::<u64>().ok()? & EXITING == 0,
    })
}

impl Child {
    fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && stat.lives)
    }

    fn title(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).replace('\0', " ")
    }

    fn terminate(&self) {
        if self.is_alive() {
            // Gone in between is what is wanted; a refusal shows as one who is left.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
        }
    }
}

/// The server's processes that are not in `pg_stat_activity`, by their titles: "postgres: [cluster name: ]what".
fn is_own(title: &str) -> bool {
    let Some(title) = title.strip_prefix("postgres: ") else { return false };
    let what = title.rsplit_once(": ").map_or(title, |(_, what)| what).trim_end();
    OWN.contains(&what)
        || ["archiver last was ", "archiver archiving ", "archiver failed on "]
            .iter()
            .any(|begin| what.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept { superuser: "postgres".into(), logins: vec!["repl".into()], major: 15 }
    }

    fn row(kind: &str, user: &str, database: &str, application: &str) -> Activity {
        let (kind, user, database, application) =
            (kind.into(), user.into(), database.into(), application.into());
        Activity { pid: 7, kind, user, database, application, local: true, ..Activity::default() }
    }

    #[test]
    fn only_the_server_the_agent_and_replication_stay() {
        let all = BTreeMap::from([
            (1, row("client backend", "postgres", "app", "pgleap")),
            (2, row("client backend", "app", "app", "pgleap")),
        ]);
        let stays = |row: &Activity| row.may_stay(&kept(), &all);
        assert!(stays(&all[&1]));
        assert!(!stays(&all[&2]), "a name is no proof");
        assert!(!stays(&Activity { local: false, ..all[&1].clone() }), "nor over the network");
        assert!(!stays(&row("client backend", "postgres", "app", "psql")));
        assert!(!stays(&row("client backend", "repl", "app", "pgleap")), "a login is for walsenders");
        assert!(stays(&row("walsender", "repl", "app", "x")) && stays(&row("walsender", "any", "", "x")));
        assert!(!stays(&row("walsender", "cdc", "app", "debezium")), "it can run statements");
        assert!(stays(&row("checkpointer", "", "", "")) && !stays(&row("pg_cron launcher", "", "", "")));
        let worker = |leader| Activity { leader: Some(leader), ..row("parallel worker", "x", "app", "x") };
        assert!(stays(&worker(1)) && !stays(&worker(2)) && !stays(&worker(3)));
    }

    #[test]
    fn titles_of_processes_that_have_not_logged_in_are_not_the_servers() {
        assert!(is_own("postgres: logger ") && is_own("postgres: main: stats collector"));
        assert!(is_own("postgres: archiver last was 000000010000000000000001"));
        assert!(!is_own("postgres: app app 10.0.0.1(4711) authentication"));
        assert!(!is_own("postgres: logger db [local] authentication"));
        assert!(!is_own("/usr/lib/postgresql/15/bin/postgres -D /data"), "forked, and not named yet");
    }

    #[test]
    fn finds_its_own_children_and_sees_their_end() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(sleeper.id()).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let child = *children(own).unwrap().iter().find(|child| child.pid == pid).unwrap();
        assert!(child.is_alive() && !Child { started: child.started + 1, ..child }.is_alive());
        // The kernel lets the parent go on before the new program's arguments can be read.
        while child.title().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(child.title(), "sleep 60");
        child.terminate();
        // Not waited for: a zombie counts as gone.
        while child.is_alive() {
            std::thread::yield_now();
        }
        sleeper.wait().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let line = b"4 (a) 1 (b) S 77 1 1 0 -1 4194560 1 1 0 0 0 0 0 0 20 0 1 0 12345 1 1\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.parent, stat.started, stat.lives), (77, 12345, true));
        assert!(parse_stat(b"4 (a) S").is_none());
        let exiting = b"4 (a) R 77 1 1 0 -1 4194564 1 1 0 0 0 0 0 0 20 0 1 0 12345 1 1\n";
        assert!(!parse_stat(exiting).unwrap().lives);
    }
}
