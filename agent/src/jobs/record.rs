//! The directory of one job: the files that agent and supervisor share, and the lock that says who runs.
//!
//! | file | written by | meaning |
//! | --- | --- | --- |
//! | `lock` | | locked by whoever may change the directory: the agent while it prepares a start, then the supervisor *and every process of the job* |
//! | `program.json` | agent | what to run |
//! | `output.log` | supervisor | made exactly once for a prepared start: the claim that it is run, then the program's output |
//! | `supervisor.log` | supervisor | why it could not run the program |
//! | `status.json` | supervisor | how the program ended |
//!
//! The lock is an "open file description" lock (fcntl(2), `F_OFD_SETLK`). The agent takes it and hands the very
//! same open file to the supervisor as its standard input, and the supervisor to the program: so there is no
//! moment between the agent's decision to start and the end of the last process at which anybody else could
//! start, whoever of them is killed when; and it can be tested without taking it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::program::Program;

/// How a program ended, as `status.json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    /// By itself, with this exit code; 127 when it could not be started.
    Code(i32),
    /// By this signal. Not written as 128 + signal, as shells do: programs have exit codes above 128 of their own.
    Signal(i32),
}

/// One job's directory.
#[derive(Debug, Clone)]
pub(super) struct Record {
    directory: PathBuf,
}

impl Record {
    pub(super) fn new(directory: PathBuf) -> Record {
        Record { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn lock_path(&self) -> PathBuf {
        self.file("lock")
    }

    pub(super) fn output_path(&self) -> PathBuf {
        self.file("output.log")
    }

    pub(super) fn supervisor_log_path(&self) -> PathBuf {
        self.file("supervisor.log")
    }

    /// Empty, readable by the agent's user only.
    pub(super) fn supervisor_log(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(self.supervisor_log_path())
    }

    /// Makes the directory, private to the agent's user.
    pub(super) fn create(&self) -> io::Result<()> {
        durable::private_directory(&self.directory)
    }

    /// The lock, taken; none when somebody else has it. Given up when the last copy of the file is closed.
    pub(super) fn try_lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.lock_path())?;
        Ok(take_lock(&file)?.then_some(file))
    }

    /// Whether anybody has the lock. Does not take it, so it disturbs nobody who tries to.
    pub(super) fn is_locked(&self) -> io::Result<bool> {
        let file = match File::open(self.lock_path()) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        let mut conflicting = whole_file(libc::F_RDLCK);
        fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut conflicting))?;
        Ok(i32::from(conflicting.l_type) != libc::F_UNLCK)
    }

    /// Whether `file` is this job's lock file.
    pub(super) fn is_lock_file(&self, file: &File) -> io::Result<bool> {
        let (open, named) = (file.metadata()?, fs::metadata(self.lock_path())?);
        Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
    }

    /// Forgets the last run and writes down the next. Only with the lock.
    pub(super) fn prepare(&self, program: &Program) -> io::Result<()> {
        // In this order a crash in between leaves the last run as it ended, or no run, but never one that looks lost;
        // and never the status of one program beside the next.
        for name in ["output.log", "supervisor.log", "status.json"] {
            durable::remove(&self.file(name))?;
        }
        durable::write(&self.file("program.json"), &serde_json::to_vec_pretty(program)?)
    }

    pub(super) fn program(&self) -> io::Result<Program> {
        Ok(serde_json::from_slice(&fs::read(self.file("program.json"))?)?)
    }

    /// Claims the prepared run: succeeds once, however often a supervisor is started on the directory.
    pub(super) fn claim(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(self.output_path())
    }

    /// Whether a run was claimed since the last `prepare`.
    pub(super) fn claimed(&self) -> bool {
        self.output_path().exists()
    }

    pub(super) fn end(&self, ended: Ended) -> io::Result<()> {
        durable::write(&self.file("status.json"), &serde_json::to_vec(&ended)?)
    }

    pub(super) fn ended(&self) -> io::Result<Option<Ended>> {
        match fs::read(self.file("status.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Takes the lock for this open file; true as well when it has it already.
pub(super) fn take_lock(file: &File) -> io::Result<bool> {
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn whole_file(kind: i32) -> libc::flock {
    // l_pid must be 0 for open file description locks, length 0 means to the end.
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_goes_with_the_open_file_and_can_be_seen_without_taking_it() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record::new(directory.path().join("a/b"));
        record.create().unwrap();
        assert!(!record.is_locked().unwrap());
        let first = record.try_lock().unwrap().unwrap();
        let copy = first.try_clone().unwrap();
        assert!(record.is_locked().unwrap());
        assert!(record.try_lock().unwrap().is_none());
        assert!(take_lock(&copy).unwrap(), "a copy of the open file has the lock already");
        drop(first);
        assert!(record.is_locked().unwrap(), "the copy still holds it");
        drop(copy);
        assert!(!record.is_locked().unwrap());
        assert!(record.try_lock().unwrap().is_some());
    }

    #[test]
    fn a_prepared_run_is_claimed_once() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record::new(directory.path().to_owned());
        record.prepare(&Program::new("/bin/true")).unwrap();
        record.claim().unwrap();
        assert_eq!(record.claim().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        record.end(Ended::Code(3)).unwrap();
        assert_eq!(record.ended().unwrap(), Some(Ended::Code(3)));
        record.prepare(&Program::new("/bin/false")).unwrap();
        assert_eq!(record.ended().unwrap(), None);
        assert!(!record.claimed());
        assert_eq!(record.program().unwrap(), Program::new("/bin/false"));
    }
}
