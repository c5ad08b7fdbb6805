//! Asking a REST API: HTTP/1.1 with or without TLS, one connection a question.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Address;

/// Longest time for a connection and its answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest answer.
const MAX_BYTES: usize = 4 << 20;
/// Where distributions keep the CAs they trust, when no other is named.
const SYSTEM_CAS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// How a REST API that is protected is reached. The password is never printed.
#[derive(Clone, Default)]
pub struct Access {
    /// PEM file of the CAs that its certificate is checked against; the system's when none.
    pub ca: Option<PathBuf>,
    /// PEM files of the client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User and password.
    pub login: Option<(String, String)>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.login.as_ref().map(|(user, _)| user);
        f.debug_struct("Access")
            .field("ca", &self.ca)
            .field("identity", &self.identity)
            .field("user", &user)
            .finish_non_exhaustive()
    }
}

/// A REST API could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// A file with certificates or a key.
    #[error("{path}: {why}; it is needed to reach Patroni's REST API over https")]
    File {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        why: String,
    },
    /// No connection, or it broke.
    #[error("Patroni's REST API at {at} does not answer: {why}")]
    Away {
        /// Its address.
        at: String,
        /// Why.
        why: String,
    },
    /// It wants another user, password or certificate.
    #[error(
        "Patroni's REST API at {at} wants to know who asks ({status}); give it the user and password of restapi.authentication, or, \
         with 403, a client certificate (restapi.verify_client) or this host's place in restapi.allowlist"
    )]
    Unknown {
        /// Its address.
        at: String,
        /// What it answered.
        status: StatusCode,
    },
    /// It refused.
    #[error("Patroni's REST API at {at} refused {what}: {status} {said}")]
    Refused {
        /// Its address.
        at: String,
        /// Method and path.
        what: String,
        /// What it answered.
        status: StatusCode,
        /// And said.
        said: String,
    },
    /// It is something else.
    #[error("{at} does not answer {path} as Patroni does: {why}; is this the REST API's address?")]
    Strange {
        /// Its address.
        at: String,
        /// The path.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// One member's REST API.
#[derive(Clone)]
pub struct Rest {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<String>,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").field("address", &self.address.to_string()).finish_non_exhaustive()
    }
}

impl Rest {
    /// Reads the files that are needed; connects to nobody yet.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn new(address: Address, access: &Access) -> Result<Rest, RestError> {
        let tls = if address.tls { Some(Arc::new(client(access)?)) } else { None };
        let basic = |(user, password): &(String, String)| {
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        };
        Ok(Rest { address, tls, authorization: access.login.as_ref().map(basic) })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The answer to a question, whatever the status: a member that does not lead answers 503 with a body.
    ///
    /// # Errors
    /// When nobody answers, or not as Patroni does.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RestError> {
        let (status, body) = self.ask(Method::GET, path, None).await?;
        self.known(status)?;
        serde_json::from_slice(&body).map_err(|error| RestError::Strange {
            at: self.address.to_string(),
            path: path.to_owned(),
            why: format!("{status}, {error}"),
        })
    }

    /// Changes something, and gives what was answered.
    ///
    /// # Errors
    /// When it is refused, with the reason.
    pub async fn change(&self, method: Method, path: &str, body: &Value) -> Result<String, RestError> {
        let what = format!("{method} {path}");
        let (status, said) = self.ask(method, path, Some(body)).await?;
        self.known(status)?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        if status.is_success() {
            return Ok(said);
        }
        Err(RestError::Refused { at: self.address.to_string(), what, status, said })
    }

    fn known(&self, status: StatusCode) -> Result<(), RestError> {
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(RestError::Unknown { at: self.address.to_string(), status });
        }
        Ok(())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), RestError> {
        let away = |why: String| RestError::Away { at: self.address.to_string(), why };
        let asked = async {
            let tcp = TcpStream::connect((self.address.host.as_str(), self.address.port)).await;
            let tcp = tcp.map_err(|error| away(error.to_string()))?;
            let request = self.request(method, path, body).map_err(|error| away(error.to_string()))?;
            match &self.tls {
                None => exchange(tcp, request).await.map_err(away),
                Some(config) => {
                    let name = ServerName::try_from(self.address.host.clone())
                        .map_err(|error| away(error.to_string()))?;
                    let tls = TlsConnector::from(config.clone()).connect(name, tcp).await;
                    exchange(tls.map_err(|error| away(error.to_string()))?, request).await.map_err(away)
                }
            }
        };
        match tokio::time::timeout(LIMIT, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(away(format!("no answer within {} seconds", LIMIT.as_secs()))),
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> hyper::http::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.address.place());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        request.body(Full::new(bytes))
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let told = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let opened = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = opened.map_err(|error| told(&error))?;
    let driven = tokio::spawn(connection);
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| told(&error))?;
        let status = answer.status();
        let body =
            Limited::new(answer.into_body(), MAX_BYTES).collect().await.map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    }
    .await;
    driven.abort();
    answered
}

fn client(access: &Access) -> Result<ClientConfig, RestError> {
    let unusable = |path: &Path, why: String| RestError::File { path: path.to_owned(), why };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, RestError> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let read = read.map_err(|error| unusable(path, error.to_string()))?;
        if read.is_empty() {
            return Err(unusable(path, "it holds no certificate".to_owned()));
        }
        Ok(read)
    };
    let system = || SYSTEM_CAS.iter().map(PathBuf::from).find(|path| path.exists());
    let ca = access.ca.clone().or_else(system).ok_or_else(|| {
        unusable(Path::new(SYSTEM_CAS[0]), "it is not there; name a file with the CAs instead".to_owned())
    })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&ca)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.map_err(|error| unusable(&ca, error.to_string()))?.with_root_certificates(roots);
    match &access.identity {
        None => Ok(config.with_no_client_auth()),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let private =
                PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
            config.with_client_auth_cert(chain, private).map_err(|error| unusable(cert, error.to_string()))
        }
    }
}
