//! PURE: the audit log. Who asked for what, when, and whether it was accepted, in the replicated state, so that every member
//! has it and no action is without its entry: an accepted command and its audit entry are one entry of the log.
//!
//! Bounded: the newest [`ACTIONS_KEPT`] accepted actions and, apart from them, so that a flood of refusals pushes no action out, the newest
//! [`REFUSALS_KEPT`] refusals.

use std::collections::VecDeque;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::command::Command;
use super::envelope::Envelope;
use super::{Rejection, State};
use crate::plan::Side;

/// Accepted actions kept.
pub const ACTIONS_KEPT: usize = 5000;
/// Refusals kept.
pub const REFUSALS_KEPT: usize = 1000;
/// Refusals of one holder and verb within this time are one entry with a count.
pub const ONE_ENTRY: SignedDuration = SignedDuration::from_secs(60);
/// Longest text of an entry; longer ones are cut.
const TEXT_BYTES: usize = 400;
/// Entries looked at for one to count on.
const LOOK_BACK: usize = 200;

/// One thing that somebody asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Raft index of the log entry that made it.
    pub index: u64,
    /// When it was asked for, by the leader's clock.
    pub at: Timestamp,
    /// The latest time, when several refusals are one entry.
    pub last: Timestamp,
    /// Role and name of who asked: `operator alice`.
    pub by: String,
    /// What is said of it.
    #[serde(flatten)]
    pub note: Note,
    /// The request's id; empty when it had none.
    pub request_id: String,
}

/// What was asked for, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Note {
    /// As it is typed: `switchover`, `members add`.
    pub verb: String,
    /// The cluster it is about; empty when it is about none.
    pub cluster: String,
    /// What it is about: an operation, a member, the fleet file.
    pub subject: String,
    /// What else was said: a side, a share, an address.
    pub detail: String,
    /// Why it was refused; none when it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// How often.
    pub count: u64,
}

impl Note {
    /// Of something accepted, once.
    pub fn new(verb: &str, cluster: &str, subject: &str, detail: impl Into<String>) -> Note {
        let (verb, cluster, subject) = (verb.into(), cluster.into(), subject.into());
        Note { verb, cluster, subject, detail: detail.into(), refused: None, count: 1 }
    }

    /// The same, refused.
    #[must_use]
    pub fn refused(self, why: impl Into<String>) -> Note {
        Note { refused: Some(why.into()), ..self }
    }

    /// With every text cut to what is kept.
    #[must_use]
    pub fn shortened(self) -> Note {
        let Note { verb, cluster, subject, detail, refused, count } = self;
        let short = |text: String| shortened(text, TEXT_BYTES);
        Note {
            verb: short(verb),
            cluster: short(cluster),
            subject: short(subject),
            detail: short(detail),
            refused: refused.map(short),
            count: count.max(1),
        }
    }
}

/// At most so many bytes, cut between characters.
pub fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
}

/// The entries, oldest first. Cheap to clone: shared until the next entry.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    actions: Arc<VecDeque<Arc<Entry>>>,
    refusals: Arc<VecDeque<Arc<Entry>>>,
    /// Entries that made room for newer ones.
    pub forgotten: u64,
}

impl Audit {
    /// All entries, in the order of the log.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let mut all: Vec<&Arc<Entry>> = self.actions.iter().chain(self.refusals.iter()).collect();
        all.sort_by_key(|entry| entry.index);
        all.into_iter()
    }

    /// Notes what an entry of the log did.
    pub fn record(&mut self, index: u64, at: Timestamp, by: &str, request_id: &str, note: Note) {
        let note = note.shortened();
        let (list, kept) = match note.refused {
            None => (Arc::make_mut(&mut self.actions), ACTIONS_KEPT),
            Some(_) => (Arc::make_mut(&mut self.refusals), REFUSALS_KEPT),
        };
        let same = |entry: &&mut Arc<Entry>| {
            (entry.by == by && entry.note.verb == note.verb && entry.note.refused.is_some())
                && at.duration_since(entry.at) <= ONE_ENTRY
        };
        if note.refused.is_some()
            && let Some(entry) = list.iter_mut().rev().take(LOOK_BACK).find(same)
        {
            let entry = Arc::make_mut(entry);
            entry.note.count = entry.note.count.saturating_add(note.count);
            entry.last = at.max(entry.last);
            return;
        }
        let (by, request_id) = (shortened(by.into(), TEXT_BYTES), shortened(request_id.into(), TEXT_BYTES));
        list.push_back(Arc::new(Entry { index, at, last: at, by, note, request_id }));
        while list.len() > kept {
            list.pop_front();
            self.forgotten += 1;
        }
    }
}

