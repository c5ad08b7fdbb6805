//! The part of a fleet file that says what was found: TOML to be reviewed, with comments where somebody has to look.

use std::fmt::Write as _;

use super::found::{Found, FoundMember};

/// Where agents listen unless they are told otherwise.
const AGENT_PORT: u16 = 7432;

/// As TOML. What nobody told is a comment in its place, so that `fleet apply` names it until it is filled in.
pub fn toml(found: &Found, source: &str) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, found, source);
    out
}

fn write(out: &mut String, found: &Found, source: &str) -> std::fmt::Result {
    writeln!(
        out,
        "# Cluster {} as {source} told it. Review it, fill in what stands in comments, and add",
        found.scope
    )?;
    writeln!(out, "# [fleet] and the new side; then: pgleap fleet apply FILE")?;
    if !found.patroni_versions.is_empty() {
        writeln!(out, "# Patroni {}", found.patroni_versions.join(", "))?;
    }
    if !found.store.is_empty() {
        writeln!(out, "# DCS: {}, namespace {}", found.store, found.namespace)?;
    }
    for note in &found.notes {
        writeln!(out, "# NOTE: {}", note.replace('\n', " "))?;
    }
    for member in &found.members {
        writeln!(
            out,
            "\n[[host]]\nname = {}   # a guess: as in the certificate of its agent",
            quoted(&member.name)
        )?;
        let agent =
            pgleap_proto::patroni::Address { tls: false, host: member.address.clone(), port: AGENT_PORT };
        writeln!(out, "agent = {}   # a guess: where its agent listens", quoted(&agent.place()))?;
    }
    writeln!(out, "\n[[cluster]]\nname = {}\n\n[cluster.old]", quoted(&found.scope))?;
    match found.major {
        0 => writeln!(out, "# version = 15   # no member runs")?,
        major => writeln!(out, "version = {major}")?,
    }
    let example = format!("/usr/lib/postgresql/{}/bin", if found.major == 0 { 15 } else { found.major });
    key(out, "bin_dir", &found.bin_dir, &example, "")?;
    key(out, "superuser", &found.superuser, "postgres", "")?;
    let replicator = if found.replicator.is_empty() { "replicator" } else { &found.replicator };
    writeln!(
        out,
        "replication = {{ user = {}, passfile = \"/var/lib/postgresql/.pgpass\" }}   # the passfile is on the new hosts; look whether it is there",
        quoted(replicator)
    )?;
    writeln!(out, "\n[cluster.old.patroni]\nscope = {}", quoted(&found.scope))?;
    for member in &found.members {
        node(out, member)?;
    }
    let new = if found.major == 0 { 18 } else { found.major.max(17) + 1 };
    writeln!(
        out,
        "\n# [cluster.new]\n# version = {new}\n# bin_dir = \"/usr/lib/postgresql/{new}/bin\"\n#\n# [[cluster.new.node]]   # the first one becomes the new leader\n\
         # name = …, host = …, port, socket_dir, seed_dir and data_dir: see the README"
    )
}

fn node(out: &mut String, member: &FoundMember) -> std::fmt::Result {
    let role = if member.role.is_empty() { "its role is unknown" } else { &member.role };
    let tags =
        if member.tags.is_empty() { String::new() } else { format!("; tags: {}", member.tags.join(", ")) };
    writeln!(out, "\n[[cluster.old.node]]   # {role}{tags}")?;
    writeln!(out, "name = {}\nhost = {}", quoted(&member.name), quoted(&member.name))?;
    key(out, "address", &member.address, "10.0.0.1", "")?;
    match member.port {
        0 => writeln!(out, "# port = 5432   # nobody told")?,
        port => writeln!(out, "port = {port}")?,
    }
    let assumed =
        if member.assumed { "   # taken from another member's file: look whether it is so here" } else { "" };
    key(out, "socket_dir", &member.socket_dir, "/var/run/postgresql", assumed)?;
    key(out, "data_dir", &member.data_dir, "/var/lib/postgresql/15/main", assumed)?;
    if !member.config_file.is_empty() {
        key(out, "config_file", &member.config_file, "", assumed)?;
    }
    key(out, "rest", &member.rest, "http://10.0.0.1:8008", "")
}

fn key(out: &mut String, key: &str, value: &str, example: &str, comment: &str) -> std::fmt::Result {
    if value.is_empty() {
        return writeln!(out, "# {key} = {}   # nobody told: fill it in", quoted(example));
    }
    writeln!(out, "{key} = {}{comment}", quoted(value))
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
