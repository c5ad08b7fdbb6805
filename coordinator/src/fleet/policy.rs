//! What a fleet file says about many operations at once, as it goes into the replicated log: limits, racks, maintenance windows.
//!
//! A time zone travels as its rules, not as its name: members whose time zone data differ must decide alike.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

use super::many::{DAYS, WindowSpec};
use super::spec::FleetSpec;

/// How far ahead the changes of a zone's offset are written down; a file that stays in force for longer keeps the last one.
const RULES_SECONDS: i64 = 15 * 366 * DAY;
const DAY: i64 = 86_400;
/// An opening is looked for this many days ahead: every window opens once a week, and a change of the clock may swallow one.
const AHEAD_DAYS: i64 = 15;

/// What bounds operations that run side by side. The default bounds nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// How many work at a time.
    pub limits: Limits,
    /// Rack of each host that has one.
    pub racks: BTreeMap<String, String>,
    /// When something may begin.
    pub windows: Vec<Window>,
}

/// How many operations work at a time; none for any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// In the whole fleet.
    pub operations: Option<u32>,
    /// With a host in the same rack.
    pub per_rack: Option<u32>,
}

/// A stretch of the week, by the clock of its zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// For these; without any, for all clusters that no other window names.
    pub clusters: Vec<String>,
    /// On which it begins, from Monday.
    pub days: [bool; 7],
    /// Minute of the day at which it opens.
    pub from: u16,
    /// Minute at which it closes; the next day's when it is not after `from`.
    pub to: u16,
    /// The clock it goes by.
    pub zone: Zone,
}

/// A time zone's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// For people: `Europe/Zurich`.
    pub name: String,
    /// Seconds east of Greenwich before the first change.
    pub offset: i32,
    /// From this second of the Unix epoch on, seconds east of Greenwich.
    pub changes: Vec<(i64, i32)>,
}

impl Policy {
    /// None when something may begin for this cluster; else when its next window opens.
    pub fn closed(&self, cluster: &str, at: Timestamp) -> Option<Opening> {
        let named = |window: &&Window| window.clusters.iter().any(|name| name == cluster);
        let own: Vec<&Window> = self.windows.iter().filter(named).collect();
        let windows = match own.is_empty() {
            true => self.windows.iter().filter(|window| window.clusters.is_empty()).collect(),
            false => own,
        };
        if windows.is_empty() || windows.iter().any(|window| window.is_open(at)) {
            return None;
        }
        let next = windows.iter().filter_map(|window| Some((window.opens(at)?, *window)));
        let (at, shown) = match next.min_by_key(|(opens, _)| *opens) {
            Some((opens, window)) => (Some(opens), window.zone.shown(opens)),
            None => (None, "never".to_owned()),
        };
        Some(Opening { at, shown })
    }
}

/// When a window opens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// None when it never does.
    pub at: Option<Timestamp>,
    /// By the window's own clock, for people.
    pub shown: String,
}

impl Window {
    /// As the file has it, with the zone's rules from `now` on.
    fn new(spec: &WindowSpec, now: Timestamp) -> Option<Window> {
        let days = DAYS.map(|day| spec.days.is_empty() || spec.days.iter().any(|one| one == day));
        let zone = Zone::new(&spec.zone, now)?;
        Some(Window { clusters: spec.clusters.clone(), days, from: spec.from, to: spec.to, zone })
    }

