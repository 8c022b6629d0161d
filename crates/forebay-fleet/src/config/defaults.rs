//! The values that hold where the operator wrote nothing. The documented example configuration has the same; a test keeps
//! the two together.

use std::time::Duration;

use super::model::{
    Admin, Budget, Drain, Ejection, Health, Limits, Listen, Retry, Scrape, Slo, Stream, UsageMode, WaitRoom, loopback,
};

impl Default for Listen {
    fn default() -> Listen {
        Listen {
            address: loopback(8080),
            max_connections: Some(20_000),
            header_timeout: Some(Duration::from_secs(10)),
            body_timeout: Some(Duration::from_secs(30)),
            keep_alive: Some(Duration::from_secs(75)),
            drain: Drain::default(),
            upgrade_socket: None,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { ready_delay: Duration::ZERO, limit: Duration::from_secs(600) }
    }
}

impl Default for Admin {
    fn default() -> Admin {
        Admin { address: loopback(9090), token: None }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body: 64 << 20,
            bodies_in_memory: 2 << 30,
            head: 64 << 10,
            h2_streams: 256,
            write_stall: Some(Duration::from_secs(30)),
        }
    }
}

impl Default for Stream {
    fn default() -> Stream {
        Stream {
            head_after: None,
            first_token_timeout: None,
            idle_timeout: Some(Duration::from_secs(60)),
            total_timeout: Some(Duration::from_secs(30 * 60)),
            usage: UsageMode::default(),
        }
    }
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { attempts: 3, budget: Budget::default() }
    }
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { burst: 100.0, ratio: 0.2, per_second: 10.0 }
    }
}

impl Default for Health {
    fn default() -> Health {
        Health {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 3,
            ejection: Ejection::default(),
            stall_timeout: Some(Duration::from_secs(20)),
        }
    }
}

impl Default for Ejection {
    fn default() -> Ejection {
        Ejection { base: Duration::from_secs(5), max: Duration::from_secs(60) }
    }
}

impl Default for Scrape {
    fn default() -> Scrape {
        Scrape {
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(800),
            stale_after: Duration::from_secs(3),
        }
    }
}

impl Default for Slo {
    fn default() -> Slo {
        Slo { ttft: Duration::from_secs(1), tpot: Duration::from_millis(60) }
    }
}

impl Default for WaitRoom {
    fn default() -> WaitRoom {
        WaitRoom { size: 512, timeout: Duration::from_secs(30) }
    }
}
