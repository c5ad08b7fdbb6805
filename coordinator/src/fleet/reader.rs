//! Gathers the faults of one file without stopping at the first, and remembers where each key stood; [`super::section`] reads the values.
//!
//! `serde` gives up at the first fault and knows no place for what it accepted; an operator who fixes a file wants all
//! faults, and rules over the finished specification want places too.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pgleap_proto::bounds::MAX_FLEET_BYTES;
use toml::Spanned;
use toml::de::DeTable;

use super::error::{Fault, place};

/// Faults told at once; nobody reads more.
const MAX_FAULTS: usize = 100;

/// Where faults and places are gathered while one file is read.
pub(super) struct Reader<'t> {
    text: &'t str,
    places: RefCell<BTreeMap<String, Range<usize>>>,
    faults: RefCell<Vec<(Range<usize>, Fault)>>,
    /// Paths that have a fault already: one fault a key is enough, later ones are mostly consequences.
    faulty: RefCell<BTreeSet<String>>,
    /// Faults beyond those that are kept.
    more: Cell<usize>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Reader {
            text,
            places: RefCell::default(),
            faults: RefCell::default(),
            faulty: RefCell::default(),
            more: Cell::default(),
        }
    }

    /// The top of the file; none when it is not TOML at all, which is then a fault.
    pub(super) fn tree(&self) -> Option<Spanned<DeTable<'t>>> {
        if self.text.len() > MAX_FLEET_BYTES {
            let message =
                format!("the file has {} bytes, at most {MAX_FLEET_BYTES} are read", self.text.len());
            self.push(0..0, "", message, "split the fleet".to_owned());
            return None;
        }
        let (tree, errors) = DeTable::parse_recoverable(self.text);
        if errors.is_empty() {
            return Some(tree);
        }
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let message = format!("not valid TOML: {}", error.message().trim().replace('\n', ", "));
            self.push(span, "", message, "correct the syntax at this place".to_owned());
        }
        None
    }

    /// A fault of the key at `path`, or of its nearest ancestor that stands in the file.
    pub(super) fn fault(&self, path: &str, message: impl Into<String>, cure: impl Into<String>) {
        if !self.faulty.borrow_mut().insert(path.to_owned()) {
            return;
        }
        let places = self.places.borrow();
        let mut at = path;
        let span = loop {
            if let Some(span) = places.get(at) {
                break span.clone();
            }
            match at.rfind(['.', '[']) {
                Some(end) => at = at.get(..end).unwrap_or_default(),
                None => break 0..0,
            }
        };
        self.push(span, path, message.into(), cure.into());
    }

    /// Whether this key has a fault already, so that rules over its value would only repeat it.
    pub(super) fn is_faulty(&self, path: &str) -> bool {
        self.faulty.borrow().contains(path)
    }

    /// `line 12` of a key, for faults that refer to another place.
    pub(super) fn line(&self, path: &str) -> String {
        // To find a line takes a look at the whole file; when the fault is not told anyway, that is saved.
        if self.is_full() {
            return "another line".to_owned();
        }
        let places = self.places.borrow();
        let span = places.get(path).cloned().unwrap_or(0..0);
        format!("line {}", place(self.text, &span).0)
    }

    /// All faults, in the order of the file.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|(span, _)| span.start);
        let more = self.more.get();
        if let Some((_, last)) = faults.last_mut().filter(|_| more > 0) {
            last.cure.push_str(&format!(" (and {more} more faults; correct these first)"));
        }
        faults.into_iter().map(|(_, fault)| fault).collect()
    }

    fn is_full(&self) -> bool {
        self.faults.borrow().len() >= MAX_FAULTS
    }

    fn push(&self, span: Range<usize>, path: &str, message: String, cure: String) {
        if self.is_full() {
            self.more.set(self.more.get() + 1);
            return;
        }
        let (line, column) = place(self.text, &span);
        let key = without_indices(path);
        self.faults.borrow_mut().push((span, Fault { line, column, key, message, cure }));
    }

    pub(super) fn remember(&self, path: &str, span: Range<usize>) {
        self.places.borrow_mut().insert(path.to_owned(), span);
    }
}

/// `cluster[0].new.node[1].port` as the reference writes it: `cluster.new.node.port`.
pub(super) fn without_indices(path: &str) -> String {
    let mut depth = 0;
    let keep = |c: &char| {
        depth += i32::from(*c == '[');
        let keep = depth == 0;
        depth -= i32::from(*c == ']');
        keep
    };
    path.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lose_their_indices() {
        assert_eq!(without_indices("cluster[0].new.node[12].port"), "cluster.new.node.port");
    }
}
