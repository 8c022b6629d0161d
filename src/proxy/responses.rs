//! Which backend was seen to have which stored response: bounded tables, oldest out first, kept as hints. What is not here may
//! be on any backend: another Forebay, or this one before a restart, may have seen it made.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;

use forebay_core::clock::Time;
use forebay_core::units::BackendId;
use forebay_fleet::lock::locked;

/// Stored responses remembered; at about 40 bytes each.
const CAPACITY: usize = 100_000;
/// Ids remembered that no backend has.
const DENIED_CAPACITY: usize = 10_000;
/// The time for which an id that no backend has is refused without asking again: invented ids must not multiply requests.
const DENIED_FOR: Duration = Duration::from_secs(10);

/// The tables. They keep hashes, since a client may choose an id of any length; a collision is no more than a wrong hint.
#[derive(Default)]
pub(crate) struct ResponseHomes {
    hasher: RandomState,
    tables: Mutex<HomeTables>,
}

#[derive(Default)]
struct HomeTables {
    home: HashMap<u64, BackendId>,
    order: VecDeque<u64>,
    denied: HashMap<u64, Denial>,
    denials: VecDeque<(u64, Time)>,
}

struct Denial {
    /// The pool whose backends were asked; all of them where there is none.
    scope: Option<u64>,
    at: Time,
}

impl ResponseHomes {
    /// Remembers who has a response.
    pub(crate) fn remember(&self, id: &str, backend: BackendId) {
        let id = self.hasher.hash_one(id);
        let mut tables = locked(&self.tables);
        tables.denied.remove(&id);
        if tables.home.insert(id, backend).is_none() {
            tables.order.push_back(id);
        }
        if tables.order.len() > CAPACITY
            && let Some(oldest) = tables.order.pop_front()
        {
            tables.home.remove(&oldest);
        }
    }

    /// Returns the backend that had a response when it was last seen.
    pub(crate) fn find(&self, id: &str) -> Option<BackendId> {
        let id = self.hasher.hash_one(id);
        locked(&self.tables).home.get(&id).copied()
    }

    /// Every backend of the pool (of all pools where none is named) says that it does not have the response.
    pub(crate) fn deny(&self, id: &str, pool: Option<&str>, now: Time) {
        let (id, scope) = (self.hasher.hash_one(id), pool.map(|pool| self.hasher.hash_one(pool)));
        let mut tables = locked(&self.tables);
        let HomeTables { denied, denials, .. } = &mut *tables;
        denied.insert(id, Denial { scope, at: now });
        denials.push_back((id, now));
        let past = |at: Time| now.since(at) >= DENIED_FOR;
        while let Some(&(oldest, at)) = denials.front()
            && (past(at) || denials.len() > DENIED_CAPACITY)
        {
            denials.pop_front();
            // It may have been denied anew since.
            if denied.get(&oldest).is_some_and(|denied| denied.at == at) {
                denied.remove(&oldest);
            }
        }
    }

    /// Returns whether these backends said a moment ago that they do not have the response.
    pub(crate) fn is_denied(&self, id: &str, pool: Option<&str>, now: Time) -> bool {
        let (id, scope) = (self.hasher.hash_one(id), pool.map(|pool| self.hasher.hash_one(pool)));
        let tables = locked(&self.tables);
        let denied = tables.denied.get(&id);
        denied.is_some_and(|denied| denied.scope == scope && now.since(denied.at) < DENIED_FOR)
    }
}

#[derive(Deserialize)]
struct WithId {
    id: String,
}

#[derive(Deserialize)]
struct Created {
    response: WithId,
}

/// The id in a unary answer of the Responses API.
pub(crate) fn id_of_body(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<WithId>(body).ok().map(|body| body.id)
}

/// The id in the data of a `response.created` event.
pub(crate) fn id_of_event(data: &[u8]) -> Option<String> {
    serde_json::from_slice::<Created>(data).ok().map(|created| created.response.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_forgets_the_oldest() {
        let homes = ResponseHomes::default();
        for n in 0..=CAPACITY {
            homes.remember(&format!("resp_{n}"), BackendId(1));
        }
        assert_eq!(homes.find("resp_0"), None);
        assert_eq!(homes.find("resp_1"), Some(BackendId(1)));
    }

    #[test]
    fn a_denial_lasts_ten_seconds_and_ends_when_the_response_is_seen() {
        let (homes, at) = (ResponseHomes::default(), |seconds: u64| Time::from_micros(seconds * 1_000_000));
        homes.deny("resp_1", Some("m"), at(1));
        assert!(homes.is_denied("resp_1", Some("m"), at(10)));
        assert!(!homes.is_denied("resp_1", Some("m"), at(11)));
        assert!(!homes.is_denied("resp_1", Some("other"), at(2)) && !homes.is_denied("resp_1", None, at(2)));
        homes.remember("resp_1", BackendId(1));
        assert!(!homes.is_denied("resp_1", Some("m"), at(2)));
    }

    #[test]
    fn denials_are_bounded_and_the_past_ones_go() {
        let homes = ResponseHomes::default();
        for n in 0..2 * DENIED_CAPACITY {
            homes.deny(&format!("resp_{n}"), None, Time::from_micros(1));
        }
        let sizes = || {
            let tables = homes.tables.lock().unwrap();
            (tables.denied.len(), tables.denials.len())
        };
        assert_eq!(sizes(), (DENIED_CAPACITY, DENIED_CAPACITY));
        homes.deny("resp_late", None, Time::from_micros(20_000_000));
        assert_eq!(sizes(), (1, 1));
    }

    #[test]
    fn the_id_is_read_from_event_and_body() {
        let event = b"{\"response\":{\"id\":\"resp_7\"},\"type\":\"response.created\"}";
        assert_eq!(id_of_event(event).as_deref(), Some("resp_7"));
        assert_eq!(id_of_body(b"{\"object\":\"response\",\"id\":\"resp_8\"}").as_deref(), Some("resp_8"));
        assert_eq!(id_of_body(b"[]"), None);
    }
}
