//! `relink`: the replica gets the leader's upgraded data directory by rsync, with the files it already has linked and
//! only the rest copied.
//!
//! The transfers are jobs: they outlive the agent and are joined by it. A relink that was cut off otherwise begins
//! anew from the seed: `--size-only` must never take a half-made file of an earlier attempt for a whole one.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{Output, Relink};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::jobs::JobStatus;
use crate::pg::{auto_conf, control, paths};
use crate::relink::command::{Shell, progress, rsync};
use crate::relink::made;
use crate::relink::offer::running_in;
use crate::relink::place::{Place, Transfer, place};
use crate::relink::remote::Leader;
use crate::upgrade::marker::{Marker, Stage};

/// Transfers that broke off with the connection are taken up again this often.
const ATTEMPTS: u32 = 5;
/// rsync's exit codes for a connection that broke (errcode.h: socket I/O, protocol stream, timeouts), and those of a
/// signal that it caught and of our remote shell.
const BROKEN: [i32; 6] = [10, 12, 20, 30, 35, 255];

/// See [`Relink`].
pub struct RelinkStep(pub Relink);

#[async_trait]
impl Step for RelinkStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        if !self.0.same_checkpoint {
            cx.report
                .log("pgleap", "the replica did not stop at the leader's checkpoint: it is not relinked");
            return Ok(Probe::Done(Output::default()));
        }
        let nodes = self.nodes()?;
        let data = cx.confine(&nodes.node.data_dir)?;
        if nodes.is_whole(cx, data)? {
            return Ok(Probe::Done(Output::default()));
        }
        nodes.check_stopped()?;
        let ours = nodes.owned(cx, data)?.is_some();
        if !ours && !made::is_free(data)? {
            return Err(StepError::new(format!(
                "{} is not empty and was not made by this operation; empty it and retry, or cancel, name another data_dir \
                 for node {} in the fleet file and apply it, start again",
                data.display(),
                nodes.node.name
            )));
        }
        // Once a transfer has begun, the seed is on its way to look like the leader's.
        if !ours {
            nodes.check_seed().await?;
        }
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let nodes = self.nodes()?;
        let leader = Leader { host: &nodes.leader.host, agent: &self.0.leader_agent };
        let layout = leader.layout(cx).await?;
        let place = place(cx, nodes.seed, nodes.node, nodes.leader, &layout)?;
        nodes.check_stopped()?;
        let mut running = false;
        for transfer in &place.transfers {
            running |= cx.jobs.status(&transfer.job)? == JobStatus::Running;
        }
        if !running {
            nodes.prepare(cx, &place)?;
        }
        for transfer in &place.transfers {
            // Only a job of the run that is being joined can have ended already.
            if running && cx.jobs.status(&transfer.job)? == JobStatus::Exited(0) {
                continue;
            }
            self.transfer(cx, &leader, transfer).await?;
        }
        nodes.finish(cx, &place).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        if !self.0.same_checkpoint {
            return Ok(Output::default());
        }
        let nodes = self.nodes()?;
        let data = cx.confine(&nodes.node.data_dir)?;
        let seed = Path::new(&nodes.seed.data_dir);
        // The seed's control file went away with the leader's: the old server cannot be started on shared inodes.
        let seed_closed = !seed.join("global/pg_control").exists();
        if nodes.is_whole(cx, data)?
            && seed_closed
            && control::read(nodes.node, data).await?.state == "shut down"
        {
            return Ok(Output::default());
        }
        Err(StepError::new(format!(
            "{} is not a whole copy of the leader's after rsync; retry",
            data.display()
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        cx.jobs.stop_all().await?;
        let nodes = self.nodes()?;
        let data = cx.confine(&nodes.node.data_dir)?;
        let Some(made) = nodes.owned(cx, data)? else { return Ok(()) };
        if let Some(pid) = running_in(data) {
            return Err(StepError::new(format!(
                "a server (process {pid}) runs in {}; stop it, then retry",
                data.display()
            )));
        }
        for directory in &made.made {
            made::remove(cx.confine(&directory.to_string_lossy())?)?;
        }
        // The mark goes last, so that an undo that is cut off knows the directory again.
        made::empty(data)?;
        made::remove(data)
    }
}

impl RelinkStep {
    fn nodes(&self) -> Result<Nodes<'_>> {
        match (&self.0.seed, &self.0.node, &self.0.leader) {
            (Some(seed), Some(node), Some(leader)) => Ok(Nodes { seed, node, leader }),
            _ => Err(StepError::new("relink needs a seed, a node and a leader")),
        }
    }

    /// One rsync, taken up again when the connection broke: the leader's agent may have been restarted.
    async fn transfer(&self, cx: &Context, leader: &Leader<'_>, transfer: &Transfer) -> Result<()> {
        let executable = cx.jobs.executable()?;
        let shell = Shell {
            executable: &executable,
            tls_dir: &cx.config.tls_dir,
            agent: leader.agent,
            host: leader.host,
            operation: &cx.operation,
        };
        let program =
            rsync(&find_rsync()?, &shell, &transfer.sources, &transfer.excluded, &transfer.destination);
        for attempt in 1.. {
            let report = &cx.report;
            let mut observe = |line: &str| {
                if let Some((done, total)) = progress(line) {
                    report.progress(done, total, "files", format!("rsync of {}", transfer.job));
                }
            };
            let Err(error) = cx.jobs.run_observed(&transfer.job, &program, &mut observe).await else { break };
            let broken = match cx.jobs.status(&transfer.job)? {
                JobStatus::Exited(code) => BROKEN.contains(&code),
                status => status == JobStatus::Lost,
            };
            if !broken || attempt == ATTEMPTS {
                return Err(error);
            }
            cx.report.log("pgleap", format!("taking the transfer up again: {error}"));
            leader.layout(cx).await?;
        }
        Ok(())
    }
}

