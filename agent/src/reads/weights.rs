//! Which weights give the new side its share of reads. Pure.
//!
//! The way back is automatic: a side none of whose servers is up gets nothing, whatever was asked, and gets its share again
//! once it has been up for a while.

use super::lag::Side;

/// HAProxy's greatest weight.
pub const GREATEST: u32 = 256;
/// As many looks in a row have to find a side up before it gets reads again.
pub const STEADY: u32 = 4;

/// A server of the balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Whose it is.
    pub side: Side,
    /// It may be sent reads.
    pub up: bool,
}

/// Remembers which side had no server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// Looks in a row with a server up, of the old and of the new side; none: it was never seen down.
    good: [Option<u32>; 2],
    /// A server was seen up, of whichever side: HAProxy's checks have come to an end.
    checked: bool,
}

impl Guard {
    /// Takes a look, and says which percent is in force now and, when that is not the one asked for, why. A look out of turn does
    /// not shorten the wait of a side that came back.
    pub fn look(&mut self, servers: &[Server], percent: u32, in_turn: bool) -> (u32, String) {
        let percent = percent.min(100);
        let up =
            [Side::Old, Side::New].map(|side| servers.iter().any(|server| server.side == side && server.up));
        self.checked |= up != [false, false];
        for (good, up) in self.good.iter_mut().zip(up) {
            *good = match (up, *good) {
                (false, _) => Some(0),
                (true, Some(looks)) if !in_turn => Some(looks),
                (true, Some(looks)) if looks + 1 < STEADY => Some(looks + 1),
                (true, _) => None,
            };
        }
        let usable = self.good.map(|good| good.is_none());
        let wanted = [percent < 100, percent > 0];
        let told = |side: Side, up: bool| {
            if up {
                format!("the {} side has been up for a moment only", side.name())
            } else {
                format!("no server of the {} side is up", side.name())
            }
        };
        let back = |lost: Side, up: bool| {
            let effective = if lost == Side::Old { 100 } else { 0 };
            let why = format!("{}: all reads go to the {} side", told(lost, up), lost.other().name());
            (effective, if effective == percent { String::new() } else { why })
        };
        match (usable, up) {
            // Whoever is up first gets them, however short the time.
            ([false, false], [true, false]) => back(Side::New, false),
            ([false, false], [false, true]) => back(Side::Old, false),
            ([false, false], [false, false]) if !self.checked => {
                (percent, "HAProxy's checks have not found a server of either side up yet".to_owned())
            }
            ([false, false], [false, false]) => (percent, "no server of either side is up".to_owned()),
            ([true, false], _) if wanted[1] => back(Side::New, up[1]),
            ([false, true], _) if wanted[0] => back(Side::Old, up[0]),
            _ => (percent, String::new()),
        }
    }
}

/// A weight for each server, 0 to 256: the up ones of a side share its part equally, any part that is not nothing gets at least
/// 1, and a part that is nothing gets 0. A server that is down has the weight of its side, for the moment when it comes back.
pub fn weights(servers: &[Server], percent: u32) -> Vec<u32> {
    let up = |side| {
        let count = servers.iter().filter(|server| server.side == side && server.up).count();
        u64::try_from(count.max(1)).unwrap_or(1)
    };
    let new = u64::from(percent.min(100));
    // Weight of one server of each side, as a ratio: (percent / servers) : ((100 - percent) / servers).
    let (old, new) = pair((100 - new) * up(Side::New), new * up(Side::Old));
    servers.iter().map(|server| if server.side == Side::New { new } else { old }).collect()
}

