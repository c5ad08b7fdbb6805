//! A group of coordinators: built as an operator does, member by member; each can be killed and started again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_proto::raft::ListReply;

use super::eventually::eventually;
use super::failpoints::COORDINATOR;
use super::fleet::Fleet;
use super::ports::Port;
use super::process::Process;

/// Longest wait for a member to vote, or for a leader.
const PATIENCE: Duration = Duration::from_secs(60);

/// A member of the group beside the first.
#[derive(Debug)]
pub struct Other {
    address: String,
    port: Port,
    process: Option<Process>,
}

/// Host of a member of the group.
pub fn member_host(member: u64) -> String {
    format!("c{member}")
}

impl Other {
    fn endpoint(&self) -> String {
        format!("{}:{}", self.address, self.port.number)
    }
}

impl Fleet {
    /// Lets members 2 to `members` into the group, and waits until each votes.
    ///
    /// # Errors
    /// When one does not start or is not let in.
    pub async fn grow_group(&mut self, members: usize) -> Result<()> {
        for member in 2..=members as u64 {
            let port = Port::reserve()?;
            let other =
                Other { address: self.base.network.address(&member_host(member)), port, process: None };
            let (number, address) = (member.to_string(), other.endpoint());
            self.others.push(other);
            self.pgleap_ok(&["members", "add", "--member", &number, "--address", &address]).await?;
            self.start_member(member)?;
            eventually(&format!("coordinator {member} to vote"), PATIENCE, || async {
                let list = self.members().await?;
                Ok(list
                    .members
                    .iter()
                    .any(|m| m.id == member && m.role != "added" && m.role != "learner")
                    .then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Starts a member beside the first, or starts it again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_member(&mut self, member: u64) -> Result<()> {
        let log = self.base.join(format!("log/coordinator-{member}.log"));
        let mut command = self.base.command_on(&member_host(member), self.base.join("bin/pgleap"));
        let first = self.coordinator_address();
        let failpoints = self.failpoint_dir(COORDINATOR)?;
        let data_dir = self.base.join(format!("coordinator-{member}"));
        let tls_dir = self.base.join("pki/coordinator");
        let other = member.checked_sub(2).and_then(|index| self.others.get_mut(usize::try_from(index).ok()?));
        let other = other.with_context(|| format!("no coordinator {member}"))?;
        command.arg("serve").arg("--member").arg(member.to_string()).arg("--data-dir").arg(data_dir);
        command.arg("--listen").arg(other.endpoint());
        command.arg("--join").arg(first).arg("--tls-dir").arg(tls_dir);
        command.env("RUST_BACKTRACE", "1").env("PGLEAP_FAILPOINTS", failpoints);
        other.process = Some(Process::start(&format!("coordinator {member}"), command, log)?);
        Ok(())
    }

    /// Hosts of all members.
    pub fn member_hosts(&self) -> Vec<String> {
        (1..=self.others.len() as u64 + 1).map(member_host).collect()
    }

    /// What the group says of itself.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn members(&self) -> Result<ListReply> {
        Ok(serde_json::from_str(&self.pgleap_ok(&["members", "list", "--json"]).await?)?)
    }

    /// The member that leads, once there is one that answers.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub async fn leading_member(&self) -> Result<u64> {
        eventually("a leading coordinator", PATIENCE, || async {
            let list = self.members().await?;
            Ok((list.leader != 0 && list.leader == list.member).then_some(list.leader))
        })
        .await
    }

    /// SIGKILL to the leading coordinator; gives its number.
    ///
    /// # Errors
    /// When none leads.
    pub async fn kill_leader(&mut self) -> Result<u64> {
        let leader = self.leading_member().await?;
        if leader == 1 {
            self.kill_coordinator();
        } else {
            let index = usize::try_from(leader - 2)?;
            let process = self.others.get_mut(index).and_then(|other| other.process.as_mut());
            process.with_context(|| format!("coordinator {leader} does not run"))?.kill();
        }
        Ok(leader)
    }

    /// A signal to a member: SIGSTOP and SIGCONT, above all.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal_member(&self, member: u64, signal: Signal) -> Result<()> {
        let process = match member {
            1 => self.coordinator.as_ref(),
            _ => {
                let index = usize::try_from(member - 2)?;
                self.others.get(index).and_then(|other| other.process.as_ref())
            }
        };
        let process = process.with_context(|| format!("coordinator {member} does not run"))?;
        kill(Pid::from_raw(i32::try_from(process.pid())?), signal)
            .with_context(|| format!("{signal} to coordinator {member}"))
    }

    /// Starts a member that was killed, and waits until it is in contact with its leader.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn revive_member(&mut self, member: u64) -> Result<()> {
        if member == 1 {
            self.start_coordinator().await?
        } else {
            self.start_member(member)?
        }
        eventually(&format!("coordinator {member} to be back"), PATIENCE, || async {
            let list = self.members().await?;
            let back = |m: &pgleap_proto::raft::MemberStatus| {
                m.id == member && m.matched > 0 && m.problem.is_empty()
            };
            ensure!(list.leader == list.member, "the leader does not answer");
            Ok(list.members.iter().any(back).then_some(()))
        })
        .await
    }

    /// Where the command line finds the coordinators.
    pub fn coordinator_addresses(&self) -> String {
        let others = self.others.iter().map(Other::endpoint);
        std::iter::once(self.coordinator_address()).chain(others).collect::<Vec<_>>().join(",")
    }
}
