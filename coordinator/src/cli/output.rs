//! Data on stdout, talk on stderr. The only place of the command line that prints.

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;

use super::Failure;

/// Where a verb's output goes.
#[derive(Debug)]
pub struct Out {
    /// `--json` was given.
    pub json: bool,
    /// stdout is a terminal.
    pub terminal: bool,
    color: bool,
    /// Keeps data instead of printing it, for tests.
    kept: Option<Vec<u8>>,
}

/// What a piece of text means; becomes a colour where there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// It is as it should be.
    Good,
    /// It wants attention.
    Warn,
    /// It failed.
    Bad,
    /// It matters less than what stands beside it.
    Dim,
    /// It is what the eye should find.
    Strong,
}

impl Out {
    /// For a verb called with or without `--json`.
    pub fn new(json: bool) -> Out {
        let terminal = io::stdout().is_terminal();
        let color = terminal && !json && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Out { json, terminal, color, kept: None }
    }

    /// Prints nothing on stdout, and keeps it. Neither a terminal nor colours.
    #[cfg(test)]
    pub(super) fn kept(json: bool) -> Out {
        Out { json, terminal: false, color: false, kept: Some(Vec::new()) }
    }

    /// What would have been printed on stdout.
    #[cfg(test)]
    pub(super) fn data(self) -> String {
        String::from_utf8(self.kept.unwrap_or_default()).unwrap()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.kept {
            Some(kept) => kept.write_all(bytes),
            None => io::stdout().lock().write_all(bytes),
        }
    }

    /// Text with a meaning.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
            Tone::Strong => "1",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Data for people, a line.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.write(format!("{text}\n").as_bytes())
    }

    /// Data for programs, one JSON document on one line.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn value(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value)?;
        self.line(&text)
    }

    /// Talk: what a person wants to know and a pipe does not.
    pub fn talk(&self, text: &str) {
        // A closed stderr must not end an operation's verb.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Asks before something that cannot be taken back, and takes anything but a yes for a no.
    ///
    /// # Errors
    /// [`Failure::Refused`] with `no` when the answer is no, or with `unasked` when nobody can be asked.
    pub(super) fn confirm(&self, question: &str, no: &str, unasked: Option<&str>) -> Result<(), Failure> {
        if !io::stdin().is_terminal() {
            return unasked.map_or(Ok(()), |why| Err(Failure::Refused(why.to_owned())));
        }
        self.talk(&format!("{question} Go on? [y/N]"));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failure::Refused(no.to_owned())),
        }
    }

    /// Why the verb failed.
    pub fn error(&self, message: &str) {
        let label = if io::stderr().is_terminal() && self.color { "\x1b[31merror:\x1b[0m" } else { "error:" };
        self.talk(&format!("{label} {message}"));
    }

    /// Paints a screen over the last one of `height` lines, on a terminal; returns the new height.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn repaint(&mut self, text: &str, height: usize) -> io::Result<usize> {
        // Up to the first line of the last screen, then clear to the end.
        let clear = if height > 0 { format!("\x1b[{height}A\x1b[J") } else { String::new() };
        self.write(format!("{clear}{text}\n").as_bytes())?;
        io::stdout().lock().flush()?;
        Ok(text.lines().count())
    }
}
