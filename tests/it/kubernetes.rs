//! Backends by Kubernetes, through whatever an API server may do: under load no request fails, and no error empties a pool. The
//! server is the mock of `apiserver`; `tests/kube/run.sh` does the same with a real one.

use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};

use crate::apiserver::{ApiServer, Trouble};
use crate::client::{Conn, post};
use crate::dns::{answers, under_load};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{DONE, Gate, Mock, Step, chunk, last_chunk, stream_head, token};

const CHAT_PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

/// An API server with Ready pods `pod-0` and so on, and a Forebay that has found them.
struct Cluster {
    api: ApiServer,
    pods: Vec<Mock>,
    forebay: Forebay,
}

impl Cluster {
    fn of(count: usize) -> Cluster {
        let (api, pods) = (ApiServer::start(), (0..count).map(|_| Mock::start()).collect::<Vec<_>>());
        for (n, pod) in pods.iter().enumerate() {
            api.add(&name(n), pod);
        }
        let forebay = start(&api);
        let cluster = Cluster { api, pods, forebay };
        cluster.await_serving(&(0..count).collect::<Vec<_>>());
        cluster.api.await_watch_after(0);
        cluster
    }

    /// Waits until the backends that take requests are those of these pods.
    fn await_serving(&self, wanted: &[usize]) {
        let mut urls: Vec<String> = wanted.iter().map(|n| self.pods[*n].url()).collect();
        urls.sort();
        eventually(&format!("the pods {wanted:?} serve"), || (serving(&self.forebay) == urls).then_some(()));
    }

    /// Waits until the backends, drained or not, are so many.
    fn await_members(&self, count: usize) {
        eventually(&format!("{count} members"), || (backends(&self.forebay).len() == count).then_some(()));
    }

    /// Answers come, and none from this pod.
    fn is_quiet(&self, pod: usize, answered: &AtomicUsize) {
        // What was dispatched before may be on its way.
        answers(answered, 10);
        let before = self.pods[pod].seen().len();
        answers(answered, 40);
        assert_eq!(self.pods[pod].seen().len(), before, "pod {pod} gets requests");
    }

    fn source(&self) -> Value {
        fleet(&self.forebay)["pools"][0]["arms"][0]["source"].clone()
    }

    fn errors(&self, reason: &str) -> f64 {
        self.forebay.metric("forebay_discovery_errors_total", &[&format!("reason=\"{reason}\"")])
    }
}

fn start(api: &ApiServer) -> Forebay {
    start_with(&format!("kubernetes = {{ selector = \"app=vllm\", {} }}", api.keys()))
}

/// A Forebay whose one pool has this source.
fn start_with(source: &str) -> Forebay {
    let pool = format!("[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\ndiscover = {{ {source} }}\n");
    Harness::new().file("token", &format!("{}\n", ApiServer::token())).pools(&pool).start()
}

fn name(n: usize) -> String {
    format!("pod-{n}")
}

fn fleet(forebay: &Forebay) -> Value {
    Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json()
}

fn backends(forebay: &Forebay) -> Vec<Value> {
    fleet(forebay)["pools"][0]["arms"][0]["backends"].as_array().unwrap().clone()
}

/// The URLs of those that take requests.
fn serving(forebay: &Forebay) -> Vec<String> {
    let healthy = |backend: Value| (backend["state"] == "healthy").then(|| backend["url"].as_str().unwrap().to_owned());
    let mut urls: Vec<String> = backends(forebay).into_iter().filter_map(healthy).collect();
    urls.sort();
    urls
}

#[test]
fn not_ready_a_label_taken_off_and_a_deletion_lose_no_request() {
    let cluster = Cluster::of(4);
    let Cluster { api, pods, forebay } = &cluster;
    under_load(forebay, |answered| {
        answers(answered, 20);
        api.set_ready("pod-0", false);
        forebay.await_state(&pods[0], "drained");
        assert_eq!(forebay.backend(&pods[0])["reason"], "it is not Ready, as Kubernetes says");
        cluster.is_quiet(0, answered);
        api.set_ready("pod-0", true);
        cluster.await_serving(&[0, 1, 2, 3]);
        // A label that is taken off is a deletion to a watch by that label.
        api.remove("pod-1");
        cluster.await_members(3);
        cluster.is_quiet(1, answered);
        api.terminate("pod-2");
        forebay.await_state(&pods[2], "drained");
        cluster.is_quiet(2, answered);
        pods[2].refuse();
        api.remove("pod-2");
        cluster.await_serving(&[0, 3]);
        cluster.await_members(2);
        answers(answered, 20);
    });
    assert_eq!(
        (api.asked().0, &cluster.source()["found"]),
        (2, &2.into()),
        "the first list, that of the watch, and no more"
    );
}

