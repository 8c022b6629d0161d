//! The lookup of what a request may go to: the pool that serves its model, and the backends of it that do not.

use std::sync::Arc;

use super::stored::{self, Home, Search};
use crate::proxy::models;
use crate::proxy::route::Route;
use crate::proxy::shared::Shared;
use forebay_core::clock::Time;
use forebay_core::error::Refusal;
use forebay_core::units::BackendId;
use forebay_fleet::clients::Client;
use forebay_fleet::{Backend, Pool, Snapshot};

/// Begins the search for a stored response, and returns the first backend that is asked: of the pool of the request's model,
/// or of any pool.
pub(crate) fn search_in(
    (shared, snapshot): (&Shared, &Snapshot),
    client: Option<&Client>,
    model: Option<&str>,
    id: &str,
    search: &mut Option<Search>,
) -> Result<Home, Refusal> {
    let pool = match model {
        Some(model) => find_pool(snapshot, Some(model), client)?,
        None => None,
    };
    let search = search.insert(stored::search((shared, snapshot), client, id, pool)?);
    let nobody = || Refusal::NoBackend(pool.map_or("any model", |pool| pool.model.as_str()).to_owned());
    search.next().ok_or_else(nobody)
}

/// The pool that serves a request.
pub(crate) fn pool_for<'a>(
    snapshot: &'a Snapshot,
    route: Route<'_>,
    model: Option<&str>,
    client: Option<&Client>,
) -> Result<&'a Arc<Pool>, Refusal> {
    let pool = match route {
        Route::AnyBackend | Route::Models | Route::OneModel(_) | Route::Options(_) => any_pool(snapshot, None),
        _ => find_pool(snapshot, model, client)?,
    };
    pool.ok_or_else(|| Refusal::NoBackend("any model".to_owned()))
}

/// A pool with a backend that takes requests, of those whose models the client may use; else any of these.
fn any_pool<'a>(snapshot: &'a Snapshot, client: Option<&Client>) -> Option<&'a Arc<Pool>> {
    let may = |pool: &&Arc<Pool>| client.is_none_or(|client| client.may_use_some_of(pool));
    let mut pools = snapshot.pools.iter().filter(may);
    let first = pools.clone().next();
    pools.find(|pool| pool.members().iter().any(|member| member.state.is_usable())).or(first)
}

fn find_pool<'a>(
    snapshot: &'a Snapshot,
    model: Option<&str>,
    client: Option<&Client>,
) -> Result<Option<&'a Arc<Pool>>, Refusal> {
    let Some(model) = model else {
        return match snapshot.pools.as_slice() {
            [] => Ok(None),
            // vLLM takes its own model where a request names none. With several pools there is no such one.
            [only] if client.is_none_or(|client| client.may_use(only, None)) => Ok(Some(only)),
            [only] => Err(models::unknown(snapshot, &only.model, client)),
            _ => Err(Refusal::NoModel(models::names(snapshot, client))),
        };
    };
    if snapshot.pools.is_empty() {
        return Ok(None);
    }
    // An adapter that was loaded at run time is in no configuration, but in a backend's list.
    let listed = || snapshot.pools.iter().find(|pool| pool.members().iter().any(|m| m.backend.lists(model)));
    let trying = || snapshot.pools.iter().find(|pool| pool.tries_unknown);
    let found = snapshot.pool(model).or_else(listed).or_else(trying);
    let may = |pool: &&Arc<Pool>| client.is_none_or(|client| client.may_use(pool, Some(model)));
    found.filter(may).map(Some).ok_or_else(|| models::unknown(snapshot, model, client))
}

/// The backends of `pool` that do not serve the model `asked` for: a name of neither the pool nor its aliases (an adapter) is
/// served where it is listed. One that nobody lists is tried anywhere, last where it was denied of late.
pub(crate) fn not_serving(pool: &Pool, asked: Option<&str>, now: Time) -> Vec<BackendId> {
    let promised = |asked: &&str| *asked == pool.model || pool.aliases.iter().any(|alias| alias == asked);
    let Some(asked) = asked.filter(|asked| pool.by_list || !promised(asked)) else { return Vec::new() };
    let members = || pool.members().iter().map(|member| &member.backend);
    let ids = |out: &dyn Fn(&Backend) -> bool| -> Vec<BackendId> {
        members().filter(|backend| out(backend)).map(|backend| backend.id).collect()
    };
    let without = ids(&|backend| !backend.lists(asked));
    if without.len() < pool.members().len() {
        return without;
    }
    let denied = ids(&|backend| backend.doubt.denies(asked, now));
    if denied.len() == pool.members().len() { Vec::new() } else { denied }
}
