//! Three coordinators as an operator builds them: processes with their own files, ports and certificates, each of which
//! can be killed and started again, and looked at from outside.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_proto::raft::{AddRequest, ListReply, ListRequest};
use pgleap_proto::tls::Role;

use super::arena::Arena;
use super::files::as_a_service;
use super::operator::{Operator, request_id};
use crate::harness::eventually;
use crate::harness::ports::Port;
use crate::harness::process::Process;

/// Longest wait for a member to answer, to vote or to be back.
const PATIENCE: Duration = Duration::from_secs(60);
/// Members of every group.
pub const MEMBERS: usize = 3;

/// They run as long as it lives.
#[derive(Debug)]
pub struct Group<'a> {
    arena: &'a Arena,
    /// Below the arena's directory.
    name: String,
    members: Vec<Member>,
    /// Connections to all of them.
    pub operator: Arc<Operator>,
}

#[derive(Debug)]
struct Member {
    port: Port,
    process: Option<Process>,
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Resident memory now, in bytes.
    pub resident: u64,
    /// Its peak.
    pub peak: u64,
    /// Processor time so far, in seconds.
    pub cpu: f64,
}

impl Group<'_> {
    /// Starts the first and lets the others in.
    ///
    /// # Errors
    /// When one does not start or does not get its vote.
    pub async fn begin<'a>(arena: &'a Arena, name: &str) -> Result<Group<'a>> {
        arena.base.make_dir(name)?;
        let ports = (0..MEMBERS).map(|_| Port::reserve()).collect::<Result<Vec<_>>>()?;
        let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{}", port.number)).collect();
        let operator = Arc::new(Operator::new(&arena.identity(Role::Operator, "alice")?, &addresses)?);
        let members = ports.into_iter().map(|port| Member { port, process: None }).collect();
        let mut group = Group { arena, name: name.to_owned(), members, operator };
        group.start(0)?;
        group.leader().await?;
        for (index, address) in addresses.iter().enumerate().skip(1) {
            let number = index as u64 + 1;
            let request = AddRequest { member: number, address: address.clone(), request_id: request_id() };
            group.operator.members_at(0)?.add(request).await?;
            group.start(index)?;
            eventually(&format!("coordinator {number} to vote"), PATIENCE, || async {
                let list = group.list(0).await?;
                let votes = |role: &str| role != "added" && role != "learner";
                Ok(list.members.iter().any(|m| m.id == number && votes(&m.role)).then_some(()))
            })
            .await?;
        }
        Ok(group)
    }

    fn start(&mut self, index: usize) -> Result<()> {
        let (data_dir, log) = (self.data_dir(index), self.log(index));
        let first = format!("127.0.0.1:{}", self.member(0)?.port.number);
        let listen = format!("127.0.0.1:{}", self.member(index)?.port.number);
        let mut command = as_a_service(&self.arena.base, &self.arena.pgleap);
        command.args(["serve", "--member", &(index + 1).to_string(), "--listen", &listen]);
        command.arg("--data-dir").arg(data_dir);
        command.arg("--tls-dir").arg(self.arena.issued(Role::Coordinator, "c1")?);
        if index > 0 {
            command.args(["--join", &first]);
        } else {
            command.arg("--begin");
        }
        command.env("RUST_BACKTRACE", "1");
        let process = Process::start(&format!("coordinator {}", index + 1), command, log)?;
        self.member_mut(index)?.process = Some(process);
        Ok(())
    }

    async fn list(&self, index: usize) -> Result<ListReply> {
        let mut client = self.operator.members_at(index)?;
        let asked = tokio::time::timeout(Duration::from_secs(2), client.list(ListRequest {})).await;
        Ok(asked.context("no answer")??.into_inner())
    }

    /// Index of the member that leads and says so, once there is one.
    ///
    /// # Errors
    /// When there is none within a minute.
    pub async fn leader(&self) -> Result<usize> {
        eventually("a leading coordinator", PATIENCE, || async {
            for index in self.running() {
                if let Ok(list) = self.list(index).await
                    && list.leader == list.member
                {
                    return Ok(Some(index));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Indexes of the members that run.
    pub fn running(&self) -> Vec<usize> {
        let running = self.members.iter().enumerate().filter(|(_, member)| member.process.is_some());
        running.map(|(index, _)| index).collect()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let process = self.member_mut(index)?.process.take();
        process.with_context(|| format!("coordinator {} does not run", index + 1))?.kill();
        Ok(())
    }

    /// Starts a member that was killed, and waits until it has everything that its leader has.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn revive(&mut self, index: usize) -> Result<()> {
        self.start(index)?;
        let number = index as u64 + 1;
        eventually(&format!("coordinator {number} to be back"), PATIENCE, || async {
            let leader = self.leader().await?;
            let list = self.list(leader).await?;
            let most = list.members.iter().map(|m| m.matched).max().unwrap_or_default();
            let near = |matched: u64| matched > 0 && matched + 64 > most;
            let back = list.members.iter().any(|m| m.id == number && near(m.matched) && m.problem.is_empty());
            Ok(back.then_some(()))
        })
        .await
    }

    /// Fails, with the end of its log, when a member has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        self.members.iter_mut().filter_map(|member| member.process.as_mut()).try_for_each(Process::check)
    }

    /// What each running member has used, by index.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn usage(&self) -> Result<Vec<(usize, Usage)>> {
        let usage = |index: usize| -> Result<(usize, Usage)> {
            let process = self.member(index)?.process.as_ref().context("it does not run")?;
            let (resident, peak) = process.memory().context("its memory cannot be read")?;
            Ok((index, Usage { resident, peak, cpu: cpu(process.pid())? }))
        };
        self.running().into_iter().map(usage).collect()
    }

    /// Ends all of them, as systemd does.
    ///
    /// # Errors
    /// When one had ended by itself, or does not end when it is told to.
    pub fn stop(&mut self) -> Result<()> {
        self.check()?;
        for (index, member) in self.members.iter_mut().enumerate() {
            if let Some(mut process) = member.process.take() {
                ensure!(process.terminate(), "coordinator {} did not end when it was told to", index + 1);
            }
        }
        Ok(())
    }

    /// Processes by index, for those who want to look closer.
    pub fn pids(&self) -> Vec<(usize, u32)> {
        let processes = self.members.iter().enumerate();
        processes.filter_map(|(index, member)| Some((index, member.process.as_ref()?.pid()))).collect()
    }

    /// A member's file.
    pub fn file(&self, index: usize) -> PathBuf {
        self.data_dir(index).join(pgleap_coordinator::raft::FILE_NAME)
    }

    /// What a member said.
    pub fn log(&self, index: usize) -> PathBuf {
        self.arena.base.join(format!("log/{}-coordinator-{}.log", self.name, index + 1))
    }

    fn data_dir(&self, index: usize) -> PathBuf {
        self.arena.base.join(format!("{}/coordinator-{}", self.name, index + 1))
    }

    fn member(&self, index: usize) -> Result<&Member> {
        self.members.get(index).with_context(|| format!("no coordinator {}", index + 1))
    }

    fn member_mut(&mut self, index: usize) -> Result<&mut Member> {
        self.members.get_mut(index).with_context(|| format!("no coordinator {}", index + 1))
    }
}

/// Processor time of a process with all its threads: fields 14 and 15 of proc(5)'s `stat`, in hundredths of a second.
fn cpu(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets, which may hold anything.
    let rest = text.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()? as f64 / 100.0)
}
