//! The order of fences: what an agent compares to refuse an act of the past.

use crate::agent::Fence;

impl Fence {
    /// The pair that orders fences: the term first, then the attempt.
    ///
    /// A newer leader always wins; within one term the later start of a step wins.
    pub fn order(&self) -> (u64, u64) {
        (self.term, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_term_wins_over_any_attempt() {
        let old = Fence { term: 1, attempt: 900 };
        let new = Fence { term: 2, attempt: 1 };
        assert!(new.order() > old.order());
    }
}
