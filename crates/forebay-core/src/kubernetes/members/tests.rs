//! Lists and events, one by one and in any order.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn pod(name: &str, host: u8, ready: &str) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": "7", "labels": null},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8000}, {"containerPort": 9}]}, {"ports": null}]},
        "status": {"phase": "Running", "podIP": format!("10.0.0.{host}"), "conditions": [{"type": "Ready", "status": ready}]},
    })
}

fn ready(name: &str, host: u8) -> Value {
    pod(name, host, "True")
}

fn slice(name: &str, family: &str, endpoints: &Value) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": "7"}, "addressType": family, "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8000}, {"name": "metrics", "port": 9000}],
    })
}

fn listed(objects: Objects, port: Port, items: &Value) -> Members {
    let mut members = Members::new(objects, vec![port]);
    let mut listing = members.begin();
    let page = json!({"metadata": {"resourceVersion": "41"}, "items": items}).to_string();
    assert_eq!(listing.page(page.as_bytes()), Ok(None));
    members.replace(listing).unwrap();
    members
}

fn pods(items: &Value) -> Members {
    listed(Objects::Pods, Port::Number(8000), items)
}

fn event(members: &mut Members, kind: &str, object: &Value) -> Result<EventMeaning, Unusable> {
    members.event(json!({"type": kind, "object": object}).to_string().as_bytes())
}

