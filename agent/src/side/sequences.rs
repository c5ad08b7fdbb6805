//! Sequences of a database: their definitions, their exact positions, and setting these on the other side. Logical
//! replication does not carry them.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use pgleap_proto::traffic::SequenceState;
use tokio_postgres::Statement;

use super::sessions::Database;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::ident;

/// Sequences read by one statement: more would take many locks at once, and long to plan.
const BATCH: usize = 200;
/// Draws by which a sequence is set ahead before the switchover, where its exact position is set later.
const HEADROOM: i128 = 10_000;

/// A sequence by its database, schema and name.
type Key = (String, String, String);

fn key(sequence: &SequenceState) -> Key {
    (sequence.database.clone(), sequence.schema.clone(), sequence.name.clone())
}

fn place(sequence: &SequenceState) -> String {
    format!("{}.{} in database \"{}\"", ident(&sequence.schema), ident(&sequence.name), sequence.database)
}

/// All permanent sequences but the system's and pgleap's own, without their positions. An extension's are among them.
async fn list(database: &Database, tag: &str) -> Result<Vec<(u32, SequenceState)>> {
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcycle, \
               s.seqcache FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
               AND n.nspname::text <> $1 ORDER BY c.oid";
    let rows = database.session.query(sql, &[&tag]).await;
    let rows = rows.doing(|| format!("listing the sequences of database \"{}\"", database.facts.database))?;
    let read = |row: &tokio_postgres::Row| {
        let sequence = SequenceState {
            database: database.facts.database.clone(),
            schema: row.get(1),
            name: row.get(2),
            increment: row.get(3),
            minimum: row.get(4),
            maximum: row.get(5),
            start: row.get(6),
            cycle: row.get(7),
            cache: row.get(8),
            ..SequenceState::default()
        };
        (row.get(0), sequence)
    };
    Ok(rows.iter().map(read).collect())
}

/// Reads the positions of a database's sequences in one round trip.
pub(super) struct Reader {
    sequences: Vec<(u32, SequenceState)>,
    statements: Vec<Statement>,
    tag: String,
}

impl Reader {
    /// Looks which sequences there are, and prepares.
    pub async fn prepare(database: &Database, tag: &str) -> Result<Reader> {
        let sequences = list(database, tag).await?;
        let statements = sequences.chunks(BATCH).enumerate().map(|(batch, sequences)| {
            let one = |(at, (_, sequence)): (usize, &(u32, SequenceState))| {
                let (schema, name) = (ident(&sequence.schema), ident(&sequence.name));
                format!("SELECT {}::int8, last_value, is_called FROM {schema}.{name}", batch * BATCH + at)
            };
            sequences.iter().enumerate().map(one).collect::<Vec<_>>().join(" UNION ALL ")
        });
        let statements: Vec<String> = statements.collect();
        let prepare = statements.iter().map(|sql| database.session.prepare(sql));
        let doing = || format!("preparing to read the sequences of database \"{}\"", database.facts.database);
        let statements = try_join_all(prepare).await.doing(doing)?;
        Ok(Reader { sequences, statements, tag: tag.to_owned() })
    }

    /// Their positions now.
    ///
    /// # Errors
    /// Also when sequences were created, dropped or altered since they were looked at.
    pub async fn read(&self, database: &Database) -> Result<Vec<SequenceState>> {
        let doing = || format!("reading the sequences of database \"{}\"", database.facts.database);
        let read = async {
            let batches = self.statements.iter().map(|statement| database.session.query(statement, &[]));
            try_join_all(batches).await.doing(doing)
        };
        let (batches, now) = futures::future::try_join(read, list(database, &self.tag)).await?;
        if now != self.sequences {
            return Err(StepError::new(format!(
                "sequences of database \"{}\" were created, dropped or altered since the switchover was prepared; try again",
                database.facts.database
            )));
        }
        let mut states: Vec<SequenceState> =
            self.sequences.iter().map(|(_, sequence)| sequence.clone()).collect();
        let mut read = 0;
        for row in batches.iter().flatten() {
            let at = usize::try_from(row.get::<_, i64>(0)).unwrap_or(usize::MAX);
            let state = states.get_mut(at).ok_or_else(|| StepError::new(doing()))?;
            (state.last_value, state.is_called) = (row.get(1), row.get(2));
            read += 1;
        }
        if read == states.len() {
            Ok(states)
        } else {
            Err(StepError::new(format!("{}: some are missing", doing())))
        }
    }
}

/// Sets the positions of a database's sequences in one round trip.
pub(super) struct Writer {
    known: BTreeMap<Key, u32>,
    definitions: Vec<SequenceState>,
    statement: Statement,
}

impl Writer {
    /// Looks which sequences there are, and prepares.
    pub async fn prepare(database: &Database, tag: &str) -> Result<Writer> {
        let listed = list(database, tag).await?;
        let sql = "SELECT count(setval(t.oid::regclass, t.value, t.called)) \
                   FROM unnest($1::oid[], $2::int8[], $3::bool[]) AS t(oid, value, called)";
        let doing = || format!("preparing to set the sequences of database \"{}\"", database.facts.database);
        let statement = database.session.prepare(sql).await.doing(doing)?;
        let known = listed.iter().map(|(oid, sequence)| (key(sequence), *oid)).collect();
        let definitions = listed.into_iter().map(|(_, sequence)| sequence).collect();
        Ok(Writer { known, definitions, statement })
    }

    /// What is there, without positions.
    pub fn definitions(&self) -> &[SequenceState] {
        &self.definitions
    }

