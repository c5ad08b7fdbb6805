//! How a fleet file's faults are told: all of them at once, each with its place, its key and its cure.

use std::fmt;
use std::ops::Range;

/// A fleet file that cannot be used, with everything that is wrong with it, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetError {
    /// Name of the file.
    pub source: String,
    /// At least one.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Dotted key as the reference names it, for example `cluster.new.node.seed_dir`; empty for the file itself.
    pub key: String,
    /// What is wrong, and why where that is not plain.
    pub message: String,
    /// What to do.
    pub cure: String,
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            let key = if fault.key.is_empty() { String::new() } else { format!("{}: ", fault.key) };
            let Fault { line, column, message, cure, .. } = fault;
            write!(f, "{newline}{}:{line}:{column}: {key}{message}; {cure}", self.source)?;
        }
        Ok(())
    }
}

impl std::error::Error for FleetError {}

/// Line and column, both from 1, of a byte offset.
pub(super) fn place(text: &str, span: &Range<usize>) -> (usize, usize) {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.matches('\n').count() + 1;
    (line, before.get(line_start..).unwrap_or_default().chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_not_bytes() {
        assert_eq!(place("a\n☃b", &(5..6)), (2, 2));
        assert_eq!(place("", &(0..0)), (1, 1));
        assert_eq!(place("ab", &(9..9)), (1, 3));
    }
}
