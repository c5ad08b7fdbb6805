//! Real hosts: Debian systemd containers with addresses of their own on a bridge, bare but for sshd and PostgreSQL's programs.
//!
//! Each root is an overlay over one base (`tests/setup/hosts.sh` makes that), mounted in a namespace that ends with the container; the
//! container is shut down when this process dies, however it does. What is left for [`Hosts`] to remove is the bridge and a directory.

mod machine;
mod operator;
pub mod patroni;
mod playbook;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::harness::Binaries;
use crate::harness::network::free_net;
pub use machine::Machine;
pub use operator::{Operator, PART};
pub use playbook::{AgentVars, Inventory, Recap};

/// Longest wait for a booting container's sshd.
const BOOT: Duration = Duration::from_secs(180);

/// Some containers on one bridge, and this process with them.
#[derive(Debug)]
pub struct Hosts {
    /// In the order of their names as given.
    pub machines: Vec<Machine>,
    /// Keys, roots, certificates and whatever the scenario keeps.
    pub directory: tempfile::TempDir,
    /// The programs under test.
    pub binaries: Binaries,
    bridge: String,
    _lock: File,
}

/// Why this machine cannot do it, if so.
///
/// # Errors
/// When it could, but what `make hosts` installs is not there.
pub fn impossible() -> Result<Option<String>> {
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(Some("making containers needs root".into()));
    }
    let missing = |program: &&str| {
        let paths = std::env::var("PATH").unwrap_or_default();
        !paths.split(':').any(|directory| Path::new(directory).join(program).is_file())
    };
    let programs = ["systemd-nspawn", "ip", "ssh", "ssh-keygen", "unshare", "setpriv"];
    if let Some(program) = programs.iter().find(|program| missing(program)) {
        bail!("{program} is missing: `make hosts` installs it");
    }
    Ok(tried(&root()?).err().map(|error| format!("{error:#}")))
}

/// Not every machine lets even root make what a container needs.
fn tried(root: &Path) -> Result<()> {
    let mut container = Command::new("systemd-nspawn");
    container.args([
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--volatile=overlay",
        "--private-network",
        "--directory",
    ]);
    container.arg(root).arg("/bin/true").stdin(std::process::Stdio::null());
    run(&mut container).map(drop).context("a container does not start")?;
    let bridge = format!("pglt{}", std::process::id() % 1_000_000);
    ip(&["link", "add", &bridge, "type", "bridge"])?;
    ip(&["link", "delete", &bridge])
}

/// The base of all roots.
fn root() -> Result<PathBuf> {
    let given = std::env::var("PGLEAP_HOST_ROOT").ok().filter(|given| !given.is_empty());
    let root = given.unwrap_or_else(|| "/var/cache/pgleap/host-bookworm".into());
    let root = PathBuf::from(root);
    ensure!(
        root.join("usr/sbin/sshd").is_file(),
        "no root for hosts in {}: `make hosts` makes it",
        root.display()
    );
    Ok(root)
}

impl Hosts {
    /// Boots these hosts, and waits until each can be reached by ssh.
    ///
    /// # Errors
    /// When a container does not boot; with what its console said.
    pub async fn boot(names: &[&str]) -> Result<Hosts> {
        let base = root()?;
        let (number, lock) = free_net()?;
        let net = format!("10.{}.{}", 200 + number / 250, number % 250);
        let net6 = format!("fd70:6c67:{number:x}:");
        let bridge = format!("pgl{number}br");
        // Not below /tmp: an overlay's directories must lie on a file system that allows them.
        let directory = tempfile::Builder::new().prefix("pgleap-hosts-").tempdir_in("/var/tmp")?;
        let key = directory.path().join("key");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        let binaries = Binaries::find()?;
        let machines = Vec::new();
        // From here on dropping it removes what was made.
        let mut hosts = Hosts { machines, directory, binaries, bridge, _lock: lock };
        ip(&["link", "add", &hosts.bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{net}.1/24"), "dev", &hosts.bridge])?;
        ip(&["addr", "add", &format!("{net6}:1/64"), "dev", &hosts.bridge, "nodad"])?;
        ip(&["link", "set", &hosts.bridge, "up"])?;
        // The new major lies below this directory when the machine has it from another suite.
        let new = hosts.binaries.postgres("18")?;
        let mut shared: Vec<PathBuf> = new
            .ancestors()
            .find(|at| at.ends_with("postgresql-18"))
            .map(Path::to_owned)
            .into_iter()
            .collect();
        // So does Patroni, in a Python environment that runs at this path only.
        shared.extend(patroni::environment(&hosts.binaries)?);
        for (name, last) in names.iter().zip(2..) {
            let at = hosts.directory.path().join(name);
            let addresses = [format!("{net}.{last}"), format!("{net6}:{last}")];
            hosts.machines.push(Machine::make(&at, &base, name, addresses, &key, shared.clone())?);
        }
        for machine in &mut hosts.machines {
            machine.power_on(&hosts.bridge)?;
        }
        for machine in &hosts.machines {
            machine.reachable(BOOT).await?;
        }
        Ok(hosts)
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none of that name.
    #[allow(clippy::panic)]
    pub fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().find(|machine| machine.name == name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// Takes its cable out: nobody reaches it, and it reaches nobody, but goes on.
    ///
    /// # Errors
    /// When there is no such host, or it is off.
    pub fn cut_off(&self, name: &str) -> Result<()> {
        ip(&["link", "set", &self.machine(name).cable(&self.bridge), "down"])
    }

    /// Takes its power away.
    ///
    /// # Errors
    /// When there is no such host, or it was off.
    pub fn power_off(&mut self, name: &str) -> Result<()> {
        self.machines.iter_mut().find(|machine| machine.name == name).context("no such host")?.power_off()
    }

    /// Boots it again, from its disk as it was.
    ///
    /// # Errors
    /// When it does not.
    pub async fn power_on(&mut self, name: &str) -> Result<()> {
        let machine =
            self.machines.iter_mut().find(|machine| machine.name == name).context("no such host")?;
        machine.power_on(&self.bridge)?;
        machine.reachable(BOOT).await
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for machine in &mut self.machines {
            let _ = machine.power_off();
        }
        let _ = ip(&["link", "delete", &self.bridge]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}

/// Runs a program to its end; what it printed.
fn run(command: &mut Command) -> Result<String> {
    let ran = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    if !ran.status.success() {
        bail!("{command:?}: {}\n{said}{}", ran.status, String::from_utf8_lossy(&ran.stderr));
    }
    Ok(said)
}
