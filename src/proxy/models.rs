//! `/v1/models`: one list over all pools, answered here. What a backend says of a model is passed on as it said it
//! (`max_model_len` among it); the names under which a pool is served are added.

use serde_json::{Value, json};

use forebay_core::error::{Refusal, repeated};
use forebay_fleet::clients::Client;
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

/// The entries of all models that a client may use.
fn entries_for<'a>(snapshot: &'a Snapshot, client: Option<&'a Client>) -> impl Iterator<Item = Value> + 'a {
    snapshot.pools.iter().flat_map(move |pool| {
        let may = move |entry: &Value| client.is_none_or(|client| client.may_use(pool, entry["id"].as_str()));
        entries(pool).into_iter().filter(may)
    })
}

/// The list, of what the client may use.
pub(crate) fn list(snapshot: &Snapshot, client: Option<&Client>) -> String {
    let data: Vec<Value> = entries_for(snapshot, client).collect();
    json!({"object": "list", "data": data}).to_string()
}

/// One model's entry, if the client may use it.
pub(crate) fn one(snapshot: &Snapshot, id: &str, client: Option<&Client>) -> Option<String> {
    entries_for(snapshot, client).find(|entry| entry["id"] == id).map(|entry| entry.to_string())
}

/// The answer where a client asks for a model that there is not, or not for it. A key that may use some models only is not told
/// which of the two: a 404, as vLLM's for an unknown model and OpenAI's for one without access. A 403 would say that it exists.
pub(crate) fn unknown(snapshot: &Snapshot, model: &str, client: Option<&Client>) -> Refusal {
    let (model, served) = (repeated(model), names(snapshot, client));
    match client.is_some_and(Client::is_restricted) {
        true => Refusal::ModelNotAllowed { model, served },
        false => Refusal::UnknownModel { model, served },
    }
}

/// The names that are served to a client, for an error that must say them.
pub(crate) fn names(snapshot: &Snapshot, client: Option<&Client>) -> String {
    let listed = snapshot.pools.iter().filter(|pool| !is_unlisted(pool));
    let names = listed.flat_map(|pool| {
        let all = std::iter::once(&pool.model).chain(&pool.aliases).map(String::as_str);
        all.filter(move |name| client.is_none_or(|client| client.may_use(pool, Some(name))))
    });
    names.collect::<Vec<_>>().join(", ")
}
