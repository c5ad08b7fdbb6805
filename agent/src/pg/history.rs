//! Timeline history files: where a promoted server left its parent, and why. The proof of where recovery stopped.
//!
//! Written by `writeTimeLineHistory` (`access/transam/timeline.c`): one line for each ancestor, parent timeline, switch
//! point and reason, separated by tabs. The reason comes from `getRecoveryStopReason` (`xlogrecovery.c`): for a
//! target LSN with inclusive off it is `before LSN X`, X being the start of the first record that was not replayed.

use std::path::{Path, PathBuf};

use pgleap_proto::Lsn;

use crate::error::{Doing, Result, StepError};

/// How a timeline began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that was left.
    pub parent: u32,
    /// End of the last record taken from it.
    pub switch: Lsn,
    /// In PostgreSQL's words.
    pub reason: String,
}

impl Fork {
    /// Whether recovery stopped exactly at `target`: everything that starts before it was replayed, nothing after.
    ///
    /// `target` has to be the end of a record, as a slot's LSN is.
    ///
    /// # Errors
    /// Says what the history tells instead.
    pub fn check_stopped_at(&self, target: Lsn) -> std::result::Result<(), String> {
        let first_left_out =
            self.reason.strip_prefix("before LSN ").and_then(|x| x.trim().parse::<Lsn>().ok());
        let Some(first_left_out) = first_left_out else {
            return Err(format!("it was promoted for another reason: \"{}\"", self.reason));
        };
        if self.switch > target {
            return Err(format!("it replayed up to {}, past {target}", self.switch));
        }
        if first_left_out < target {
            return Err(format!("it stopped before {first_left_out}, which is before {target}"));
        }
        // Between the last replayed and the first left out record there can be no other, only page headers.
        Ok(())
    }
}

/// How timeline `timeline` of a data directory began.
///
/// # Errors
/// When the server is on its first timeline, or the file cannot be read.
pub fn read(data_dir: &Path, timeline: u32) -> Result<Fork> {
    let fork = all(data_dir, timeline)?.pop();
    fork.ok_or_else(|| {
        StepError::new(format!("{} names no parent timeline", path(data_dir, timeline).display()))
    })
}

/// Every ancestor of timeline `timeline` of a data directory, the oldest first.
///
/// # Errors
/// As [`read`].
pub fn all(data_dir: &Path, timeline: u32) -> Result<Vec<Fork>> {
    let path = path(data_dir, timeline);
    let text = std::fs::read_to_string(&path).doing(|| path.display().to_string())?;
    Ok(parse(&text))
}

fn path(data_dir: &Path, timeline: u32) -> PathBuf {
    data_dir.join(format!("pg_wal/{timeline:08X}.history"))
}

fn parse(text: &str) -> Vec<Fork> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let forks = lines.filter_map(|line| {
        let mut fields = line.splitn(3, '\t');
        let parent = fields.next()?.trim().parse().ok()?;
        let switch = fields.next()?.trim().parse().ok()?;
        Some(Fork { parent, switch, reason: fields.next().unwrap_or_default().trim().to_owned() })
    });
    forks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(text: &str) -> Fork {
        parse(text).pop().unwrap()
    }

    #[test]
    fn the_last_line_is_the_newest_fork() {
        let text = "1\t0/5000000\tno recovery target specified\n\n2\t0/34980048\tbefore LSN 0/34980048\n";
        assert_eq!(
            fork(text),
            Fork { parent: 2, switch: Lsn(0x3498_0048), reason: "before LSN 0/34980048".into() }
        );
        assert!(parse("# nothing\n").is_empty());
    }

    #[test]
    fn only_a_stop_exactly_at_the_target_passes() {
        let target = Lsn(0x3000);
        assert_eq!(fork("1\t0/3000\tbefore LSN 0/3000\n").check_stopped_at(target), Ok(()));
        assert_eq!(fork("1\t0/3000\tbefore LSN 0/3028\n").check_stopped_at(target), Ok(()), "page header");
        for wrong in [
            "1\t0/3100\tbefore LSN 0/3100",
            "1\t0/2F00\tbefore LSN 0/2F00",
            "1\t0/3000\tafter LSN 0/2FF0",
            "1\t0/3000\tno recovery target specified",
        ] {
            assert!(fork(wrong).check_stopped_at(target).is_err(), "{wrong}");
        }
    }
}
