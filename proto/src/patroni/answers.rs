//! What pgleap goes by of Patroni's answers. Everything else in them is passed over, and what is absent is empty: versions differ.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Of `GET /cluster`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Cluster {
    /// Every member that is known to the DCS.
    #[serde(default)]
    pub members: Vec<Member>,
    /// Whether Patroni looks on only.
    #[serde(default)]
    pub pause: bool,
    /// Since 3.0; empty before.
    #[serde(default)]
    pub scope: String,
}

/// One member, as `GET /cluster` tells it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Member {
    /// Unique in the cluster.
    pub name: String,
    /// `leader`, `replica`, `sync_standby`, `quorum_standby`, `standby_leader`.
    #[serde(default)]
    pub role: String,
    /// `running`, `streaming`, …
    #[serde(default)]
    pub state: String,
    /// Its REST API, with a path behind it.
    #[serde(default)]
    pub api_url: String,
    /// Where PostgreSQL is reached; empty while it never ran.
    #[serde(default)]
    pub host: String,
    /// Its port; 0 when unknown.
    #[serde(default)]
    pub port: u16,
    /// `nofailover`, `clonefrom`, …
    #[serde(default)]
    pub tags: serde_json::Map<String, Value>,
}

impl Member {
    /// Whether a tag is set and says yes.
    pub fn is_tagged(&self, tag: &str) -> bool {
        matches!(self.tags.get(tag), Some(Value::Bool(true)))
    }
}

/// Of `GET /patroni`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// `running`, `starting`, …
    #[serde(default)]
    pub state: String,
    /// `primary` (`master` before 4.0), `replica`, …
    #[serde(default)]
    pub role: String,
    /// As PostgreSQL numbers it, for example 150018; 0 while it does not run.
    #[serde(default)]
    pub server_version: u32,
    /// A setting waits for a restart.
    #[serde(default)]
    pub pending_restart: bool,
    /// Whether Patroni looks on only.
    #[serde(default)]
    pub pause: bool,
    /// Seconds since 1970 when it last spoke with its DCS.
    #[serde(default)]
    pub dcs_last_seen: u64,
    /// Patroni itself.
    #[serde(default)]
    pub patroni: About,
}

/// Patroni itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct About {
    /// For example 4.1.5.
    #[serde(default)]
    pub version: String,
    /// Name of the cluster.
    #[serde(default)]
    pub scope: String,
    /// Name of the member.
    #[serde(default)]
    pub name: String,
}