#[test]
fn a_stream_of_a_pod_that_terminates_goes_on_to_its_end() {
    let cluster = Cluster::of(1);
    let Cluster { api, pods, forebay } = &cluster;
    let gate = Gate::new();
    let script =
        [stream_head(), chunk(token("one")), Step::Wait(gate.clone()), chunk(token("two")), chunk(DONE), last_chunk()];
    pods[0].next(script.into());
    let mut held = forebay.open();
    held.send(&post(CHAT_PATH, &[], STREAM.as_bytes()));
    held.until("one");
    let next = Mock::start();
    api.add("pod-9", &next);
    api.terminate("pod-0");
    forebay.await_state(&pods[0], "drained");
    api.remove("pod-0");
    eventually("it is gone", || (forebay.backend(&pods[0])["reason"] == "its source no longer names it").then_some(()));
    assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);
    assert_eq!(next.seen().len(), 1);
    gate.open();
    held.until(DONE);
    cluster.await_members(1);
}

#[test]
fn a_deployment_that_is_scaled_down_and_up_loses_no_request() {
    let cluster = Cluster::of(3);
    let Cluster { api, pods, forebay } = &cluster;
    under_load(forebay, |answered| {
        answers(answered, 30);
        api.terminate("pod-2");
        forebay.await_state(&pods[2], "drained");
        api.remove("pod-2");
        cluster.await_serving(&[0, 1]);
        answers(answered, 30);
        // A new pod is listed long before its server answers.
        let new = &pods[2];
        new.stop_listening();
        api.add("pod-3", new);
        api.set_ready("pod-3", false);
        new.listen_again();
        api.set_ready("pod-3", true);
        cluster.await_serving(&[0, 1, 2]);
        let before = new.seen().len();
        answers(answered, 30);
        assert!(new.seen().len() > before, "the new pod gets its share");
    });
}

#[test]
fn two_pods_that_swap_their_addresses_lose_no_request() {
    let cluster = Cluster::of(3);
    let Cluster { api, forebay, .. } = &cluster;
    under_load(forebay, |answered| {
        answers(answered, 20);
        for _ in 0..5 {
            let mut first = Value::Null;
            api.change("pod-0", |pod| first = pod.clone());
            let mut second = Value::Null;
            api.change("pod-1", |pod| {
                second = pod.clone();
                (pod["spec"], pod["status"]) = (first["spec"].clone(), first["status"].clone());
            });
            api.change("pod-0", |pod| {
                (pod["spec"], pod["status"]) = (second["spec"].clone(), second["status"].clone());
            });
            cluster.await_serving(&[0, 1, 2]);
            answers(answered, 20);
        }
    });
    cluster.await_members(3);
}

#[test]
fn a_server_that_is_killed_takes_no_backend_with_it_and_is_listed_anew_when_it_is_back() {
    let cluster = Cluster::of(2);
    let Cluster { api, forebay, .. } = &cluster;
    under_load(forebay, |answered| {
        answers(answered, 20);
        let watches = api.asked().1;
        api.kill();
        eventually("errors", || (cluster.errors("connect") >= 2.0).then_some(()));
        answers(answered, 50);
        assert_eq!(serving(forebay).len(), 2);
        let source = cluster.source();
        assert!(source["error"].as_str().unwrap().contains("API server"), "{source}");
        // A pod goes while nobody can tell.
        api.deaf(true);
        api.remove("pod-1");
        api.deaf(false);
        api.start_again();
        cluster.await_serving(&[0]);
        api.await_watch_after(watches);
        cluster.is_quiet(1, answered);
    });
    assert_eq!(cluster.source()["error"], Value::Null);
}

