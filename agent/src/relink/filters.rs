//! The filter rules that a replica's rsync sends to the leader's. Pure.
//!
//! rsync takes them from its standard input, not from its arguments, and a merge rule (`. FILE`, `: FILE`) has the sender
//! open any file that its user can read: whether it exists, and with an older rsync what is in it, comes back as an
//! error. Our own client sends nothing but excludes anchored at the top of the transfer, so nothing else is let through.
//!
//! Layout (main.c, compat.c, io.c, exclude.c; protocol 30 and later): four bytes of protocol version, then frames of a
//! four byte header and data; the data begins with the rules, each after its length, and ends them with a length of 0.
//! With the capability `v` the client would name its checksums before the first frame; [`super::arguments`] takes it out.

/// Bytes of the version.
const VERSION: usize = 4;
/// Oldest protocol whose rules come in frames (rsync 3.0).
const OLDEST: u32 = 30;
/// `MPLEX_BASE + MSG_DATA`, the header's highest byte.
const DATA: u32 = 7;
/// Longest rule, in bytes: a path and its sign.
const RULE: usize = 4352;
/// What all rules may take, in bytes.
const MOST: usize = 64 * 1024;

/// Holds back what a client sends until its filter rules are known to be harmless.
#[derive(Debug, Default)]
pub struct Gate {
    sent: Vec<u8>,
    /// How many of `sent` were passed on: the version goes first, because the client waits for the answer to it.
    passed: usize,
    open: bool,
}

impl Gate {
    /// What may be passed on to the sender after the client has sent these bytes.
    ///
    /// # Errors
    /// Says what is refused, and names a rule. Nothing may be passed on any more.
    pub fn pass(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        if self.open {
            return Ok(bytes);
        }
        self.sent.extend(bytes);
        self.open = judge(&self.sent)? == Rules::Harmless;
        let end = if self.open { self.sent.len() } else { VERSION.min(self.sent.len()) };
        let now = self.sent[self.passed..end].to_vec();
        self.passed = end;
        if self.open {
            self.sent = Vec::new();
        }
        Ok(now)
    }
}

/// What is known of the rules after the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// They have not ended yet.
    Unfinished,
    /// All of them are harmless.
    Harmless,
}

/// Judges everything that the client has sent so far.
fn judge(sent: &[u8]) -> Result<Rules, String> {
    let Some((version, mut rest)) = sent.split_first_chunk() else { return Ok(Rules::Unfinished) };
    let version = u32::from_le_bytes(*version);
    if version < OLDEST {
        return Err(format!("protocol {version} is too old; {OLDEST} or later is expected"));
    }
    let mut data = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk() {
        let header = u32::from_le_bytes(*header);
        if header >> 24 != DATA {
            return Err("filter rules are expected first".to_owned());
        }
        let length = usize::try_from(header & 0x00FF_FFFF).unwrap_or(usize::MAX).min(after.len());
        data.extend_from_slice(&after[..length]);
        rest = &after[length..];
        if rules(&data)? == Rules::Harmless {
            return Ok(Rules::Harmless);
        }
    }
    if sent.len() > MOST {
        return Err(format!("filter rules of more than {MOST} bytes"));
    }
    Ok(Rules::Unfinished)
}

fn rules(mut data: &[u8]) -> Result<Rules, String> {
    while let Some((length, after)) = data.split_first_chunk() {
        let length = usize::try_from(i32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length == 0 {
            return Ok(Rules::Harmless);
        }
        if length > RULE {
            return Err("a filter rule is too long".to_owned());
        }
        let Some((rule, after)) = after.split_at_checked(length) else { break };
        if !rule.starts_with(b"- /") || rule.iter().any(u8::is_ascii_control) {
            return Err(format!(
                "filter rule \"{}\": only anchored excludes are served",
                String::from_utf8_lossy(rule).escape_debug()
            ));
        }
        data = after;
    }
    Ok(Rules::Unfinished)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(rules: &[&str]) -> Vec<u8> {
        let mut data = Vec::new();
        for rule in rules {
            data.extend((rule.len() as u32).to_le_bytes());
            data.extend(rule.as_bytes());
        }
        data.extend([0; 4]);
        data
    }

    /// In frames of at most `size` bytes.
    fn sent(version: u32, data: &[u8], size: usize) -> Vec<u8> {
        let mut sent = version.to_le_bytes().to_vec();
        for piece in data.chunks(size) {
            sent.extend((DATA << 24 | piece.len() as u32).to_le_bytes());
            sent.extend(piece);
        }
        sent
    }

    #[test]
    fn excludes_pass_however_they_are_cut() {
        let data = list(&["- /15/pg_wal", "- /15/pg_tblspc/*", "- /18/standby.signal"]);
        for size in [1, 3, 4, 7, 1000] {
            let sent = sent(31, &data, size);
            assert_eq!(judge(&sent), Ok(Rules::Harmless), "{size}");
            for end in 0..sent.len() {
                assert_eq!(judge(&sent[..end]), Ok(Rules::Unfinished), "{size} {end}");
            }
            // What follows the rules is none of them.
            let more = [&sent[..], &[0xFF; 100]].concat();
            assert_eq!(judge(&more), Ok(Rules::Harmless), "{size}");
        }
        assert_eq!(judge(&sent(32, &list(&[]), 4)), Ok(Rules::Harmless));
    }

    #[test]
    fn the_gate_passes_the_version_at_once_and_the_rest_when_it_is_known() {
        let whole = [sent(31, &list(&["- /a", "- /b"]), 5), b"file list".to_vec()].concat();
        for size in [1, 4, 6, 1000] {
            let mut gate = Gate::default();
            let mut passed = Vec::new();
            for piece in whole.chunks(size) {
                passed.extend(gate.pass(piece.to_vec()).unwrap());
                assert!(gate.open || passed.len() <= VERSION, "{size}");
            }
            assert_eq!(passed, whole, "{size}");
        }
        let mut gate = Gate::default();
        assert_eq!(gate.pass(31_u32.to_le_bytes().to_vec()).unwrap(), 31_u32.to_le_bytes());
        let bad = sent(31, &list(&[". /etc/passwd"]), 100);
        assert!(gate.pass(bad[VERSION..].to_vec()).is_err());
        assert_eq!(gate.passed, VERSION);
    }

    #[test]
    fn everything_else_is_refused() {
        for rule in [
            ". /etc/passwd",
            ".- /etc/passwd",
            ": .rsync-filter",
            ":- /etc/passwd",
            "+ /15/x",
            "- x",
            "-s /15/x",
            "-! /15/x",
            "P /15/x",
            "! ",
            "merge /etc/passwd",
            "- /a\n. /etc/passwd",
        ] {
            let error = judge(&sent(31, &list(&["- /15/pg_wal", rule]), 9)).unwrap_err();
            assert!(error.contains("only anchored excludes"), "{rule}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        assert!(judge(&sent(29, &list(&[]), 4)).unwrap_err().contains("too old"));
        // Names of checksums, as with the capability that was taken out.
        let named = [&31_u32.to_le_bytes()[..], b"\x12xxh128 xxh3 xxh64 md5"].concat();
        assert!(judge(&named).unwrap_err().contains("expected first"));
        assert!(judge(&sent(31, &i32::MAX.to_le_bytes(), 4)).unwrap_err().contains("too long"));
        assert!(judge(&sent(31, &(-1_i32).to_le_bytes(), 4)).unwrap_err().contains("too long"));
        let many = list(&vec!["- /15/pg_wal"; 5000]);
        assert!(judge(&sent(31, &many[..many.len() - 4], 4096)).unwrap_err().contains("more than"));
    }
}
