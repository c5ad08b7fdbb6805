//! Connecting: every attempt, also a channel's own to connect again, presents the certificate in force at that moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint, Error};
use tower_service::Service;

use super::identity::H2;
use super::{Role, TlsIdentity, server_name};
use crate::bounds;

/// Where `host:port` is reached. The scheme that the connection itself sees is "http": TLS is ours, not tonic's.
///
/// # Errors
/// When it is no `host:port`.
pub fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let said = Endpoint::from_shared(format!("https://{address}"))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.origin(said.uri().clone());
    Ok(endpoint.http2_max_header_list_size(bounds::MAX_ANSWER_HEADER_BYTES))
}

impl TlsIdentity {
    /// Connects to an [`endpoint`]: trusts only the CAs, and accepts only the server it means: the agent of a host, or a
    /// coordinator (whose `name` does not matter).
    ///
    /// # Errors
    /// When there is no connection, or another server.
    pub async fn connect(&self, endpoint: &Endpoint, role: Role, name: &str) -> Result<Channel, Error> {
        endpoint.connect_with_connector(Connector::new(self, role, name)).await
    }

    /// The same, not before something is asked.
    pub fn connect_lazy(&self, endpoint: &Endpoint, role: Role, name: &str) -> Channel {
        endpoint.connect_with_connector_lazy(Connector::new(self, role, name))
    }
}

struct Connector {
    identity: TlsIdentity,
    name: String,
}

impl Connector {
    fn new(identity: &TlsIdentity, role: Role, name: &str) -> Connector {
        Connector { identity: identity.clone(), name: server_name(role, name).unwrap_or_default() }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (name, identity) = (self.name.clone(), self.identity.clone());
        Box::pin(async move {
            let name = ServerName::try_from(name).map_err(io::Error::other)?;
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
            tcp.set_nodelay(true)?;
            let connector = TlsConnector::from(identity.in_force().client.clone());
            let tls = connector.connect(name, tcp).await?;
            if tls.get_ref().1.alpn_protocol() != Some(H2) {
                return Err(io::Error::other("the other side does not speak HTTP/2"));
            }
            Ok(TokioIo::new(tls))
        })
    }
}