#[test]
fn a_deletion_that_no_watch_saw_is_found_by_the_next_list() {
    let cluster = Cluster::of(3);
    let Cluster { api, forebay, .. } = &cluster;
    under_load(forebay, |answered| {
        api.deaf(true);
        api.remove("pod-0");
        api.deaf(false);
        answers(answered, 30);
        assert_eq!(serving(forebay).len(), 3, "nobody could know");
        api.end_watches();
        cluster.await_serving(&[1, 2]);
        cluster.await_members(2);
        cluster.is_quiet(0, answered);
    });
}

#[test]
fn what_an_api_server_may_answer_takes_no_backend_away() {
    for (trouble, reason) in [
        (Trouble::Forbidden, "refused"),
        (Trouble::Expired, "expired"),
        (Trouble::ExpiredPage, "expired"),
        (Trouble::Garbage, "unreadable"),
        (Trouble::EndlessLine, "too_large"),
    ] {
        // Three, so that a list has two pages.
        let cluster = Cluster::of(3);
        let Cluster { api, forebay, .. } = &cluster;
        under_load(forebay, |answered| {
            api.trouble(Some(trouble));
            eventually(&format!("{trouble:?} is counted"), || (cluster.errors(reason) >= 2.0).then_some(()));
            answers(answered, 30);
            assert_eq!(serving(forebay).len(), 3, "{trouble:?}");
            api.trouble(None);
            api.set_ready("pod-0", false);
            cluster.await_serving(&[1, 2]);
            cluster.is_quiet(0, answered);
        });
        forebay.tells("the source of backends gave no answer");
        assert!(forebay.rss_kib() < 400_000, "a line without an end is not kept");
    }
}

#[test]
fn a_token_is_read_for_each_request_and_a_connection_is_kept() {
    let cluster = Cluster::of(1);
    let Cluster { api, forebay, .. } = &cluster;
    let file = forebay.config.with_file_name("token");
    std::fs::write(&file, format!("{}-2", ApiServer::token())).unwrap();
    let watches = api.asked().1;
    api.end_watches();
    api.await_watch_after(watches);
    assert_eq!(api.tokens(), [ApiServer::token().to_owned(), format!("{}-2", ApiServer::token())]);
    std::fs::write(&file, "\n").unwrap();
    api.end_watches();
    eventually("an empty token is told", || (cluster.errors("setup") >= 1.0).then_some(()));
    assert_eq!(serving(forebay).len(), 1);
    assert!(!forebay.log().contains(ApiServer::token()), "no token is logged");
    let wanted = "/api/v1/namespaces/inference/pods?labelSelector=app%3Dvllm&limit=";
    assert!(api.paths()[0].starts_with(wanted), "{:?}", api.paths());
}

fn ready() -> Value {
    json!({"ready": true, "serving": true, "terminating": false})
}

#[test]
fn slices_of_a_service_that_change_lose_no_request() {
    let (api, pods) = (ApiServer::start(), (0..4).map(|_| Mock::start()).collect::<Vec<_>>());
    // Three of the four are more than a page has.
    for (n, pod) in pods.iter().enumerate().take(3) {
        api.put_slice(&name(n), pod, &ready());
    }
    let forebay = start_with(&format!("kubernetes = {{ service = \"vllm\", {} }}", api.keys()));
    let cluster = Cluster { api, pods, forebay };
    let Cluster { api, pods, forebay } = &cluster;
    cluster.await_serving(&[0, 1, 2]);
    api.await_watch_after(0);
    under_load(forebay, |answered| {
        answers(answered, 20);
        api.put_slice(&name(0), &pods[0], &json!({"ready": false, "serving": false, "terminating": false}));
        cluster.await_serving(&[1, 2]);
        cluster.is_quiet(0, answered);
        // Serving and terminating: it finishes what it has.
        api.put_slice(&name(1), &pods[1], &json!({"ready": false, "serving": true, "terminating": true}));
        forebay.await_state(&pods[1], "drained");
        assert_eq!(forebay.backend(&pods[1])["reason"], "it is terminating, as Kubernetes says");
        cluster.is_quiet(1, answered);
        api.remove(&name(1));
        api.put_slice(&name(3), &pods[3], &json!({}));
        cluster.await_serving(&[2, 3]);
        api.put_slice(&name(0), &pods[0], &ready());
        cluster.await_serving(&[0, 2, 3]);
        cluster.await_members(3);
        answers(answered, 20);
    });
    let wanted = "/apis/discovery.k8s.io/v1/namespaces/inference/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dvllm&";
    assert!(api.paths().iter().all(|path| path.starts_with(wanted)), "{:?}", api.paths());
    assert_eq!(cluster.source()["target"], "endpoints of vllm in inference");
}

