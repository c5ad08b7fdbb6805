//! The project's own Ansible collection, run against the hosts as an operator would.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Hosts;
use super::machine::{Machine, ssh_options};

/// Variables of one host's agent.
#[derive(Debug, Default)]
pub struct AgentVars {
    /// `agent_address`; the host's own when empty.
    pub address: String,
    /// `agent_units`.
    pub units: Vec<String>,
    /// `agent_settings`.
    pub settings: String,
}

/// An inventory in which every host has an agent and some a coordinator, and how to run playbooks on it.
#[derive(Debug)]
pub struct Inventory {
    /// Hosts with a coordinator, the first member first.
    pub coordinators: Vec<String>,
    programs: PathBuf,
    directory: PathBuf,
    /// Where the control host keeps CA and certificates.
    pub certificates: PathBuf,
}

/// How a playbook ended on all hosts.
#[derive(Debug)]
pub struct Recap {
    /// Tasks that changed something.
    pub changed: u32,
    /// All that it printed.
    pub output: String,
}

impl Inventory {
    /// Writes it. Packages are those of `make hosts`.
    ///
    /// # Errors
    /// When the set-up is not complete.
    pub fn write(
        hosts: &Hosts,
        coordinators: &[&str],
        agent: impl Fn(&Machine) -> AgentVars,
    ) -> Result<Inventory> {
        let directory = hosts.directory.path().join("control");
        let collections = directory.join("collections/ansible_collections/pgleap");
        std::fs::create_dir_all(&collections)?;
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's directory")?;
        std::os::unix::fs::symlink(project.join("ansible"), collections.join("pgleap"))?;
        let programs = hosts.binaries.target_dir().join("ansible/bin");
        ensure!(
            programs.join("ansible-playbook").is_file(),
            "no Ansible in {}: run `make hosts`",
            programs.display()
        );
        let coordinators: Vec<String> = coordinators.iter().map(|name| (*name).to_owned()).collect();
        let made = Inventory { coordinators, programs, certificates: directory.join("fleet"), directory };
        let key = hosts.directory.path().join("key");
        let mut text = String::from(
            "all:\n  vars:\n    ansible_user: root\n    ansible_python_interpreter: /usr/bin/python3\n",
        );
        writeln!(text, "    ansible_ssh_private_key_file: {}", key.display())?;
        writeln!(text, "    ansible_ssh_common_args: {}", ssh_options())?;
        writeln!(text, "    certificates_dir: {}", made.certificates.display())?;
        writeln!(text, "    certificates_command: {}", hosts.binaries.own("pgleap")?.display())?;
        writeln!(text, "  children:\n    pgleap_coordinators:\n      hosts:")?;
        for (name, member) in made.coordinators.iter().zip(1..) {
            let address = &hosts.machine(name).address;
            writeln!(
                text,
                "        {name}:\n          ansible_host: {address}\n          coordinator_member: {member}"
            )?;
        }
        writeln!(text, "    pgleap_agents:\n      hosts:")?;
        for machine in &hosts.machines {
            let AgentVars { address, units, settings } = agent(machine);
            // Both are YAML, too, as JSON.
            let (units, settings) = (serde_json::to_string(&units)?, serde_json::to_string(&settings)?);
            writeln!(text, "        {}:\n          ansible_host: {}", machine.name, machine.address)?;
            if !address.is_empty() {
                writeln!(text, "          agent_address: \"{address}\"")?;
            }
            writeln!(text, "          agent_units: {units}\n          agent_settings: {settings}")?;
        }
        std::fs::write(made.directory.join("hosts.yml"), text)?;
        std::fs::write(made.directory.join("ansible.cfg"), "[ssh_connection]\npipelining = true\n")?;
        Ok(made)
    }

    /// Runs one of the collection's playbooks with the packages of this revision.
    ///
    /// # Errors
    /// When it fails on any host; with all that it printed.
    pub async fn play(&self, hosts: &Hosts, playbook: &str, revision: u32, more: &[&str]) -> Result<Recap> {
        let packages = hosts.binaries.target_dir().join("packages");
        let package = |name: &str| {
            let file = packages.join(format!("{name}_{}-{revision}_amd64.deb", env!("CARGO_PKG_VERSION")));
            ensure!(file.is_file(), "{} is missing: run `make hosts`", file.display());
            Ok(file.display().to_string())
        };
        let mut command = Command::new(self.programs.join("ansible-playbook"));
        command.arg("-i").arg(self.directory.join("hosts.yml")).arg(format!("pgleap.pgleap.{playbook}"));
        command.arg("-e").arg(format!("coordinator_package={}", package("pgleap")?));
        command.arg("-e").arg(format!("agent_package={}", package("pgleap-agent")?));
        command.args(more).current_dir(&self.directory).stdin(Stdio::null());
        command.env("ANSIBLE_COLLECTIONS_PATH", self.directory.join("collections"));
        command.env("ANSIBLE_HOME", self.directory.join("ansible")).env("ANSIBLE_NOCOLOR", "1");
        command
            .env("ANSIBLE_LOCALHOST_WARNING", "false")
            .env("ANSIBLE_CONFIG", self.directory.join("ansible.cfg"));
        let ran = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
        let output = String::from_utf8_lossy(&ran.stdout).into_owned();
        let errors = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "playbook {playbook} failed:\n{output}\n{errors}");
        let counts = output.split("changed=").skip(1);
        let counts: Vec<u32> = counts.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
        ensure!(counts.len() == hosts.machines.len(), "no recap of every host:\n{output}");
        Ok(Recap { changed: counts.iter().sum(), output })
    }
}
