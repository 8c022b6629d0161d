//! `serve --backend URL` without a file: asks each URL what it serves, until it answers, and makes pools of the answers. A
//! URL that is not up yet holds up no other. It must never put a URL into routing whose model it does not know.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::models;
use forebay_fleet::config::model::{BackendConfig, BackendUrl, PoolConfig};
use forebay_fleet::probe::{ProbeClient, ProbeError};

/// The deadline of one question: a server that has just loaded its weights is slow at first.
const TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Asks every backend until it has answered. `apply` is called with the pools known so far, in the order of `backends`,
/// after each first answer. Returns when all have answered.
pub async fn discover(backends: Vec<BackendConfig>, mut apply: impl FnMut(Vec<PoolConfig>)) {
    let client = ProbeClient::new(TIMEOUT);
    let mut known: Vec<Option<Vec<String>>> = vec![None; backends.len()];
    let mut questions = JoinSet::new();
    for (i, backend) in backends.iter().enumerate() {
        let (client, backend) = (client.clone(), backend.clone());
        questions.spawn(async move { (i, ask_until_answered(&client, &backend).await) });
    }
    while let Some(answer) = questions.join_next().await {
        let Ok((i, models)) = answer else { continue };
        info!(url = %backends[i].url, ?models, "backend says what it serves");
        known[i] = Some(models);
        apply(pools(&backends, &known));
    }
}

async fn ask_until_answered(client: &ProbeClient, backend: &BackendConfig) -> Vec<String> {
    let key = backend.key.as_ref().map(|key| key.expose());
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    loop {
        match models::ask(client, &backend.url, key, TIMEOUT).await {
            Ok(cards) => return own_names(&cards),
            Err(error) => tell_once(&backend.url, &error, &mut told),
        }
        tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * fastrand::f64()).min(LONGEST_PAUSE)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Says why a URL is waited for, again only when the reason changes.
fn tell_once(url: &BackendUrl, error: &ProbeError, told: &mut Option<String>) {
    if told.as_ref() != Some(&error.detail) {
        warn!(%url, %error, "waiting for the backend to say what it serves");
        *told = Some(error.detail.clone());
    }
}

/// The names of the first model that is listed. Adapters are listed too, as children of a model: they are served where they
/// are loaded, and are no names of the model.
fn own_names(cards: &[Value]) -> Vec<String> {
    let root = cards.first().map(|card| &card["root"]);
    let own = cards.iter().filter(|card| card["parent"].is_null() && Some(&card["root"]) == root);
    own.filter_map(models::name).map(str::to_owned).collect()
}

/// One pool for each first model name; the other names of its backends are aliases, but for those that are pools themselves.
fn pools(backends: &[BackendConfig], known: &[Option<Vec<String>>]) -> Vec<PoolConfig> {
    let answered = || backends.iter().zip(known).filter_map(|(backend, names)| Some((backend, names.as_ref()?)));
    let mut firsts: Vec<&String> = Vec::new();
    for first in answered().filter_map(|(_, names)| names.first()) {
        if !firsts.contains(&first) {
            firsts.push(first);
        }
    }
    let mut taken: HashSet<&String> = firsts.iter().copied().collect();
    let pool = |model: &&String| {
        let members: Vec<_> = answered().filter(|(_, names)| names.first() == Some(*model)).collect();
        let others = members.iter().flat_map(|(_, names)| names.iter().skip(1));
        let aliases = others.filter(|name| taken.insert(*name)).cloned().collect();
        let backends = members.iter().map(|(backend, _)| (*backend).clone()).collect();
        PoolConfig { aliases, ..PoolConfig::of(model.as_str(), backends) }
    };
    firsts.iter().map(pool).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(port: u16) -> BackendConfig {
        BackendConfig::of(format!("http://127.0.0.1:{port}").parse().unwrap())
    }

    fn names(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn backends_of_one_model_are_one_pool_in_the_order_of_the_command_line() {
        let backends = [backend(1), backend(2), backend(3), backend(4)];
        let known = [names(&["m", "x"]), None, names(&["other", "m", "x"]), names(&["m", "x", "y"])];
        let pools = pools(&backends, &known);
        let urls = |pool: &PoolConfig| pool.arms[0].backends.iter().map(|b| b.url.port()).collect::<Vec<_>>();
        assert_eq!(pools.len(), 2);
        assert_eq!((pools[0].model.as_str(), urls(&pools[0])), ("m", vec![1, 4]));
        assert_eq!(pools[0].aliases, ["x", "y"]);
        assert_eq!((pools[1].model.as_str(), urls(&pools[1])), ("other", vec![3]));
        assert!(pools[1].aliases.is_empty(), "a name is served by one pool: {:?}", pools[1].aliases);
    }
}
