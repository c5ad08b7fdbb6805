//! Making the server go by the file that lies there: reload, and wait until that is certain.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Doing, Result, StepError};
use crate::pg::sql::Session;

/// How often is looked whether the reload has arrived.
const TICK: Duration = Duration::from_millis(1);
/// A postmaster that does not react for so long is stuck.
const LIMIT: Duration = Duration::from_secs(10);

const LOADED: &str = "SELECT (extract(epoch FROM pg_conf_load_time()) * 1000000)::bigint";
const RELOAD: &str = "SELECT pg_reload_conf()";
const HBA_ERRORS: &str = "SELECT 'line ' || line_number || ': ' || error FROM pg_hba_file_rules \
    WHERE error IS NOT NULL AND type IS NULL ORDER BY line_number";

/// Prepares what [`reload`] asks.
pub(super) async fn ready(session: &Session) -> Result<()> {
    let all = [LOADED, RELOAD, HBA_ERRORS].map(|sql| session.ready(sql));
    futures::future::try_join_all(all).await.map(drop).doing(|| "preparing to reload the configuration")
}

/// When the session's server last read its configuration, in microseconds since 1970. A reload reads postgresql.conf, signals
/// the children, and reads the rules for clients, in one handler of the single-threaded postmaster; a session knows of it by
/// the signal, and a new one from its birth.
pub(super) async fn load_time_us(session: &Session) -> Result<i64> {
    Ok(session.fetch_one(LOADED, &[]).await.doing(|| "reading when the configuration was loaded")?.get(0))
}

/// Makes the server read its files again, and waits until every connection that is accepted from now on goes by them.
///
/// # Errors
/// When the server does not react, or a file has an error: then it goes on by what it read before, and this says where.
pub(super) async fn reload(session: &Session) -> Result<()> {
    // A reload of somebody else's that is under way sends its signal before it reads the rules, so that one which read them
    // before the file was changed is in this time already.
    let before = load_time_us(session).await?;
    let doing = || "asking the server to reload its configuration";
    session.fetch(RELOAD, &[]).await.doing(doing)?;
    let begun = Instant::now();
    while load_time_us(session).await? <= before {
        if begun.elapsed() >= LIMIT {
            let evidence = errors(session).await?;
            return Err(StepError::new(format!(
                "the server did not reload its configuration within {} seconds; {}",
                LIMIT.as_secs(),
                evidence.first().map_or("its log says why", String::as_str)
            ))
            .with_evidence(evidence));
        }
        sleep(TICK).await;
    }
    let wrong = hba_errors(session).await?;
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(StepError::new(format!(
            "the server does not take its client authentication file and goes on by the rules it had before: {first}"
        ))
        .with_evidence(wrong)),
    }
}

/// Errors in the configuration files, the rules for clients included.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn errors(session: &Session) -> Result<Vec<String>> {
    let sql = "SELECT sourcefile || ' line ' || sourceline || ': ' || error FROM pg_file_settings \
               WHERE error IS NOT NULL AND error <> 'setting could not be applied' ORDER BY seqno";
    let rows = session.query(sql, &[]).await.doing(|| "looking for errors in the configuration")?;
    let mut errors: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    errors.extend(hba_errors(session).await?);
    Ok(errors)
}

/// Lines of the file that lies there now for which the server would refuse all of it. One that only cannot match (`hostssl`
/// without SSL) has an error too, but is parsed, and so has a type.
async fn hba_errors(session: &Session) -> Result<Vec<String>> {
    let rows = session
        .fetch(HBA_ERRORS, &[])
        .await
        .doing(|| "looking for errors in the client authentication file")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
