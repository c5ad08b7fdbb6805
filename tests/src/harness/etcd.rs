//! An etcd of one member, in which the Patronis of a fleet keep what they know.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::base::Base;
use super::ports::Port;
use super::process::Process;

/// It runs as long as it lives.
#[derive(Debug)]
pub struct Etcd {
    process: Mutex<Process>,
    client: Port,
    _peer: Port,
}

impl Etcd {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(base: &Base) -> Result<Etcd> {
        let (client, peer) = (Port::reserve()?, Port::reserve()?);
        let url = |port: &Port| format!("http://127.0.0.1:{}", port.number);
        let mut command = base.command("etcd");
        command
            .args(["--name", "etcd", "--unsafe-no-fsync", "--data-dir"])
            .arg(base.join("etcd"))
            .args(["--listen-client-urls", &url(&client), "--advertise-client-urls", &url(&client)])
            .args(["--listen-peer-urls", &url(&peer), "--initial-advertise-peer-urls", &url(&peer)])
            .args(["--initial-cluster", &format!("etcd={}", url(&peer))]);
        let process = Process::start("etcd", command, base.join("log/etcd.log"))?;
        Ok(Etcd { process: Mutex::new(process), client, _peer: peer })
    }

    /// Where clients reach it, `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client.number)
    }

    /// Fails, with the end of its log, when it has ended.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).check()
    }
}
