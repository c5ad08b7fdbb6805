//! Layout of new nodes: seed_dir and data_dir lie at the same place relative to each other on every new node, below one
//! parent other than `/`. The relink of replicas is one rsync of that parent's parts, as the pg_upgrade manual has it.

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::new_path;

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let mut first: Option<(Vec<&str>, Vec<&str>, String)> = None;
        for (n, node) in cluster.new.nodes.iter().enumerate() {
            let path = new_path(c, n);
            let key = format!("{path}.data_dir");
            let unusable = |key: &str, value: &str| value.is_empty() || reader.is_faulty(key);
            if unusable(&key, &node.data_dir) || unusable(&format!("{path}.seed_dir"), &node.seed_dir) {
                continue;
            }
            let Some((seed, data)) = below_parent(&node.seed_dir, &node.data_dir) else {
                let message =
                    format!("{} and the seed_dir {} have no parent but /", node.data_dir, node.seed_dir);
                reader.fault(&key, message, "put both below one directory of one file system");
                continue;
            };
            match &first {
                None => first = Some((seed, data, key)),
                Some((seed_of_first, data_of_first, leader))
                    if (&seed, &data) != (seed_of_first, data_of_first) =>
                {
                    let message = format!(
                        "seed_dir and data_dir lie at {} and {} below their common parent, but at {} and {} for the new \
                         leader ({})",
                        seed.join("/"),
                        data.join("/"),
                        seed_of_first.join("/"),
                        data_of_first.join("/"),
                        reader.line(leader),
                    );
                    reader.fault(&key, message, "use the same layout below the parent on every new node");
                }
                Some(_) => {}
            }
            let mut froms: Vec<&str> = Vec::new();
            for (t, tablespace) in node.tablespaces.iter().enumerate() {
                if froms.contains(&tablespace.from.as_str()) {
                    let message = format!("{} is mapped twice", tablespace.from);
                    reader.fault(&format!("{path}.tablespaces[{t}].from"), message, "keep one of them");
                }
                froms.push(&tablespace.from);
            }
        }
    }
}

/// Both paths below their nearest common parent; none when that is `/`.
fn below_parent<'p>(seed: &'p str, data: &'p str) -> Option<(Vec<&'p str>, Vec<&'p str>)> {
    let seed: Vec<&str> = seed.trim_start_matches('/').split('/').collect();
    let data: Vec<&str> = data.trim_start_matches('/').split('/').collect();
    let common = seed.iter().zip(&data).take_while(|(a, b)| a == b).count();
    let below = |path: Vec<&'p str>| path.into_iter().skip(common).collect();
    (common > 0).then(|| (below(seed), below(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found() {
        assert_eq!(below_parent("/v/15/x", "/v/18/x"), Some((vec!["15", "x"], vec!["18", "x"])));
        assert_eq!(below_parent("/a/x", "/b/x"), None);
    }
}
