//! Which backend made which stored response: a bounded table, oldest out first. Only that backend can continue or return it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use forebay_core::units::BackendId;

/// Stored responses remembered; at about 100 bytes each.
const CAPACITY: usize = 100_000;

/// The table.
#[derive(Default)]
pub(crate) struct ResponseHomes(Mutex<Table>);

#[derive(Default)]
struct Table {
    home: HashMap<String, BackendId>,
    order: VecDeque<String>,
}

impl ResponseHomes {
    /// Remembers who made a response.
    pub(crate) fn remember(&self, id: String, backend: BackendId) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.home.insert(id.clone(), backend).is_none() {
            table.order.push_back(id);
        }
        if table.order.len() > CAPACITY
            && let Some(oldest) = table.order.pop_front()
        {
            table.home.remove(&oldest);
        }
    }

    /// Who made a response.
    pub(crate) fn find(&self, id: &str) -> Option<BackendId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).home.get(id).copied()
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
            homes.remember(format!("resp_{n}"), BackendId(1));
        }
        assert_eq!(homes.find("resp_0"), None);
        assert_eq!(homes.find("resp_1"), Some(BackendId(1)));
    }

    #[test]
    fn the_id_is_read_from_event_and_body() {
        let event = b"{\"response\":{\"id\":\"resp_7\"},\"type\":\"response.created\"}";
        assert_eq!(id_of_event(event).as_deref(), Some("resp_7"));
        assert_eq!(id_of_body(b"{\"object\":\"response\",\"id\":\"resp_8\"}").as_deref(), Some("resp_8"));
        assert_eq!(id_of_body(b"[]"), None);
    }
}