/// The smallest weights that come closest to the ratio.
fn pair(first: u64, second: u64) -> (u32, u32) {
    let (large, small) = (first.max(second), first.min(second));
    let mut best = (1, u32::from(small > 0));
    if small > 0 {
        // |a/b - small/large| as a cross product over its denominator: smaller is better.
        let error = |(a, b): (u32, u32)| {
            (u64::from(b) * large, (u64::from(b) * small).abs_diff(u64::from(a) * large))
        };
        for scale in 1..=GREATEST {
            let exact = u64::from(scale) * small;
            let rounded = u32::try_from((exact + large / 2) / large).unwrap_or(GREATEST).max(1);
            let ((base, off), (best_base, best_off)) = (error((rounded, scale)), error((best.1, best.0)));
            if off * best_base < best_off * base {
                best = (scale, rounded);
            }
        }
    }
    if first >= second { best } else { (best.1, best.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(old: &[bool], new: &[bool]) -> Vec<Server> {
        let of = |side| move |up: &bool| Server { side, up: *up };
        old.iter().map(of(Side::Old)).chain(new.iter().map(of(Side::New))).collect()
    }

    #[test]
    fn plain_shares_are_exact() {
        let one = servers(&[true], &[true]);
        for (percent, expected) in
            [(0, [1, 0]), (1, [99, 1]), (10, [9, 1]), (50, [1, 1]), (99, [1, 99]), (100, [0, 1])]
        {
            assert_eq!(weights(&one, percent), expected, "{percent}");
        }
        assert_eq!(weights(&servers(&[true], &[true, true]), 50), [2, 1, 1]);
        assert_eq!(weights(&servers(&[true], &[true, false]), 50), [1, 1, 1], "the down one does not count");
    }

    #[test]
    fn without_servers_of_a_side_the_other_one_serves_until_it_is_back_for_a_while() {
        let mut guard = Guard::default();
        let (both, lost) = (servers(&[true], &[true]), servers(&[true], &[false]));
        assert_eq!(guard.look(&both, 60, true), (60, String::new()), "nobody was ever seen down");
        let (percent, why) = guard.look(&lost, 60, true);
        assert!(percent == 0 && why.contains("no server of the new side"), "{why}");
        for _ in 0..2 * STEADY {
            assert_eq!(guard.look(&both, 60, false).0, 0, "looks out of turn do not count");
        }
        for _ in 1..STEADY {
            let (percent, why) = guard.look(&both, 60, true);
            assert!(percent == 0 && why.contains("for a moment only"), "{why}");
        }
        assert_eq!(guard.look(&both, 60, true), (60, String::new()));
        assert_eq!(guard.look(&servers(&[false], &[true]), 10, true).0, 100);
    }

    #[test]
    fn a_side_that_gets_nothing_may_be_down() {
        let mut guard = Guard::default();
        assert_eq!(guard.look(&servers(&[true], &[false]), 0, true), (0, String::new()));
        assert_eq!(guard.look(&servers(&[false], &[true]), 100, true), (100, String::new()));
    }

    #[test]
    fn with_nobody_up_whoever_comes_first_serves() {
        let mut guard = Guard::default();
        let (percent, why) = guard.look(&servers(&[false], &[false]), 30, true);
        assert!(percent == 30 && why.contains("either side up yet"), "{why}");
        assert_eq!(guard.look(&servers(&[false], &[true]), 30, true).0, 100);
        assert_eq!(guard.look(&servers(&[true], &[false]), 30, true).0, 0);
        assert_eq!(
            guard.look(&servers(&[true], &[false]), 100, true).0,
            0,
            "even if it was asked for nothing"
        );
        let (_, why) = guard.look(&servers(&[false], &[false]), 30, true);
        assert_eq!(why, "no server of either side is up", "they were up before");
    }

    proptest! {
        #[test]
        fn shares_are_kept(old in 1usize..6, new in 1usize..6, percent in 0u32..=100) {
            let all = servers(&vec![true; old], &vec![true; new]);
            let weights_of = |percent| {
                let weights = weights(&all, percent);
                assert!(weights.iter().all(|weight| *weight <= GREATEST));
                let (olds, news) = weights.split_at(old);
                assert!(olds.windows(2).chain(news.windows(2)).all(|pair| pair[0] == pair[1]), "equal within a side");
                (olds[0], news[0])
            };
            let share = |percent| {
                let (o, n) = weights_of(percent);
                f64::from(n) * new as f64 / (f64::from(n) * new as f64 + f64::from(o) * old as f64)
            };
            let (o, n) = weights_of(percent);
            prop_assert_eq!(o == 0, percent == 100);
            prop_assert_eq!(n == 0, percent == 0);
            prop_assert!((share(percent) - f64::from(percent) / 100.0).abs() < 0.01, "{}", share(percent));
            if percent < 100 {
                prop_assert!(share(percent) <= share(percent + 1), "more never becomes less");
            }
        }
    }
}
