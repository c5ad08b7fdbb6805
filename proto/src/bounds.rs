//! Every bound on what comes from outside, in one place. What is beyond one is refused and changes nothing.

use std::time::Duration;

/// Largest gRPC message either side accepts, in bytes. Row hashes and file manifests are streamed or chunked below it.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// All headers of one request, in bytes.
pub const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Requests under way on one connection.
pub const MAX_STREAMS: u32 = 256;
/// Requests that a peer began and reset before they were looked at; more end its connection.
pub const MAX_RESET_STREAMS: usize = 64;

/// Connections of certificate holders that one server keeps.
pub const MAX_CONNECTIONS: usize = 512;
/// Of those, from one address.
pub const MAX_CONNECTIONS_OF_ONE: usize = 128;
/// Connections that have not shown a certificate yet.
pub const MAX_HANDSHAKES: usize = 256;
/// Of those, from one address.
pub const MAX_HANDSHAKES_OF_ONE: usize = 64;
/// How long showing it may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// A request's id, in bytes; the command line sends a UUID.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// A name in a request: of a cluster, an operation, a host, a file.
pub const MAX_NAME_BYTES: usize = 300;
/// A fleet file, in bytes: thousands of clusters.
pub const MAX_FLEET_BYTES: usize = 4 * 1024 * 1024;
/// One value in a fleet file, in bytes; as long as a path may be.
pub const MAX_VALUE_BYTES: usize = 4096;
/// The text of a refusal, in bytes.
pub const MAX_REFUSAL_BYTES: usize = 24 * 1024;
/// All headers of an answer, a refusal's text among them with its characters encoded, in bytes.
pub const MAX_ANSWER_HEADER_BYTES: u32 = 128 * 1024;
/// Longest that a request of an operator may take until its answer begins: a check of many hosts takes a minute.
pub const OPERATOR_REQUEST: Duration = Duration::from_secs(600);

/// A gRPC server with the bounds that every one has.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_RESET_STREAMS))
}
