//! Facts about a cluster, asked of all its agents at once.

use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::agent::{InspectReply, InspectRequest};

use super::agents::{Agents, explain_status};
use crate::check::{Facts, queries};
use crate::fleet::ClusterSpec;

/// Longest wait for one host. Inspection opens every database of every node on it.
const INSPECT: Duration = Duration::from_secs(60);

impl Agents {
    /// What the agents say; a silent one is noted with the reason.
    pub async fn facts(&self, cluster: &ClusterSpec) -> Facts {
        let addresses = cluster.agents();
        let asked = queries(cluster).into_iter().map(|(host, request)| {
            let address = addresses.get(&host).cloned().unwrap_or_default();
            async move {
                let reply = self.inspect(&host, &address, request).await;
                (host, reply)
            }
        });
        let mut facts = Facts::default();
        for (host, reply) in join_all(asked).await {
            match reply {
                Ok(reply) => facts.replies.insert(host, reply).map(|_| ()),
                Err(why) => facts.unreachable.insert(host, why).map(|_| ()),
            };
        }
        facts
    }

    async fn inspect(
        &self,
        host: &str,
        address: &str,
        request: InspectRequest,
    ) -> Result<InspectReply, String> {
        let ask = async {
            let mut client = self.client(host, address).await.map_err(|e| e.to_string())?;
            let reply = client.inspect(request).await.map_err(|status| {
                self.forget(host, address);
                format!("{address}: {}", explain_status(&status))
            })?;
            Ok(reply.into_inner())
        };
        let late = || Err(format!("{address}: no answer within {} s", INSPECT.as_secs()));
        tokio::time::timeout(INSPECT, ask).await.unwrap_or_else(|_| late())
    }
}
