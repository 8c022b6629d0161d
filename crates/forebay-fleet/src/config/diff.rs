//! What a reload changes: which keys are bound to things made at the start (listeners, their threads, connection settings)
//! and wait for a restart, and which hold at once. Compares plain values; does nothing itself.

use std::collections::HashSet;

use super::model::{ArmConfig, Config, PoolConfig};
use forebay_core::toml_reader::{Change, Keys, Reload};

/// The differences between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Changed keys that only a restart puts into force, by their names in the file.
    pub restart_keys: Vec<&'static str>,
    /// Changes that hold at once, for the log: a key, or what happened to a pool.
    pub changed: Vec<String>,
}

impl Diff {
    /// Returns whether the two say the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.restart_keys.is_empty() && self.changed.is_empty()
    }
}

/// Returns what is different in `new`.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Diff {
    let mut diff = Diff::default();
    for Change { key, .. } in old.changes(new) {
        match key.reload {
            Reload::Restart => diff.restart_keys.push(key.full),
            Reload::AtOnce => diff.changed.push(key.full.to_owned()),
        }
    }
    for pool in &new.pools {
        match old.pools.iter().find(|other| other.model == pool.model) {
            Some(before) => pool_changes(before, pool, &mut diff.changed),
            None => diff.changed.push(format!("pool {}: added", pool.model)),
        }
    }
    for pool in &old.pools {
        if !new.pools.iter().any(|other| other.model == pool.model) {
            diff.changed.push(format!("pool {}: removed", pool.model));
        }
    }
    // Nothing above looks at places, and still the configuration is another one.
    if diff.is_empty() && old.pools != new.pools {
        diff.changed.push("pools: another order".to_owned());
    }
    diff
}

/// `new` with the keys that only a restart changes as they are in `old`: what holds after a reload.
#[must_use]
pub fn in_force(old: &Config, new: &Config) -> Config {
    let mut config = new.clone();
    config.keep(old);
    // a larger body than the sum that stays in force would never fit into it
    config.limits.body = config.limits.body.min(config.limits.bodies_in_memory);
    config
}

fn pool_changes(old: &PoolConfig, new: &PoolConfig, changes: &mut Vec<String>) {
    // the arms' changes are told one by one below
    let keys = old.changes(new).into_iter().map(|change| change.key.name).filter(|key| *key != "arms");
    let mut said: Vec<String> = keys.map(str::to_owned).collect();
    for arm in &new.arms {
        match old.arms.iter().find(|other| other.name == arm.name) {
            Some(before) => arm_changes(before, arm, &mut said),
            None => said.push(format!("arm {} added", arm.name)),
        }
    }
    let names: HashSet<&str> = new.arms.iter().map(|arm| arm.name.as_str()).collect();
    said.extend(
        old.arms.iter().filter(|arm| !names.contains(arm.name.as_str())).map(|arm| format!("arm {} removed", arm.name)),
    );
    changes.extend(said.into_iter().map(|what| format!("pool {}: {what}", new.model)));
}

