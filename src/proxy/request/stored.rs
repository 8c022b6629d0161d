//! The search for a stored response: which backends may have it, in the order in which they are asked. Where it was last seen
//! is a hint that comes first. No backend is asked twice, and a response is unknown only if every one of them says so.

use std::collections::VecDeque;
use std::sync::Arc;

use super::peek::Peek;
use crate::proxy::route::Route;
use crate::proxy::shared::Shared;
use forebay_core::error::{Refusal, repeated};
use forebay_core::units::BackendId;
use forebay_fleet::clients::Client;
use forebay_fleet::health::HealthState;
use forebay_fleet::{Member, Pool, Snapshot};

/// A backend that may have the response, and its pool.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) pool: Arc<Pool>,
    pub(crate) backend: BackendId,
}

/// The search for one response.
pub(crate) struct Search {
    pub(crate) id: String,
    /// The pool whose backends are asked; all of them where there is none.
    pub(crate) scope: Option<String>,
    left: VecDeque<Home>,
    /// Somebody who may have it was not asked.
    pub(crate) unasked: bool,
}

impl Search {
    /// The next backend to ask.
    pub(crate) fn next(&mut self) -> Option<Home> {
        self.left.pop_front()
    }
}

/// The stored response that a request refers to.
pub(crate) fn id_of<'a>(route: Route<'a>, peek: Option<&'a Peek>) -> Option<&'a str> {
    match route {
        Route::StoredResponse(id) => Some(id),
        _ => peek.and_then(|peek| peek.previous_response_id.as_deref()),
    }
}

/// Begins the search for a response among the backends of `pool`, or of all pools.
///
/// # Errors
/// All of them said a moment ago that they do not have it.
pub(crate) fn search(
    (shared, snapshot): (&Shared, &Snapshot),
    client: Option<&Client>,
    id: &str,
    pool: Option<&Arc<Pool>>,
) -> Result<Search, Refusal> {
    let scope = pool.map(|pool| pool.model.clone());
    if shared.responses.is_denied(id, scope.as_deref(), shared.clock.now()) {
        return Err(Refusal::UnknownResponse(repeated(id)));
    }
    let pools = pool.map_or(snapshot.pools.as_slice(), std::slice::from_ref);
    let hint = shared.responses.find(id);
    // A response that a model made which the client may not use is not there for it.
    let pools = pools.iter().filter(|pool| client.is_none_or(|client| client.may_use_some_of(pool)));
    let mut members: Vec<(&Arc<Pool>, &Member)> =
        pools.flat_map(|pool| pool.members().iter().map(move |member| (pool, member))).collect();
    // Those that take requests first: one that is out is asked if nobody else has it.
    members.sort_by_key(|(_, member)| (Some(member.backend.id) != hint, !member.state.is_usable()));
    let mut search = Search { id: id.to_owned(), scope, left: VecDeque::new(), unasked: false };
    let mut urls = Vec::new();
    for (pool, member) in members {
        if matches!(member.state, HealthState::Drained(_)) {
            search.unasked = true;
        } else if !urls.contains(&&member.backend.url) {
            urls.push(&member.backend.url);
            search.left.push_back(Home { pool: Arc::clone(pool), backend: member.backend.id });
        }
    }
    Ok(search)
}
