//! A throw-away cluster of the new major, in binary-upgrade mode, reachable by nobody else.
//!
//! One fixed directory for each operation and node: what a killed run left is found and removed by the next one.

use std::path::PathBuf;

use pgleap_proto::node::Node;

use super::{new_dir, preload, socket_dir};
use crate::context::Context;
use crate::error::{Doing, Result};
use crate::pg::ctl::{self, StopMode};
use crate::pg::program;
use crate::program::Program;

/// Port within its private socket directory; it listens on no address.
const PORT: u32 = 50432;
/// Purpose of its socket directory.
const SOCKETS: &str = "rehearsal";

/// The cluster, running or not.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// As a node, for programs and sessions.
    pub node: Node,
    /// Everything lies below it: the data directory, dumps.
    pub directory: PathBuf,
}

impl Scratch {
    /// Where it is or would be; changes nothing but the socket directory.
    ///
    /// # Errors
    /// When the socket directory cannot be made.
    pub fn of(cx: &Context, node: &Node, install_user: &str) -> Result<Scratch> {
        let operation = if cx.operation.is_empty() { "check" } else { &cx.operation };
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let name: String = format!("{operation}-{}", node.name).chars().map(plain).collect();
        let directory = cx.config.state_dir.join("rehearsal").join(name);
        let sockets = socket_dir::make(cx, SOCKETS)?;
        Ok(Scratch {
            node: Node {
                name: format!("rehearsal of {}", node.name),
                address: String::new(),
                port: PORT,
                socket_dir: sockets.to_string_lossy().into_owned(),
                data_dir: directory.join("data").to_string_lossy().into_owned(),
                superuser: install_user.to_owned(),
                config_file: String::new(),
                ..node.clone()
            },
            directory,
        })
    }

    /// Makes its directory, after removing what an earlier run left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn prepare(&self, cx: &Context) -> Result<()> {
        self.remove(cx).await?;
        crate::durable::private_directory(&self.directory).doing(|| self.directory.display().to_string())?;
        socket_dir::make(cx, SOCKETS).map(drop)
    }

    /// Makes the cluster in its empty directory.
    ///
    /// # Errors
    /// When `initdb` fails or the disk is full.
    pub async fn make(&self, cx: &Context) -> Result<()> {
        let initdb = program(&self.node, "initdb").args(["-D", &self.node.data_dir]);
        let initdb = initdb.arg(format!("--username={}", self.node.superuser));
        let initdb = initdb.args(["--no-locale", "--encoding=UTF8", "--no-sync", "--auth=trust"]);
        // A job, because one that outlives its agent must be ended before its directory is made anew.
        cx.jobs.run("initdb", &initdb).await
    }

    /// Starts it with these libraries, as `pg_upgrade` starts the new server (`start_postmaster`, pg_upgrade/server.c).
    ///
    /// # Errors
    /// When a library is missing, or the server does not start.
    pub async fn start(&self, cx: &Context, libraries: &str) -> Result<()> {
        preload::check(&self.node, self.data_dir(), libraries).await?;
        let log = self.directory.join("server.log");
        let settings = [
            ("listen_addresses", ""),
            ("unix_socket_directories", &self.node.socket_dir),
            ("unix_socket_permissions", "0700"),
            ("port", &PORT.to_string()),
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("full_page_writes", "off"),
            ("max_wal_size", "64MB"),
            ("shared_preload_libraries", libraries),
            ("cron.launch_active_jobs", "off"),
        ];
        let mut options = "-b".to_owned();
        for (name, value) in settings {
            options.push_str(&format!(" -c {name}='{}'", value.replace('\'', r"'\''")));
        }
        let start = program(&self.node, "pg_ctl").args(["start", "-w", "-s", "-D", &self.node.data_dir]);
        let start = start.args(["-l", &log.to_string_lossy(), "-o", &options]);
        start.run().await.map_err(|error| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            error.with_evidence(said.lines())
        })?;
        cx.report.log("pgleap", format!("scratch cluster of PostgreSQL {} started", self.node.major));
        Ok(())
    }

    /// A client program connected to it.
    pub fn client(&self, name: &str) -> Program {
        program(&self.node, name).args([
            "-h",
            &self.node.socket_dir,
            "-p",
            &PORT.to_string(),
            "-U",
            &self.node.superuser,
        ])
    }

    /// Stops and removes it, whatever state it is in, with whatever an earlier run of the step left working in it.
    ///
    /// # Errors
    /// When it cannot be stopped or removed.
    pub async fn remove(&self, cx: &Context) -> Result<()> {
        cx.jobs.stop_all().await?;
        ctl::manager(cx, &self.node).stop(StopMode::Immediate).await?;
        new_dir::remove_tree(&self.directory)?;
        socket_dir::remove(cx, SOCKETS);
        Ok(())
    }

    fn data_dir(&self) -> &std::path::Path {
        std::path::Path::new(&self.node.data_dir)
    }
}
