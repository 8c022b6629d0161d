//! An InferencePool (`inference.networking.k8s.io/v1`): the labels and ports of its pods, and what gateways have written about it.
//! Reads it from a list or a watch that asks for its name alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::members::{Unusable, read};
use super::objects::{List, Metadata, Status, WatchEvent, or_default};

/// The most that is kept of one text of a gateway.
const LONGEST: usize = 300;
/// A list has at most 32 gateways with 8 conditions each.
const MOST_CONDITIONS: usize = 256;

/// One InferencePool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InferencePool {
    /// The label selector of its pods.
    pub selector: String,
    /// The ports of each pod, each a server of its own.
    pub ports: Vec<u16>,
    /// The conditions that gateways have written.
    pub conditions: Vec<GatewayCondition>,
}

/// One condition that a gateway has written about a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayCondition {
    /// The gateway: its namespace, if it is another one, and its name.
    pub gateway: String,
    /// `Accepted`, `ResolvedRefs` or another.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The reason in one word.
    pub reason: String,
    /// The reason in a sentence.
    pub message: String,
}

/// The meaning of one event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolEvent {
    /// The pool is this now.
    Is(InferencePool),
    /// It was deleted.
    Gone,
    /// The watch is alive.
    Same,
    /// The API server ends the watch: code and message.
    Ended(u16, String),
}

/// Returns the pool of this name in a list, if it is there, and the version that a watch goes on from.
///
/// # Errors
/// It is no list, has no version, or the pool cannot be used.
pub fn listed_pool(body: &[u8], name: &str) -> Result<(Option<InferencePool>, String), Unusable> {
    let list: List<'_> = read(body)?;
    if list.metadata.resource_version.is_empty() {
        return Err(Unusable::NoVersion);
    }
    let mut found = None;
    for item in list.items {
        let pool: Pool = read(item.get().as_bytes())?;
        // A server that does not narrow a list by name sends all.
        if pool.metadata.name == name {
            found = Some(pool.taken()?);
        }
    }
    Ok((found, list.metadata.resource_version))
}

/// Returns what one event of a watch says of the pool of this name.
///
/// # Errors
/// It cannot be read, or the pool cannot be used.
pub fn pool_event(line: &[u8], name: &str) -> Result<PoolEvent, Unusable> {
    let event: WatchEvent<'_> = read(line)?;
    let object = event.object.get().as_bytes();
    match event.kind {
        "ERROR" => {
            let Status { code, message } = read(object)?;
            Ok(PoolEvent::Ended(code, message))
        }
        "BOOKMARK" => Ok(PoolEvent::Same),
        "ADDED" | "MODIFIED" | "DELETED" => {
            let pool: Pool = read(object)?;
            Ok(match event.kind {
                _ if pool.metadata.name != name => PoolEvent::Same,
                "DELETED" => PoolEvent::Gone,
                _ => PoolEvent::Is(pool.taken()?),
            })
        }
        other => Err(Unusable::Malformed(format!("an event of the unknown type {other:?}"))),
    }
}

