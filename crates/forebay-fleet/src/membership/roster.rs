//! From the configuration and what sources have found to the pools that hold: which backends an arm has, and which of them finish
//! what they have and take no more. A function of its arguments: it asks nobody, and knows no time.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::config::model::{ArmConfig, BackendConfig, BackendUrl, Discover, PoolConfig};
use crate::source::Taken;

/// The reason for the drain of a backend that its source no longer names.
pub(crate) const GONE: &str = "its source no longer names it";
/// The reason for the drain of a backend that is one too many.
const TOO_MANY: &str = "it is beyond max_backends";

/// Model of the pool and name of the arm.
pub(crate) type ArmKey = (String, String);

/// A backend that a source names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its URL.
    pub url: BackendUrl,
    /// The reason why it shall get no requests, if it shall not.
    pub drained: Option<&'static str>,
}

impl Found {
    /// A backend that takes requests.
    #[must_use]
    pub fn ready(url: BackendUrl) -> Found {
        Found { url, drained: None }
    }
}

/// The backends of one arm that were found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    /// By URL, so that every answer gives one order.
    members: BTreeMap<String, RosterMember>,
}

#[derive(Clone, Debug, PartialEq)]
struct RosterMember {
    config: BackendConfig,
    /// The reason why it finishes what it has and takes no more.
    leaves: Option<&'static str>,
    /// The source does not name it.
    gone: bool,
}

impl Roster {
    /// The backends that an arm had before it got a source: they serve until the source has answered.
    pub(crate) fn of(backends: &[BackendConfig]) -> Roster {
        let member = |config: &BackendConfig| {
            (config.url.to_string(), RosterMember { config: config.clone(), leaves: None, gone: false })
        };
        Roster { members: backends.iter().map(member).collect() }
    }

    /// Takes over one answer of the source. One that is not named any more leaves, and one that takes no requests joins only when it
    /// does: nothing of ours runs there.
    pub(crate) fn take(&mut self, found: Vec<Found>, discover: &Discover) -> Taken {
        let (before, mut taken) = (self.members.clone(), Taken::default());
        let mut named: BTreeMap<String, Found> = BTreeMap::new();
        for one in found {
            let ready = one.drained.is_none();
            let at = named.entry(one.url.to_string()).or_insert_with(|| one.clone());
            // The address of a pod that ends may be another pod's already.
            if ready {
                *at = one;
            }
        }
        let config = |url: BackendUrl| BackendConfig { key: discover.key.clone(), ..BackendConfig::of(url) };
        // Those that are in come first, so that an address with a lower number does not push one out that has streams.
        let mut places = discover.max_backends;
        for (url, member) in &mut self.members {
            let one = named.remove(url).map(|one| (one, places.checked_sub(1)));
            match one {
                Some((one, Some(left))) => {
                    places = left;
                    *member = RosterMember { config: config(one.url), leaves: one.drained, gone: false };
                    if one.drained.is_none() { taken.ready += 1 } else { taken.unready += 1 }
                }
                // The cap was lowered by a reload.
                Some((_, None)) => {
                    taken.left_out += 1;
                    (member.leaves, member.gone) = (Some(TOO_MANY), true);
                }
                None => {
                    // It may have left answers ago and still be busy. That is said once.
                    if !member.gone {
                        taken.gone.push(url.clone());
                    }
                    (member.leaves, member.gone) = (Some(GONE), true);
                }
            }
        }
        for (url, one) in named {
            match (one.drained, places.checked_sub(1)) {
                (Some(_), _) => taken.unready += 1,
                (None, None) => taken.left_out += 1,
                (None, Some(left)) => {
                    places = left;
                    taken.ready += 1;
                    taken.joined.push(url.clone());
                    self.members.insert(url, RosterMember { config: config(one.url), leaves: None, gone: false });
                }
            }
        }
        taken.changed = self.members != before;
        taken
    }

    /// Lets go of what has left and has nothing more to do, by its URL. Returns whether anything has.
    pub(crate) fn retire(&mut self, is_idle: impl Fn(&str) -> bool) -> bool {
        let before = self.members.len();
        self.members.retain(|url, member| !member.gone || !is_idle(url));
        self.members.len() < before
    }

    /// Returns whether somebody has left and may have something to do yet.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.members.values().any(|member| member.gone)
    }

    fn stays(&self) -> usize {
        self.members.values().filter(|member| !member.gone).count()
    }
}