fn shown(members: &Members) -> String {
    let one = |endpoint: &Endpoint| {
        let mark = match endpoint.readiness {
            Readiness::Ready => "",
            Readiness::NotReady => "?",
            Readiness::Terminating => "-",
        };
        format!("{}{mark}", endpoint.address)
    };
    members.endpoints().iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_pod_is_an_endpoint_from_its_address_to_its_end() {
    let without_address = json!({"metadata": {"name": "a"}, "spec": null, "status": {"phase": "Pending"}});
    let mut members = pods(&json!([without_address]));
    assert_eq!((shown(&members).as_str(), members.version()), ("", "41"));
    assert_eq!(event(&mut members, "MODIFIED", &pod("a", 1, "False")), Ok(EventMeaning::Changed));
    assert_eq!(shown(&members), "10.0.0.1:8000?");
    assert_eq!(event(&mut members, "MODIFIED", &ready("a", 1)), Ok(EventMeaning::Changed));
    assert_eq!(event(&mut members, "MODIFIED", &ready("a", 1)), Ok(EventMeaning::Same));
    assert_eq!((shown(&members).as_str(), members.version()), ("10.0.0.1:8000", "7"));
    let mut ends = ready("a", 1);
    ends["metadata"]["deletionTimestamp"] = "2026-11-30T12:00:00Z".into();
    assert_eq!(event(&mut members, "MODIFIED", &ends), Ok(EventMeaning::Changed));
    assert_eq!(shown(&members), "10.0.0.1:8000-");
    assert_eq!(event(&mut members, "DELETED", &ends), Ok(EventMeaning::Changed));
    assert_eq!(shown(&members), "");
    assert_eq!(event(&mut members, "DELETED", &ends), Ok(EventMeaning::Same));
}

#[test]
fn a_pod_that_has_ended_leaves_its_address_to_another() {
    let mut over = ready("old", 1);
    over["status"]["phase"] = "Failed".into();
    assert_eq!(shown(&pods(&json!([over]))), "");
    let mut ends = ready("old", 1);
    ends["metadata"]["deletionTimestamp"] = "2026-11-30T12:00:00Z".into();
    assert_eq!(shown(&pods(&json!([ends, ready("new", 1)]))), "10.0.0.1:8000");
}

#[test]
fn two_pods_may_swap_their_addresses() {
    let mut members = pods(&json!([ready("a", 1), ready("b", 2)]));
    event(&mut members, "MODIFIED", &ready("a", 2)).unwrap();
    event(&mut members, "MODIFIED", &ready("b", 1)).unwrap();
    assert_eq!(shown(&members), "10.0.0.1:8000 10.0.0.2:8000");
}

#[test]
fn a_port_is_found_by_its_name() {
    let named = |name: &str| listed(Objects::Pods, Port::Name(name.to_owned()), &json!([ready("a", 1)]));
    assert_eq!((shown(&named("http")), shown(&named("grpc"))), ("10.0.0.1:8000".to_owned(), String::new()));
    let slices = json!([slice("s", "IPv4", &json!([{"addresses": ["10.0.0.1"]}]))]);
    for (port, want) in [
        (Port::Name("metrics".to_owned()), "10.0.0.1:9000"),
        (Port::Name("grpc".to_owned()), ""),
        (Port::Number(8000), "10.0.0.1:8000"),
        (Port::Number(8001), ""),
    ] {
        assert_eq!(shown(&listed(Objects::EndpointSlices, port.clone(), &slices)), want, "{port:?}");
    }
}

#[test]
fn a_pod_has_an_endpoint_at_each_of_several_ports() {
    let mut members = Members::new(Objects::Pods, vec![Port::Number(8000), Port::Number(8001)]);
    event(&mut members, "ADDED", &ready("a", 1)).unwrap();
    assert_eq!(shown(&members), "10.0.0.1:8000 10.0.0.1:8001");
    event(&mut members, "MODIFIED", &pod("a", 1, "False")).unwrap();
    assert_eq!(shown(&members), "10.0.0.1:8000? 10.0.0.1:8001?");
    event(&mut members, "DELETED", &ready("a", 1)).unwrap();
    assert_eq!(shown(&members), "");
}

#[test]
fn slices_say_what_is_ready_and_what_is_terminating() {
    let endpoints = json!([
        {"addresses": ["10.0.0.1", "10.0.0.99"], "conditions": {"ready": true}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
        {"addresses": ["10.0.0.4"], "conditions": {}},
        {"addresses": ["10.0.0.5"], "conditions": null},
        {"addresses": []}, {"addresses": null}, {"addresses": ["no address"]},
    ]);
    let http = Port::Name("http".to_owned());
    let members = listed(Objects::EndpointSlices, http.clone(), &json!([slice("s", "IPv4", &endpoints)]));
    assert_eq!(shown(&members), "10.0.0.1:8000 10.0.0.2:8000- 10.0.0.3:8000? 10.0.0.4:8000 10.0.0.5:8000");
    let six = slice("six", "IPv6", &json!([{"addresses": ["fd00::1"]}]));
    let four = slice("four", "IPv4", &json!([{"addresses": ["10.0.0.1"]}]));
    let names = slice("names", "FQDN", &json!([{"addresses": ["a.example"]}]));
    let none = slice("none", "IPv4", &Value::Null);
    let of = |items: Value| shown(&listed(Objects::EndpointSlices, http.clone(), &items));
    assert_eq!(of(json!([six, none])), "[fd00::1]:8000");
    assert_eq!(of(json!([six, four, names])), "10.0.0.1:8000", "a pod of both families is one server");
}

#[test]
fn hosts_that_are_ready_count_once_whatever_their_ports() {
    let endpoints = |hosts: &[&str]| {
        let of = |host: &&str| json!({"addresses": [host]});
        Value::from(hosts.iter().map(of).collect::<Vec<_>>())
    };
    let out = json!([
        {"addresses": ["10.0.0.7"], "conditions": {"ready": false}},
        {"addresses": ["10.0.0.8"], "conditions": {"ready": true, "terminating": true}},
    ]);
    let mut other = slice("b", "IPv4", &endpoints(&["10.0.0.2", "10.0.0.3"]));
    other["ports"] = json!([{"name": "admin", "port": 8081}]);
    // A headless Service may have no ports at all.
    let mut bare = slice("c", "IPv4", &endpoints(&["10.0.0.4"]));
    bare["ports"] = Value::Null;
    let first = slice("a", "IPv4", &endpoints(&["10.0.0.1", "10.0.0.2"]));
    let six = slice("six", "IPv6", &endpoints(&["fd00::1", "fd00::2"]));
    let all = listed(Objects::EndpointSlices, Port::Any, &json!([first, other, bare, six, slice("out", "IPv4", &out)]));
    assert_eq!(all.ready_hosts(), 4);
    assert_eq!(listed(Objects::Pods, Port::Any, &json!([ready("a", 1), pod("b", 2, "False")])).ready_hosts(), 1);
}

#[test]
fn a_list_comes_in_pages_and_holds_once_it_is_whole() {
    let mut members = pods(&json!([ready("old", 9)]));
    let mut listing = members.begin();
    let first = json!({"metadata": {"resourceVersion": "50", "continue": "abc"}, "items": [ready("a", 1)]});
    assert_eq!(listing.page(first.to_string().as_bytes()), Ok(Some("abc".to_owned())));
    assert_eq!(shown(&members), "10.0.0.9:8000");
    let last = json!({"metadata": {"resourceVersion": "50", "continue": ""}, "items": null});
    assert_eq!(listing.page(last.to_string().as_bytes()), Ok(None));
    members.replace(listing).unwrap();
    assert_eq!((shown(&members).as_str(), members.version()), ("10.0.0.1:8000", "50"));
}

#[test]
fn bookmarks_move_the_version_and_errors_end_the_watch() {
    let mut members = pods(&json!([ready("a", 1)]));
    let bookmark = json!({"kind": "Pod", "metadata": {"resourceVersion": "99", "creationTimestamp": null}});
    assert_eq!((event(&mut members, "BOOKMARK", &bookmark), members.version()), (Ok(EventMeaning::Same), "99"));
    let gone = json!({"kind": "Status", "code": 410, "message": "too old resource version: 1 (2)"});
    let ended = EventMeaning::Ended(410, "too old resource version: 1 (2)".to_owned());
    assert_eq!(event(&mut members, "ERROR", &gone), Ok(ended));
    assert_eq!(shown(&members), "10.0.0.1:8000", "an error takes nothing away");
}

#[test]
fn what_is_no_answer_of_kubernetes_is_refused() {
    let mut members = pods(&json!([]));
    for line in
        ["", "{}", "<html>", r#"{"type":"ADDED","object":{}}"#, r#"{"type":"NEW","object":{"metadata":{}}}"#, "\u{0}"]
    {
        assert!(matches!(members.event(line.as_bytes()), Err(Unusable::Malformed(_))), "{line}");
    }
    for body in ["", "[]", "{}", "<html>", r#"{"metadata":{},"items":[1]}"#, r#"{"metadata":{},"items":{}}"#] {
        assert!(matches!(members.begin().page(body.as_bytes()), Err(Unusable::Malformed(_))), "{body}");
    }
    let mut listing = members.begin();
    listing.page(br#"{"metadata":{},"items":[]}"#).unwrap();
    assert_eq!(members.replace(listing), Err(Unusable::NoVersion));
    let many: Vec<Value> = (0..=MOST_OBJECTS).map(|n| json!({"metadata": {"name": n.to_string()}})).collect();
    let body = json!({"metadata": {"resourceVersion": "1"}, "items": many}).to_string();
    assert_eq!(members.begin().page(body.as_bytes()), Err(Unusable::TooMany));
}

/// Returns the bytes that a real API server (1.20.2) sent; `tests/kube/run.sh` records it.
macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!("../../../../../tests/fixtures/kubernetes-1.20.2/", $name))
    };
}

#[test]
fn the_bytes_of_a_real_server_are_read() {
    let mut members = Members::new(Objects::Pods, vec![Port::Name("http".to_owned())]);
    let mut listing = members.begin();
    assert!(listing.page(recorded!("page.json")).unwrap().is_some(), "a page of two of three pods");
    let mut listing = members.begin();
    assert_eq!(listing.page(recorded!("list.json")), Ok(None));
    members.replace(listing).unwrap();
    let all = "10.244.0.1:8000 10.244.0.2:8000 10.244.0.3:8000";
    assert_eq!(shown(&members), all);
    let mut told = Vec::new();
    let mut lines = super::super::Lines::of_at_most(1 << 20);
    for piece in recorded!("watch.jsonl").chunks(1000) {
        lines.push(piece);
        while let Some(line) = lines.next_line().unwrap() {
            let before = shown(&members);
            members.event(&line).unwrap();
            if shown(&members) != before {
                told.push(shown(&members));
            }
        }
    }
    let wanted = [
        "10.244.0.1:8000? 10.244.0.2:8000 10.244.0.3:8000",
        all,
        "10.244.0.1:8000 10.244.0.3:8000",
        all,
        "10.244.0.1:8000 10.244.0.2:8000 10.244.0.3:8000-",
        "10.244.0.1:8000 10.244.0.2:8000",
    ];
    assert_eq!(told, wanted);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, bool, bool),
    Delete(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let put = (0_u8..6, 1_u8..6, any::<bool>(), any::<bool>())
        .prop_map(|(n, host, ready, ends)| Step::Put(n, host, ready, ends));
    proptest::collection::vec(prop_oneof![3 => put, 1 => (0_u8..6).prop_map(Step::Delete)], 0..40)
}

fn object(n: u8, host: u8, is_ready: bool, ends: bool) -> Value {
    let mut object = pod(&format!("pod-{n}"), host, if is_ready { "True" } else { "False" });
    if ends {
        object["metadata"]["deletionTimestamp"] = "2026-11-30T12:00:00Z".into();
    }
    object
}

proptest! {
    #[test]
    fn events_lead_where_a_list_of_the_same_moment_does(steps in steps()) {
        let mut members = pods(&json!([]));
        let mut there: BTreeMap<u8, Value> = BTreeMap::new();
        for step in steps {
            let before = members.endpoints();
            let told = match step {
                Step::Put(n, host, is_ready, ends) => {
                    let object = object(n, host, is_ready, ends);
                    let kind = if there.contains_key(&n) { "MODIFIED" } else { "ADDED" };
                    there.insert(n, object.clone());
                    event(&mut members, kind, &object)
                }
                Step::Delete(n) => {
                    let gone = there.remove(&n).unwrap_or_else(|| object(n, 1, true, false));
                    event(&mut members, "DELETED", &gone)
                }
            };
            let list = pods(&Value::Array(there.values().cloned().collect()));
            prop_assert_eq!(members.endpoints(), list.endpoints());
            prop_assert!(told == Ok(EventMeaning::Changed) || members.endpoints() == before);
        }
    }

    #[test]
    fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut members = pods(&json!([]));
        _ = members.event(&bytes);
        _ = members.begin().page(&bytes);
        _ = super::super::status_of(&bytes);
    }
}
