//! Reaching a coordinator, as whoever the certificate in the TLS directory says.

use std::path::PathBuf;
use std::time::Duration;

use pgleap_proto::MAX_MESSAGE_BYTES;
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::tls::{Role, TlsFiles};
use tonic::transport::{Channel, Endpoint};

use super::{Connection, Failure};

/// Longest wait for one coordinator to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Connection {
    /// The TLS directory that was named, or the one in the home directory.
    pub(super) fn tls_dir(&self) -> PathBuf {
        self.tls_dir.clone().unwrap_or_else(|| {
            let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| PathBuf::from("/"));
            home.join(".config/pgleap/tls")
        })
    }

    /// Connects to the first coordinator that answers.
    pub(super) async fn open(&self) -> Result<FleetClient<Channel>, Failure> {
        let identity =
            TlsFiles::in_directory(&self.tls_dir()).load().map_err(|e| Failure::Refused(e.to_string()))?;
        let mut tried = Vec::new();
        for address in self.coordinator.split(',').map(str::trim).filter(|a| !a.is_empty()) {
            let endpoint = Endpoint::from_shared(format!("https://{address}"))
                .and_then(|e| e.tls_config(identity.client_config(Role::Coordinator, "")))
                .map_err(|e| Failure::Refused(format!("\"{address}\" is no host:port: {}", chain(&e))))?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(20))
                .tcp_nodelay(true);
            match endpoint.connect().await {
                Ok(channel) => {
                    return Ok(FleetClient::new(channel)
                        .max_decoding_message_size(MAX_MESSAGE_BYTES)
                        .max_encoding_message_size(MAX_MESSAGE_BYTES));
                }
                Err(error) => tried.push(format!("{address}: {}", chain(&error))),
            }
        }
        Err(Failure::Unreachable(format!(
            "no coordinator answers ({}); is `pgleap serve` running there, and does --coordinator name it?",
            tried.join("; ")
        )))
    }
}

/// The error with its causes; tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A name for a request, so that repeating it after a broken connection is the same request.
pub(super) fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
