//! An etcd of one member, in which the Patronis of a fleet keep what they know.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pgleap_proto::patroni::{Access, POST, Rest};
use serde_json::{Value, json};

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

    /// Keys that begin so and stay: those that go by themselves when nobody renews them (of members, of a leader) are left out.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn lasting_keys(&self, prefix: &str) -> Result<Vec<String>> {
        let rest = Rest::new(self.address().parse()?, &Access::default())?;
        // Of these prefixes the last byte can be counted up.
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().context("no prefix")? += 1;
        let range = json!({"key": STANDARD.encode(prefix), "range_end": STANDARD.encode(end)});
        let answer: Value = serde_json::from_str(&rest.change(POST, "/v3/kv/range", &range).await?)?;
        let found = answer["kvs"].as_array().into_iter().flatten().filter(|one| one["lease"].is_null());
        found
            .map(|one| Ok(String::from_utf8(STANDARD.decode(one["key"].as_str().unwrap_or_default())?)?))
            .collect()
    }

    /// Fails, with the end of its log, when it has ended.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).check()
    }
}