    /// Whether it is open at this moment.
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.open_at(at.as_second())
    }

    fn open_at(&self, second: i64) -> bool {
        let local = second + i64::from(self.zone.offset_at(second));
        let minute = local.rem_euclid(DAY) / 60;
        let (from, to) = (i64::from(self.from), i64::from(self.to));
        let begins = |day: i64| {
            // The epoch began on a Thursday.
            let day = usize::try_from((day + 3).rem_euclid(7)).unwrap_or_default();
            self.days.get(day).copied().unwrap_or_default()
        };
        let today = local.div_euclid(DAY);
        if from < to {
            begins(today) && (from..to).contains(&minute)
        } else {
            (begins(today) && minute >= from) || (begins(today - 1) && minute < to)
        }
    }

    /// The next moment at which it opens, when it is closed at `at`.
    fn opens(&self, at: Timestamp) -> Option<Timestamp> {
        let now = at.as_second();
        let end = now + AHEAD_DAYS * DAY;
        let changes = self.zone.changes.iter().filter(|(from, _)| (now - DAY..end).contains(from));
        // It opens when the clock comes to `from`, or jumps into it.
        let mut offsets = vec![self.zone.offset_at(now)];
        offsets.extend(changes.clone().map(|(_, offset)| *offset));
        let first = now.div_euclid(DAY) - 1;
        let by_clock = (first..first + AHEAD_DAYS).flat_map(|day| {
            let local = day * DAY + i64::from(self.from) * 60;
            offsets.iter().map(move |offset| local - i64::from(*offset)).collect::<Vec<_>>()
        });
        let moments = by_clock.chain(changes.map(|(from, _)| *from));
        let opens = moments.filter(|second| *second > now && self.open_at(*second)).min()?;
        Timestamp::from_second(opens).ok()
    }
}

impl Zone {
    fn new(name: &str, now: Timestamp) -> Option<Zone> {
        let zone = zone(name)?;
        let until = now.as_second() + RULES_SECONDS;
        // A little earlier: other members' clocks, and entries proposed before this one, are behind.
        let from = Timestamp::from_second(now.as_second() - 7 * DAY).ok()?;
        let changes = zone
            .following(from)
            .map(|change| (change.timestamp().as_second(), change.offset().seconds()))
            .take_while(|(second, _)| *second < until);
        Some(Zone {
            name: name.to_owned(),
            offset: zone.to_offset(from).seconds(),
            changes: changes.collect(),
        })
    }

    fn offset_at(&self, second: i64) -> i32 {
        let before = self.changes.iter().rev().find(|(from, _)| *from <= second);
        before.map_or(self.offset, |(_, offset)| *offset)
    }

    /// `Sat 2026-11-28 22:00 Europe/Zurich`
    fn shown(&self, at: Timestamp) -> String {
        let offset = jiff::tz::Offset::from_seconds(self.offset_at(at.as_second()));
        let local = offset.unwrap_or(jiff::tz::Offset::UTC).to_datetime(at);
        format!("{} {}", local.strftime("%a %Y-%m-%d %H:%M"), self.name)
    }
}

/// The zone of this IANA name, from the data in the program: a fleet file is sound or not, whatever the machine.
pub(super) fn zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

