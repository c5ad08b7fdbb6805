//! A hook that is an HTTP server: one POST an event, over a connection of its own. No TLS: it is meant for this host.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Answer;
use crate::error::{Doing, Result, StepError};

/// Longest answer that is read.
const BODY: usize = 64 * 1024;
/// How much of a refusal is told.
const SAID: usize = 500;

/// Posts it once.
///
/// # Errors
/// When nobody answers in time, or with anything but 200 or 409.
pub(super) async fn send(address: &str, message: Vec<u8>, limit: Duration) -> Result<Answer> {
    let answered = tokio::time::timeout(limit, post(address, message)).await;
    answered
        .map_err(|_| StepError::new(format!("{address} did not answer within {} ms", limit.as_millis())))?
}

async fn post(address: &str, message: Vec<u8>) -> Result<Answer> {
    let doing = || format!("POST {address}");
    let uri: Uri = address.parse().doing(doing)?;
    let authority =
        uri.authority().ok_or_else(|| StepError::new(format!("{address} names no host")))?.clone();
    // An IPv6 address stands in brackets in a URL only.
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await.doing(doing)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.doing(doing)?;
    let driving = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(HOST, authority.as_str().rsplit('@').next().unwrap_or_default())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(message)))
        .doing(doing)?;
    let response = sender.send_request(request).await.doing(doing)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY).collect().await;
    driving.abort();
    let body = body.map_err(|error| StepError::new(format!("{}: {error}", doing())))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    match status {
        StatusCode::OK => Ok(Answer::Done(text)),
        StatusCode::CONFLICT => Ok(Answer::Busy(text)),
        other => {
            let said: String = text.trim().chars().take(SAID).collect();
            Err(StepError::new(format!("{address} answered {other}: {said}")))
        }
    }
}
