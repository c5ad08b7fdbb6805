//! One member, and questions to its REST API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::ports::Port;
use super::super::postgres::{PASSWORD, Server};
use super::super::process::Process;
use super::REST_USER;

/// One member: a server, and the Patroni in charge of it.
#[derive(Debug)]
pub struct Member {
    /// Its server. Whether it leads changes.
    pub server: Server,
    /// Its configuration file.
    pub config: PathBuf,
    /// Scripts that start and stop its daemon; only where agents do that.
    pub commands: Option<(PathBuf, PathBuf)>,
    pub(super) rest: Port,
    pub(super) process: Option<Process>,
}

impl Member {
    /// Whether its daemon should run: it was started here, or an agent is in charge of it.
    pub(super) fn is_ours(&self) -> bool {
        self.process.is_some() || self.commands.is_some()
    }

    /// Where its REST API listens, `host:port`.
    pub fn rest_address(&self) -> String {
        format!("{}:{}", self.server.address, self.rest.number)
    }

    /// The answer of its REST API to a question, whatever the status.
    ///
    /// # Errors
    /// When nobody answers in JSON.
    pub async fn ask(&self, path: &str) -> Result<Value> {
        let (_, body) = self.request("GET", path, "").await?;
        serde_json::from_str(&body).with_context(|| format!("{path} of {}: {body}", self.server.name))
    }

    /// Sends it something and gives what it said.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let (status, said) = self.request(method, path, &body.to_string()).await?;
        ensure!((200..300).contains(&status), "{method} {path} of {}: {status} {said}", self.server.name);
        Ok(said)
    }

    pub(super) async fn request(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let address = self.rest_address();
        let mut stream = TcpStream::connect(&address).await.with_context(|| format!("REST API {address}"))?;
        let basic = STANDARD.encode(format!("{REST_USER}:{PASSWORD}"));
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Basic {basic}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await??;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("not HTTP: {head}"))?, body.to_owned()))
    }
}
