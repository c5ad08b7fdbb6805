//! Puts refusals into the audit log before they are answered, and says who may ask at all.
//!
//! What becomes a command is noted by the state itself (`state::audit`). Here is what never becomes one: a wrong role, a request that
//! makes no sense, a cluster that is not ready. Only the leader writes them: others send an asker to the leader before they judge,
//! and where any member answers, a refusal by another one is a warning in its log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgleap_proto::bounds;
use pgleap_proto::tls::{Peer, Role};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::raft::{LEADER_KEY, Raft};
use crate::state::audit::{self, Note};
use crate::state::{Command, Rejection};

/// Who may change things.
pub const CHANGE: &[Role] = &[Role::Operator];
/// Who may look.
pub const LOOK: &[Role] = &[Role::Operator, Role::Viewer];

/// After the first refusal of one holder and verb, others are only counted for so long.
const COUNTED: Duration = Duration::from_secs(50);
/// How often what was counted is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Holders and verbs told apart at once; those beyond are counted together.
const TOLD_APART: usize = 256;
/// Longest that an answer waits for its entry: a refusal is answered even when no majority takes the entry.
const ENTRY: Duration = Duration::from_secs(2);
/// Stands for whoever presents a certificate that says no role.
const NOBODY: &str = "a certificate without a role";

/// A request as the audit log knows it.
pub trait Audited {
    /// Verb, subject and the rest; accepted until somebody says otherwise.
    fn note(&self) -> Note;

    /// Its id; empty when it has none.
    fn request_id(&self) -> &str {
        ""
    }
}

/// Notes refusals. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Auditor {
    raft: Raft,
    counted: Arc<Mutex<HashMap<Refused, Counted>>>,
}

/// Holder and verb.
type Refused = (String, String);

/// Refusals of one holder and verb since the last entry.
#[derive(Debug)]
struct Counted {
    since: Instant,
    latest: Note,
    more: u64,
}

/// A request that was let in.
#[derive(Debug)]
pub struct Asked {
    /// Who asks.
    pub peer: Peer,
    auditor: Auditor,
    note: Note,
    request_id: String,
}

impl Auditor {
    /// Writes into this log.
    pub fn new(raft: Raft) -> Auditor {
        Auditor { raft, counted: Arc::default() }
    }

    /// Lets a request in, or refuses it for its sender's role. `what` completes "may not".
    ///
    /// # Errors
    /// `permission_denied` or `unauthenticated`, or `invalid_argument` when it is out of bounds; noted.
    pub async fn admit<T: Audited>(
        &self,
        request: Request<T>,
        roles: &[Role],
        what: &str,
    ) -> Result<(Asked, T), Status> {
        let note = request.get_ref().note();
        let peer = self.require(&request, roles, what, note.clone()).await?;
        let request = request.into_inner();
        let request_id = request.request_id().to_owned();
        if let Err(status) = within_bounds(&note, &request_id) {
            self.refused(&peer.to_string(), "", note.refused(status.message())).await;
            return Err(status);
        }
        Ok((Asked { peer, auditor: self.clone(), note, request_id }, request))
    }

    /// The same for a request that is not [`Audited`] itself.
    ///
    /// # Errors
    /// As [`Auditor::admit`].
    pub async fn require<T>(
        &self,
        request: &Request<T>,
        roles: &[Role],
        what: &str,
        note: Note,
    ) -> Result<Peer, Status> {
        let peer = Peer::of(request);
        let by = peer.as_ref().map_or_else(|_| NOBODY.to_owned(), Peer::to_string);
        match peer.and_then(|peer| peer.require(roles, what)) {
            Ok(peer) => Ok(peer),
            Err(status) => {
                let from = request.remote_addr().map(|address| format!("from {}", address.ip()));
                let detail = [note.detail.clone(), from.unwrap_or_default()];
                let detail =
                    detail.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
                self.refused(&by, "", Note { detail, ..note }.refused(status.message())).await;
                Err(status)
            }
        }
    }

    /// Notes something done that is no command of the log.
    ///
    /// # Errors
    /// When it cannot be noted; then it may not be done.
    pub async fn done(&self, asked: &Asked) -> Result<(), Status> {
        let command = Command::Audit { note: asked.note.clone() };
        let request_id = (!asked.request_id.is_empty()).then(|| asked.request_id.clone());
        self.raft.propose(&asked.peer.to_string(), request_id, command).await?;
        Ok(())
    }

    /// The first of one holder and verb is noted now, what follows soon is counted and noted later.
    async fn refused(&self, by: &str, request_id: &str, note: Note) {
        let mut note = note.shortened();
        if note.cluster.is_empty()
            && let Some(operation) = self.raft.latest().state.find(&note.subject)
        {
            note.cluster = operation.plan.cluster.clone();
        }
        let Some(by) = self.first(by, &note) else { return };
        self.write(&by, request_id, note).await;
    }

