//! A REST API that is protected in every way Patroni knows: its own certificate, a client's, and a password; over IPv6.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Access, Address, PATCH, Rest, RestError, Status};

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let (der, pem) = (certificate.der().clone(), certificate.pem());
    Ca { issuer: Issuer::new(params, key), certificate: der, pem }
}

fn issue(ca: &Ca, name: &str) -> (CertificateDer<'static>, KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca.issuer).unwrap();
    (certificate.der().clone(), key, certificate.pem())
}

/// Answers like a replica: 503 with a body to a question, and what it got to a change.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((tcp, _)) = listener.accept().await {
        let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
        let mut seen = Vec::new();
        let mut chunk = [0; 4096];
        // The requests of these tests come in few pieces, and end with their body or with their head.
        while let Ok(read) = tls.read(&mut chunk).await {
            seen.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&seen).to_string();
            if read == 0 || text.starts_with("GET") && text.contains("\r\n\r\n") || text.ends_with('}') {
                break;
            }
        }
        let text = String::from_utf8_lossy(&seen).to_string();
        let knows = text.contains("Basic cmVzdDpzOiBjcmV0");
        let (status, body) = match text.split_whitespace().next() {
            _ if !knows => ("401 Unauthorized", "no auth header received".to_owned()),
            Some("PATCH") if text.contains("refuse") => ("409 Conflict", "changed meanwhile".to_owned()),
            Some("PATCH") => ("200 OK", text.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()),
            _ => {
                ("503 Service Unavailable", json!({"role": "replica", "patroni": {"scope": "s"}}).to_string())
            }
        };
        let answer = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = tls.write_all(answer.as_bytes()).await;
        let _ = tls.shutdown().await;
    }
}

async fn protected(directory: &Path) -> (Address, Access) {
    let ca = ca();
    let (certificate, key, _) = issue(&ca, "::1");
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config))));

    let write = |name: &str, text: &str| -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (_, key, pem) = issue(&ca, "client");
    let identity = (write("client.crt", &pem), write("client.key", &key.serialize_pem()));
    let login = Some(("rest".to_owned(), "s: cret".to_owned()));
    (address, Access { ca: Some(write("ca.crt", &ca.pem)), identity: Some(identity), login })
}

#[tokio::test]
async fn a_protected_one_is_asked_and_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (address, access) = protected(directory.path()).await;
    let rest = Rest::new(address, &access).unwrap();
    let status: Status = rest.get("/patroni").await.unwrap();
    assert_eq!((status.role.as_str(), status.patroni.scope.as_str()), ("replica", "s"), "503 is an answer");
    let patch = json!({"ignore_slots": [{"name": "a"}]});
    let said: Value = serde_json::from_str(&rest.change(PATCH, "/config", &patch).await.unwrap()).unwrap();
    assert_eq!(said, patch);
    let refused = rest.change(PATCH, "/config", &json!({"refuse": 1})).await.unwrap_err().to_string();
    assert!(refused.contains("refused PATCH /config: 409 Conflict changed meanwhile"), "{refused}");
}

#[tokio::test]
async fn who_lacks_anything_is_told_what() {
    let directory = tempfile::tempdir().unwrap();
    let (address, access) = protected(directory.path()).await;
    let ask = async |access: Access| {
        let rest = Rest::new(address.clone(), &access).unwrap();
        rest.get::<Status>("/patroni").await.unwrap_err()
    };
    let wrong = Some(("rest".to_owned(), "wrong".to_owned()));
    let error = ask(Access { login: wrong, ..access.clone() }).await;
    assert!(matches!(error, RestError::Unknown { .. }) && !error.to_string().contains("wrong"), "{error}");
    assert!(matches!(ask(Access { identity: None, ..access.clone() }).await, RestError::Away { .. }));
    let other = directory.path().join("other.crt");
    std::fs::write(&other, ca().pem).unwrap();
    assert!(matches!(ask(Access { ca: Some(other), ..access.clone() }).await, RestError::Away { .. }));
    let gone = Access { ca: Some(directory.path().join("gone.crt")), ..access.clone() };
    let error = Rest::new(address.clone(), &gone).unwrap_err().to_string();
    assert!(error.contains("gone.crt"), "{error}");
    assert!(!format!("{access:?}").contains("s: cret"), "a password is printed: {access:?}");
}
