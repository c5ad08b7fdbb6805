//! Reaching the coordinators, as whoever the certificate in the TLS directory says.

use std::path::PathBuf;

use pgleap_proto::MAX_MESSAGE_BYTES;
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::raft::members_client::MembersClient;
use pgleap_proto::tls::TlsFiles;

use super::follow::Leading;
use super::output::Out;
use super::{Connection, Failure, format};

impl Connection {
    /// The TLS directory that was named, or the one in the home directory.
    pub(super) fn tls_dir(&self) -> PathBuf {
        self.tls_dir.clone().unwrap_or_else(|| {
            let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| PathBuf::from("/"));
            home.join(".config/pgleap/tls")
        })
    }

    /// Connects to the first coordinator that answers; requests find the leader by themselves.
    pub(super) async fn open(&self) -> Result<FleetClient<Leading>, Failure> {
        let leading = self.leading(self.addresses()).await?;
        Ok(FleetClient::new(leading)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The same for questions about the group itself.
    pub(super) async fn members(&self) -> Result<MembersClient<Leading>, Failure> {
        Ok(MembersClient::new(self.leading(self.addresses()).await?))
    }

    /// One coordinator only.
    pub(super) async fn member_at(&self, address: &str) -> Result<MembersClient<Leading>, Failure> {
        Ok(MembersClient::new(self.leading(vec![address.to_owned()]).await?))
    }

    async fn leading(&self, addresses: Vec<String>) -> Result<Leading, Failure> {
        let identity =
            TlsFiles::in_directory(&self.tls_dir()).load().map_err(|e| Failure::Refused(e.to_string()))?;
        if let Some(left) = identity.ends_soon() {
            let (dir, left) = (self.tls_dir(), format::seconds(left.as_secs_f64()));
            let text = format!(
                "the certificate in {} ends in {left}: have it renewed with `pgleap pki issue`",
                dir.display()
            );
            Out::new(false).talk(&text);
        }
        // For `watch` and `events --follow`, which may run for days.
        identity.watch();
        Leading::open(addresses, identity).await
    }

    fn addresses(&self) -> Vec<String> {
        self.coordinator.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect()
    }
}

/// A name for a request, so that repeating it after a broken connection is the same request.
pub(super) fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
