//! PostgreSQL's minor releases come in sets: on one day every supported major gets one. What a newer set writes into
//! catalogs, an older set of a newer major may not understand.

/// The sets, oldest first: date and, by major, the minor. From the release notes of each major; the last one is
/// incomplete, as not all of its minors were seen when this was written.
const SETS: &[(&str, &[(u32, u32)])] = &[
    ("2024-08-08", &[(13, 16), (14, 13), (15, 8), (16, 4)]),
    ("2024-11-14", &[(13, 17), (14, 14), (15, 9), (16, 5), (17, 1)]),
    ("2024-11-21", &[(13, 18), (14, 15), (15, 10), (16, 6), (17, 2)]),
    ("2025-02-13", &[(13, 19), (14, 16), (15, 11), (16, 7), (17, 3)]),
    ("2025-02-20", &[(13, 20), (14, 17), (15, 12), (16, 8), (17, 4)]),
    ("2025-05-08", &[(13, 21), (14, 18), (15, 13), (16, 9), (17, 5)]),
    ("2025-08-14", &[(13, 22), (14, 19), (15, 14), (16, 10), (17, 6)]),
    ("2025-11-13", &[(13, 23), (14, 20), (15, 15), (16, 11), (17, 7), (18, 1)]),
    ("2026-02-12", &[(14, 21), (15, 16), (16, 12), (17, 8), (18, 2)]),
    ("2026-02-26", &[(14, 22), (15, 17), (16, 13), (17, 9), (18, 3)]),
    ("2026-05-14", &[(14, 23), (15, 18), (16, 14), (17, 10), (18, 4)]),
    ("2026-08-13", &[(14, 24), (15, 19), (16, 15), (17, 11), (18, 6)]),
    ("2026-11-12", &[(15, 20), (17, 12)]),
];

/// From this set on new tables carry column options (`pg_attver`) that older sets refuse: 15.20 and 17.12 to 18.6 fail
/// in pg_upgrade's schema restore.
const FIRST_WITH_COLUMN_OPTIONS: usize = 12;

/// Where a version stands among the sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Release {
    /// Number of its set, counted from the oldest one known; later ones are counted on.
    pub set: usize,
    /// Whether the set is known rather than counted.
    pub known: bool,
}

/// Of a `server_version_num`-like number such as 150018. Majors without any known minor have no place.
pub(super) fn release(version_num: u32) -> Option<Release> {
    let (major, minor) = (version_num / 10_000, version_num % 10_000);
    let of_major = || {
        SETS.iter().enumerate().filter_map(|(set, (_, minors))| {
            minors.iter().find(|(m, _)| *m == major).map(|(_, minor)| (set, *minor))
        })
    };
    let (last_set, last_minor) = of_major().next_back()?;
    if let Some((set, at)) = of_major().find(|(_, listed)| minor <= *listed) {
        return Some(Release { set, known: at == minor });
    }
    Some(Release { set: last_set + (minor - last_minor) as usize, known: false })
}

/// Date of a set, as far as it is known.
pub(super) fn date(set: usize) -> Option<&'static str> {
    SETS.get(set).map(|(date, _)| *date)
}

/// Whether a release knows the column options of the newer sets.
pub(super) fn knows_column_options(release: Release) -> bool {
    release.set >= FIRST_WITH_COLUMN_OPTIONS
}

/// The newest minor known of a major, as a version number.
pub(super) fn newest(major: u32) -> Option<u32> {
    let minors = SETS.iter().flat_map(|(_, minors)| minors.iter());
    minors.filter(|(m, _)| *m == major).map(|(major, minor)| major * 10_000 + minor).max()
}

/// `150018` -> `15.18`.
pub(super) fn shown(version_num: u32) -> String {
    format!("{}.{}", version_num / 10_000, version_num % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn older(old: u32, new: u32) -> bool {
        release(new).unwrap().set < release(old).unwrap().set
    }

    #[test]
    fn pairs_that_were_tried() {
        for (old, new) in [(150_018, 180_006), (150_018, 170_011), (130_016, 180_006)] {
            assert!(!older(old, new), "{old} -> {new}");
        }
        for (old, new) in [(150_020, 180_006), (170_012, 180_006)] {
            assert!(older(old, new), "{old} -> {new}");
            assert!(
                knows_column_options(release(old).unwrap()) && !knows_column_options(release(new).unwrap())
            );
        }
    }

    #[test]
    fn what_is_not_listed_is_counted_on_or_between() {
        assert_eq!(release(180_005), Some(Release { set: 11, known: false }));
        assert_eq!(release(180_007), Some(Release { set: 12, known: false }));
        assert_eq!(release(150_001), Some(Release { set: 0, known: false }));
        assert_eq!(release(190_000), None);
        assert_eq!(newest(15), Some(150_020));
        assert_eq!(shown(150_018), "15.18");
    }

    #[test]
    fn minors_only_grow() {
        for major in 13..=18 {
            let minors: Vec<u32> = SETS
                .iter()
                .filter_map(|(_, minors)| minors.iter().find(|(m, _)| *m == major).map(|(_, minor)| *minor))
                .collect();
            assert!(minors.is_sorted_by(|a, b| a < b), "{major}: {minors:?}");
        }
        assert_eq!(date(FIRST_WITH_COLUMN_OPTIONS), Some("2026-11-12"));
        assert!(SETS.iter().map(|(date, _)| date).is_sorted());
    }
}
