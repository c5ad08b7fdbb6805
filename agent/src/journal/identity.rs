//! Who this agent is: its journal, its present start, and how far the journal has come; and whose coordinators it obeys.
//!
//! Every write makes the journal one generation older, and every start is kept with the generation it began at. So the
//! whole past is a line of (start, generation) points, and a coordinator that saw one of them can be told whether it lies on
//! this line. A journal restored from an older image, or written on by a copy, lacks it, however often it was restarted since.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pgleap_proto::agent::AgentIdentity;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{FORMAT, Journal, JournalError, META, OPERATIONS, storage};

/// Generation at which a start of the agent began -> its incarnation.
const STARTS: TableDefinition<'_, u64, &str> = TableDefinition::new("starts");
/// Starts that are remembered; older ones are forgotten first.
const STARTS_KEPT: usize = 1000;

const JOURNAL: &str = "journal_id";
const GENERATION: &str = "generation";
const GROUP: &str = "group";

/// What is kept in memory of it: equal to what is durable.
#[derive(Debug, Default)]
pub(super) struct Kept {
    journal: String,
    past: Past,
    group: Option<String>,
}

/// The starts, oldest first, and how far the last one has come. Pure.
#[derive(Debug, Default, Clone)]
struct Past {
    /// Generation at which it began, and its incarnation.
    starts: Vec<(u64, String)>,
    generation: u64,
}

impl Past {
    /// Whether the point lies on this line.
    fn holds(&self, incarnation: &str, generation: u64) -> bool {
        let Some(at) = self.starts.iter().rposition(|(_, known)| known == incarnation) else { return false };
        let (began, _) = self.starts[at];
        let ended = self.starts.get(at + 1).map_or(self.generation, |(next, _)| next - 1);
        (began..=ended).contains(&generation)
    }

    fn present(&self) -> &str {
        self.starts.last().map_or("", |(_, incarnation)| incarnation)
    }
}

/// The group that the agent obeys is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherGroup(pub String);

