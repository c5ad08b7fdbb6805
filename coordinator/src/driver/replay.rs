//! Joining a running step again brings its newest lines a second time; this finds where the new ones begin.

use pgleap_proto::agent::LogLine;

/// Holds lines back while they repeat what is known.
#[derive(Debug, Default)]
pub(super) struct Replay {
    known: Vec<LogLine>,
    held: Vec<LogLine>,
}

impl Replay {
    /// `known` are the lines received before, oldest first.
    pub(super) fn new(known: Vec<LogLine>) -> Replay {
        Replay { known, held: Vec::new() }
    }

    /// The lines that are news, given one more.
    pub(super) fn push(&mut self, line: LogLine) -> Vec<LogLine> {
        if self.known.is_empty() {
            return vec![line];
        }
        self.held.push(line);
        // Longest first: the repeated lines end where the known ones end.
        for tail in (0..self.known.len()).map(|at| &self.known[at..]) {
            if tail.starts_with(&self.held) {
                return Vec::new();
            }
            if self.held.starts_with(tail) {
                let news = self.held.split_off(tail.len());
                self.done();
                return news;
            }
        }
        self.flush()
    }

    /// The stream ends: what is held but did not reach the end of the known lines is news.
    pub(super) fn flush(&mut self) -> Vec<LogLine> {
        let held = std::mem::take(&mut self.held);
        let repeated = self.known.ends_with(&held);
        self.done();
        if repeated { Vec::new() } else { held }
    }

    fn done(&mut self) {
        self.known.clear();
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(words: &[u8]) -> Vec<LogLine> {
        words.iter().map(|w| LogLine { source: "t".into(), line: w.to_string() }).collect()
    }

    fn news(known: &[u8], stream: &[u8]) -> Vec<LogLine> {
        let mut replay = Replay::new(lines(known));
        let mut out: Vec<LogLine> = lines(stream).into_iter().flat_map(|line| replay.push(line)).collect();
        out.extend(replay.flush());
        out
    }

    #[test]
    fn a_new_run_is_all_news() {
        assert_eq!(news(&[1, 2, 3], &[7, 8]), lines(&[7, 8]));
        assert_eq!(news(&[], &[7, 7]), lines(&[7, 7]));
        assert_eq!(news(&[1, 2, 3], &[1, 2, 9]), lines(&[1, 2, 9]));
    }

    proptest! {
        #[test]
        fn repeated_distinct_lines_are_dropped(before in 0..20u8, replayed in 1..20u8, fresh in 0..20u8) {
            let known: Vec<u8> = (0..before).collect();
            let start = before.saturating_sub(replayed);
            let stream: Vec<u8> = (start..before + fresh).collect();
            prop_assert_eq!(news(&known, &stream), lines(&(before..before + fresh).collect::<Vec<u8>>()));
        }
    }
}
