//! What a fleet file says about many operations at once: `[limits]`, `[[window]]` and `[[wave]]`.

use serde::{Deserialize, Serialize};

/// Days as the file names them.
pub(super) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A maintenance window.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WindowSpec {
    /// For these; without any, for all clusters that no other window names.
    pub clusters: Vec<String>,
    /// On which it begins; without any, every day.
    pub days: Vec<String>,
    /// Minute of the day at which it opens.
    pub from: u16,
    /// Minute of the day at which it closes; the next day's when it is not after `from`.
    pub to: u16,
    /// IANA name of the time zone.
    pub zone: String,
}

/// One of the waves in which many clusters are upgraded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WaveSpec {
    /// Who is in it.
    pub who: Who,
    /// How long its operations have to stand at their gate before the next wave begins, in milliseconds.
    pub soak_ms: u64,
}

/// Who is in a wave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// These clusters.
    Clusters(Vec<String>),
    /// So many percent of the clusters that are started, rounded up, of those that no wave names, in the order of the file.
    Percent(u32),
    /// All that are left.
    Rest,
}

impl Default for Who {
    fn default() -> Self {
        Who::Clusters(Vec::new())
    }
}

/// Clusters and soak time of each wave that has any, when these clusters are started, given in the order of the file. Without waves, all
/// at once.
pub fn divide(waves: &[WaveSpec], clusters: &[String]) -> Vec<(Vec<String>, u64)> {
    let named = |name: &String| {
        waves.iter().any(|wave| matches!(&wave.who, Who::Clusters(names) if names.contains(name)))
    };
    let mut free: Vec<String> = clusters.iter().filter(|name| !named(name)).cloned().collect();
    let mut divided = Vec::new();
    for wave in waves {
        let taken = match &wave.who {
            Who::Clusters(names) => clusters.iter().filter(|name| names.contains(name)).cloned().collect(),
            Who::Percent(percent) => {
                let share = (clusters.len() * usize::try_from(*percent).unwrap_or(100)).div_ceil(100);
                free.drain(..share.min(free.len())).collect()
            }
            Who::Rest => std::mem::take(&mut free),
        };
        divided.push((taken, wave.soak_ms));
    }
    if !free.is_empty() {
        divided.push((free, 0));
    }
    divided.retain(|(clusters, _): &(Vec<String>, u64)| !clusters.is_empty());
    divided
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canary_then_a_share_then_the_rest() {
        let names = |range: std::ops::Range<u32>| range.map(|n| format!("c{n:02}")).collect::<Vec<_>>();
        let wave = |who, soak_ms| WaveSpec { who, soak_ms };
        let waves = [
            wave(Who::Clusters(vec!["c03".into(), "c90".into()]), 7),
            wave(Who::Percent(5), 8),
            wave(Who::Rest, 0),
        ];
        let divided = divide(&waves, &names(0..41));
        assert_eq!(divided[0], (vec!["c03".to_owned()], 7));
        // 5 % of 41 are 2.05.
        assert_eq!(divided[1], (vec!["c00".to_owned(), "c01".to_owned(), "c02".to_owned()], 8));
        assert_eq!(divided.iter().map(|(clusters, _)| clusters.len()).sum::<usize>(), 41);
        assert_eq!(divided[2].0[0], "c04");
        // Waves without anybody are none.
        assert_eq!(divide(&waves, &names(3..4)), [(names(3..4), 7)]);
        assert_eq!(divide(&[], &names(0..3)), [(names(0..3), 0)]);
    }
}
