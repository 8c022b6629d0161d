//! `serve --backend URL` without a file: asks each URL what it serves, until it answers, and makes pools of the answers, again
//! whenever a backend lists something else. A URL that is not up yet holds up no other. It must never put a URL into routing
//! that has not answered yet.
//!
//! Backends that list a name in common are one pool, in which a request goes to those that list its model. Backends that show
//! their list only to who has a key are one pool by themselves, in which any model is tried.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::MEMBERSHIP;
use super::models::{self, Unlisted};
use forebay_fleet::Fleet;
use forebay_fleet::config::model::{BackendConfig, BackendUrl, PoolConfig, UnknownModels};
use forebay_fleet::membership::controller::Lists;
use forebay_fleet::probe::ProbeClient;
use forebay_fleet::reach::Endpoint;

/// The deadline of one question: a server that has just loaded its weights is slow at first.
const TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The name of the pool of backends that do not show what they serve.
const UNLISTED: &str = "*";

/// The models that one URL is known to list; nothing where it answers, but only to who has a key.
type Known = Arc<Vec<Value>>;

/// Keeps the pools as the backends' lists have them. `apply` is called with all pools known so far, in the order of `backends`,
/// after each change. Runs until it is dropped.
pub async fn discover(backends: Vec<BackendConfig>, fleet: Fleet, mut apply: impl FnMut(&[PoolConfig], Lists)) {
    let client = ProbeClient::new(TIMEOUT);
    let mut known: Vec<Option<Known>> = vec![None; backends.len()];
    let mut pools = Vec::new();
    let mut questions = JoinSet::new();
    for (i, backend) in backends.iter().enumerate() {
        let (mut client, backend) = (client.clone(), backend.clone());
        // A client of its own for each URL: one that hangs would hold the connections that others wait for.
        client.turn_to(&Arc::new(Endpoint::new(&backend.url, None)));
        questions.spawn(async move { (i, ask_until_answered(&client, &backend).await) });
    }
    loop {
        let changed = tokio::select! {
            Some(answer) = questions.join_next() => match answer {
                Ok((i, cards)) => {
                    known[i] = Some(Arc::new(cards));
                    true
                }
                Err(_) => false,
            },
            () = tokio::time::sleep(MEMBERSHIP) => look_again(&fleet, &backends, &mut known),
        };
        if !changed {
            continue;
        }
        let now = grouped(&backends, &known, &pools);
        // Compared as a whole, since an answer that lists the same in another order changes nothing.
        if now != pools {
            pools = now;
            let models: Vec<&str> = pools.iter().map(|pool| pool.model.as_str()).collect();
            let answered = known.iter().flatten().count();
            info!(?models, backends = answered, of = backends.len(), "serving the models that the backends list");
            apply(&pools, lists(&backends, &known));
        }
    }
}

/// Takes over what backends in routing list by now. Whether that is anything new.
fn look_again(fleet: &Fleet, backends: &[BackendConfig], known: &mut [Option<Known>]) -> bool {
    let (snapshot, mut changed) = (fleet.snapshot(), false);
    for backend in snapshot.backends() {
        let at = backends.iter().position(|config| config.url == backend.url);
        let Some(Some(known)) = at.map(|at| &mut known[at]) else { continue };
        let listed = backend.models.load();
        if !listed.is_empty() && !Arc::ptr_eq(&listed, known) {
            *known = Arc::clone(&listed);
            changed = true;
        }
    }
    changed
}

fn lists(backends: &[BackendConfig], known: &[Option<Known>]) -> Lists {
    let listed = backends.iter().zip(known);
    listed.filter_map(|(backend, known)| Some((backend.url.to_string(), Arc::clone(known.as_ref()?)))).collect()
}