#[test]
fn a_server_that_does_not_serve_a_kind_is_named_with_what_to_do() {
    for (source, advice) in [
        ("kubernetes = { service = \"vllm\", port = \"http\", CLUSTER }", "name the pods by a selector"),
        (
            "inference_pool = \"m\", kubernetes = { CLUSTER }",
            "install the definitions of the Gateway API Inference Extension",
        ),
    ] {
        let api = ApiServer::start();
        api.trouble(Some(Trouble::Unserved));
        let forebay = start_with(&source.replace("CLUSTER", &api.cluster()));
        forebay.tells(advice);
        let error = fleet(&forebay)["pools"][0]["arms"][0]["source"]["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains("answered 404") && error.contains(advice), "{error}");
    }
}

#[test]
fn an_inference_pool_names_pods_and_ports_and_shows_what_gateways_say_of_it() {
    let (api, pods) = (ApiServer::start(), (0..3).map(|_| Mock::start()).collect::<Vec<_>>());
    let port = |n: usize| pods[n].authority().rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    api.put_pool("m", &[port(0), port(1)], &json!([]));
    api.put_pool("other", &[1], &json!([]));
    api.add("pod-0", &pods[0]);
    let (first, other) = (port(0), [port(1), port(2)]);
    let forebay = start_with(&format!("inference_pool = \"m\", kubernetes = {{ {} }}", api.cluster()));
    let cluster = Cluster { api, pods, forebay };
    let Cluster { api, forebay, .. } = &cluster;
    // Two servers of one pod, each at its own port.
    cluster.await_serving(&[0, 1]);
    eventually("two watches", || (api.asked().1 >= 2).then_some(()));
    assert_eq!((&cluster.source()["kind"], &cluster.source()["gateways"]), (&"inference_pool".into(), &json!([])));
    under_load(forebay, |answered| {
        answers(answered, 20);
        let accepted = json!([{"parentRef": {"name": "edge"}, "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-11-30T12:00:00Z"}]}]);
        let lists = api.asked().0;
        api.put_pool("m", &[first, other[0]], &accepted);
        eventually("what the gateway says", || (cluster.source()["gateways"][0]["type"] == "Accepted").then_some(()));
        assert_eq!(api.asked().0, lists, "a status is no reason to list the pods anew");
        api.put_pool("m", &[first, other[1]], &accepted);
        cluster.await_serving(&[0, 2]);
        cluster.await_members(2);
        cluster.is_quiet(1, answered);
        // A pool that is deleted is no answer that nobody serves.
        api.remove("m");
        eventually("it is missed", || (cluster.errors("empty") >= 1.0).then_some(()));
        answers(answered, 20);
        assert_eq!(serving(forebay).len(), 2);
        api.put_pool("m", &[first, other[0]], &json!([]));
        cluster.await_serving(&[0, 1]);
        // The same once more: the pods' own watch has nothing to say then.
        let missed = cluster.errors("empty");
        api.remove("m");
        eventually("it is missed again", || (cluster.errors("empty") > missed).then_some(()));
        assert!(cluster.source()["error"].is_string());
        api.put_pool("m", &[first, other[0]], &json!([]));
        eventually("the error is over", || cluster.source()["error"].is_null().then_some(()));
        answers(answered, 20);
    });
}

#[test]
fn outside_of_a_cluster_it_says_what_is_missing_and_serves_the_other_pools() {
    let mock = Mock::start();
    let pool = "[[pools]]\nmodel = \"by-kube\"\ndiscover = { kubernetes = { selector = \"app=vllm\", port = 8000 } }\n";
    let forebay = Harness::new().env("KUBERNETES_SERVICE_HOST", "").pool("tiny", &[&mock]).pools(pool).start();
    assert_eq!(forebay.post(CHAT_PATH, STREAM).status, 200);
    let refused = forebay.post(CHAT_PATH, &STREAM.replace("tiny", "by-kube"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(forebay.tells("KUBERNETES_SERVICE_HOST is not set"), 1, "{}", forebay.log());
}