struct Nodes<'a> {
    seed: &'a Node,
    node: &'a Node,
    leader: &'a Node,
}

impl Nodes<'_> {
    /// The mark, when this step of this operation made the directory.
    fn owned(&self, cx: &Context, data: &Path) -> Result<Option<Marker>> {
        Ok(Marker::read(data)?.filter(|mark| mark.operation == cx.operation && mark.step == cx.step))
    }

    /// Every transfer has ended well and the node's own settings are in place.
    fn is_whole(&self, cx: &Context, data: &Path) -> Result<bool> {
        let mark = self.owned(cx, data)?;
        let whole = mark.is_some_and(|mark| mark.stage == Some(Stage::Relinked));
        Ok(whole && data.join("global/pg_control").exists())
    }

    fn check_stopped(&self) -> Result<()> {
        for node in [self.seed, self.node] {
            if let Some(pid) = running_in(Path::new(&node.data_dir)) {
                return Err(StepError::new(format!(
                    "a server (process {pid}) runs in {}; nothing can be relinked until it is stopped: stop it, then retry",
                    node.data_dir
                )));
            }
        }
        Ok(())
    }

    /// A seed that was not stopped cleanly as a standby holds pages that were never replayed to the leader's checkpoint.
    async fn check_seed(&self) -> Result<()> {
        let state = control::read(self.seed, Path::new(&self.seed.data_dir)).await?.state;
        if state == "shut down in recovery" {
            return Ok(());
        }
        Err(StepError::new(format!(
            "{} is \"{state}\" and not \"shut down in recovery\": its files do not equal the leader's; cancel, \
             then start again",
            self.seed.data_dir
        )))
    }

    /// Marks the directory as ours, then clears what an attempt that was cut off has left.
    fn prepare(&self, cx: &Context, place: &Place) -> Result<()> {
        let data = &place.data;
        let owned = self.owned(cx, data)?;
        let mut made: Vec<PathBuf> = owned.map(|made| made.made).unwrap_or_default();
        for directory in place.spaces.iter().map(|space| space.new_directory()) {
            if made.contains(&directory) {
                made::remove(&directory)?;
            } else if made::is_free(&directory)? {
                made.push(directory);
            } else {
                return Err(StepError::new(format!(
                    "{} is not empty and was not made by this operation; remove it, then retry",
                    directory.display()
                )));
            }
        }
        crate::durable::private_directory(data).doing(|| format!("creating {}", data.display()))?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(data, private).doing(|| data.display().to_string())?;
        let mark = Marker {
            operation: cx.operation.clone(),
            step: cx.step.clone(),
            made,
            initdb: Vec::new(),
            stage: Some(Stage::Relinking),
        };
        mark.write(data)?;
        made::empty(data)?;
        if place.wal {
            let wal = data.join("pg_wal");
            crate::durable::private_directory(&wal).doing(|| wal.display().to_string())?;
            cx.report.log("pgleap", "pg_wal lies elsewhere on the leader; here it becomes a directory");
        }
        Ok(())
    }

    /// What rsync cannot know: the node's own tablespace links and settings. Then everything is made durable, and last
    /// of all called whole.
    async fn finish(&self, cx: &Context, place: &Place) -> Result<()> {
        let data = &place.data;
        for space in &place.spaces {
            let link = data.join("pg_tblspc").join(space.oid.to_string());
            made::remove_link(&link)?;
            std::os::unix::fs::symlink(&space.location, &link).doing(|| link.display().to_string())?;
        }
        let port = self.node.port.to_string();
        auto_conf::edit(
            data,
            &[
                ("port", Some(&port)),
                ("unix_socket_directories", Some(&self.node.socket_dir)),
                ("cluster_name", Some(&self.node.name)),
                ("primary_conninfo", None),
                ("primary_slot_name", None),
            ],
        )?;
        for told in paths::correct(self.node, Path::new(&self.leader.data_dir)).await? {
            cx.report.log("pgleap", told);
        }
        for directory in place.transfers.iter().map(|transfer| &transfer.destination) {
            // rsync does not sync what it writes.
            let doing = || format!("syncing the file system of {}", directory.display());
            let file = std::fs::File::open(directory).doing(doing)?;
            nix::unistd::syncfs(&file).doing(doing)?;
        }
        let mark = self.owned(cx, data)?;
        let mut mark = mark.ok_or_else(|| StepError::new(format!("{} has lost its mark", data.display())))?;
        mark.advance(data, Stage::Relinked)
    }
}

fn find_rsync() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let found =
        std::env::split_paths(&path).map(|directory| directory.join("rsync")).find(|file| file.is_file());
    found.ok_or_else(|| StepError::new("rsync is not installed on the replica's host; install it and retry"))
}
