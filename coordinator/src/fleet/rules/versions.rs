//! Versions: the new major is newer than the old one, and each has its own binaries.

use super::super::reader::Reader;
use super::super::spec::FleetSpec;

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let (old, new) = (cluster.old.version, cluster.new.version);
        let path = format!("cluster[{c}].new.version");
        if old > 0 && new > 0 && new <= old {
            let message = format!("{new} is not newer than the old version {old}");
            reader.fault(&path, message, format!("write a major above {old}"));
        }
        let bin_dir = &cluster.new.bin_dir;
        let path = format!("cluster[{c}].new.bin_dir");
        if !bin_dir.is_empty() && (bin_dir == &cluster.old.bin_dir || bin_dir == &cluster.new.old_bin_dir) {
            let message = format!("{bin_dir} is also given as the directory of the old binaries");
            reader.fault(&path, message, format!("name the directory of PostgreSQL {new}'s programs"));
        }
    }
}