    /// Sets those of this database among the given ones; they must be all of them.
    pub async fn set(&self, database: &Database, states: &[SequenceState]) -> Result<()> {
        let mine: Vec<&SequenceState> =
            states.iter().filter(|state| state.database == database.facts.database).collect();
        let mut oids = Vec::with_capacity(mine.len());
        for state in &mine {
            oids.push(
                *self.known.get(&key(state)).ok_or_else(|| {
                    StepError::new(format!("there is no sequence {} to be set", place(state)))
                })?,
            );
        }
        if oids.len() != self.known.len() {
            return Err(StepError::new(format!(
                "{} positions were given for {} sequences of database \"{}\"",
                oids.len(),
                self.known.len(),
                database.facts.database
            )));
        }
        if oids.is_empty() {
            return Ok(());
        }
        let values: Vec<i64> = mine.iter().map(|state| state.last_value).collect();
        let called: Vec<bool> = mine.iter().map(|state| state.is_called).collect();
        let row = database.session.query_one(&self.statement, &[&oids, &values, &called]).await;
        let set: i64 = row
            .doing(|| format!("setting the sequences of database \"{}\"", database.facts.database))?
            .get(0);
        if usize::try_from(set) == Ok(oids.len()) {
            Ok(())
        } else {
            Err(StepError::new("some sequences were not set"))
        }
    }
}

/// What differs between the sequences of two sides: presence and definition, not position.
pub(super) fn differences(source: &[SequenceState], target: &[SequenceState]) -> Vec<String> {
    let definition =
        |sequence: &SequenceState| SequenceState { last_value: 0, is_called: false, ..sequence.clone() };
    let by_key = |sequences: &[SequenceState]| -> BTreeMap<Key, SequenceState> {
        sequences.iter().map(|sequence| (key(sequence), definition(sequence))).collect()
    };
    let (source, target) = (by_key(source), by_key(target));
    let mut found = Vec::new();
    for (key, ours) in &source {
        match target.get(key) {
            None => found.push(format!("{} is missing on the side that would take writes", place(ours))),
            Some(theirs) if theirs != ours => {
                found.push(format!("{}: {} instead of {}", place(ours), said(theirs), said(ours)));
            }
            Some(_) => {}
        }
    }
    let extra = target.iter().filter(|(key, _)| !source.contains_key(*key));
    found.extend(
        extra.map(|(_, theirs)| format!("{} exists only on the side that would take writes", place(theirs))),
    );
    found
}

fn said(sequence: &SequenceState) -> String {
    let SequenceState { increment, minimum, maximum, start, cycle, cache, .. } = sequence;
    format!(
        "increment {increment}, minimum {minimum}, maximum {maximum}, start {start}, cycle {cycle}, cache {cache}"
    )
}

/// A position well beyond the given one, in the sequence's own direction and within its bounds: no value that the source may
/// still draw meanwhile is before it. One that cycles has no beyond.
pub(super) fn ahead(sequence: &SequenceState) -> SequenceState {
    if sequence.cycle {
        return sequence.clone();
    }
    let wanted = i128::from(sequence.last_value) + i128::from(sequence.increment) * HEADROOM;
    let bounded = wanted.clamp(i128::from(sequence.minimum), i128::from(sequence.maximum));
    // Within bounds that are 64 bits wide.
    let last_value = i64::try_from(bounded).unwrap_or(sequence.last_value);
    SequenceState { last_value, is_called: true, ..sequence.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequence(increment: i64, minimum: i64, maximum: i64, last_value: i64) -> SequenceState {
        SequenceState {
            database: "d".into(),
            schema: "s".into(),
            name: "q".into(),
            increment,
            minimum,
            maximum,
            start: minimum,
            cache: 1,
            last_value,
            ..SequenceState::default()
        }
    }

    #[test]
    fn ahead_goes_in_the_sequences_own_direction_and_stays_in_bounds() {
        let last = |sequence: &SequenceState| ahead(sequence).last_value;
        assert_eq!(last(&sequence(1, 1, i64::MAX, 5)), 10_005);
        assert_eq!(last(&sequence(-5, i64::MIN, -1, -7)), -50_007);
        assert_eq!(last(&sequence(1, 1, 100, 5)), 100);
        assert_eq!(last(&sequence(-1, -9, -1, -2)), -9);
        assert_eq!(last(&sequence(i64::MAX, 1, i64::MAX, i64::MAX)), i64::MAX);
        let cycle = SequenceState { cycle: true, ..sequence(1, 1, 9, 5) };
        assert_eq!(ahead(&cycle), cycle);
    }

    #[test]
    fn differences_are_named_and_positions_do_not_count() {
        let one = sequence(1, 1, 9, 5);
        assert!(differences(std::slice::from_ref(&one), &[sequence(1, 1, 9, 7)]).is_empty());
        let other = differences(std::slice::from_ref(&one), &[sequence(2, 1, 9, 5)]);
        assert!(other[0].contains("increment 2") && other[0].contains("instead of increment 1"), "{other:?}");
        assert!(differences(std::slice::from_ref(&one), &[])[0].contains("is missing"));
        assert!(differences(&[], &[one])[0].contains("only on"));
    }

    proptest! {
        #[test]
        fn ahead_never_leaves_the_bounds_nor_goes_back(
            increment: i64, a: i64, b: i64, c: i64
        ) {
            prop_assume!(increment != 0);
            let mut three = [a, b, c];
            three.sort_unstable();
            let sequence = sequence(increment, three[0], three[2], three[1]);
            let set = ahead(&sequence).last_value;
            prop_assert!((three[0]..=three[2]).contains(&set));
            let ahead = if increment > 0 { set >= three[1] } else { set <= three[1] };
            prop_assert!(ahead);
        }
    }
}