    /// Who is to be named; none when it was only counted.
    fn first(&self, by: &str, note: &Note) -> Option<String> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (by.to_owned(), note.verb.clone());
        if !counted.contains_key(&key) && counted.len() >= TOLD_APART {
            key = ("others".to_owned(), "several".to_owned());
        }
        if let Some(known) = counted.get_mut(&key) {
            known.more += 1;
            known.latest = note.clone();
            return None;
        }
        let by = key.0.clone();
        counted.insert(key, Counted { since: Instant::now(), latest: note.clone(), more: 0 });
        Some(by)
    }

    async fn write(&self, by: &str, request_id: &str, note: Note) {
        let Note { verb, subject, detail, refused, count, .. } = &note;
        tracing::warn!(
            by,
            verb,
            subject,
            detail,
            count,
            why = refused.as_deref().unwrap_or_default(),
            "refused"
        );
        if self.raft.latest().leading.is_none() {
            return;
        }
        // Not as the request itself: that one may come again and be accepted.
        let mut note = note;
        if !request_id.is_empty() {
            note.detail = format!("{} (request {request_id})", note.detail).trim_start().to_owned();
        }
        let noted = timeout(ENTRY, self.raft.propose(by, None, Command::Audit { note })).await;
        match noted {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(by, %error, "the refusal is not in the audit log"),
            Err(_) => {
                tracing::warn!(by, "the refusal is not in the audit log yet: no majority took it in time")
            }
        }
    }

    /// Notes what was counted, until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(LOOK_AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.flush(COUNTED).await;
        }
        self.flush(Duration::ZERO).await;
    }

    /// Notes what was counted since at least so long.
    async fn flush(&self, age: Duration) {
        let due: Vec<_> = {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.extract_if(|_, counted| counted.since.elapsed() >= age).collect()
        };
        for ((by, _), Counted { latest, more, .. }) in due {
            if more > 0 {
                self.write(&by, "", Note { count: more, ..latest }).await;
            }
        }
    }
}

/// What a request names is as long as names are.
fn within_bounds(note: &Note, request_id: &str) -> Result<(), Status> {
    let parts = [
        ("the request id", request_id, bounds::MAX_REQUEST_ID_BYTES),
        ("the name in the request", &note.subject, bounds::MAX_NAME_BYTES),
        ("the request", &note.detail, bounds::MAX_NAME_BYTES),
    ];
    match parts.into_iter().find(|(_, text, most)| text.len() > *most) {
        None => Ok(()),
        Some((what, text, most)) => Err(Status::invalid_argument(format!(
            "{what} has {} bytes, at most {most} are possible; nothing was changed",
            text.len()
        ))),
    }
}

/// A message that fits into the headers that a client takes.
fn shortened(status: Status) -> Status {
    if status.message().len() <= bounds::MAX_REFUSAL_BYTES {
        return status;
    }
    let text = audit::shortened(status.message().to_owned(), bounds::MAX_REFUSAL_BYTES);
    Status::with_metadata(status.code(), text, status.metadata().clone())
}

impl Asked {
    /// The answer. A refusal is noted unless the log has done so, or the request is only to be sent again, perhaps elsewhere.
    ///
    /// # Errors
    /// The refusal itself.
    pub async fn answer<T>(self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        use std::error::Error as _;
        let status = match result {
            Ok(reply) => return Ok(Response::new(reply)),
            Err(status) => shortened(status),
        };
        let again = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::Cancelled)
            || status.metadata().contains_key(LEADER_KEY);
        let noted = status.source().is_some_and(|source| source.is::<Rejection>());
        if !again && !noted {
            let Asked { peer, auditor, note, request_id } = self;
            auditor.refused(&peer.to_string(), &request_id, note.refused(status.message())).await;
        }
        Err(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::open_raft;

    #[tokio::test]
    async fn a_flood_of_refusals_is_a_few_entries_and_each_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (raft, _thread) = open_raft(&dir.path().join("data"));
        let auditor = Auditor::new(raft.clone());
        let before = raft.read().await.unwrap().state.applied;
        for n in 0..1000 {
            let note = Note::new("cancel", "", &format!("op-{n}"), "").refused("no such operation");
            auditor.refused("operator alice", "", note).await;
        }
        let note = Note::new("retry", "", "op", "").refused("no such operation");
        auditor.refused("operator alice", "", note).await;
        auditor.flush(Duration::ZERO).await;
        let state = raft.read().await.unwrap().state;
        let told: Vec<(String, u64)> =
            state.audit.entries().map(|entry| (entry.note.verb.clone(), entry.note.count)).collect();
        assert_eq!(told, [("cancel".to_owned(), 1000), ("retry".to_owned(), 1)]);
        assert_eq!(state.applied - before, 3);
    }

    #[tokio::test]
    async fn many_names_are_counted_together() {
        let dir = tempfile::tempdir().unwrap();
        let (raft, _thread) = open_raft(&dir.path().join("data"));
        let auditor = Auditor::new(raft.clone());
        for n in 0..TOLD_APART + 50 {
            assert_eq!(
                auditor.first(&format!("viewer v{n}"), &Note::new("cancel", "", "x", "")).is_some(),
                n <= TOLD_APART
            );
        }
        assert_eq!(auditor.counted.lock().unwrap().len(), TOLD_APART + 1);
    }
}