impl FleetSpec {
    /// What bounds operations, as it goes into the log at `now`.
    pub fn policy(&self, now: Timestamp) -> Policy {
        let racks = self.hosts.iter().filter_map(|host| Some((host.name.clone(), host.rack.clone()?)));
        let windows = self.windows.iter().filter_map(|window| Window::new(window, now));
        Policy { limits: self.limits, racks: racks.collect(), windows: windows.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn window(days: &[&str], from: u16, to: u16, zone: &str) -> Window {
        let spec = WindowSpec {
            clusters: Vec::new(),
            days: days.iter().map(|day| (*day).to_owned()).collect(),
            from,
            to,
            zone: zone.into(),
        };
        Window::new(&spec, at("2026-01-01T00:00:00Z")).unwrap()
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_begins_on() {
        let night = window(&["sat"], 22 * 60, 4 * 60, "Europe/Zurich");
        // 2026-11-28 is a Saturday; Zurich is an hour ahead.
        for (moment, open) in [
            ("2026-11-28T20:59:59Z", false),
            ("2026-11-28T21:00:00Z", true),
            ("2026-11-29T02:59:59Z", true),
            ("2026-11-29T03:00:00Z", false),
            ("2026-11-29T21:00:00Z", false),
            ("2026-11-27T23:00:00Z", false),
        ] {
            assert_eq!(night.is_open(at(moment)), open, "{moment}");
        }
        assert_eq!(night.opens(at("2026-11-29T03:00:00Z")), Some(at("2026-12-05T21:00:00Z")));
    }

    #[test]
    fn windows_go_by_the_clock_on_the_wall_when_it_changes() {
        // Clocks go from 02:00 to 03:00 on 2026-03-29, and from 03:00 to 02:00 on 2026-10-25.
        let early = window(&[], 2 * 60, 3 * 60, "Europe/Zurich");
        assert!(!early.is_open(at("2026-03-29T01:00:00Z")));
        assert_eq!(early.opens(at("2026-03-28T02:00:00Z")), Some(at("2026-03-30T00:00:00Z")));
        assert!(early.is_open(at("2026-10-25T00:30:00Z")) && early.is_open(at("2026-10-25T01:30:00Z")));
        // It jumps into the window.
        let late = window(&[], 2 * 60 + 30, 4 * 60, "Europe/Zurich");
        assert_eq!(late.opens(at("2026-03-29T00:00:00Z")), Some(at("2026-03-29T01:00:00Z")));
    }

    #[test]
    fn windows_of_a_cluster_take_the_place_of_those_of_the_fleet() {
        let fleet = window(&[], 0, 60, "UTC");
        let own = Window { clusters: vec!["shop".into()], ..window(&["mon"], 120, 1440, "UTC") };
        let policy = Policy { windows: vec![fleet, own], ..Policy::default() };
        let monday = at("2026-11-30T00:30:00Z");
        assert_eq!(policy.closed("ledger", monday), None);
        let closed = policy.closed("shop", monday).unwrap();
        assert_eq!(closed.shown, "Mon 2026-11-30 02:00 UTC");
        assert_eq!(policy.closed("shop", at("2026-11-30T23:59:59Z")), None);
        assert_eq!(Policy::default().closed("shop", monday), None);
        let only = Policy { windows: policy.windows.into_iter().skip(1).collect(), ..Policy::default() };
        assert_eq!(only.closed("ledger", monday), None, "no window is for it, so it is never closed");
    }

    proptest! {
        /// Against jiff's own arithmetic, minute by minute around any moment of the next years.
        #[test]
        fn opens_at_the_first_moment_it_is_open(
            from in 0..1440u16, to in 0..=1440u16, mask in 1..128u8, hours in 0..70_000i64,
            zone in prop::sample::select(vec!["Europe/Zurich", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kolkata"]),
        ) {
            prop_assume!(from != to);
            let days: Vec<&str> = DAYS.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, d)| *d).collect();
            let window = window(&days, from, to, zone);
            let start = at("2026-01-01T00:00:00Z").as_second() + hours * 3600;
            let tz = TimeZoneDatabase::bundled().get(zone).unwrap();
            let by_jiff = |second: i64| {
                let local = Timestamp::from_second(second).unwrap().to_zoned(tz.clone());
                let minute = i64::from(local.hour()) * 60 + i64::from(local.minute());
                let on = |day: jiff::civil::Weekday| window.days[usize::try_from(day.to_monday_zero_offset()).unwrap()];
                let (today, before) = (local.weekday(), local.weekday().previous());
                let (from, to) = (i64::from(from), i64::from(to));
                if from < to { on(today) && (from..to).contains(&minute) }
                else { (on(today) && minute >= from) || (on(before) && minute < to) }
            };
            prop_assert_eq!(window.open_at(start), by_jiff(start));
            if !window.open_at(start) {
                let opens = window.opens(Timestamp::from_second(start).unwrap());
                let found = (start / 60 + 1..start / 60 + AHEAD_DAYS * 1440).map(|m| m * 60).find(|s| by_jiff(*s));
                prop_assert_eq!(opens.map(|t| t.as_second()), found);
            }
        }
    }
}
