//! The directory of one fleet, and the promise that nothing of it outlives the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use super::network::{Network, remove_namespaces};
use super::os_user::OsUser;
use super::paths::Binaries;
use super::reap::{marker_dir, reap};

/// Where directories of fleets are made. Not `/tmp`, which is often small and in memory.
pub fn temporary_dir() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A fresh directory; dropping it ends every process of the fleet and removes it. `KEEP=1` leaves the files.
#[derive(Debug)]
pub struct Base {
    /// Short, because paths of unix sockets must stay below 108 bytes.
    pub path: PathBuf,
    /// Who owns it.
    pub user: OsUser,
    /// Where the programs are.
    pub binaries: Binaries,
    /// Where its hosts are.
    pub network: Network,
    keep: bool,
    passed: bool,
    /// Does the same when this process is killed; its standard input is the pipe that tells.
    reaper: Option<Child>,
}

impl Base {
    /// Makes it.
    ///
    /// # Errors
    /// When the directory, the user or the reaper is missing.
    pub fn new() -> Result<Base> {
        let binaries = Binaries::find()?;
        let user = OsUser::find(&binaries)?;
        let path = tempfile::Builder::new().prefix("pgl-").tempdir_in(temporary_dir())?.keep();
        user.make_dir(&path, 0o755)?;
        for name in ["tmp", "home", "log"] {
            user.make_dir(&path.join(name), 0o755)?;
        }
        let keep = std::env::var_os("KEEP").is_some_and(|value| value != "0" && !value.is_empty());
        let reaper = binaries.beside("reaper").ok().map(|reaper| {
            use std::os::unix::process::CommandExt;
            // A process group of its own, so that Ctrl-C does not reach it.
            let mut command = std::process::Command::new(reaper);
            command.arg(&path).args(keep.then_some("keep"));
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        });
        let reaper = reaper.transpose().context("starting the reaper")?;
        let network = Network::Loopback;
        Ok(Base { path, user, binaries, network, keep, passed: false, reaper })
    }

    /// A path below the directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A directory of the fleet's user, made with its parents.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_dir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.join(name);
        self.user.make_dir(&path, 0o755)?;
        Ok(path)
    }

    /// Copies pgleap's programs into `bin`, where the fleet's user can run them, which below /root it cannot.
    ///
    /// # Errors
    /// When one was not built.
    pub fn install(&self, programs: &[&str]) -> Result<()> {
        let directory = self.make_dir("bin")?;
        for name in programs {
            let copy = directory.join(name);
            std::fs::copy(self.binaries.own(name)?, &copy).with_context(|| format!("copying {name}"))?;
            self.user.own(&copy)?;
        }
        Ok(())
    }

    /// A command as the fleet's user, in the fleet's environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
        let mut command = self.user.command(program);
        command
            .env("TMPDIR", marker_dir(&self.path))
            .env("HOME", self.join("home"))
            .env_remove("PGDATA")
            .env_remove("PGHOST")
            .env_remove("PGPORT")
            .current_dir(&self.path);
        command
    }

    /// The same on one of its hosts.
    pub fn command_on(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
        self.network.on(host, self.command(program))
    }

    /// Gives each of these hosts a namespace and an address of its own. To be called before anything runs.
    ///
    /// # Errors
    /// When they cannot be made; only root can.
    pub fn separate(&mut self, hosts: impl IntoIterator<Item = String>) -> Result<()> {
        self.network = Network::hosts(&self.path, hosts)?;
        Ok(())
    }

    /// Runs a program to its end and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or ends with anything but 0; with all it said.
    pub async fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        let program = program.as_ref();
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        let output = tokio::process::Command::from(command).kill_on_drop(true).output().await;
        let output = output.with_context(|| format!("starting {}", program.display()))?;
        anyhow::ensure!(
            output.status.success(),
            "{} {} failed ({}):\n{}{}",
            program.display(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// To be called when all claims hold: no logs need to be kept.
    pub fn passed(&mut self) {
        self.passed = true;
    }

    /// Copies the logs to where they survive, and says where.
    fn save_logs(&self) {
        let name = self.path.file_name().unwrap_or_default();
        let kept = self.binaries.target_dir().join("failures").join(name);
        if std::fs::create_dir_all(&kept).is_err() {
            return;
        }
        copy_logs(&self.path, &kept, 4);
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "not passed: the fleet's logs are in {}", kept.display());
    }
}

/// Copies `*.log`, `*.toml` and `*.out` files, flattened.
fn copy_logs(from: &Path, to: &Path, depth: usize) {
    let Ok(entries) = std::fs::read_dir(from) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if depth > 0 && !path.join("PG_VERSION").exists() {
                copy_logs(&path, to, depth - 1);
            }
        } else if path.extension().is_some_and(|e| e == "log" || e == "toml" || e == "out") {
            let host = from.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let _ = std::fs::copy(&path, to.join(format!("{host}-{name}")));
        }
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let left = reap(&self.path);
        remove_namespaces(&self.path);
        if !self.passed || std::thread::panicking() {
            self.save_logs();
        }
        use std::io::Write;
        if !left.is_empty() {
            let _ = writeln!(std::io::stderr(), "processes that would not end: {left:?}");
        }
        if self.keep {
            let _ = writeln!(std::io::stderr(), "kept {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            let _ = writeln!(std::io::stderr(), "{} stays: {error}", self.path.display());
        }
        if let Some(mut reaper) = self.reaper.take() {
            drop(reaper.stdin.take());
            let _ = reaper.wait();
        }
    }
}
