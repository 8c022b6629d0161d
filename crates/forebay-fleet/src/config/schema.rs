//! The names of the configuration's keys, by section: what is known, and what is designed but not yet in this version.
//! Says nothing of values.

use forebay_core::toml_reader::{Schema, Section};

/// The file itself.
pub(crate) const ROOT: Section = Section {
    name: "",
    head: "the file",
    form: "sections and their keys",
    keys: &["listen", "admin", "clients", "limits", "stream", "retry", "health", "scrape", "slo", "pools"],
    later: &[],
};
/// `[listen]`.
pub(crate) const LISTEN: Section = Section {
    name: "listen",
    head: "[listen]",
    form: "[listen] and its keys below",
    keys: &[
        "address",
        "max_connections",
        "header_timeout",
        "body_timeout",
        "keep_alive",
        "drain",
        "threads",
        "upgrade_socket",
    ],
    later: &["tls"],
};
/// `drain` in `[listen]`.
pub(crate) const DRAIN: Section = Section {
    name: "listen.drain",
    head: "listen.drain",
    form: "drain = { ready_delay = \"0s\", limit = \"10m\" }",
    keys: &["ready_delay", "limit"],
    later: &[],
};
/// `[admin]`.
pub(crate) const ADMIN: Section = Section {
    name: "admin",
    head: "[admin]",
    form: "[admin] and its keys below",
    keys: &["address", "token_file"],
    later: &[],
};
/// `[clients]`.
pub(crate) const CLIENTS: Section = Section {
    name: "clients",
    head: "[clients]",
    form: "[clients] and its keys below",
    keys: &["keys_file", "explain"],
    later: &[],
};
/// `[limits]`.
pub(crate) const LIMITS: Section = Section {
    name: "limits",
    head: "[limits]",
    form: "[limits] and its keys below",
    keys: &["body", "bodies_in_memory", "head", "h2_streams", "write_stall"],
    later: &[],
};
/// `[stream]`.
pub(crate) const STREAM: Section = Section {
    name: "stream",
    head: "[stream]",
    form: "[stream] and its keys below",
    keys: &["head_after", "first_token_timeout", "idle_timeout", "total_timeout", "usage"],
    later: &[],
};
/// `[retry]`.
pub(crate) const RETRY: Section = Section {
    name: "retry",
    head: "[retry]",
    form: "[retry] and its keys below",
    keys: &["attempts", "budget"],
    later: &[],
};
/// `budget` in `[retry]`.
pub(crate) const BUDGET: Section = Section {
    name: "retry.budget",
    head: "retry.budget",
    form: "budget = { burst = 100, ratio = 0.2, per_second = 10 }",
    keys: &["burst", "ratio", "per_second"],
    later: &[],
};
/// `[health]`.
pub(crate) const HEALTH: Section = Section {
    name: "health",
    head: "[health]",
    form: "[health] and its keys below",
    keys: &["interval", "timeout", "failures", "ejection", "stall_timeout"],
    later: &[],
};
/// `ejection` in `[health]`.
pub(crate) const EJECTION: Section = Section {
    name: "health.ejection",
    head: "health.ejection",
    form: "ejection = { base = \"5s\", max = \"60s\" }",
    keys: &["base", "max"],
    later: &[],
};
/// `[scrape]`.
pub(crate) const SCRAPE: Section = Section {
    name: "scrape",
    head: "[scrape]",
    form: "[scrape] and its keys below",
    keys: &["interval", "timeout", "stale_after"],
    later: &[],
};
/// `[slo]`.
pub(crate) const SLO: Section =
    Section { name: "slo", head: "[slo]", form: "[slo] and its keys below", keys: &["ttft", "tpot"], later: &[] };
/// `[[pools]]`.
pub(crate) const POOL: Section = Section {
    name: "pools",
    head: "[[pools]]",
    form: "[[pools]], once for each model",
    keys: &[
        "model",
        "aliases",
        "policy",
        "affinity",
        "session",
        "split_salt",
        "cross_arm",
        "backend_max_in_flight",
        "wait_room",
        "arms",
        "backends",
    ],
    later: &[],
};
/// `session` in `[[pools]]`.
pub(crate) const SESSION: Section = Section {
    name: "pools.session",
    head: "pools.session",
    form: "session = { header = \"x-session-id\" }",
    keys: &["header", "body"],
    later: &[],
};
/// `wait_room` in `[[pools]]`.
pub(crate) const WAIT_ROOM: Section = Section {
    name: "pools.wait_room",
    head: "pools.wait_room",
    form: "wait_room = { size = 512, timeout = \"30s\" }",
    keys: &["size", "timeout"],
    later: &[],
};
/// `[[pools.arms]]`.
pub(crate) const ARM: Section = Section {
    name: "pools.arms",
    head: "[[pools.arms]]",
    form: "[[pools.arms]], once for each arm",
    keys: &["name", "share", "gpus", "backends"],
    later: &[],
};
/// One of `backends`, of a pool or of an arm.
pub(crate) const BACKEND: Section = Section {
    name: "backends",
    head: "a backend",
    form: "each backend as { url = \"http://127.0.0.1:8001\" }",
    keys: &["url", "speed", "key_env", "drain"],
    later: &[],
};

/// The whole file.
pub(super) static SCHEMA: Schema = Schema {
    root: &ROOT,
    sections: &[
        &ROOT, &LISTEN, &DRAIN, &ADMIN, &CLIENTS, &LIMITS, &STREAM, &RETRY, &BUDGET, &HEALTH, &EJECTION, &SCRAPE, &SLO,
        &POOL, &SESSION, &WAIT_ROOM, &ARM, &BACKEND,
    ],
    variables: &["key_env"],
    needless,
    instead,
};

/// Why a key that other proxies have, or that was once designed, is not here: there is no use in it.
fn needless(section: &str, key: &str) -> Option<&'static str> {
    match (section, key) {
        ("health", "slow_start") => Some(
            "every policy counts what it has just sent, so a backend that comes back gets its share and no more, without a ramp",
        ),
        _ => None,
    }
}

fn instead(section: &str, key: &str) -> Option<&'static str> {
    (section == "backends" && key.contains("key"))
        .then_some("keys stay out of this file: write key_env = \"NAME\", the environment variable that holds it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised() {
        assert_eq!(SCHEMA.meant(&ARM, "shrae"), "did you mean `share`?");
        assert_eq!(SCHEMA.meant(&LISTEN, "keep-alive"), "did you mean `keep_alive`?");
        assert_eq!(SCHEMA.meant(&ROOT, "pool"), "did you mean `pools`?");
        assert_eq!(SCHEMA.meant(&ADMIN, "token"), "did you mean `token_file`?");
    }

    #[test]
    fn a_key_of_another_section_is_sent_there() {
        assert_eq!(SCHEMA.meant(&STREAM, "ttft"), "`ttft` belongs in [slo]");
        assert_eq!(SCHEMA.meant(&POOL, "share"), "`share` belongs in [[pools.arms]]");
    }

    #[test]
    fn a_stranger_is_told_what_there_is() {
        assert_eq!(SCHEMA.meant(&SLO, "bananas"), "[slo] may hold ttft, tpot");
        assert!(SCHEMA.meant(&BACKEND, "api_key").contains("key_env"));
    }

    #[test]
    fn no_key_is_both_known_and_promised() {
        for section in SCHEMA.sections {
            assert!(section.keys.iter().all(|key| !section.later.contains(key)), "{}", section.name);
        }
    }
}