/// The pools that hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effective {
    /// The configured ones, with what was found in place of what names it.
    pub(crate) pools: Vec<PoolConfig>,
    /// The reason why a backend finishes what it has and takes no more, by pool, arm and URL.
    pub(crate) leaving: HashMap<(String, String, String), &'static str>,
    /// URLs that two arms of one pool have found: the first has them.
    pub(crate) doubled: Vec<String>,
}

/// Fills the arms that have a source with what was found.
pub(crate) fn effective(configured: &[PoolConfig], rosters: &HashMap<ArmKey, Roster>) -> Effective {
    let mut all = Effective::default();
    for pool in configured {
        // What a file lists is meant. What a source finds may be in two by mistake.
        let listed = pool.arms.iter().filter(|arm| arm.discover.is_none());
        let mut taken: HashSet<String> =
            listed.flat_map(|arm| &arm.backends).map(|backend| backend.url.to_string()).collect();
        let mut filled = pool.clone();
        for arm in &mut filled.arms {
            if let Some(roster) = rosters.get(&(pool.model.clone(), arm.name.clone())) {
                fill(arm, (&pool.model, roster), &mut taken, &mut all);
            }
        }
        all.pools.push(filled);
    }
    all
}

fn fill(arm: &mut ArmConfig, (model, roster): (&str, &Roster), taken: &mut HashSet<String>, all: &mut Effective) {
    let Some(discover) = &arm.discover else { return };
    if discover.gpus_each {
        arm.gpus = u32::try_from(roster.stays()).unwrap_or(u32::MAX).max(1);
    }
    // They were those of a list, until a reload brought the source.
    arm.backends.clear();
    for (url, member) in &roster.members {
        // Two leases on one server would each see half of its load.
        if !taken.insert(url.clone()) {
            all.doubled.push(url.clone());
            continue;
        }
        arm.backends.push(member.config.clone());
        if let Some(why) = member.leaves {
            all.leaving.insert((model.to_owned(), arm.name.clone(), url.clone()), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::model::{DiscoverySource, DnsName};

    fn discover(max_backends: usize) -> Discover {
        let name = DnsName { host: "vllm".to_owned(), port: 8000 };
        let source = DiscoverySource::Dns { name, interval: Duration::from_secs(5) };
        Discover { source, https: false, max_backends, key: None, gpus_each: true }
    }

    fn url(n: u8) -> BackendUrl {
        BackendUrl::found(false, ([10, 0, 0, n], 8000).into(), None)
    }

    fn ready(hosts: &[u8]) -> Vec<Found> {
        hosts.iter().map(|n| Found::ready(url(*n))).collect()
    }

    fn drained(n: u8) -> Found {
        Found { drained: Some("its pod is not Ready"), ..Found::ready(url(n)) }
    }

    /// The last number of each address, and a `-` where it takes no more.
    fn shown(roster: &Roster) -> String {
        let one = |(url, member): (&String, &RosterMember)| {
            let host = url.trim_end_matches(":8000").rsplit('.').next().unwrap();
            format!("{host}{}", if member.leaves.is_some() { "-" } else { "" })
        };
        roster.members.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_no_longer_named_leaves_and_goes_when_it_is_idle() {
        let mut roster = Roster::default();
        let taken = roster.take(ready(&[1, 2]), &discover(9));
        assert_eq!((taken.ready, taken.joined.len(), taken.changed), (2, 2, true));
        let taken = roster.take(ready(&[2, 3]), &discover(9));
        assert_eq!((shown(&roster).as_str(), taken.gone), ("1- 2 3", vec!["http://10.0.0.1:8000".to_owned()]));
        assert!(!roster.retire(|_| false) && roster.is_waited_for());
        assert!(roster.retire(|_| true) && !roster.is_waited_for());
        assert_eq!(shown(&roster), "2 3");
        assert!(!roster.take(ready(&[3, 2]), &discover(9)).changed, "another order is no change");
    }

    #[test]
    fn what_comes_back_before_it_went_stays_what_it_was() {
        let mut roster = Roster::default();
        roster.take(ready(&[1, 2]), &discover(9));
        roster.take(ready(&[2]), &discover(9));
        let taken = roster.take(ready(&[1, 2]), &discover(9));
        assert_eq!((shown(&roster).as_str(), taken.joined.len()), ("1 2", 0));
    }

    #[test]
    fn one_that_is_not_ready_is_drained_and_a_stranger_that_is_not_does_not_join() {
        let mut roster = Roster::default();
        roster.take(ready(&[1]), &discover(9));
        let taken = roster.take(vec![drained(1), drained(2)], &discover(9));
        assert_eq!((shown(&roster).as_str(), taken.ready, taken.unready), ("1-", 0, 2));
        assert!(!roster.retire(|_| true), "it is named, so it stays");
        let taken = roster.take(ready(&[1, 2]), &discover(9));
        assert_eq!((shown(&roster).as_str(), taken.joined.len()), ("1 2", 1));
    }

    #[test]
    fn of_two_with_one_address_the_ready_one_counts() {
        for found in [vec![drained(1), Found::ready(url(1))], vec![Found::ready(url(1)), drained(1)]] {
            let mut roster = Roster::default();
            assert_eq!(roster.take(found, &discover(9)).ready, 1);
            assert_eq!(shown(&roster), "1");
        }
    }

    #[test]
    fn who_is_in_keeps_its_place_under_the_cap() {
        let mut roster = Roster::default();
        assert_eq!(roster.take(ready(&[5, 6]), &discover(2)).left_out, 0);
        let taken = roster.take(ready(&[1, 5, 6, 7]), &discover(2));
        assert_eq!((shown(&roster).as_str(), taken.left_out), ("5 6", 2));
        let taken = roster.take(ready(&[1, 5, 7]), &discover(2));
        assert_eq!((shown(&roster).as_str(), taken.left_out), ("1 5 6-", 1), "one that leaves takes no place");
        let taken = roster.take(ready(&[1, 5]), &discover(1));
        assert_eq!((shown(&roster).as_str(), taken.left_out), ("1 5- 6-", 1), "a lower cap holds for all");
    }

    fn pool(arms: &[(&str, Option<Discover>, &[u8])]) -> PoolConfig {
        let arm = |(name, discover, hosts): &(&str, Option<Discover>, &[u8])| ArmConfig {
            discover: discover.clone(),
            ..ArmConfig::of(*name, hosts.iter().map(|n| BackendConfig::of(url(*n))).collect())
        };
        PoolConfig { arms: arms.iter().map(arm).collect(), ..PoolConfig::of("m", Vec::new()) }
    }

    fn rosters(arms: &[(&str, &[u8])]) -> HashMap<ArmKey, Roster> {
        let of = |(name, hosts): &(&str, &[u8])| {
            let mut roster = Roster::default();
            roster.take(ready(hosts), &discover(99));
            (("m".to_owned(), (*name).to_owned()), roster)
        };
        arms.iter().map(of).collect()
    }

    #[test]
    fn an_address_belongs_to_one_arm_and_a_listed_one_to_the_arm_that_lists_it() {
        let configured = [pool(&[
            ("a", Some(discover(9)), &[]),
            ("b", None, &[2]),
            ("c", Some(Discover { gpus_each: false, ..discover(9) }), &[]),
        ])];
        let all = effective(&configured, &rosters(&[("a", &[1, 2, 3]), ("c", &[3, 4])]));
        let counts: Vec<_> = all.pools[0].arms.iter().map(|arm| (arm.backends.len(), arm.gpus)).collect();
        assert_eq!(counts, [(2, 3), (1, 1), (1, 1)]);
        assert_eq!(all.doubled, ["http://10.0.0.2:8000", "http://10.0.0.3:8000"]);
        assert!(effective(&configured, &HashMap::new()).pools == configured, "nothing found, nothing changed");
    }

    proptest! {
        #[test]
        fn whatever_is_named_in_whatever_order_the_ready_ones_serve_and_the_cap_holds(
            answers in proptest::collection::vec(proptest::collection::vec((1_u8..12, any::<bool>()), 0..16), 1..8),
            max in 1_usize..12,
            idle in any::<bool>(),
        ) {
            let mut roster = Roster::default();
            for answer in answers {
                let found = |(n, is_ready): &(u8, bool)| if *is_ready { Found::ready(url(*n)) } else { drained(*n) };
                let taken = roster.take(answer.iter().map(found).collect(), &discover(max));
                let serving: Vec<_> = roster.members.iter().filter(|(_, member)| member.leaves.is_none()).collect();
                let named: HashSet<String> =
                    answer.iter().filter(|(_, ready)| *ready).map(|(n, _)| url(*n).to_string()).collect();
                prop_assert!(serving.iter().all(|(url, _)| named.contains(*url)), "only what is ready serves");
                prop_assert_eq!(serving.len(), taken.ready);
                prop_assert!(roster.stays() <= max);
                // One that is drained and was in keeps its place.
                prop_assert!(roster.stays() == max || named.len() == serving.len(), "nobody is left out without need");
                roster.retire(|_| idle);
                prop_assert!(!idle || !roster.is_waited_for());
            }
        }
    }
}
