//! Makes a new node: `pg_basebackup` from its upstream, or the adoption of what already is a standby of it.

mod adopt;
pub(super) mod preflight;
mod progress;
pub(super) mod record;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{CloneNode, ClonedOutput, Output, output};

use self::preflight::Origin;
use self::record::{Aside, Filled, Found, Record};
use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::jobs::JobStatus;
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::marker::Marker;
use crate::pg::{conninfo, control, paths, program, settings, standby, upstream};
use crate::program::Program;

const JOB: &str = "pg_basebackup";

/// See [`CloneNode`].
pub struct CloneNodeStep(pub CloneNode);

impl CloneNodeStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    fn upstream(&self) -> Result<&Conninfo> {
        super::given(&self.0.upstream, "upstream")
    }

    fn data_dir(&self) -> Result<&Path> {
        Ok(Path::new(&self.node()?.data_dir))
    }

    fn is_needed(&self) -> bool {
        !(self.0.only_if_unverified && self.0.verified)
    }

    async fn origin(&self, cx: &Context) -> Result<Origin> {
        preflight::ask(cx, self.node()?, self.upstream()?, self.0.system_identifier).await
    }

    /// Written down before the first change; what is checked here fails before anything was changed.
    async fn plan(&self, cx: &Context, origin: &Origin) -> Result<Record> {
        let node = self.node()?;
        preflight::check_configuration(node, self.upstream()?).await?;
        let mut record = Record {
            marker: Marker::of(cx),
            filled: Vec::new(),
            aside: Vec::new(),
            bytes: 0,
            undoing: false,
        };
        if self.0.replace {
            if ctl::manager(cx, node).state().await? != ServerState::Stopped {
                return Err(StepError::new(format!(
                    "node {} runs in {}, which is to be replaced by a clone; stop it, then retry",
                    node.name, node.data_dir
                )));
            }
            let spaces = origin.tablespaces.iter().map(|space| &space.to);
            for path in std::iter::once(&node.data_dir).chain(spaces) {
                let path = cx.confine(path)?;
                if record::is_empty(path)? == Some(false) {
                    let suffix = format!(".failed_{}_{}", cx.fence.term, cx.fence.attempt);
                    let to = record::suffixed(path, &suffix);
                    record.aside.push(Aside { from: path.to_owned(), to });
                    record.filled.push(Filled { path: path.to_owned(), existed: false });
                } else {
                    record.filled.push(Filled { path: path.to_owned(), existed: path.exists() });
                }
            }
        } else {
            record.filled = preflight::directories(cx, node, origin)?;
        }
        preflight::check_room(node, origin)?;
        Ok(record)
    }

    fn basebackup(&self, origin: &Origin) -> Result<Program> {
        let (node, upstream) = (self.node()?, self.upstream()?);
        let moved = origin.tablespaces.iter().filter(|space| space.from != space.to);
        Ok(program(node, "pg_basebackup")
            .args(["-D", &node.data_dir, "-d", &conninfo(upstream, None, &node.name)])
            .args(["--checkpoint=fast", "--wal-method=stream", "--no-password", "--no-manifest"])
            .args(["--progress", "--verbose", "--slot", &self.0.slot])
            .args(moved.map(|space| progress::mapping(&space.from, &space.to))))
    }

    /// Whether the job has copied everything. Its status alone does not say so: the directory may have been emptied
    /// by an undo since.
    async fn is_copied(&self, cx: &Context) -> Result<bool> {
        let node = self.node()?;
        if cx.jobs.status(JOB)? != JobStatus::Exited(0) {
            return Ok(false);
        }
        Ok(control::read(node, self.data_dir()?).await.is_ok())
    }

    async fn copy(&self, cx: &Context, record: &Record, origin: &Origin) -> Result<()> {
        if self.is_copied(cx).await? {
            return Ok(());
        }
        if cx.jobs.status(JOB)? != JobStatus::Running {
            // What an earlier attempt left: all of it is ours, because all was empty when the record was written.
            record.clear(false).await?;
        }
        let mut total = 0;
        let report = cx.report.clone();
        let mut observe = |line: &str| {
            if let Some((done, all)) = progress::parse(line) {
                total = all;
                report.progress(done, all, "bytes", "pg_basebackup");
            }
        };
        let run = cx.jobs.run_observed(JOB, &self.basebackup(origin)?, &mut observe).await;
        run.map_err(|error| self.explained(error, total))
    }

    fn explained(&self, error: StepError, total: u64) -> StepError {
        let full = error.evidence.iter().any(|line| line.contains("No space left on device"));
        let Some(node) = self.0.node.as_ref().filter(|_| full) else { return error };
        let free = preflight::free_bytes(Path::new(&node.data_dir)).unwrap_or(0);
        let needed = match total {
            0 => "more than there is".to_owned(),
            total => format!("about {} plus the WAL written meanwhile", preflight::megabytes(total)),
        };
        StepError::new(format!(
            "the disk became full while node {} was cloned into {}: it needs {needed}, and {} are free now; make room, \
             then retry",
            node.name,
            node.data_dir,
            preflight::megabytes(free)
        ))
        .with_evidence(error.evidence)
    }

    /// Turns the copy into a standby of its own, and marks it.
    async fn finish(&self, cx: &Context, record: &Record, origin: &Origin) -> Result<()> {
        let (node, data_dir) = (self.node()?, self.data_dir()?);
        let control = control::read(node, data_dir).await?;
        if control.system_identifier != origin.identity.system_identifier {
            return Err(StepError::new(format!(
                "the clone in {} has system identifier {}, but {} has {}: the upstream was exchanged meanwhile; \
                 cancel, then start again",
                node.data_dir,
                control.system_identifier,
                upstream::place(self.upstream()?),
                origin.identity.system_identifier
            )));
        }
        if node.config_file.is_empty() && !data_dir.join("postgresql.conf").exists() {
            return Err(preflight::no_configuration(
                node,
                "its upstream keeps it outside the data directory",
            ));
        }
        standby::write_identity(node)?;
        standby::write_upstream(node, self.upstream()?, &self.0.slot)?;
        if !self.0.upstream_data_dir.is_empty() {
            for told in paths::correct(node, Path::new(&self.0.upstream_data_dir)).await? {
                cx.report.log("pgleap", told);
            }
        }
        settings::check_data_directory(node).await?;
        let paths: Vec<PathBuf> = record.filled.iter().map(|filled| filled.path.clone()).collect();
        let doing = || "measuring the clone";
        let measured = tokio::task::spawn_blocking(move || {
            paths
                .iter()
                .filter(|path| path.exists())
                .map(|path| record::size(path))
                .sum::<std::io::Result<u64>>()
        });
        let bytes = measured.await.doing(doing)?.doing(doing)?;
        // Last: the mark within the directory says that all of this is done.
        Record { bytes, undoing: false, ..record.clone() }.complete(data_dir)?;
        cx.report.log("pgleap", format!("cloned {} into {}", preflight::megabytes(bytes), node.data_dir));
        Ok(())
    }
}

