//! Preloaded libraries exist for both majors on every new host.

use super::{Check, Problem, Verdict, View, faces, few, setting};

pub(super) const CHECK: Check = Check {
    name: "preload-libraries",
    why: "A server whose preload libraries are missing does not start.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let lists = ["shared_preload_libraries", "session_preload_libraries"];
    let wanted: Vec<String> = lists
        .iter()
        .flat_map(|name| setting(server, name).split(','))
        .map(|library| {
            library.trim().trim_matches('"').trim_start_matches("$libdir/").trim_end_matches(".so")
        })
        // A path of its own is nothing that the list of installed libraries could tell of.
        .filter(|library| !library.is_empty() && !library.contains('/'))
        .map(str::to_owned)
        .collect();
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.new {
        for (facts, _) in faces(view, node) {
            let Some(binaries) = facts.binaries.as_ref().filter(|b| !b.libraries_available.is_empty()) else {
                continue;
            };
            seen = true;
            let missing: Vec<&String> =
                wanted.iter().filter(|library| !binaries.libraries_available.contains(library)).collect();
            if !missing.is_empty() {
                problems.push(Problem::error(
                    format!("{} on host {}", binaries.bin_dir, node.spec.host),
                    format!("preloaded libraries are not installed: {}", few(&missing)),
                    format!(
                        "install their packages for PostgreSQL {}, or take them out of shared_preload_libraries",
                        binaries.version_num / 10_000
                    ),
                ));
            }
        }
    }
    (seen || wanted.is_empty()).then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn a_missing_library() {
        let mut case = healthy();
        case.cluster.new.nodes.truncate(1);
        case.set(0, "shared_preload_libraries", "pg_stat_statements, $libdir/auto_explain.so, /opt/x/y.so");
        case.seed(0).binaries.as_mut().unwrap().libraries_available.push("auto_explain".into());
        case.expect(
            "preload-libraries",
            Error,
            "/usr/lib/postgresql/18/bin on host db3: preloaded libraries are not installed: auto_explain",
        );
    }
}
