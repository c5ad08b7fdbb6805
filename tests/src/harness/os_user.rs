//! As whom the servers run: PostgreSQL refuses root, so a test started by root drops to an ordinary user.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, User};

use super::paths::Binaries;

/// The user that owns data directories and runs everything of a fleet.
#[derive(Debug, Clone)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    uid: Uid,
    gid: Gid,
    /// Whether this process is root and has to change users.
    drop: bool,
}

impl OsUser {
    /// The current user, or for root the one that the set-up made.
    ///
    /// # Errors
    /// When that user does not exist.
    pub fn find(binaries: &Binaries) -> Result<OsUser> {
        let current = Uid::effective();
        if !current.is_root() {
            let user = User::from_uid(current)?.context("the current user has no entry in passwd")?;
            return Ok(OsUser { name: user.name, uid: current, gid: user.gid, drop: false });
        }
        let name = binaries.setting("PGLEAP_USER").unwrap_or("pgleap-test");
        let user = User::from_name(name)?.with_context(|| {
            format!("PostgreSQL refuses to run as root, and there is no user {name}: run `make setup`")
        })?;
        Ok(OsUser { name: user.name, uid: user.uid, gid: user.gid, drop: true })
    }

    /// A command line that runs the program as this user.
    pub fn command(&self, program: impl AsRef<OsStr>) -> std::process::Command {
        if !self.drop {
            return std::process::Command::new(program);
        }
        // setpriv replaces itself by the program, so the process id is the program's own.
        let mut command = std::process::Command::new("setpriv");
        command
            .arg(format!("--reuid={}", self.uid))
            .arg(format!("--regid={}", self.gid))
            .args(["--init-groups", "--"])
            .arg(program);
        command.env("USER", &self.name).env("LOGNAME", &self.name);
        command
    }

    /// Whether this process is root, and so may mount file systems and cut networks. When it is not, says what is left out, past the
    /// capture of what tests print.
    pub fn may(what: &str) -> bool {
        use std::io::Write as _;
        let root = Uid::effective().is_root();
        if !root {
            let _ = writeln!(std::io::stderr().lock(), "SKIPPED, as it needs root: {what}");
        }
        root
    }

    /// Gives a file or directory to this user.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn own(&self, path: &Path) -> Result<()> {
        if self.drop {
            std::os::unix::fs::chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
                .with_context(|| format!("chown {}", path.display()))?;
        }
        Ok(())
    }

    /// Makes a directory (and its parents) that belongs to this user, with the given mode.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_dir(&self, path: &Path, mode: u32) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        if let Some(parent) = path.parent().filter(|p| !p.exists()) {
            self.make_dir(parent, 0o755)?;
        }
        if !path.exists() {
            std::fs::create_dir(path).with_context(|| format!("creating {}", path.display()))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        self.own(path)
    }

    /// Writes a file that belongs to this user, with the given mode.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path, text: &str, mode: u32) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        self.own(path)
    }
}
