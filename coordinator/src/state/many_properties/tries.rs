//! What is tried in a random history of many operations, and on what they run.

use super::*;

pub(super) const CLUSTERS: usize = 7;
pub(super) const PHASES: [Phase; 6] =
    [Phase::Check, Phase::Seed, Phase::Convert, Phase::Upgrade, Phase::Replicate, Phase::Route];
pub(super) const HOUR: i64 = 3600;

/// The hosts of each cluster, the limits, and whether there is a window.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) hosts: Vec<[usize; 2]>,
    pub(super) operations: Option<u32>,
    pub(super) per_rack: Option<u32>,
    pub(super) windows: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Try {
    /// All clusters that are free, in waves cut at these places.
    Rollout {
        cuts: [usize; 2],
        soak_hours: u64,
    },
    One {
        cluster: usize,
    },
    Start {
        cluster: usize,
    },
    /// Of one operation, or of the one that is admissible.
    Admit {
        op: usize,
        rightly: bool,
    },
    NotReady {
        op: usize,
    },
    Step {
        op: usize,
        ok: bool,
    },
    Any {
        op: usize,
        step: usize,
    },
    ToGate {
        op: usize,
    },
    Cancel {
        op: usize,
    },
    Retry {
        op: usize,
    },
    Finish {
        op: usize,
    },
    Disturb {
        op: usize,
    },
    Begin {
        op: usize,
        to: Side,
    },
    Hold {
        op: usize,
        at: Option<Phase>,
    },
    Proceed {
        op: usize,
    },
    HoldRollout {
        n: usize,
    },
    ProceedRollout {
        n: usize,
    },
    CancelRollout {
        n: usize,
    },
    Hours {
        hours: i64,
    },
}

pub(super) fn any_setup() -> impl Strategy<Value = Setup> {
    let hosts = prop::collection::vec((0..12usize, 0..12usize).prop_map(|(a, b)| [a, b]), CLUSTERS);
    (hosts, prop::option::of(1..4u32), prop::option::of(1..3u32), any::<bool>())
        .prop_map(|(hosts, operations, per_rack, windows)| Setup { hosts, operations, per_rack, windows })
}

pub(super) fn any_try() -> impl Strategy<Value = Try> {
    let op = 0..16usize;
    let phase = prop::option::of(prop::sample::select(PHASES.to_vec()));
    prop_oneof![
        2 => ([0..CLUSTERS, 0..CLUSTERS], 0..30u64).prop_map(|(cuts, soak_hours)| Try::Rollout { cuts, soak_hours }),
        2 => (0..CLUSTERS).prop_map(|cluster| Try::One { cluster }),
        1 => (0..CLUSTERS).prop_map(|cluster| Try::Start { cluster }),
        10 => (op.clone(), prop::bool::weighted(0.7)).prop_map(|(op, rightly)| Try::Admit { op, rightly }),
        1 => op.clone().prop_map(|op| Try::NotReady { op }),
        8 => (op.clone(), prop::bool::weighted(0.9)).prop_map(|(op, ok)| Try::Step { op, ok }),
        2 => (op.clone(), 0..6usize).prop_map(|(op, step)| Try::Any { op, step }),
        5 => op.clone().prop_map(|op| Try::ToGate { op }),
        1 => op.clone().prop_map(|op| Try::Cancel { op }),
        2 => op.clone().prop_map(|op| Try::Retry { op }),
        2 => op.clone().prop_map(|op| Try::Finish { op }),
        1 => op.clone().prop_map(|op| Try::Disturb { op }),
        2 => (op.clone(), any::<bool>()).prop_map(|(op, new)| Try::Begin { op, to: if new { Side::New } else { Side::Old } }),
        2 => (op.clone(), phase).prop_map(|(op, at)| Try::Hold { op, at }),
        2 => op.prop_map(|op| Try::Proceed { op }),
        1 => (0..3usize).prop_map(|n| Try::HoldRollout { n }),
        2 => (0..3usize).prop_map(|n| Try::ProceedRollout { n }),
        1 => (0..3usize).prop_map(|n| Try::CancelRollout { n }),
        4 => (1..12i64).prop_map(|hours| Try::Hours { hours }),
    ]
}
