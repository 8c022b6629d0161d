//! How many connections fit: those of clients and those to backends share the process's file descriptors. Some are kept for
//! newcomers, who are then told that there is no room, instead of waiting unseen until somebody leaves.
//!
//! Hot path: an atomic addition a connection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;

/// Of what fits, connections to backends leave so many to clients: a sixteenth, at least these.
const SPARE: usize = 8;

/// The room for connections.
#[derive(Debug)]
pub struct Descriptors {
    most: AtomicUsize,
    used: AtomicUsize,
}

/// A connection's place in it, given back when dropped.
#[derive(Debug)]
pub struct Descriptor(Arc<Descriptors>);

impl Descriptors {
    /// Room for so many connections.
    #[must_use]
    pub fn new(most: usize) -> Arc<Descriptors> {
        Arc::new(Descriptors { most: AtomicUsize::new(most), used: AtomicUsize::new(0) })
    }

    /// Changes the room to so many connections. Those that are open stay, also where they are more.
    pub fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Room for as many as come.
    #[must_use]
    pub fn unlimited() -> Arc<Descriptors> {
        Descriptors::new(usize::MAX)
    }

    /// A place for a client's connection; `None` where all are taken.
    #[must_use]
    pub fn for_client(self: &Arc<Self>) -> Option<Descriptor> {
        self.take(self.most.load(Ordering::Relaxed))
    }

    /// A place for a connection to a backend.
    ///
    /// # Errors
    /// `EMFILE`, as the system would say: what is left is for clients.
    pub(super) fn for_backend(self: &Arc<Self>) -> io::Result<Descriptor> {
        let most = self.most.load(Ordering::Relaxed);
        let most = most.saturating_sub(SPARE.max(most / 16));
        self.take(most).ok_or_else(|| io::Error::from_raw_os_error(Errno::EMFILE as i32))
    }

    fn take(self: &Arc<Self>, most: usize) -> Option<Descriptor> {
        let place = Descriptor(Arc::clone(self));
        (self.used.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_backends_leave_some_to_clients() {
        let room = Descriptors::new(20);
        let backends: Vec<Descriptor> = std::iter::from_fn(|| room.for_backend().ok()).collect();
        assert_eq!(backends.len(), 12);
        let clients: Vec<Descriptor> = std::iter::from_fn(|| room.for_client()).collect();
        assert_eq!(clients.len(), 8);
        assert_eq!(room.for_backend().unwrap_err().raw_os_error(), Some(Errno::EMFILE as i32));
        drop((backends, clients));
        assert!(room.for_backend().is_ok(), "what was refused took nothing");
    }

    #[test]
    fn a_smaller_room_takes_nobodys_place_and_lets_no_more_in() {
        let room = Descriptors::new(20);
        let clients: Vec<Descriptor> = (0..10).filter_map(|_| room.for_client()).collect();
        room.resize(5);
        assert_eq!((clients.len(), room.for_client().is_none()), (10, true));
        room.resize(11);
        assert!(room.for_client().is_some());
    }
}
