//! What a worker believes to be in the database, and what it does next. Pure but for its seeded dice.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Options;
use super::effect::Effect;
use super::tables::{ACCOUNTS, BUCKETS, account};

/// One statement to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    InsertItem { body: String },
    UpdateItem { id: i64, body: String },
    DeleteItem { id: i64 },
    Transfer { from: i32, to: i32, amount: i64 },
    Bump { by: i64 },
    InsertBlob { body: String },
    RewriteBlob { id: i64, body: String },
    TouchBlob { id: i64 },
    DeleteBlob { id: i64 },
    InsertPlain { key: i64, value: String, copies: u64 },
    UpdatePlain { key: i64, value: String, copies: u64 },
    DeletePlain { key: i64, copies: u64 },
    InsertEvent { bucket: i32 },
    MoveEvent { id: i64, to: i32 },
    DeleteEvent { id: i64 },
}

/// One transaction to be run.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub counter: i64,
    pub ops: Vec<Op>,
    /// To be rolled back instead of committed.
    pub roll_back: bool,
    /// With a subtransaction that writes and is rolled back.
    pub savepoint: bool,
    /// One statement that commits by itself, with at most one change besides the entry in the books.
    pub single: bool,
}

/// A worker's view of its own rows. Rows touched by a transaction of unknown outcome are never touched again, so that
/// whatever became of it, later choices do not depend on it.
#[derive(Debug)]
pub(super) struct Model {
    worker: i32,
    dice: StdRng,
    counter: i64,
    large: (usize, usize),
    holds: bool,
    light: bool,
    items: Vec<i64>,
    blobs: Vec<i64>,
    plain: Vec<(i64, u64)>,
    events: Vec<i64>,
}

/// Rows of each kind a worker keeps at most; large values fewer.
const KEPT: usize = 60;
const KEPT_LARGE: usize = 6;

impl Model {
    pub(super) fn new(options: &Options, worker: i32, database: u64) -> Model {
        let seed = options.seed ^ (u64::from(worker.unsigned_abs()) << 32) ^ (database << 56);
        Model {
            worker,
            dice: StdRng::seed_from_u64(seed),
            counter: 0,
            large: options.large,
            holds: !options.hold.is_zero(),
            light: options.light,
            items: Vec::new(),
            blobs: Vec::new(),
            plain: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The next transaction.
    pub(super) fn next(&mut self) -> Planned {
        self.counter += 1;
        if self.light {
            let dice = self.dice.random_range(0..100);
            if dice < 85 {
                let ops = if dice < 65 { Vec::new() } else { vec![self.transfer()] };
                return Planned {
                    counter: self.counter,
                    ops,
                    roll_back: false,
                    savepoint: false,
                    single: true,
                };
            }
        }
        let several = self.dice.random_ratio(1, 3);
        let wanted = if several { self.dice.random_range(2..6) } else { 1 };
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..wanted {
            let op = self.op();
            // Two statements on one row of one transaction are fine for PostgreSQL, but an item that was deleted by
            // the first cannot be updated by the second.
            if !ops.iter().any(|other| key(other).is_some() && key(other) == key(&op)) {
                ops.push(op);
            }
        }
        // Last, because its row lock makes all other workers wait; and never in a transaction that is held open.
        if !self.holds && self.dice.random_ratio(1, 4) {
            ops.push(Op::Bump { by: self.dice.random_range(1..10) });
        }
        Planned {
            counter: self.counter,
            ops,
            roll_back: self.dice.random_ratio(1, 25),
            savepoint: self.dice.random_ratio(1, 12),
            single: false,
        }
    }

    fn op(&mut self) -> Op {
        match self.dice.random_range(0..100) {
            0..35 => self.item(),
            35..55 => self.transfer(),
            55..75 => self.plain(),
            75..95 => self.event(),
            // Large values take more time than everything else together.
            _ if self.light => self.item(),
            _ => self.blob(),
        }
    }

    fn transfer(&mut self) -> Op {
        let from = self.dice.random_range(0..ACCOUNTS);
        let to = (from + self.dice.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let amount = self.dice.random_range(1..100);
        Op::Transfer { from: account(self.worker, from), to: account(self.worker, to), amount }
    }

    fn item(&mut self) -> Op {
        let body = self.words();
        match pick(&mut self.dice, &self.items, KEPT) {
            Choice::Make => Op::InsertItem { body },
            Choice::Change(id) => Op::UpdateItem { id, body },
            Choice::Remove(id) => Op::DeleteItem { id },
        }
    }

    fn plain(&mut self) -> Op {
        let value = self.words();
        let copies = self.dice.random_range(1..3);
        match pick(&mut self.dice, &self.plain, KEPT) {
            Choice::Make => Op::InsertPlain { key: self.counter, value, copies },
            Choice::Change((key, copies)) => Op::UpdatePlain { key, value, copies },
            Choice::Remove((key, copies)) => Op::DeletePlain { key, copies },
        }
    }

    fn event(&mut self) -> Op {
        let bucket = self.dice.random_range(0..BUCKETS);
        match pick(&mut self.dice, &self.events, KEPT) {
            Choice::Make => Op::InsertEvent { bucket },
            Choice::Change(id) => Op::MoveEvent { id, to: bucket },
            Choice::Remove(id) => Op::DeleteEvent { id },
        }
    }

    fn blob(&mut self) -> Op {
        let choice = pick(&mut self.dice, &self.blobs, KEPT_LARGE);
        match choice {
            Choice::Make => Op::InsertBlob { body: self.large() },
            Choice::Change(id) if self.dice.random_bool(0.5) => Op::TouchBlob { id },
            Choice::Change(id) => Op::RewriteBlob { id, body: self.large() },
            Choice::Remove(id) => Op::DeleteBlob { id },
        }
    }

    /// A large value that does not compress.
    fn large(&mut self) -> String {
        let length = self.dice.random_range(self.large.0..=self.large.1);
        (0..length).map(|_| char::from(self.dice.random_range(b' '..=b'~'))).collect()
    }

    fn words(&mut self) -> String {
        const WORDS: [&str; 8] =
            ["plain", "wörd", "☃", "quo'te", "back\\slash", "new\nline", "tab\there", "\u{1F418}"];
        let count = self.dice.random_range(1..6);
        let words: Vec<&str> = (0..count).map(|_| WORDS[self.dice.random_range(0..WORDS.len())]).collect();
        format!("{} {}", self.counter, words.join(" "))
    }

    /// After a commit that was acknowledged.
    pub(super) fn committed(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Item { id, new: true, .. } => self.items.push(*id),
                Effect::ItemGone { id } => self.items.retain(|other| other != id),
                Effect::Blob { id, digest: Some(_) } if !self.blobs.contains(id) => self.blobs.push(*id),
                Effect::BlobGone { id } => self.blobs.retain(|other| other != id),
                Effect::Plain { key, copies: Some(copies), .. } => self.plain.push((*key, *copies)),
                Effect::PlainGone { key } => self.plain.retain(|(other, _)| other != key),
                Effect::Event { id, .. } if !self.events.contains(id) => self.events.push(*id),
                Effect::EventGone { id } => self.events.retain(|other| other != id),
                _ => {}
            }
        }
    }

    /// After a commit of unknown outcome.
    pub(super) fn doubted(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Item { id, .. } | Effect::ItemGone { id } => self.items.retain(|o| o != id),
                Effect::Blob { id, .. } | Effect::BlobGone { id } => self.blobs.retain(|o| o != id),
                Effect::Plain { key, .. } | Effect::PlainGone { key } => {
                    self.plain.retain(|(other, _)| other != key);
                }
                Effect::Event { id, .. } | Effect::EventGone { id } => self.events.retain(|o| o != id),
                Effect::Transfer { .. } | Effect::Bump { .. } => {}
            }
        }
    }
}

