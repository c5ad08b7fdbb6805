//! PURE: the fleet file. Text in, a sound specification or the full list of faults out.
//!
//! It never looks at a host: what the declared nodes really are is a matter of [`crate::check`].

mod diff;
mod error;
mod many;
mod nodes;
mod policy;
mod read;
mod read_many;
mod read_traffic;
mod reader;
mod rules;
mod section;
mod spec;
mod suggest;
mod traffic;

pub use diff::diff;
pub use error::{Fault, FleetError};
pub use many::{WaveSpec, Who, WindowSpec, divide};
pub use policy::{Limits, Opening, Policy, Window, Zone};
pub use spec::{
    ClusterSpec, FleetSpec, HostSpec, LoginSpec, NewNodeSpec, NewSpec, OldNodeSpec, OldSpec, OptionsSpec,
    PatroniSpec, TablespaceSpec, ValidateSpec,
};
pub use traffic::{BalancerSpec, PoolerKind, PoolerSpec, TrafficSpec};

/// Reads and validates a fleet file. `source` is its name, for messages.
///
/// # Errors
/// All faults at once, each with line, column, key and cure.
pub fn parse(toml: &str, source: &str) -> Result<FleetSpec, FleetError> {
    let reader = reader::Reader::new(toml);
    let spec = read::fleet(&reader);
    if let Some(spec) = &spec {
        rules::apply(spec, &reader);
    }
    let faults = reader.into_faults();
    match spec {
        Some(spec) if faults.is_empty() => Ok(spec),
        _ => Err(FleetError { source: source.to_owned(), faults }),
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