fn output(created: bool, bytes: u64, needed: bool) -> Output {
    Output { kind: Some(output::Kind::Cloned(ClonedOutput { created, bytes, needed })) }
}

#[async_trait]
impl Step for CloneNodeStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        if !self.is_needed() {
            return Ok(Probe::Done(output(false, 0, false)));
        }
        let node = self.node()?;
        let data_dir = cx.confine(&node.data_dir)?;
        match record::find(cx, data_dir)? {
            Found::Made(record) => return Ok(Probe::Done(output(true, record.bytes, true))),
            Found::Begun(_) => return Ok(Probe::Ready),
            Found::Nothing => {}
        }
        if !self.0.replace && record::is_empty(data_dir)? == Some(false) {
            adopt::check(cx, node, self.upstream()?, self.0.system_identifier).await?;
            return Ok(Probe::Done(output(false, 0, true)));
        }
        let origin = self.origin(cx).await?;
        self.plan(cx, &origin).await?;
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let data_dir = self.data_dir()?;
        let origin = self.origin(cx).await?;
        let record = match record::find(cx, data_dir)? {
            Found::Made(_) => return Ok(()),
            Found::Begun(record) if record.undoing => {
                record.clear(false).await?;
                let again = Record { undoing: false, ..record };
                again.begin(data_dir)?;
                again
            }
            Found::Begun(record) => record,
            Found::Nothing => {
                let record = self.plan(cx, &origin).await?;
                record.begin(data_dir)?;
                record
            }
        };
        record.move_aside()?;
        for aside in &record.aside {
            let told = format!("moved {} aside to {}", aside.from.display(), aside.to.display());
            cx.report.log("pgleap", told);
        }
        self.copy(cx, &record, &origin).await?;
        self.finish(cx, &record, &origin).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        match self.probe(cx).await? {
            Probe::Done(output) => Ok(output),
            other => Err(StepError::new(format!(
                "node {} is not whole after it was cloned: {other:?}",
                self.node()?.name
            ))),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        let data_dir = cx.confine(&node.data_dir)?;
        cx.jobs.stop(JOB).await?;
        let record = match record::find(cx, data_dir)? {
            // Adopted, never begun, or undone already.
            Found::Nothing => return Ok(()),
            Found::Begun(record) | Found::Made(record) => record,
        };
        let record = Record { undoing: true, ..record };
        record.begin(data_dir)?;
        // Nothing in it is needed any more, so it need not be stopped gently.
        ctl::manager(cx, node).stop(StopMode::Immediate).await?;
        record.clear(true).await?;
        record.move_back()?;
        record.forget(data_dir)?;
        cx.report.log("pgleap", format!("removed {}", node.data_dir));
        Ok(())
    }
}
