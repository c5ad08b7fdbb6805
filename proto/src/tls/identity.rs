//! A holder's certificate, key and CAs in force, and new ones taken up when the files change.
//!
//! New ones count for connections made from then on; those that exist live on. What cannot be used, or is somebody else's, is
//! warned of once and never taken: the old ones stay in force.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Peer, TlsError};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A certificate that ends sooner is warned of.
pub const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How often it is warned of.
const WARN_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// HTTP/2, in the protocol negotiation of TLS.
pub(super) const H2: &[u8] = b"h2";

/// Files that `pgleap pki issue` writes for one holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `ca.crt`: the CAs trusted. Several while a CA is replaced by another.
    pub ca: PathBuf,
    /// `tls.crt`
    pub certificate: PathBuf,
    /// `tls.key`, readable by its owner only.
    pub key: PathBuf,
}

/// A holder's certificate and key with the CAs it trusts, as they are in force. Cheap to clone; all clones follow the files
/// once one of them is [watched](TlsIdentity::watch).
#[derive(Clone)]
pub struct TlsIdentity(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    in_force: RwLock<Arc<Loaded>>,
}

/// What was read from the files, ready to be used.
pub(super) struct Loaded {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    peer: Peer,
    pub(super) ends: SystemTime,
    stamp: Stamp,
}

/// Whether the files are the same as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([Option<FileStamp>; 3]);

/// Device, inode, length, time of change.
type FileStamp = (u64, u64, u64, i64, i64);

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity(..)")
    }
}

impl TlsFiles {
    /// The three files under their usual names in one directory.
    pub fn in_directory(directory: &Path) -> TlsFiles {
        TlsFiles {
            ca: directory.join("ca.crt"),
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Names the file that could not be read or used.
    pub fn load(&self) -> Result<TlsIdentity, TlsError> {
        let in_force = RwLock::new(Arc::new(self.read()?));
        Ok(TlsIdentity(Arc::new(Shared { files: self.clone(), in_force })))
    }

    fn read(&self) -> Result<Loaded, TlsError> {
        // Before the files: what changes while they are read is seen as a change afterwards.
        let stamp = self.stamp();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.ca)? {
            roots.add(ca).map_err(|e| unusable(&self.ca, e))?;
        }
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes(&self.key)?).map_err(|e| unusable(&self.key, e))?;
        let leaf = chain.first().ok_or_else(|| unusable(&self.certificate, "it holds no certificate"))?;
        let (peer, ends) = (Peer::from_der(leaf)?, ends(leaf).map_err(|e| unusable(&self.certificate, e))?);
        let (client, server) = configs(&provider, roots, chain, key).map_err(|e| {
            let key = self.key.display();
            unusable(&self.certificate, format!("with the CAs beside it and {key}: {e}"))
        })?;
        Ok(Loaded { client: Arc::new(client), server: Arc::new(server), peer, ends, stamp })
    }

    fn stamp(&self) -> Stamp {
        Stamp([&self.ca, &self.certificate, &self.key].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        }))
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn unusable(path: &Path, why: impl fmt::Display) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), why: why.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = bytes(path)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let list = list.map_err(|e| unusable(path, e))?;
    if list.is_empty() { Err(unusable(path, "it holds no certificate")) } else { Ok(list) }
}

fn ends(leaf: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Sessions are never resumed: who resumes one is not asked for its certificate again.
fn configs(
    provider: &Arc<CryptoProvider>,
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(ClientConfig, ServerConfig), Box<dyn std::error::Error>> {
    let roots = Arc::new(roots);
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.alpn_protocols = vec![H2.to_vec()];
    client.resumption = Resumption::disabled();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![H2.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((client, server))
}

impl TlsIdentity {
    /// Who this identity is.
    pub fn peer(&self) -> Peer {
        self.in_force().peer.clone()
    }

    /// When its certificate ends.
    pub fn ends(&self) -> SystemTime {
        self.in_force().ends
    }

    /// How long its certificate is good for, when that is so short that it should be renewed.
    pub fn ends_soon(&self) -> Option<Duration> {
        let left = self.ends().duration_since(SystemTime::now()).unwrap_or_default();
        (left < ENDS_SOON).then_some(left)
    }

    pub(super) fn in_force(&self) -> Arc<Loaded> {
        self.0.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows the files from now on, in a task that ends with the last clone; warns when the certificate ends soon.
    pub fn watch(&self) {
        tokio::spawn(follow(Arc::downgrade(&self.0)));
    }
}

async fn follow(shared: Weak<Shared>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut before, mut refused, mut warned) = (None, None, None::<Instant>);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let identity = TlsIdentity(shared);
        let stamp = identity.0.files.stamp();
        // Not while they are being written: twice the same.
        let settled = before.replace(stamp) == Some(stamp);
        if settled && stamp != identity.in_force().stamp && refused != Some(stamp) {
            match take_up(&identity) {
                Ok(()) => warned = None,
                Err(error) => {
                    refused = Some(stamp);
                    let dir = identity.0.files.ca.parent().unwrap_or(Path::new("")).display();
                    tracing::warn!(%error, "the new certificate in {dir} is not taken, the one in force stays");
                }
            }
        }
        if let Some(left) = identity.ends_soon()
            && warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN)
        {
            warned = Some(Instant::now());
            let (peer, hours) = (identity.peer(), left.as_secs() / 3600);
            tracing::warn!(holder = %peer, hours, "the certificate ends soon: renew it with `pgleap pki issue`; it is taken up without restart");
        }
    }
}

pub(super) fn take_up(identity: &TlsIdentity) -> Result<(), TlsError> {
    let new = identity.0.files.read()?;
    let old = identity.in_force();
    if new.peer != old.peer {
        return Err(TlsError::Role(format!("it is {}'s, and this is {}", new.peer, old.peer)));
    }
    if new.ends <= SystemTime::now() {
        return Err(TlsError::Role("it has ended already".to_owned()));
    }
    tracing::info!(holder = %new.peer, "a new certificate is in force for new connections");
    *identity.0.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
    Ok(())
}