fn arm_changes(old: &ArmConfig, new: &ArmConfig, said: &mut Vec<String>) {
    let arm = &new.name;
    // the backends' changes are told one by one below
    for Change { key, old, new } in old.changes(new).into_iter().filter(|change| change.key.name != "backends") {
        // What is read by hand is shown by nobody.
        let values = if old == new { " changed".to_owned() } else { format!(" {old} → {new}") };
        said.push(format!("arm {arm} {}{values}", key.name));
    }
    for backend in &new.backends {
        match old.backends.iter().find(|other| other.url == backend.url) {
            None => said.push(format!("arm {arm} backend {} added", backend.url)),
            Some(before) if before != backend => {
                let what = match (before.drain, backend.drain) {
                    (false, true) => "drains",
                    (true, false) => "no longer drains",
                    _ => "changed",
                };
                said.push(format!("arm {arm} backend {} {what}", backend.url));
            }
            Some(_) => {}
        }
    }
    for backend in &old.backends {
        if !new.backends.iter().any(|other| other.url == backend.url) {
            said.push(format!("arm {arm} backend {} removed", backend.url));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::config::model::BackendConfig;
    use crate::config::schema::SCHEMA;

    fn backend(port: u16) -> BackendConfig {
        BackendConfig::of(format!("http://127.0.0.1:{port}").parse().unwrap())
    }

    fn config() -> Config {
        Config { pools: vec![PoolConfig::of("m", vec![backend(8001), backend(8002)])], ..Config::default() }
    }

    #[test]
    fn equal_configurations_have_no_difference() {
        assert!(diff(&config(), &config()).is_empty());
    }

    #[test]
    fn a_bound_key_waits_for_a_restart_and_the_rest_holds() {
        let mut new = config();
        new.listen.address = SocketAddr::from(([0, 0, 0, 0], 80));
        new.slo.ttft = Duration::from_secs(2);
        let found = diff(&config(), &new);
        assert_eq!(found.restart_keys, ["listen.address"]);
        assert_eq!(found.changed, ["slo.ttft"]);
        let held = in_force(&config(), &new);
        assert_eq!((held.listen, held.slo), (config().listen, new.slo));
    }

    #[test]
    fn a_body_never_exceeds_the_sum_that_stays_in_force() {
        let mut new = config();
        new.limits.bodies_in_memory = 8 << 30;
        new.limits.body = 4 << 30;
        assert_eq!(in_force(&config(), &new).limits.body, config().limits.bodies_in_memory);
    }

    #[test]
    fn changes_of_pools_are_told_one_by_one() {
        let mut new = config();
        new.pools[0].cross_arm = false;
        new.pools[0].backend_max_in_flight = Some(8);
        new.pools[0].wait_room.size = 9;
        new.pools[0].arms[0].share = 2.0;
        new.pools[0].arms[0].backends = vec![BackendConfig { drain: true, ..backend(8001) }, backend(8003)];
        new.pools.push(PoolConfig::of("n", vec![backend(8009)]));
        assert_eq!(
            diff(&config(), &new).changed,
            [
                "pool m: cross_arm",
                "pool m: backend_max_in_flight",
                "pool m: wait_room",
                "pool m: arm default share 1 → 2",
                "pool m: arm default backend http://127.0.0.1:8001 drains",
                "pool m: arm default backend http://127.0.0.1:8003 added",
                "pool m: arm default backend http://127.0.0.1:8002 removed",
                "pool n: added",
            ]
        );
    }

    #[test]
    fn a_new_order_of_pools_is_a_change() {
        let two = Config { pools: vec![PoolConfig::of("a", vec![]), PoolConfig::of("b", vec![])], ..Config::default() };
        let turned = Config { pools: vec![two.pools[1].clone(), two.pools[0].clone()], ..Config::default() };
        assert_eq!(diff(&two, &turned).changed, ["pools: another order"]);
    }

    #[test]
    fn every_key_outside_the_pools_is_in_the_table() {
        let shown = serde_json::to_value(Config::default()).unwrap();
        let mut keys: Vec<String> = Vec::new();
        for (section, content) in shown.as_object().unwrap() {
            for key in content.as_object().into_iter().flatten().map(|(key, _)| key) {
                let file = matches!((section.as_str(), key.as_str()), ("admin", "token"));
                keys.push(format!("{section}.{key}{}", if file { "_file" } else { "" }));
                if (section.as_str(), key.as_str()) == ("clients", "keys") {
                    keys.push("clients.keys_file".to_owned());
                }
            }
        }
        let sections =
            SCHEMA.sections.iter().filter(|section| !section.name.contains(['.']) && !section.name.is_empty());
        let outside_pools = sections.filter(|section| !matches!(section.name, "pools" | "backends"));
        let mut listed: Vec<&str> = outside_pools.flat_map(|section| section.keys).map(|key| key.full).collect();
        keys.sort();
        listed.sort_unstable();
        assert_eq!(keys, listed);
    }
}