impl State {
    /// What the audit log says of a command; none for what coordinators do by themselves. Whoever adds a command decides here.
    pub(super) fn audited(&self, command: &Command) -> Option<Note> {
        let of = |verb: &str, operation: &String, detail: String| {
            let known = self.operations.get(operation);
            let cluster = known.map(|operation| operation.plan.cluster.as_str()).unwrap_or_default();
            Some(Note::new(verb, cluster, operation, detail))
        };
        match command {
            Command::ApplyFleet { generation, .. } => {
                Some(Note::new("fleet apply", "", "fleet file", format!("generation {generation}")))
            }
            Command::StartOperation { id, plan, .. } => {
                let detail = format!("from {} to {}", plan.old_major, plan.new_major);
                Some(Note::new("start", &plan.cluster, id, detail))
            }
            Command::Cancel { operation } => of("cancel", operation, String::new()),
            Command::Retry { operation } => of("retry", operation, String::new()),
            Command::Abandon { operation, host } => of("abandon", operation, format!("host {host}")),
            Command::SetReads { operation, percent } => of("switch-reads", operation, format!("{percent} %")),
            Command::BeginSwitchover { operation, to, accepted } => {
                let verb = if *to == Side::Old { "reverse" } else { "switchover" };
                let detail = match accepted.as_slice() {
                    [] => String::new(),
                    accepted => format!("accepted: {}", accepted.join(", ")),
                };
                of(verb, operation, detail)
            }
            Command::Finish { operation, decommission } => {
                of("finish", operation, if *decommission { "decommission" } else { "" }.into())
            }
            Command::Queue { operations, rollout, .. } => {
                let clusters: Vec<&str> = operations.iter().map(|new| new.cluster.as_str()).collect();
                Some(match (rollout, operations.as_slice()) {
                    (None, [only]) => Note::new("start", &only.cluster, &only.id, "queued"),
                    (rollout, _) => {
                        let id = rollout.as_ref().map(|rollout| rollout.id.as_str()).unwrap_or_default();
                        let several = format!("{} clusters: {}", clusters.len(), clusters.join(" "));
                        Note::new("start", "", id, several)
                    }
                })
            }
            Command::Hold { name, at } => {
                of("hold", name, at.map(|phase| format!("at {phase}")).unwrap_or_default())
            }
            Command::Proceed { name } => of("proceed", name, String::new()),
            Command::Audit { note } => Some(note.clone()),
            Command::StepStarted { .. }
            | Command::StepFinished { .. }
            | Command::StepBlocked { .. }
            | Command::TakeTicket { .. }
            | Command::SwitchoverStarted { .. }
            | Command::Decide { .. }
            | Command::SwitchoverFailed { .. }
            | Command::SwitchoverUndone { .. }
            | Command::SwitchoverNoted { .. }
            | Command::SwitchoverLed { .. }
            | Command::TakeBack { .. }
            | Command::SwitchoverServed { .. }
            | Command::SwitchoverDone { .. }
            | Command::Disturbed { .. }
            | Command::Redirected { .. }
            | Command::Admit { .. }
            | Command::NotReady { .. }
            | Command::AgentSeen { .. } => None,
        }
    }

