//! Objects of a cluster, as its API documents them: a pod, an EndpointSlice of a Service and an InferencePool.

use serde_json::{Value, json};

use crate::mock::Mock;

/// A Ready pod whose port `http` is the backend's.
pub(crate) fn pod(name: &str, mock: &Mock) -> Value {
    let authority = mock.authority();
    let (ip, port) = authority.rsplit_once(':').unwrap();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "inference", "labels": {"app": "vllm"}},
        "spec": {"containers": [{"name": "vllm", "ports": [{"name": "http", "containerPort": port.parse::<u16>().unwrap()}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// An EndpointSlice of the Service `vllm` with this backend alone, whose conditions are given; with all that is optional.
pub(crate) fn slice(name: &str, mock: &Mock, conditions: &Value) -> Value {
    let authority = mock.authority();
    let (ip, port) = authority.rsplit_once(':').unwrap();
    let labels = json!({
        "kubernetes.io/service-name": "vllm",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    });
    let owner = json!({"apiVersion": "v1", "kind": "Service", "name": "vllm", "uid": "1", "controller": true});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "inference", "generateName": "vllm-", "uid": "7", "generation": 3,
            "labels": labels, "ownerReferences": [owner],
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [ip], "conditions": conditions, "nodeName": "gpu-1", "zone": "a",
            "targetRef": {"kind": "Pod", "namespace": "inference", "name": name, "uid": "9"},
            "hints": {"forZones": [{"name": "a"}]},
        }],
        "ports": [{"name": "http", "protocol": "TCP", "port": port.parse::<u16>().unwrap(), "appProtocol": null}],
    })
}

/// An EndpointSlice of the Service `forebay`, with a host for each replica that is Ready or not.
pub(crate) fn replicas_slice(name: &str, ready: &[bool]) -> Value {
    let endpoint = |(n, is_ready): (usize, &bool)| {
        let conditions = json!({"ready": is_ready, "serving": is_ready, "terminating": false});
        json!({"addresses": [format!("10.0.{}.{}", n / 200, n % 200 + 1)], "conditions": conditions})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "inference", "labels": {"kubernetes.io/service-name": "forebay"}},
        "addressType": "IPv4", "endpoints": ready.iter().enumerate().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

/// An InferencePool of the pods with `app=vllm`, with these target ports and what gateways say.
pub(crate) fn inference_pool(name: &str, ports: &[u16], parents: &Value) -> Value {
    let ports: Vec<Value> = ports.iter().map(|port| json!({"number": port})).collect();
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "inference"},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": ports,
            "endpointPickerRef": {"name": "forebay", "port": {"number": 9002}, "failureMode": "FailClose"},
        },
        "status": {"parents": parents},
    })
}
