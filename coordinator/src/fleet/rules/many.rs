//! Many operations at once: windows have a length and a zone, waves name clusters that exist, each once, and the last one is the rest.

use std::collections::BTreeMap;

use super::super::many::Who;
use super::super::policy::zone;
use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::super::suggest::nearest;

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    if spec.limits.per_rack.is_some() && spec.hosts.iter().all(|host| host.rack.is_none()) {
        let cure = "add rack = \"...\" to the hosts, or remove it";
        reader.fault("limits.per_rack", "no host has a rack, so this would bound nothing", cure);
    }
    for (n, window) in spec.windows.iter().enumerate() {
        exist(spec, reader, &format!("window[{n}].clusters"), &window.clusters);
        let path = format!("window[{n}].zone");
        if !window.zone.is_empty() && !reader.is_faulty(&path) && zone(&window.zone).is_none() {
            let message = format!("\"{}\" is no time zone", window.zone);
            reader.fault(&path, message, "write an IANA name, for example \"Europe/Zurich\" or \"UTC\"");
        }
        let path = format!("window[{n}].to");
        let faulty = reader.is_faulty(&path) || reader.is_faulty(&format!("window[{n}].from"));
        if window.from == window.to && !faulty {
            let cure = "write from = \"00:00\" and to = \"24:00\" for whole days";
            reader.fault(&path, "it closes when it opens", cure);
        }
    }
    let mut named: BTreeMap<&str, String> = BTreeMap::new();
    for (n, wave) in spec.waves.iter().enumerate() {
        let last = n + 1 == spec.waves.len();
        let path = format!("wave[{n}]");
        match &wave.who {
            Who::Clusters(clusters) => {
                let path = format!("{path}.clusters");
                exist(spec, reader, &path, clusters);
                for cluster in clusters {
                    match named.get(cluster.as_str()) {
                        Some(other) => {
                            let message =
                                format!("{cluster} is in the wave on {} already", reader.line(other));
                            reader.fault(&path, message, "name each cluster in one wave");
                        }
                        None => drop(named.insert(cluster.as_str(), path.clone())),
                    }
                }
            }
            Who::Rest if !last => {
                let cure = "move it to the end, or use percent";
                reader.fault(&format!("{path}.rest"), "after the rest nobody is left for later waves", cure);
            }
            Who::Percent(_) | Who::Rest => {}
        }
        if last && wave.who != Who::Rest && !reader.is_faulty(&format!("{path}.clusters")) {
            let cure = "end with [[wave]] and rest = true";
            reader.fault(&path, "the last wave is not the rest, so clusters might be in no wave", cure);
        }
    }
}

fn exist(spec: &FleetSpec, reader: &Reader<'_>, path: &str, clusters: &[String]) {
    let known: Vec<&str> = spec.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    let Some(unknown) = clusters.iter().find(|name| !known.contains(&name.as_str())) else { return };
    let cure = match nearest(unknown, &known) {
        Some(meant) => format!("did you mean {meant}?"),
        None => "name a [[cluster]] of this file".to_owned(),
    };
    reader.fault(path, format!("there is no cluster \"{unknown}\""), cure);
}