    /// Notes a command with what became of it.
    pub(super) fn note(
        &mut self,
        index: u64,
        envelope: &Envelope,
        note: Option<Note>,
        refused: Option<&Rejection>,
    ) {
        let Some(note) = note else { return };
        let note = match refused {
            Some(why) => note.refused(why.to_string()),
            None => note,
        };
        let request_id = envelope.request_id.as_deref().unwrap_or_default();
        self.audit.record(index, envelope.at, &envelope.by, request_id, note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Position;
    use crate::state::samples::envelope;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn tell(state: &mut State, seconds: i64, id: &str, command: Command) -> bool {
        let index = state.applied + 1;
        let request_id = (!id.is_empty()).then(|| id.to_owned());
        let by = "operator alice".to_owned();
        let envelope = Envelope { by, request_id, ..envelope(seconds.unsigned_abs(), command) };
        state.apply(Position { index, term: 1 }, &envelope).is_ok()
    }

    fn told(state: &State) -> Vec<(u64, String, Option<String>, u64)> {
        let told = |entry: &Arc<Entry>| {
            let Note { verb, refused, count, .. } = entry.note.clone();
            (entry.index, verb, refused, count)
        };
        state.audit.entries().map(told).collect()
    }

    fn fleet(generation: u64) -> Command {
        Command::ApplyFleet { toml: String::new(), generation, keeps: Vec::new(), policy: Default::default() }
    }

    #[test]
    fn an_action_and_its_entry_are_one_and_a_repeated_request_is_noted_once() {
        let mut state = State::default();
        assert!(tell(&mut state, 1, "r-1", fleet(1)));
        assert!(tell(&mut state, 2, "r-1", fleet(1)));
        assert!(!tell(&mut state, 3, "r-2", Command::Cancel { operation: "ledger-1".into() }));
        let entries: Vec<_> = state.audit.entries().cloned().collect();
        assert_eq!(entries.len(), 2, "{entries:?}");
        assert_eq!(
            (entries[0].index, entries[0].by.as_str(), entries[0].request_id.as_str()),
            (1, "operator alice", "r-1")
        );
        assert_eq!((entries[0].note.detail.as_str(), entries[0].at), ("generation 1", at(1)));
        assert_eq!((entries[1].index, entries[1].note.subject.as_str()), (3, "ledger-1"));
        assert!(entries[1].note.refused.as_ref().unwrap().contains("there is no operation ledger-1"));
        let restored = State::restore(&state.snapshot().unwrap()).unwrap();
        assert_eq!(restored, state);
    }

    #[test]
    fn refusals_within_a_minute_are_counted_and_push_no_action_out() {
        let mut state = State::default();
        assert!(tell(&mut state, 0, "", fleet(1)));
        let refusal = || Note::new("cancel", "", "x", "").refused("no");
        for second in [1, 2, 61, 62] {
            assert!(tell(&mut state, second, "", Command::Audit { note: Note { count: 2, ..refusal() } }));
        }
        let no = || Some("no".to_owned());
        let first = (1, "fleet apply".to_owned(), None, 1);
        assert_eq!(
            told(&state),
            [first.clone(), (2, "cancel".into(), no(), 6), (5, "cancel".into(), no(), 2)]
        );
        for n in 0..REFUSALS_KEPT as i64 + 10 {
            tell(&mut state, 1000 + 100 * n, "", Command::Audit { note: refusal() });
        }
        assert_eq!((told(&state).len(), told(&state)[0].clone()), (REFUSALS_KEPT + 1, first));
        assert_eq!(state.audit.forgotten, 12);
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        let mut audit = Audit::default();
        let note = Note::new("cancel", "", &"é".repeat(1 << 20), "");
        audit.record(1, at(0), "operator alice", &"x".repeat(1 << 20), note);
        let entry = audit.entries().next().unwrap();
        assert!(entry.note.subject.len() < TEXT_BYTES + 4 && entry.note.subject.ends_with("é…"));
        assert!(entry.request_id.len() < TEXT_BYTES + 4);
    }
}
