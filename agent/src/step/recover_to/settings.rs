//! What the new leader is started with: the target, and everything that must not happen between its promotion and its
//! upgrade.

use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};

use super::fence_path;
use crate::context::Context;
use crate::error::{Doing, Result};
use crate::fence::schedulers::stem;
use crate::pg::settings::configured;
use crate::pg::{hba, standby};

/// Libraries that start jobs by themselves as soon as a server is promoted. What they would write here is not on the
/// old leader.
const SCHEDULERS: [&str; 2] = ["pg_cron", "pg_partman_bgw"];

/// Writes the client authentication that keeps clients out; none when the node's own cannot be narrowed, which is told.
pub(super) async fn write_fence(cx: &Context, node: &Node) -> Result<Option<String>> {
    let original = configured(node, "hba_file").await?;
    let text = tokio::fs::read_to_string(&original).await.doing(|| original.clone())?;
    let kept = hba::Kept { superuser: node.superuser.clone(), logins: Vec::new(), major: node.major };
    let fenced = match hba::narrowed(&text, &kept, &hba::Answers::new()) {
        Ok(lines) => {
            format!("# Written by pgleap for the time of a conversion: clients are kept out.\n{lines}")
        }
        Err(refused) => {
            cx.report.log(
                "pgleap",
                format!(
                    "{original}: {refused}. Until then clients are not kept out of node {} while it is converted: make \
                     sure that none connects to it",
                    node.name
                ),
            );
            return Ok(None);
        }
    };
    let path = fence_path(cx, node);
    if let Some(parent) = path.parent() {
        crate::durable::private_directory(parent).doing(|| parent.display().to_string())?;
    }
    crate::durable::write(&path, fenced.as_bytes()).doing(|| format!("writing {}", path.display()))?;
    Ok(Some(path.to_string_lossy().into_owned()))
}

/// Removes it.
pub(super) fn remove_fence(cx: &Context, node: &Node) -> Result<()> {
    let path = fence_path(cx, node);
    if !path.exists() {
        return Ok(());
    }
    crate::durable::remove(&path).doing(|| format!("removing {}", path.display()))
}

/// The settings, in the order in which they have to stand.
pub(super) async fn of(
    node: &Node,
    upstream: &Conninfo,
    slot: &str,
    target: Lsn,
    hba: Option<&str>,
) -> Result<Vec<(&'static str, String)>> {
    let libraries = configured(node, "shared_preload_libraries").await?;
    let mut settings: Vec<(&'static str, String)> =
        standby::start_settings().into_iter().map(|(k, v)| (k, v.to_owned())).collect();
    settings.extend(fixed(node.major, target).into_iter().map(|(k, v)| (k, v.to_owned())));
    settings.push(("recovery_target_lsn", target.to_string()));
    settings.push(("primary_conninfo", standby::primary_conninfo(node, upstream)));
    settings.push(("primary_slot_name", slot.to_owned()));
    if let Some(without) = without_schedulers(&libraries) {
        settings.push(("shared_preload_libraries", without));
    }
    if let Some(hba) = hba {
        settings.push(("hba_file", hba.to_owned()));
    }
    Ok(settings)
}

fn fixed(major: u32, target: Lsn) -> Vec<(&'static str, &'static str)> {
    debug_assert!(target.is_valid());
    let mut settings = vec![
        // The other targets, before the LSN: an empty one in a file would otherwise be "multiple recovery targets"
        // (xlogrecovery.c, assign hooks), and once the LSN is set even emptying one is refused.
        ("recovery_target", ""),
        ("recovery_target_name", ""),
        ("recovery_target_time", ""),
        ("recovery_target_xid", ""),
        ("recovery_target_inclusive", "off"),
        ("recovery_target_action", "promote"),
        ("recovery_end_command", ""),
        // Inherited subscriptions would start to apply at the promotion.
        ("max_logical_replication_workers", "0"),
        // The names were meant for the old leader's standbys: nobody would ever confirm a commit here.
        ("synchronous_standby_names", ""),
    ];
    if major <= 15 {
        settings.push(("promote_trigger_file", ""));
    }
    if major >= 17 {
        settings.push(("sync_replication_slots", "off"));
        settings.push(("synchronized_standby_slots", ""));
    }
    if major >= 18 {
        settings.push(("idle_replication_slot_timeout", "0"));
    }
    settings
}

/// The list without schedulers; none when there is no need to change it.
fn without_schedulers(libraries: &str) -> Option<String> {
    let all: Vec<&str> = libraries.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let is_scheduler = |name: &str| SCHEDULERS.contains(&stem(name.trim_matches('"')));
    let kept: Vec<&str> = all.iter().copied().filter(|name| !is_scheduler(name)).collect();
    (kept.len() < all.len()).then(|| kept.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_do_not_start_and_other_libraries_do() {
        assert_eq!(without_schedulers(""), None);
        assert_eq!(without_schedulers("pg_stat_statements"), None);
        assert_eq!(
            without_schedulers("pg_stat_statements, $libdir/pg_cron,\"auto_explain\""),
            Some("pg_stat_statements, \"auto_explain\"".to_owned())
        );
        assert_eq!(without_schedulers("pg_cron"), Some(String::new()));
    }

    #[test]
    fn settings_exist_in_the_major_they_are_given_to() {
        let names = |major| fixed(major, Lsn(1)).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(15).contains(&"promote_trigger_file"));
        assert!(!names(16).contains(&"promote_trigger_file"));
        assert!(!names(16).contains(&"sync_replication_slots"));
        assert!(names(18).contains(&"idle_replication_slot_timeout"));
    }
}
