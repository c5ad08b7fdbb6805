//! Sessions that print every value alike on every major, kept for a few seconds between requests.
//!
//! A chunk takes tens of milliseconds and a connection a good part of that, so a session is used again while a
//! validation runs. One that is abandoned in mid-statement is cancelled on the server: nothing goes on reading for nobody.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pgleap_proto::node::Node;
use tokio::time::Instant;
use tokio_postgres::NoTls;

use crate::error::{Doing, Result};
use crate::pg::sql::{self, Session};

/// How long an unused session is kept. Short: an idle session delays DROP DATABASE and a smart shutdown.
const KEEP: Duration = Duration::from_secs(10);

/// Everything that changes how a value is printed (all majors from 13), and what keeps a reader out of the way:
/// no parallel workers, no JIT, no server-side limits that fit web requests better than scans.
const SETTINGS: &str = "SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; \
    SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content'; \
    SET quote_all_identifiers = off; SET jit = off; SET max_parallel_workers_per_gather = 0; \
    SET default_transaction_deferrable = off; SET row_security = off; SET search_path = ''";

/// Those that only later majors know: (first major, statement).
const LATER_SETTINGS: [(u32, &str); 3] = [
    (14, "SET client_connection_check_interval = '10s'"),
    (14, "SET idle_session_timeout = 0"),
    (17, "SET transaction_timeout = 0"),
];

static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

struct Idle {
    place: Place,
    session: Session,
    since: Instant,
}

/// Which database a session belongs to.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    socket_dir: String,
    port: u32,
    superuser: String,
    database: String,
}

/// A session lent for one request. Give it [`back`](Lease::back) when the request is done; otherwise its statement is cancelled
/// and it is closed.
pub struct Lease {
    place: Place,
    session: Option<Session>,
}

/// Lends a session of that database.
///
/// # Errors
/// As [`sql::connect`], or when a setting is refused.
pub async fn lease(node: &Node, database: &str) -> Result<Lease> {
    let place = Place {
        socket_dir: node.socket_dir.clone(),
        port: node.port,
        superuser: node.superuser.clone(),
        database: database.to_owned(),
    };
    if let Some(session) = take(&place) {
        return Ok(Lease { place, session: Some(session) });
    }
    let session = sql::connect(node, database).await?;
    let later = LATER_SETTINGS.iter().filter(|(major, _)| node.major >= *major).map(|(_, set)| *set);
    let settings = std::iter::once(SETTINGS).chain(later).collect::<Vec<_>>().join("; ");
    session.batch_execute(&settings).await.doing(|| {
        format!("preparing a session for row hashes in database \"{database}\" of node {}", node.name)
    })?;
    Ok(Lease { place, session: Some(session) })
}

fn take(place: &Place) -> Option<Session> {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    idle.retain(|i| i.since.elapsed() < KEEP && !i.session.is_closed());
    let at = idle.iter().position(|i| i.place == *place)?;
    Some(idle.swap_remove(at).session)
}

impl Lease {
    /// Ends the loan; the session may serve the next request.
    pub fn back(mut self) {
        let Some(session) = self.session.take() else { return };
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(Idle {
            place: self.place.clone(),
            session,
            since: Instant::now(),
        });
        // Whoever comes last closes what nobody fetched.
        tokio::spawn(async {
            tokio::time::sleep(KEEP + Duration::from_millis(100)).await;
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).retain(|i| i.since.elapsed() < KEEP);
        });
    }
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        match &self.session {
            Some(session) => session,
            // `session` is only taken by `back` and `drop`, which consume the lease.
            None => unreachable!("a lease holds its session until it is given back"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (Some(session), Ok(runtime)) = (self.session.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            // Nobody is left to tell; closing the session below ends it at the latest.
            let _ = session.cancel_token().cancel_query(NoTls).await;
        });
    }
}
