//! Accepting: mutual TLS with the certificate in force, within bounds on the number of connections and on the time that showing a
//! certificate takes. What is refused is counted and warned of at most once a minute.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::TlsIdentity;
use crate::bounds;

/// How often refused connections are told of.
const TELL: Duration = Duration::from_secs(60);
/// After an error that is nobody's fault, such as no free file descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections whose peers have shown their certificate.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

impl TlsIdentity {
    /// Accepts connections until the stream is dropped. To be called inside the runtime that shall serve them.
    pub fn incoming(&self, listener: TcpListener) -> Incoming {
        let (accepted, incoming) = mpsc::channel(16);
        tokio::spawn(accept(self.clone(), listener, accepted));
        ReceiverStream::new(incoming)
    }
}

/// A connection of a certificate holder.
#[derive(Debug)]
pub struct Connection {
    tls: TlsStream<TcpStream>,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.tls.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

async fn accept(
    identity: TlsIdentity,
    listener: TcpListener,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Places::new(bounds::MAX_HANDSHAKES, bounds::MAX_HANDSHAKES_OF_ONE);
    let connections = Places::new(bounds::MAX_CONNECTIONS, bounds::MAX_CONNECTIONS_OF_ONE);
    let refusals = Arc::new(Refusals::default());
    loop {
        let next = tokio::select! {
            // Nobody serves any more.
            () = accepted.closed() => return,
            next = listener.accept() => next,
        };
        let (tcp, peer) = match next {
            Ok(next) => next,
            Err(error) => {
                refusals.tell(None, &format!("accepting a connection: {error}"));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(waiting) = handshakes.take(peer.ip()) else {
            refusals.tell(Some(peer), "too many connections without a certificate");
            continue;
        };
        let (identity, connections) = (identity.clone(), connections.clone());
        let (refusals, accepted) = (refusals.clone(), accepted.clone());
        tokio::spawn(async move {
            match welcome(&identity, tcp, peer, &connections).await {
                // Nobody serves any more: it is closed.
                Ok(connection) => drop(accepted.send(Ok(connection)).await),
                Err(why) => refusals.tell(Some(peer), &why),
            }
            drop(waiting);
        });
    }
}

async fn welcome(
    identity: &TlsIdentity,
    tcp: TcpStream,
    peer: SocketAddr,
    connections: &Arc<Places>,
) -> Result<Connection, String> {
    tcp.set_nodelay(true).map_err(|e| e.to_string())?;
    let acceptor = TlsAcceptor::from(identity.in_force().server.clone());
    let shaken = tokio::time::timeout(bounds::HANDSHAKE, acceptor.accept(tcp)).await;
    let late = |_| format!("no certificate within {} s", bounds::HANDSHAKE.as_secs());
    let tls = shaken.map_err(late)?.map_err(|e| format!("no mutual TLS: {e}"))?;
    let place = connections.take(peer.ip()).ok_or("too many connections")?;
    Ok(Connection { tls, _place: place })
}

/// So many, and so many of one address.
#[derive(Debug)]
struct Places {
    most: usize,
    of_one: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them, until dropped.
#[derive(Debug)]
struct Place {
    of: Arc<Places>,
    address: IpAddr,
}

impl Places {
    fn new(most: usize, of_one: usize) -> Arc<Places> {
        Arc::new(Places { most, of_one, taken: Mutex::default() })
    }

    fn take(self: &Arc<Places>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&address).copied().unwrap_or_default();
        if own >= self.of_one || taken.values().sum::<usize>() >= self.most {
            return None;
        }
        taken.insert(address, own + 1);
        Some(Place { of: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// What was refused and not told yet.
#[derive(Debug, Default)]
struct Refusals(Mutex<(u64, Option<Instant>)>);

impl Refusals {
    /// Warns of this one and of those since the last warning, or only counts it.
    fn tell(&self, peer: Option<SocketAddr>, why: &str) {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, told) = &mut *refusals;
        *count += 1;
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
            tracing::warn!(peer, why, refused = *count, "connections were refused; this is the latest");
            (*count, *told) = (0, Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let places = Places::new(3, 2);
        let [one, other] = ["127.0.0.1", "127.0.0.2"].map(|address| address.parse().unwrap());
        let first = places.take(one).unwrap();
        let _second = places.take(one).unwrap();
        assert!(places.take(one).is_none());
        let third = places.take(other).unwrap();
        assert!(places.take(other).is_none());
        drop(first);
        let _again = places.take(one).unwrap();
        drop(third);
        assert_eq!(places.taken.lock().unwrap().len(), 1);
    }
}
