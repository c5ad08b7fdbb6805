//! Connecting to another host's agent, for relinking and validation. Only reads are offered there.

use std::time::Duration;

use pgleap_proto::MAX_MESSAGE_BYTES;
use pgleap_proto::agent::peer_client::PeerClient;
use pgleap_proto::tls::{self, Role, TlsIdentity};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::error::{Doing, Result, StepError};
use crate::server::{CONNECTION_WINDOW, STREAM_WINDOW};

/// Longest wait for TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);
/// A silent connection is asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// No sign of life for this long ends the connection, and with it every call on it. Calls have no deadline of
/// their own: a checksum of a terabyte takes as long as it takes, while the other side lives.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects to the agent of `host` at `address` (`name:port` or `ip:port`) and proves both sides' identity.
///
/// # Errors
/// Names host, address, reason and cure.
pub async fn connect(address: &str, host: &str, identity: &TlsIdentity) -> Result<PeerClient<Channel>> {
    let doing = || {
        format!(
            "connecting to the agent of host {host} at {address} (is pgleap-agent running there, is this its \
             address in the fleet file, does the network let this host through, and does its certificate name \
             agent {host} of the same CA?)"
        )
    };
    let endpoint = tls::endpoint(address)
        .doing(doing)?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    // A listener that never answers must not hold a step.
    let connected = tokio::time::timeout(CONNECT, identity.connect(&endpoint, Role::Agent, host)).await;
    let channel = connected.map_err(|_| timed_out(doing))?.doing(doing)?;
    Ok(PeerClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

fn timed_out(doing: impl FnOnce() -> String) -> StepError {
    StepError::new(format!("{}: no answer within {} seconds", doing(), CONNECT.as_secs()))
}

/// Says which host refused what, and why.
pub fn refused(host: &str, doing: &str, status: &Status) -> StepError {
    let lost = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled);
    let cure = if lost { "; the connection was lost: retry when that agent is back" } else { "" };
    StepError::new(format!("{doing} on host {host}: {}{cure}", status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_asks_for_patience_and_a_refusal_does_not() {
        let lost = refused("db2", "hashing rows", &Status::unavailable("broken pipe"));
        assert!(lost.message.starts_with("hashing rows on host db2: broken pipe; the connection was lost"));
        let denied = refused("db2", "hashing rows", &Status::permission_denied("not offered"));
        assert_eq!(denied.message, "hashing rows on host db2: not offered");
    }
}
