//! Mutual TLS: where a process finds its certificate (`identity`), how it connects (`client`) and accepts (`server`), and what a
//! peer's certificate lets its holder do.
//!
//! It never makes certificates (`pgleap pki` does) and knows no plaintext mode.

mod client;
mod identity;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use client::endpoint;
pub use identity::{ENDS_SOON, TlsFiles, TlsIdentity};
pub use server::{Connection, Incoming};

/// Scheme of the URI in a certificate's subject alternative names that tells role and name:
/// `pgleap://ROLE/NAME`.
pub const URI_SCHEME: &str = "pgleap://";

/// The DNS name a server's certificate carries and its clients demand, so that verification does not depend on
/// how a host is addressed: `NAME.agent.pgleap.internal` for the agent of host NAME, and
/// `coordinator.pgleap.internal` for every coordinator, because any member may answer.
///
/// Operators and viewers serve nothing and get none.
pub fn server_name(role: Role, name: &str) -> Option<String> {
    match role {
        Role::Agent => Some(format!("{name}.agent.pgleap.internal")),
        Role::Coordinator => Some("coordinator.pgleap.internal".to_owned()),
        Role::Operator | Role::Viewer => None,
    }
}

/// What the holder of a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Sequences operations; agents obey it.
    Coordinator,
    /// Acts on one host; reads from other agents.
    Agent,
    /// A person or a job that may call every verb.
    Operator,
    /// A person or a job that may only read.
    Viewer,
}

impl Role {
    /// All roles, for help texts.
    pub const ALL: [Role; 4] = [Role::Coordinator, Role::Agent, Role::Operator, Role::Viewer];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Coordinator => "coordinator",
            Role::Agent => "agent",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        })
    }
}

impl FromStr for Role {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Role::ALL.into_iter().find(|role| role.to_string() == text).ok_or_else(|| {
            TlsError::Role(format!("\"{text}\" is no role (coordinator, agent, operator or viewer)"))
        })
    }
}

/// Who is at the other end of a connection, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it may do.
    pub role: Role,
    /// Host name of an agent, member name of a coordinator, or the person's name.
    pub name: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

impl Peer {
    /// Reads role and name from a certificate in DER form.
    ///
    /// # Errors
    /// When the certificate cannot be parsed or carries no, or more than one, `pgleap://` name.
    pub fn from_der(der: &[u8]) -> Result<Peer, TlsError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| TlsError::Role(e.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| TlsError::Role(e.to_string()))?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(URI_SCHEME),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(TlsError::Role(format!(
                "the certificate does not carry exactly one {URI_SCHEME} name"
            )));
        };
        let (role, name) =
            uri.split_once('/').ok_or_else(|| TlsError::Role(format!("{URI_SCHEME}{uri} has no name")))?;
        Ok(Peer { role: role.parse()?, name: name.to_owned() })
    }

    /// Who sent this request.
    ///
    /// # Errors
    /// `unauthenticated` when the connection carries no usable client certificate.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Peer, tonic::Status> {
        let certificates = request.peer_certs();
        let first = certificates.as_ref().and_then(|list| list.first());
        let der =
            first.ok_or_else(|| tonic::Status::unauthenticated("no client certificate was presented"))?;
        Peer::from_der(der).map_err(|e| tonic::Status::unauthenticated(e.to_string()))
    }

    /// Refuses everyone whose role is not listed.
    ///
    /// # Errors
    /// `permission_denied`, naming the role it has and the roles it would need.
    pub fn require(self, roles: &[Role], action: &str) -> Result<Peer, tonic::Status> {
        if roles.contains(&self.role) {
            return Ok(self);
        }
        let needed = roles.iter().map(Role::to_string).collect::<Vec<_>>().join(" or ");
        Err(tonic::Status::permission_denied(format!(
            "{self} may not {action}: its certificate's role is {}, and {needed} is needed; \
             issue one with `pgleap pki issue --role {}`",
            self.role,
            roles.first().map(Role::to_string).unwrap_or_default(),
        )))
    }
}

/// A certificate, key or role could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("{path}: {source}; issue it with `pgleap pki issue`, or name its directory with --tls-dir")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} cannot be used: {why}; issue it anew with `pgleap pki issue`")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A certificate does not say who holds it, or says something unknown.
    #[error("certificate: {0}")]
    Role(String),
}