impl Journal {
    /// A new start of the agent: durable before anything is answered in its name.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn begin(&self) -> Result<(), JournalError> {
        let incarnation = uuid::Uuid::new_v4().to_string();
        let begun = self.advance(|transaction, generation| {
            let mut starts = transaction.open_table(STARTS)?;
            starts.insert(generation, incarnation.as_str())?;
            let mut surplus = Vec::new();
            for start in starts.iter()?.rev().skip(STARTS_KEPT) {
                surplus.push(start?.0.value());
            }
            for generation in surplus {
                starts.remove(generation)?;
            }
            Ok(())
        })?;
        let mut kept = self.kept();
        let surplus = (kept.past.starts.len() + 1).saturating_sub(STARTS_KEPT);
        kept.past.starts.drain(..surplus);
        kept.past.starts.push((begun, incarnation));
        Ok(())
    }

    /// Who answers here now. Without an incarnation before [`Journal::begin`].
    pub fn identity(&self) -> AgentIdentity {
        let kept = self.kept();
        AgentIdentity {
            journal: kept.journal.clone(),
            incarnation: kept.past.present().to_owned(),
            generation: kept.past.generation,
        }
    }

    /// Whether nothing that this agent had written until then is missing from its journal.
    pub fn remembers(&self, known: &AgentIdentity) -> bool {
        let kept = self.kept();
        kept.journal == known.journal && kept.past.holds(&known.incarnation, known.generation)
    }

    /// The group of coordinators whose orders are taken; none as long as none has given any.
    pub fn group(&self) -> Option<String> {
        self.kept().group.clone()
    }

    /// Takes orders from this group from now on, and from no other; none is changed.
    ///
    /// # Errors
    /// When another one was first, or the journal cannot be written.
    pub fn obey(&self, group: &str) -> Result<Result<(), OtherGroup>, JournalError> {
        // Held through the write, so that of two first groups one is first.
        let _one = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        match self.group() {
            Some(known) if known == group => return Ok(Ok(())),
            Some(known) => return Ok(Err(OtherGroup(known))),
            None => {}
        }
        self.advance(|transaction, _| {
            transaction.open_table(META)?.insert(GROUP, group)?;
            Ok(())
        })?;
        self.kept().group = Some(group.to_owned());
        Ok(Ok(()))
    }

    /// Takes orders from whoever gives the next one; whose orders it has taken so far.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn forget_group(&self) -> Result<Option<String>, JournalError> {
        let known = self.group();
        if known.is_some() {
            self.advance(|transaction, _| {
                transaction.open_table(META)?.remove(GROUP)?;
                // Another group counts its terms anew.
                transaction.open_table(OPERATIONS)?.retain(|_, _| false)?;
                Ok(())
            })?;
            self.kept().group = None;
        }
        Ok(known)
    }

    /// One durable write, and the generation it makes.
    pub(super) fn advance(
        &self,
        write: impl FnOnce(&WriteTransaction, u64) -> Result<(), redb::Error>,
    ) -> Result<u64, JournalError> {
        let advance = || -> Result<u64, redb::Error> {
            // Durability::Immediate is redb's default: the commit returns after fsync.
            let transaction = self.database.begin_write()?;
            let generation = read_generation(&transaction)? + 1;
            transaction.open_table(META)?.insert(GENERATION, generation.to_string().as_str())?;
            write(&transaction, generation)?;
            transaction.commit()?;
            Ok(generation)
        };
        let generation = advance().map_err(|e| storage(&self.path, &e))?;
        let mut kept = self.kept();
        kept.past.generation = kept.past.generation.max(generation);
        Ok(generation)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_generation(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
    let meta = transaction.open_table(META)?;
    let text = meta.get(GENERATION)?.map(|value| value.value().to_owned());
    let Some(text) = text else { return Ok(0) };
    text.parse().map_err(|_| redb::Error::Corrupted(format!("its generation is \"{text}\", not a number")))
}

/// Journal id and format, made on first use; and all tables of this file.
pub(super) fn open(database: &Database) -> Result<(Mutex<Kept>, String), redb::Error> {
    let transaction = database.begin_write()?;
    let mut known = Vec::new();
    {
        let mut meta = transaction.open_table(META)?;
        for (key, new) in [(JOURNAL, uuid::Uuid::new_v4().to_string()), ("format", FORMAT.to_owned())] {
            let old = meta.get(key)?.map(|value| value.value().to_owned());
            if old.is_none() {
                meta.insert(key, new.as_str())?;
            }
            known.push(old.unwrap_or(new));
        }
        transaction.open_table(STARTS)?;
    }
    let generation = read_generation(&transaction)?;
    transaction.commit()?;
    let format = known.pop().unwrap_or_default();
    let journal = known.pop().unwrap_or_default();

    let transaction = database.begin_read()?;
    let group = transaction.open_table(META)?.get_owned(GROUP)?.map(|group| group.value().to_owned());
    let mut starts = Vec::new();
    for start in transaction.open_table(STARTS)?.iter()? {
        let (began, incarnation) = start?;
        starts.push((began.value(), incarnation.value().to_owned()));
    }
    let past = Past { starts, generation };
    Ok((Mutex::new(Kept { journal, past, group }), format))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(starts: &[(u64, &str)], generation: u64) -> Past {
        let starts = starts.iter().map(|(began, name)| (*began, (*name).to_owned())).collect();
        Past { starts, generation }
    }

    #[test]
    fn a_point_is_on_the_line_or_not() {
        let past = past(&[(1, "a"), (5, "b"), (6, "c")], 9);
        for (incarnation, generation, on) in [
            ("a", 1, true),
            ("a", 4, true),
            ("a", 5, false),
            ("b", 4, false),
            ("b", 5, true),
            ("b", 6, false),
            ("c", 9, true),
            ("c", 10, false),
            ("d", 5, false),
            ("", 0, false),
        ] {
            assert_eq!(past.holds(incarnation, generation), on, "{incarnation} {generation}");
        }
        assert!(!Past::default().holds("", 0));
    }

    /// Every history of up to four events (a write, a restart, an image taken, the image restored), and after each event
    /// every point ever seen: it is remembered exactly when it was never rolled back.
    #[test]
    fn what_was_rolled_back_is_not_remembered_and_everything_else_is() {
        let event = |past: &mut Past, starts: &mut u32, restart: bool| {
            past.generation += 1;
            if restart {
                *starts += 1;
                past.starts.push((past.generation, starts.to_string()));
            }
        };
        for code in 0..4u32.pow(7) {
            let (mut now, mut starts) = (Past::default(), 0);
            event(&mut now, &mut starts, true);
            let mut image = now.clone();
            // Points in order, with the one each came from: the truth that the line is compared with.
            let mut lived = vec![(now.present().to_owned(), now.generation)];
            let mut seen = lived.clone();
            let mut lived_then = lived.clone();
            for turn in 0..7 {
                match code / 4u32.pow(turn) % 4 {
                    0 => event(&mut now, &mut starts, false),
                    1 => event(&mut now, &mut starts, true),
                    2 => {
                        (image, lived_then) = (now.clone(), lived.clone());
                        continue;
                    }
                    // A restored agent has to be started.
                    _ => {
                        (now, lived) = (image.clone(), lived_then.clone());
                        event(&mut now, &mut starts, true);
                    }
                }
                let point = (now.present().to_owned(), now.generation);
                lived.push(point.clone());
                seen.push(point);
                for (incarnation, generation) in &seen {
                    let truth = lived.contains(&(incarnation.clone(), *generation));
                    assert_eq!(
                        now.holds(incarnation, *generation),
                        truth,
                        "{code}: {incarnation} {generation}"
                    );
                }
            }
        }
    }
}
