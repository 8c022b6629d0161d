//! `/v1/models`: one list over all pools, answered here. What a backend says of a model is passed on as it said it
//! (`max_model_len` among it); the names under which a pool is served are added.

use serde_json::{Value, json};

use forebay_fleet::{Pool, Snapshot};

fn entries(pool: &Pool) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    let known = |found: &[Value], id: &str| found.iter().any(|entry| entry["id"] == id);
    for member in pool.members() {
        // What backends say of their models is passed on as it is, adapters included: clients read fields of it.
        for card in member.backend.models.load().iter() {
            if card["id"].as_str().is_some_and(|id| !known(&found, id)) {
                found.push(card.clone());
            }
        }
    }
    let names = std::iter::once(&pool.model).chain(&pool.aliases).filter(|_| !pool.by_list);
    for name in names {
        if !known(&found, name) {
            let mut entry = found.first().cloned().unwrap_or_else(
                || json!({"object": "model", "created": 0, "owned_by": "vllm", "root": pool.model, "parent": null}),
            );
            entry["id"] = json!(name);
            found.push(entry);
        }
    }
    found
}

/// Returns whether the pool's backends show what they serve only to who has a key.
fn is_unlisted(pool: &Pool) -> bool {
    pool.by_list && pool.members().iter().all(|member| member.backend.models.load().is_empty())
}

/// Returns whether what is served can only be asked of a backend, with the client's key.
pub(crate) fn are_unlisted(snapshot: &Snapshot) -> bool {
    !snapshot.pools.is_empty() && snapshot.pools.iter().all(|pool| is_unlisted(pool))
}

/// The list.
pub(crate) fn list(snapshot: &Snapshot) -> String {
    let data: Vec<Value> = snapshot.pools.iter().flat_map(|pool| entries(pool)).collect();
    json!({"object": "list", "data": data}).to_string()
}

/// One model's entry.
pub(crate) fn one(snapshot: &Snapshot, id: &str) -> Option<String> {
    let mut all = snapshot.pools.iter().flat_map(|pool| entries(pool));
    all.find(|entry| entry["id"] == id).map(|entry| entry.to_string())
}

/// The names that are served, for an error that must say them.
pub(crate) fn names(snapshot: &Snapshot) -> String {
    let names: Vec<&str> = snapshot
        .pools
        .iter()
        .filter(|pool| !is_unlisted(pool))
        .flat_map(|pool| std::iter::once(pool.model.as_str()).chain(pool.aliases.iter().map(String::as_str)))
        .collect();
    names.join(", ")
}