#[derive(Debug, Deserialize)]
struct Pool {
    metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    spec: Spec,
    #[serde(default, deserialize_with = "or_default")]
    status: PoolStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(deserialize_with = "or_default")]
    selector: Selector,
    #[serde(deserialize_with = "or_default")]
    target_ports: Vec<TargetPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Selector {
    #[serde(deserialize_with = "or_default")]
    match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct TargetPort {
    number: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PoolStatus {
    #[serde(deserialize_with = "or_default")]
    parents: Vec<Parent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Parent {
    #[serde(deserialize_with = "or_default")]
    parent_ref: ParentRef,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ParentRef {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type", deserialize_with = "or_default")]
    kind: String,
    #[serde(deserialize_with = "or_default")]
    status: String,
    #[serde(deserialize_with = "or_default")]
    reason: String,
    #[serde(deserialize_with = "or_default")]
    message: String,
}

impl Pool {
    fn taken(self) -> Result<InferencePool, Unusable> {
        let labels = self.spec.selector.match_labels;
        // Without labels it would select every pod of the namespace.
        if labels.is_empty() {
            return Err(Unusable::Pool("spec.selector.matchLabels is empty"));
        }
        let mut ports: Vec<u16> = self.spec.target_ports.iter().map(|port| port.number).collect();
        ports.retain(|port| *port > 0);
        ports.sort_unstable();
        ports.dedup();
        if ports.is_empty() {
            return Err(Unusable::Pool("spec.targetPorts is empty"));
        }
        let selector = labels.iter().map(|(label, value)| format!("{label}={value}")).collect::<Vec<_>>().join(",");
        let conditions = self.status.parents.iter().flat_map(Parent::conditions).take(MOST_CONDITIONS).collect();
        Ok(InferencePool { selector, ports, conditions })
    }
}

impl Parent {
    fn conditions(&self) -> impl Iterator<Item = GatewayCondition> {
        let ParentRef { name, namespace } = &self.parent_ref;
        let gateway = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        self.conditions.iter().map(move |condition| GatewayCondition {
            gateway: cut(&gateway),
            kind: cut(&condition.kind),
            status: cut(&condition.status),
            reason: cut(&condition.reason),
            message: cut(&condition.message),
        })
    }
}

/// The beginning of a text that somebody else wrote, for a page.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(name: &str) -> Value {
        json!({
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
            "metadata": {"name": name, "namespace": "inference", "resourceVersion": "7"},
            "spec": {
                "selector": {"matchLabels": {"model": "m", "app": "vllm"}},
                "targetPorts": [{"number": 8001}, {"number": 8000}, {"number": 8001}],
                "endpointPickerRef": {"name": "epp", "port": {"number": 9002}, "failureMode": "FailClose"},
            },
            "status": {"parents": [
                {"parentRef": {"name": "gateway"}, "conditions": [
                    {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "yes\n", "lastTransitionTime": "2026-11-30T12:00:00Z"},
                    {"type": "ResolvedRefs", "status": "False", "reason": "InvalidExtensionRef", "message": "no Service epp"},
                ]},
                {"parentRef": {"name": "other", "namespace": "edge"}, "conditions": null},
            ]},
        })
    }

    fn list(items: &Value) -> Vec<u8> {
        json!({"metadata": {"resourceVersion": "41"}, "items": items}).to_string().into_bytes()
    }

    fn event(kind: &str, object: &Value) -> Result<PoolEvent, Unusable> {
        pool_event(json!({"type": kind, "object": object}).to_string().as_bytes(), "m")
    }

    #[test]
    fn a_pool_names_labels_ports_and_what_gateways_say() {
        let (found, version) = listed_pool(&list(&json!([pool("other"), pool("m")])), "m").unwrap();
        let found = found.unwrap();
        assert_eq!((found.selector.as_str(), version.as_str()), ("app=vllm,model=m", "41"));
        assert_eq!(found.ports, [8000, 8001]);
        let said: Vec<_> = found.conditions.iter().map(|one| (one.kind.as_str(), one.status.as_str())).collect();
        assert_eq!(said, [("Accepted", "True"), ("ResolvedRefs", "False")]);
        assert_eq!((found.conditions[0].gateway.as_str(), found.conditions[0].message.as_str()), ("gateway", "yes"));
        assert_eq!(listed_pool(&list(&json!([pool("other")])), "m").unwrap().0, None);
        assert_eq!(listed_pool(&list(&Value::Null), "m").unwrap().0, None);
        assert_eq!(event("MODIFIED", &pool("m")), Ok(PoolEvent::Is(found)));
        assert_eq!(event("DELETED", &pool("m")), Ok(PoolEvent::Gone));
        assert_eq!(event("DELETED", &pool("other")), Ok(PoolEvent::Same));
        assert_eq!(event("BOOKMARK", &json!({"metadata": {"resourceVersion": "9"}})), Ok(PoolEvent::Same));
        let gone = json!({"kind": "Status", "code": 410, "message": "too old"});
        assert_eq!(event("ERROR", &gone), Ok(PoolEvent::Ended(410, "too old".to_owned())));
    }

    #[test]
    fn a_pool_that_names_no_labels_or_no_port_is_an_error_and_no_empty_answer() {
        for (place, value) in
            [("/spec/selector", json!({"matchLabels": {}})), ("/spec/targetPorts", json!([])), ("/spec", Value::Null)]
        {
            let mut wrong = pool("m");
            *wrong.pointer_mut(place).unwrap() = value;
            assert!(matches!(event("ADDED", &wrong), Err(Unusable::Pool(_))), "{place}");
        }
        assert!(matches!(listed_pool(b"<html>", "m"), Err(Unusable::Malformed(_))));
        assert_eq!(listed_pool(br#"{"metadata":{},"items":[]}"#, "m"), Err(Unusable::NoVersion));
    }
}
