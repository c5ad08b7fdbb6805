//! One container: its root, its power switch, and commands over ssh.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::run;
use crate::harness::eventually;

/// What ssh asks nobody about.
const SSH: [&str; 5] = [
    "-oStrictHostKeyChecking=no",
    "-oUserKnownHostsFile=/dev/null",
    "-oLogLevel=ERROR",
    "-oConnectTimeout=5",
    "-oBatchMode=yes",
];

/// Arguments of ssh for the hosts, but for the key.
pub fn ssh_options() -> String {
    SSH.join(" ")
}

/// A host.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its address on the bridge.
    pub address: String,
    /// The one of IPv6.
    pub address6: String,
    /// Private key of root's.
    pub key: PathBuf,
    directory: PathBuf,
    base: PathBuf,
    /// Directories of this machine that it sees, read-only, under the same path.
    shared: Vec<PathBuf>,
    power: Option<Child>,
}

impl Machine {
    /// Its disk: an overlay over the base, with its name, its address and the key.
    pub(super) fn make(
        directory: &Path,
        base: &Path,
        name: &str,
        [address, address6]: [String; 2],
        key: &Path,
        shared: Vec<PathBuf>,
    ) -> Result<Machine> {
        let disk = directory.join("disk");
        for part in
            ["work", "root", "disk/etc/systemd/network", "disk/etc/systemd/system/multi-user.target.wants"]
        {
            fs::create_dir_all(directory.join(part))?;
        }
        let network = format!(
            "[Match]\nName=host0\n[Network]\nAddress={address}/24\nAddress={address6}/64\nLinkLocalAddressing=ipv6\nIPv6AcceptRA=no\n"
        );
        fs::write(disk.join("etc/systemd/network/10-host0.network"), network)?;
        let unit = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service";
        std::os::unix::fs::symlink("/lib/systemd/system/systemd-networkd.service", disk.join(unit))?;
        fs::write(disk.join("etc/hostname"), format!("{name}\n"))?;
        fs::write(disk.join("etc/machine-id"), "")?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(disk.join("root/.ssh"))?;
        let keys = disk.join("root/.ssh/authorized_keys");
        fs::copy(key.with_extension("pub"), &keys)?;
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
        Ok(Machine {
            name: name.to_owned(),
            address,
            address6,
            key: key.to_owned(),
            directory: directory.to_owned(),
            base: base.to_owned(),
            shared,
            power: None,
        })
    }

    /// Boots it. The mount lives in a namespace that ends with the process started here; that shuts the container down when this process
    /// dies.
    pub(super) fn power_on(&mut self, bridge: &str) -> Result<()> {
        ensure!(self.power.is_none(), "{} is on already", self.name);
        let at = |part: &str| self.directory.join(part).display().to_string();
        let overlay =
            format!("lowerdir={},upperdir={},workdir={}", self.base.display(), at("disk"), at("work"));
        let console = File::options().append(true).create(true).open(self.directory.join("console"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private", "sh", "-ec"]);
        command.arg("mount -t overlay -o \"$1\" overlay \"$2\"; shift 2; exec systemd-nspawn \"$@\"");
        command.args([
            "sh",
            &overlay,
            &at("root"),
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--console=pipe",
        ]);
        command.args(["--directory", &at("root"), "--network-bridge", bridge]);
        // Names of network devices are short, and those of two fleets must differ.
        command.args(["--machine", &self.unique(bridge)]);
        command.args(self.shared.iter().map(|directory| format!("--bind-ro={}", directory.display())));
        command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
        self.power = Some(command.spawn().context("starting a container")?);
        Ok(())
    }

    fn unique(&self, bridge: &str) -> String {
        format!("{}-{}", self.name, bridge.trim_end_matches("br"))
    }

    /// The network device of this machine that is the other end of its own.
    pub(super) fn cable(&self, bridge: &str) -> String {
        format!("vb-{}", self.unique(bridge))
    }

    /// Ends everything in it at once, as a power cut does; its disk stays.
    pub(super) fn power_off(&mut self) -> Result<()> {
        let mut power = self.power.take().with_context(|| format!("{} is off already", self.name))?;
        let nspawn = power.id();
        // Its child is the container's first process: nothing in the container outlives that. nspawn's own end would not end it.
        let children =
            fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).unwrap_or_default();
        let first: Vec<i32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        if first.is_empty() {
            power.kill()?;
        }
        for pid in first {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        power.wait()?;
        Ok(())
    }

    /// Waits until it can be logged in to.
    pub(super) async fn reachable(&self, limit: Duration) -> Result<()> {
        let up =
            eventually(&format!("ssh on {}", self.name), limit, async || Ok(Some(self.ssh("true")?))).await;
        let console = || fs::read_to_string(self.directory.join("console")).unwrap_or_default();
        up.map(drop).with_context(|| format!("console of {}:\n{}", self.name, console()))
    }

    /// Writes a file of `postgres`'s there, with its directory.
    ///
    /// # Errors
    /// When it cannot.
    pub fn put(&self, path: &str, mode: u32, text: &str) -> Result<()> {
        let line = format!("umask 077; install -D -m {mode:o} -o postgres -g postgres /dev/stdin '{path}'");
        let mut command = self.login(&line);
        let mut ssh = command.stdin(Stdio::piped()).spawn()?;
        ssh.stdin.take().context("no pipe to ssh")?.write_all(text.as_bytes())?;
        let ended = ssh.wait()?;
        ensure!(ended.success(), "writing {path} on {}: {ended}", self.name);
        Ok(())
    }

    /// Runs a line of shell on it, as root; what it printed.
    ///
    /// # Errors
    /// When it fails, or the host cannot be reached.
    pub fn ssh(&self, line: &str) -> Result<String> {
        Ok(run(self.login(line).stdin(Stdio::null()))?.trim().to_owned())
    }

    fn login(&self, line: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(SSH).arg("-i").arg(&self.key).arg(format!("root@{}", self.address)).arg(line);
        command
    }

    /// The unit in which a process of it lives.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn unit_of(&self, pid: &str) -> Result<String> {
        let group = self.ssh(&format!("cat /proc/{pid}/cgroup"))?;
        let line = group.lines().find(|line| line.starts_with("0::")).context("no control group")?;
        Ok(line.rsplit('/').next().unwrap_or_default().to_owned())
    }
}
