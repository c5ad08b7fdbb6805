//! Cuts a program's output into lines as they come. Pure.

/// Longest line; a longer one is cut into pieces of this size, in bytes.
const LONGEST: usize = 16 * 1024;

/// A line that a program printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    /// It ended with a carriage return: progress that the program meant to overwrite.
    pub(super) transient: bool,
}

/// Holds what has come of the line that is not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes and gives the lines they complete. A carriage return ends a line too, because rsync
    /// and pg_basebackup rewrite their progress in place. Blank lines are left out.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' | b'\r' => lines.extend(self.take(byte == b'\r')),
                _ => {
                    self.pending.push(byte);
                    if self.pending.len() >= LONGEST {
                        lines.extend(self.take(false));
                    }
                }
            }
        }
        lines
    }

    /// The last line, when the program did not end it.
    pub(super) fn finish(&mut self) -> Option<Line> {
        self.take(false)
    }

    fn take(&mut self, transient: bool) -> Option<Line> {
        let text = String::from_utf8_lossy(&self.pending).trim_end().to_owned();
        self.pending.clear();
        (!text.is_empty()).then_some(Line { text, transient })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn carriage_returns_end_lines_and_blank_ones_vanish() {
        let mut lines = Lines::default();
        let got = lines.push(b"10%\r 20%\r\n\nChecking  ok\nrest");
        assert_eq!(texts(&got), ["10%", " 20%", "Checking  ok"]);
        assert_eq!(got.iter().map(|l| l.transient).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(lines.finish().map(|l| l.text).as_deref(), Some("rest"));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(&vec![b'x'; LONGEST * 2 + 1]).len(), 2);
        assert_eq!(lines.finish().map(|l| l.text.len()), Some(1));
    }

    proptest! {
        #[test]
        fn where_the_reads_fall_does_not_matter(text in "[ab \r\n☃]{0,60}", cut in 0usize..60) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let mut whole = Lines::default();
            let mut expected = whole.push(bytes);
            expected.extend(whole.finish());
            let mut pieces = Lines::default();
            let mut got = pieces.push(&bytes[..cut]);
            got.extend(pieces.push(&bytes[cut..]));
            got.extend(pieces.finish());
            prop_assert_eq!(got, expected);
        }
    }
}