async fn ask_until_answered(client: &ProbeClient, backend: &BackendConfig) -> Vec<Value> {
    let key = backend.key.as_ref().map(|key| key.expose());
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    loop {
        match models::ask(client, &backend.url, key, TIMEOUT).await {
            Ok(listing) => {
                let models: Vec<&str> = listing.cards.iter().filter_map(models::name).collect();
                debug!(url = %backend.url, ?models, "backend says what it serves");
                return listing.cards;
            }
            Err(Unlisted::Locked(status)) => {
                warn!(
                    url = %backend.url,
                    status,
                    "the backend wants a key before it lists its models: requests for any model are tried there; name its key with \
                     --backend-key-env"
                );
                return Vec::new();
            }
            Err(error) => tell_once(&backend.url, &error, &mut told),
        }
        // A tenth of chance, so that questions to several servers do not fall together for ever.
        tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * fastrand::f64()).min(LONGEST_PAUSE)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Says why a URL is waited for, again only when the reason changes.
fn tell_once(url: &BackendUrl, error: &Unlisted, told: &mut Option<String>) {
    let reason = error.to_string();
    if told.as_ref() != Some(&reason) {
        warn!(%url, %error, "the backend does not list its models yet: it gets no requests until it does, and is asked again");
        *told = Some(reason);
    }
}

/// The names that a backend serves by itself. Adapters are listed too, as children of a model: they are served where they are
/// loaded, and make no pool.
fn own_names(cards: &[Value]) -> Vec<&str> {
    cards.iter().filter(|card| card["parent"].is_null()).filter_map(models::name).collect()
}

/// One pool for all backends that list a name in common. A pool keeps its name for as long as it is among its backends'.
fn grouped(backends: &[BackendConfig], known: &[Option<Known>], before: &[PoolConfig]) -> Vec<PoolConfig> {
    // The group of each backend is the first backend of it.
    let mut group: Vec<usize> = (0..backends.len()).collect();
    let mut first_with: HashMap<&str, usize> = HashMap::new();
    let mut unlisted = Vec::new();
    for (i, cards) in known.iter().enumerate() {
        let Some(cards) = cards else { continue };
        if cards.is_empty() {
            unlisted.push(backends[i].clone());
        }
        for name in own_names(cards) {
            let other = group[*first_with.entry(name).or_insert(i)];
            let (low, high) = (other.min(group[i]), other.max(group[i]));
            group.iter_mut().filter(|of| **of == high).for_each(|of| *of = low);
        }
    }
    let mut pools = Vec::new();
    for first in 0..backends.len() {
        let members = || (0..backends.len()).filter(|i| group[*i] == first);
        let mut names: Vec<&str> = Vec::new();
        for name in members().filter_map(|i| known[i].as_ref()).flat_map(|cards| own_names(cards)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let kept = before.iter().find_map(|pool| names.iter().find(|name| **name == pool.model));
        let Some(model) = kept.or(names.first()).copied() else { continue };
        let aliases = names.into_iter().filter(|name| *name != model).map(str::to_owned).collect();
        let backends = members().map(|i| backends[i].clone()).collect();
        pools.push(PoolConfig { aliases, ..PoolConfig::of(model, backends) });
    }
    match (pools.as_mut_slice(), unlisted.is_empty()) {
        // Not before all have answered: a model of one that has not is none that nobody lists.
        ([only], true) if known.iter().all(Option::is_some) => only.unknown_models = UnknownModels::Try,
        (_, true) => {}
        (_, false) => {
            pools.push(PoolConfig { unknown_models: UnknownModels::Try, ..PoolConfig::of(UNLISTED, unlisted) });
        }
    }
    pools
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u16) -> Vec<BackendConfig> {
        (1..=count).map(|port| BackendConfig::of(format!("http://127.0.0.1:{port}").parse().unwrap())).collect()
    }

    fn listing(names: &[&str]) -> Option<Known> {
        Some(Arc::new(names.iter().map(|name| serde_json::json!({"id": name, "root": "r", "parent": null})).collect()))
    }

    /// The pools as `name+alias: ports`.
    fn shown(pools: &[PoolConfig]) -> Vec<String> {
        let shown = |pool: &PoolConfig| {
            let ports: Vec<_> = pool.arms[0].backends.iter().map(|backend| backend.url.port().to_string()).collect();
            let names: Vec<_> = std::iter::once(&pool.model).chain(&pool.aliases).map(String::as_str).collect();
            format!("{}: {}", names.join("+"), ports.join(" "))
        };
        pools.iter().map(shown).collect()
    }

    #[test]
    fn backends_that_list_a_name_in_common_are_one_pool_whatever_the_order_of_their_names() {
        let known = [
            listing(&["a", "b"]),
            None,
            listing(&["other"]),
            listing(&["b", "a"]),
            listing(&["c"]),
            listing(&["b", "c"]),
        ];
        let pools = grouped(&backends(6), &known, &[]);
        assert_eq!(shown(&pools), ["a+b+c: 1 4 5 6", "other: 3"]);
        assert!(pools.iter().all(|pool| pool.unknown_models == UnknownModels::Refuse));
    }

    #[test]
    fn a_pool_keeps_its_name_while_a_backend_lists_it() {
        let both = [listing(&["a", "b"]), listing(&["b", "a"])];
        let before = grouped(&backends(2), &both, &[]);
        assert_eq!(shown(&before), ["a+b: 1 2"]);
        let now = grouped(&backends(2), &[listing(&["z"]), listing(&["b", "a"])], &before);
        assert_eq!(shown(&now), ["z: 1", "a+b: 2"]);
    }

    #[test]
    fn backends_that_show_no_list_are_a_pool_that_tries_any_model() {
        let pools = grouped(&backends(3), &[listing(&[]), listing(&["a"]), listing(&[])], &[]);
        assert_eq!(shown(&pools), ["a: 2", "*: 1 3"]);
        assert_eq!(pools[1].unknown_models, UnknownModels::Try);
    }

    #[test]
    fn an_adapter_makes_no_pool_and_the_only_pool_tries_what_nobody_lists() {
        let mut cards = Vec::clone(&listing(&["a", "lora"]).unwrap());
        cards[1]["parent"] = "a".into();
        let known = [Some(Arc::new(cards)), None];
        let pools = grouped(&backends(1), &known[..1], &[]);
        assert_eq!(shown(&pools), ["a: 1"]);
        assert_eq!(pools[0].unknown_models, UnknownModels::Try);
        let pools = grouped(&backends(2), &known, &[]);
        assert_eq!(shown(&pools), ["a: 1"]);
        assert_eq!(pools[0].unknown_models, UnknownModels::Refuse, "the other may serve what is asked for");
    }
}
