//! Open files: this process holds two for every agent; the coordinators are started with what a service gets.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::Base;

/// systemd's default `LimitNOFILESOFT`.
const SOFT: &str = "--nofile=1024:";

/// Lets this process open as many files as it may.
///
/// # Errors
/// When the operating system refuses.
pub fn allow_many() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}

/// A command with the limit of open files that systemd gives a service, whatever this process has.
pub fn as_a_service(base: &Base, program: &Path) -> Command {
    let mut command = base.command("prlimit");
    command.args([SOFT, "--"]).arg(program);
    command
}
