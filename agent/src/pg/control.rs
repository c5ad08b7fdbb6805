//! What `pg_controldata` says of a data directory.

use std::collections::HashMap;
use std::path::Path;

use pgleap_proto::Lsn;
use pgleap_proto::node::{ControlData, Node};

use super::program;
use crate::error::{Result, StepError};

/// Reads the control file of a data directory with the node's own `pg_controldata`, running or not.
///
/// # Errors
/// When the program fails (no such directory, another major's directory) or prints something unknown.
pub async fn read(node: &Node, data_dir: &Path) -> Result<ControlData> {
    let data_dir = data_dir.to_string_lossy();
    let printed = program(node, "pg_controldata").arg("-D").arg(data_dir.as_ref()).run().await?;
    parse(&printed.stdout).map_err(|missing| {
        StepError::new(format!("pg_controldata of {data_dir} printed no usable \"{missing}\""))
            .with_evidence(printed.stdout.lines())
    })
}

/// Labels as in `src/bin/pg_controldata/pg_controldata.c`; `LC_ALL=C` keeps them English.
fn parse(text: &str) -> std::result::Result<ControlData, &'static str> {
    let fields: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
    let text_of = |label: &'static str| fields.get(label).copied().ok_or(label);
    fn number<T: std::str::FromStr>(text: &str, label: &'static str) -> std::result::Result<T, &'static str> {
        text.parse().map_err(|_| label)
    }
    let number_of = |label| number::<u64>(text_of(label)?, label);
    let lsn_of = |label| number::<Lsn>(text_of(label)?, label);
    let small_of = |label| number::<u32>(text_of(label)?, label);
    Ok(ControlData {
        system_identifier: number_of("Database system identifier")?,
        state: text_of("Database cluster state")?.to_owned(),
        checkpoint_lsn: lsn_of("Latest checkpoint location")?.0,
        timeline: small_of("Latest checkpoint's TimeLineID")?,
        wal_segment_size: number_of("Bytes per WAL segment")?,
        data_checksum_version: small_of("Data page checksum version")?,
        catalog_version: small_of("Catalog version number")?,
        min_recovery_lsn: lsn_of("Minimum recovery ending location")?.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7439082316409839321
Database cluster state:               shut down in recovery
Latest checkpoint location:           0/2DFA9538
Latest checkpoint's TimeLineID:       2
Minimum recovery ending location:     0/2DFA95B0
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn reads_what_decides() {
        let control = parse(PRINTED).unwrap();
        assert_eq!(control.system_identifier, 7_439_082_316_409_839_321);
        assert_eq!(control.state, "shut down in recovery");
        assert_eq!(Lsn(control.checkpoint_lsn).to_string(), "0/2DFA9538");
        assert_eq!((control.timeline, control.data_checksum_version), (2, 1));
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(parse("Database cluster state: in production\n"), Err("Database system identifier"));
    }
}
