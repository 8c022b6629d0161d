//! The connection of a gateway to the picker, frame by frame: it lasts, whatever becomes of the exchanges on it.

use std::net::SocketAddr;

use crate::frames::{Frames, HEADERS};
use crate::harness::{Harness, free_port};
use crate::mock::Mock;

/// More streams than h2 resets by itself before it ends a connection.
const MANY: usize = 1_100;

#[test]
fn bytes_that_come_after_their_exchange_is_over_do_not_end_the_others() {
    let (mock, port) = (Mock::start(), free_port());
    let epp = format!("[epp]\naddress = \"127.0.0.1:{port}\"\ntls = \"off\"");
    let _forebay = Harness::new().config(&epp).pool("tiny", &[&mock]).start();
    let mut gateway = Frames::open(SocketAddr::from(([127, 0, 0, 1], port)), 1 << 16);
    // There is no such method, so the answer ends at once.
    gateway.request(1, "/no.such.Service/Method", b"");
    gateway.until(HEADERS);
    for sent in 0..MANY {
        assert!(gateway.late(1), "the connection ends after {sent}");
    }
    assert!(gateway.is_alive());
    gateway.request(3, "/no.such.Service/Method", b"");
    assert_eq!(gateway.until(HEADERS).stream, 3);
}
