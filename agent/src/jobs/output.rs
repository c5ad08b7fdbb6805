//! What a job prints, read as it grows, and what of it is logged.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::lines::{Line, Lines};

/// Most bytes of output taken in at once.
const CHUNK: usize = 64 * 1024;

/// Reads a job's output as it grows.
#[derive(Default)]
pub(super) struct Output {
    file: Option<File>,
    pub(super) lines: Lines,
}

impl Output {
    /// Lines completed since the last call; none when nothing more was printed so far.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Option<Vec<Line>>> {
        let file = match &mut self.file {
            Some(file) => file,
            none => match File::open(path) {
                Ok(file) => none.insert(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            },
        };
        let mut chunk = Vec::with_capacity(CHUNK);
        file.take(CHUNK as u64).read_to_end(&mut chunk)?;
        Ok((!chunk.is_empty()).then(|| self.lines.push(&chunk)))
    }
}

/// Pairs each line with whether it is to be logged: progress that is overwritten within the same batch is not.
pub(super) fn worth_logging(lines: Vec<Line>) -> Vec<(String, bool)> {
    let overwritten: Vec<bool> =
        lines.iter().zip(lines.iter().skip(1)).map(|(line, next)| line.transient && next.transient).collect();
    let logged = overwritten.into_iter().map(|o| !o).chain(std::iter::once(true));
    lines.into_iter().map(|line| line.text).zip(logged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_rewritten_progress_the_newest_is_logged() {
        let line = |text: &str, transient| Line { text: text.into(), transient };
        let got = worth_logging(vec![line("a", false), line("1%", true), line("2%", true), line("b", false)]);
        let logged: Vec<_> = got.iter().filter(|(_, l)| *l).map(|(t, _)| t.as_str()).collect();
        assert_eq!((got.len(), logged), (4, vec!["a", "2%", "b"]));
        assert!(worth_logging(Vec::new()).is_empty());
    }
}
