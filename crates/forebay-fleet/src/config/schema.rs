//! The sections of the file, and hints for names that are none of its keys. Says nothing of values: the entry of each key is
//! in `keys/`.

use super::discover::{DISCOVER, KUBERNETES};
use super::keys::{
    Admin, ArmConfig, BackendConfig, Budget, Clients, Cors, Drain, Ejection, Forwarding, HealthConfig, KeyConfig,
    Limits, Listen, Log, Paths, Picker, PoolConfig, Replicas, Retry, SESSION, ScrapeConfig, Slo, Stream, Trace,
    WaitRoom,
};
use super::model::ROOT;
use super::pool_tls::POOL_TLS;
use super::tls::{ADMIN_TLS, EPP_TLS, LISTEN_TLS};
use forebay_core::toml_reader::{Keys, Schema};

/// The whole file, in the order of the documentation.
pub(super) static SCHEMA: Schema = Schema {
    root: ROOT,
    sections: &[
        ROOT,
        Listen::SECTION,
        LISTEN_TLS,
        Drain::SECTION,
        Admin::SECTION,
        ADMIN_TLS,
        Picker::SECTION,
        EPP_TLS,
        Log::SECTION,
        Clients::SECTION,
        KeyConfig::SECTION,
        Paths::SECTION,
        Cors::SECTION,
        Forwarding::SECTION,
        Limits::SECTION,
        Stream::SECTION,
        Retry::SECTION,
        Budget::SECTION,
        HealthConfig::SECTION,
        Ejection::SECTION,
        ScrapeConfig::SECTION,
        Replicas::SECTION,
        Slo::SECTION,
        Trace::SECTION,
        PoolConfig::SECTION,
        SESSION,
        POOL_TLS,
        WaitRoom::SECTION,
        DISCOVER,
        KUBERNETES,
        ArmConfig::SECTION,
        BackendConfig::SECTION,
    ],
    variables: &["key_env"],
    needless,
    instead,
};

/// Returns why a key that other proxies have, or that was once designed, is not here: there is no use in it.
fn needless(section: &str, key: &str) -> Option<&'static str> {
    match (section, key) {
        ("health", "slow_start") => Some(
            "every policy counts what it has just sent, so a backend that comes back gets its share and no more, without a ramp",
        ),
        _ => None,
    }
}

fn instead(section: &str, key: &str) -> Option<&'static str> {
    if section == "clients.keys" && matches!(key, "key" | "sha256" | "hash" | "value" | "secret") {
        return Some("keys stay out of this file: write the hash into clients.keys_file, or key_env = \"NAME\"");
    }
    if matches!((section, key), ("listen" | "admin" | "epp", "port" | "host" | "ip" | "bind")) {
        return Some("write address = \"127.0.0.1:8080\": an IP address with the port");
    }
    // The words of nginx, which many write first.
    match (section, key) {
        ("backends", "weight") => {
            return Some("Forebay measures how fast a backend is; until then, speed = 2.0 means twice as fast");
        }
        ("pools.arms", "weight") => return Some("write share, the arm's part of the sessions"),
        ("backends", "max_fails" | "fail_timeout") => {
            return Some("[health] has failures and ejection, for all backends");
        }
        ("backends", "down" | "backup") => return Some("write drain = true for a backend that shall get no requests"),
        _ => {}
    }
    if section == "trace" {
        return match key {
            "headers" | "timeout" => {
                Some("set OTEL_EXPORTER_OTLP_HEADERS or OTEL_EXPORTER_OTLP_TIMEOUT in the environment")
            }
            "service_name" | "service" | "resource" => {
                Some("set OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES in the environment")
            }
            _ => None,
        };
    }
    (section == "backends" && key.contains("key"))
        .then_some("keys stay out of this file: write key_env = \"NAME\", the environment variable that holds it, or key_file = \"PATH\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised() {
        assert_eq!(SCHEMA.meant(ArmConfig::SECTION, "shrae"), "did you mean `share`?");
        assert_eq!(SCHEMA.meant(Listen::SECTION, "keep-alive"), "did you mean `keep_alive`?");
        assert_eq!(SCHEMA.meant(ROOT, "pool"), "did you mean `pools`?");
        assert_eq!(SCHEMA.meant(Admin::SECTION, "token"), "did you mean `token_file`?");
    }

    #[test]
    fn a_key_of_another_section_is_sent_there() {
        assert_eq!(SCHEMA.meant(Stream::SECTION, "ttft"), "`ttft` belongs in [slo]");
        assert_eq!(SCHEMA.meant(PoolConfig::SECTION, "share"), "`share` belongs in [[pools.arms]]");
    }

    #[test]
    fn a_key_of_another_section_wins_over_a_slip_of_several_letters() {
        assert_eq!(SCHEMA.meant(Listen::SECTION, "total_timeout"), "`total_timeout` belongs in [stream]");
        assert_eq!(SCHEMA.meant(Listen::SECTION, "body_timeuot"), "did you mean `body_timeout`?");
    }

    #[test]
    fn the_words_of_other_proxies_lead_to_ours() {
        assert!(SCHEMA.meant(Listen::SECTION, "port").contains("address = "));
        assert!(SCHEMA.meant(BackendConfig::SECTION, "weight").contains("speed"));
        assert!(SCHEMA.meant(ArmConfig::SECTION, "weight").contains("share"));
        assert!(SCHEMA.meant(BackendConfig::SECTION, "max_fails").contains("[health]"));
    }

    #[test]
    fn a_stranger_is_told_what_there_is() {
        assert_eq!(SCHEMA.meant(Slo::SECTION, "bananas"), "[slo] may hold ttft, tpot");
        assert!(SCHEMA.meant(BackendConfig::SECTION, "api_key").contains("key_env"));
    }

    #[test]
    fn no_key_is_both_known_and_promised() {
        for section in SCHEMA.sections {
            assert!(section.later.iter().all(|key| !section.has(key)), "{}", section.name);
        }
    }
}
