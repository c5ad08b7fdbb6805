//! What happened, as one number: two runs of a seed that differ anywhere differ here. With `TRACE=1` it is printed, too.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Mutex;

#[derive(Default)]
struct Written {
    hasher: DefaultHasher,
    counts: BTreeMap<&'static str, u64>,
}

/// Everything noted so far.
pub(super) struct Trace {
    written: Mutex<Written>,
    shown: bool,
}

impl Trace {
    pub(super) fn new(shown: bool) -> Trace {
        Trace { written: Mutex::default(), shown }
    }

    /// Something happened, at this many milliseconds of simulated time.
    pub(super) fn note(&self, at: u128, what: fmt::Arguments<'_>) {
        let text = what.to_string();
        if self.shown {
            eprintln!("{:>9.3} {text}", at as f64 / 1000.0);
        }
        let hasher = &mut self.written.lock().unwrap().hasher;
        hasher.write_u128(at);
        hasher.write(text.as_bytes());
    }

    /// Something of this kind happened.
    pub(super) fn count(&self, kind: &'static str) {
        *self.written.lock().unwrap().counts.entry(kind).or_default() += 1;
    }

    /// The number.
    pub(super) fn hash(&self) -> u64 {
        self.written.lock().unwrap().hasher.finish()
    }

    /// How often each kind of thing happened.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.written.lock().unwrap().counts.clone()
    }
}