enum Choice<T> {
    Make,
    Change(T),
    Remove(T),
}

fn pick<T: Copy>(dice: &mut StdRng, there: &[T], most: usize) -> Choice<T> {
    if there.is_empty() || (there.len() < most && dice.random_bool(0.4)) {
        return Choice::Make;
    }
    let one = there[dice.random_range(0..there.len())];
    if there.len() >= most || dice.random_bool(0.3) { Choice::Remove(one) } else { Choice::Change(one) }
}

/// The row an operation is about, when it is about an existing one.
fn key(op: &Op) -> Option<(u8, i64)> {
    match op {
        Op::UpdateItem { id, .. } | Op::DeleteItem { id } => Some((0, *id)),
        Op::RewriteBlob { id, .. } | Op::TouchBlob { id } | Op::DeleteBlob { id } => Some((1, *id)),
        Op::InsertPlain { key, .. } | Op::UpdatePlain { key, .. } | Op::DeletePlain { key, .. } => {
            Some((2, *key))
        }
        Op::MoveEvent { id, .. } | Op::DeleteEvent { id } => Some((3, *id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_choices_and_all_of_them() {
        let options = Options::default();
        let mut one = Model::new(&options, 3, 0);
        let mut two = Model::new(&options, 3, 0);
        let mut rolled_back = 0;
        let mut id = 0;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3000 {
            let (a, b) = (one.next(), two.next());
            assert_eq!(a.ops, b.ops);
            rolled_back += i32::from(a.roll_back);
            for op in &a.ops {
                seen.insert(format!("{op:?}").split([' ', '{']).next().unwrap().to_owned());
                id += 1;
                let effect = match op.clone() {
                    Op::InsertItem { body } => Effect::Item { id, new: true, body },
                    Op::DeleteItem { id } => Effect::ItemGone { id },
                    Op::InsertBlob { .. } => Effect::Blob { id, digest: Some(String::new()) },
                    Op::DeleteBlob { id } => Effect::BlobGone { id },
                    Op::InsertPlain { key, value, copies } => {
                        Effect::Plain { key, value, copies: Some(copies) }
                    }
                    Op::DeletePlain { key, .. } => Effect::PlainGone { key },
                    Op::InsertEvent { bucket } => Effect::Event { id, bucket },
                    Op::DeleteEvent { id } => Effect::EventGone { id },
                    _ => continue,
                };
                one.committed(std::slice::from_ref(&effect));
                two.committed(&[effect]);
            }
        }
        assert_eq!(seen.len(), 15, "{seen:?}");
        assert!(rolled_back > 50);
        assert!(one.items.len() <= KEPT + 5 && one.blobs.len() <= KEPT_LARGE + 5);
    }

    #[test]
    fn a_light_load_is_mostly_single_statements_and_has_no_large_values() {
        let mut model = Model::new(&Options { light: true, ..Options::default() }, 1, 0);
        let planned: Vec<Planned> = (0..2000).map(|_| model.next()).collect();
        let single = planned.iter().filter(|planned| planned.single).count();
        assert!((1600..1800).contains(&single), "{single}");
        assert!(planned.iter().all(|p| !p.single || (p.ops.len() < 2 && !p.roll_back && !p.savepoint)));
        assert!(!planned.iter().any(|p| p.ops.iter().any(|op| matches!(op, Op::InsertBlob { .. }))));
        assert!(planned.iter().any(|planned| planned.roll_back));
    }
}
