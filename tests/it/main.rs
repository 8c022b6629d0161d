//! Forebay as its users meet it: the real process, on real sockets, between raw clients and scripted backends. One binary,
//! one file a subject, all through `harness`, `mock` and `client`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(clippy::disallowed_methods, reason = "the deadlines of a real process are real time")]

mod apiserver;
mod certificates;
mod client;
mod cluster_objects;
mod frames;
mod fronts;
#[cfg(feature = "epp")]
mod gateway;
mod harness;
mod mock;
mod names;
mod tls_client;

mod aborts;
mod accepted;
#[cfg(all(feature = "sim", feature = "bench"))]
mod access_log;
mod affinity;
mod alerts;
#[cfg(all(feature = "sim", feature = "bench"))]
mod bench;
mod blame;
mod bodies;
mod bounds;
mod chaos;
mod claims;
mod commands_admin;
mod cors;
mod dashboard;
mod dns;
mod drains;
#[cfg(feature = "epp")]
mod epp;
#[cfg(all(feature = "sim", feature = "bench"))]
mod experiment;
mod explain;
mod failover;
mod faults;
mod fidelity;
mod figures;
#[cfg(feature = "epp")]
mod gateway_connection;
mod h2;
mod health;
mod hints;
mod keys;
mod kubernetes;
mod lifecycle;
mod log_files;
mod logs;
mod lying;
mod manners;
mod neighbours;
#[cfg(all(feature = "sim", feature = "bench"))]
mod next;
#[cfg(all(feature = "sim", feature = "bench"))]
mod observability;
mod past_hyper;
mod paths;
#[cfg(all(feature = "sim", feature = "bench"))]
mod peers;
mod progress;
mod prometheus;
mod realtime;
mod refusals;
mod reload;
mod replica_count;
mod replicas;
mod requests;
mod shortage;
mod silent;
mod sim_faults;
mod streams;
mod stuck;
mod tls;
#[cfg(feature = "top")]
mod top;
mod traces;
mod upgrade;
mod wait_room;
mod watchdog;
mod ways;
