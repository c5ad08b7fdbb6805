//! Replays transactions on paper: what the tables must contain when exactly those have been committed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::effect::Effect;
use super::record::{DatabaseRecord, Record};
use super::tables::{ACCOUNTS, BALANCE, account};

/// The rows of one database that belong to one ledger, computed or read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Version and body of each item.
    pub items: BTreeMap<i64, (i64, String)>,
    /// How often each item, version and operation is in the audit table.
    pub audit: BTreeMap<(i64, i64, String), u64>,
    /// Balances.
    pub accounts: BTreeMap<i32, i64>,
    /// The shared row.
    pub counter: i64,
    /// Version and digest of each large value.
    pub blobs: BTreeMap<i64, (i64, String)>,
    /// How often each worker, key and value is in the table without a key.
    pub plain: BTreeMap<(i32, i64, String), u64>,
    /// Partition and version of each event.
    pub events: BTreeMap<i64, (i32, i64)>,
}

/// What the database must contain when these transactions (worker and counter) have been committed.
pub(super) fn expect(record: &Record, database: &DatabaseRecord, there: &BTreeSet<(i32, i64)>) -> Contents {
    let mut contents = Contents::default();
    for n in 0..record.workers {
        let worker = record.first_worker + n;
        contents.accounts.extend((0..ACCOUNTS).map(|n| (account(worker, n), BALANCE)));
    }
    for worker in &database.workers {
        // Rows of the table without a key, by key: value and copies.
        let mut plain: BTreeMap<i64, (String, u64)> = BTreeMap::new();
        for logged in worker.transactions.iter().filter(|l| there.contains(&(worker.worker, l.counter))) {
            for effect in &logged.effects {
                contents.replay(effect, logged.counter, &mut plain);
            }
        }
        for (key, (value, copies)) in plain {
            contents.plain.insert((worker.worker, key, value), copies);
        }
    }
    contents
}

impl Contents {
    fn replay(&mut self, effect: &Effect, version: i64, plain: &mut BTreeMap<i64, (String, u64)>) {
        match effect {
            Effect::Item { id, new, body } => {
                // An update of a row that is not there does nothing, and fires no trigger.
                if *new || self.items.contains_key(id) {
                    self.items.insert(*id, (version, body.clone()));
                    let op = if *new { "INSERT" } else { "UPDATE" };
                    *self.audit.entry((*id, version, op.to_owned())).or_default() += 1;
                }
            }
            Effect::ItemGone { id } => {
                if let Some((version, _)) = self.items.remove(id) {
                    *self.audit.entry((*id, version, "DELETE".to_owned())).or_default() += 1;
                }
            }
            Effect::Transfer { from, to, amount } => {
                *self.accounts.entry(*from).or_default() -= amount;
                *self.accounts.entry(*to).or_default() += amount;
            }
            Effect::Bump { by } => self.counter += by,
            Effect::Blob { id, digest: Some(digest) } => {
                self.blobs.insert(*id, (version, digest.clone()));
            }
            Effect::Blob { id, digest: None } => {
                if let Some(blob) = self.blobs.get_mut(id) {
                    blob.0 = version;
                }
            }
            Effect::BlobGone { id } => {
                self.blobs.remove(id);
            }
            Effect::Plain { key, value, copies: Some(copies) } => {
                plain.insert(*key, (value.clone(), *copies));
            }
            Effect::Plain { key, value, copies: None } => {
                if let Some(rows) = plain.get_mut(key) {
                    rows.0.clone_from(value);
                }
            }
            Effect::PlainGone { key } => {
                plain.remove(key);
            }
            Effect::Event { id, bucket } => {
                self.events.insert(*id, (*bucket, version));
            }
            Effect::EventGone { id } => {
                self.events.remove(id);
            }
        }
    }

    /// Where `found` is not what is expected, in words; the first few of each table.
    pub fn differences(&self, found: &Contents) -> Vec<String> {
        let mut out = Vec::new();
        compare("items", &self.items, &found.items, &mut out);
        compare("item_audit", &self.audit, &found.audit, &mut out);
        compare("accounts", &self.accounts, &found.accounts, &mut out);
        if self.counter != found.counter {
            out.push(format!("counters: {} expected, {} found", self.counter, found.counter));
        }
        compare("blobs", &self.blobs, &found.blobs, &mut out);
        compare("plain", &self.plain, &found.plain, &mut out);
        compare("events", &self.events, &found.events, &mut out);
        out
    }
}

/// Examples told for each table.
const EXAMPLES: usize = 5;

fn compare<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    table: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
    out: &mut Vec<String>,
) {
    let missing = expected.iter().filter(|(key, _)| !found.contains_key(key));
    let missing = missing.map(|(key, value)| format!("{table} {key:?}: {value:?} expected, not there"));
    let surplus = found.iter().filter(|(key, _)| !expected.contains_key(key));
    let surplus = surplus.map(|(key, value)| format!("{table} {key:?}: {value:?} found, not expected"));
    let changed = expected.iter().filter_map(|(key, value)| {
        let other = found.get(key).filter(|other| *other != value)?;
        Some(format!("{table} {key:?}: {value:?} expected, {other:?} found"))
    });
    let all: Vec<String> = missing.chain(surplus).chain(changed).collect();
    if all.len() > EXAMPLES {
        out.push(format!("{table}: {} rows differ, for example:", all.len()));
    }
    out.extend(all.into_iter().take(EXAMPLES));
}
