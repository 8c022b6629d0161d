//! What Forebay has learned is a hint: it refuses nothing for want of it, and puts no backend out for one answer to a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::client::{Answer, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{CHAT, Mock, Script, Seen, answer, like_vllm};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// Health fast enough for a test; lists are asked no faster for it.
const QUICK: &str =
    "[health]\ninterval = \"250ms\"\ntimeout = \"250ms\"\nejection = { base = \"100ms\", max = \"200ms\" }";

fn error(kind: &str, message: &str) -> String {
    json!({"error": {"message": message, "type": kind, "param": null, "code": 404}}).to_string()
}

/// What vLLM says of a model that it does not serve.
fn unknown(model: &str) -> Script {
    answer(404, &[], &error("NotFoundError", &format!("The model `{model}` does not exist. Valid aliases: tiny.")))
}

/// A list of these models, in this order.
fn listing(models: &[&str]) -> Script {
    let card = |model: &&str| json!({"id": model, "object": "model", "root": "r", "parent": null});
    answer(200, &[], &json!({"object": "list", "data": models.iter().map(card).collect::<Vec<_>>()}).to_string())
}

fn ask(forebay: &Forebay, model: &str) -> Answer {
    forebay.post(PATH, &json!({"model": model, "messages": []}).to_string())
}

fn request(method: &str, path: &str, headers: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: forebay\r\ncontent-length: 0\r\n{headers}\r\n").into_bytes()
}

// ---- stored responses ----------------------------------------------------------------------------------------------

/// A server that has stored the response of this id, and says as vLLM does that it has no other.
fn storing(id: &'static str) -> Mock {
    let mock = Mock::start();
    // A read is a client's, and no probe.
    mock.reply(move |seen| {
        let wanted = match seen.target.strip_prefix("/v1/responses/") {
            Some(rest) => rest.split('/').next().unwrap().to_owned(),
            None => seen.json()["previous_response_id"].as_str().unwrap_or(id).to_owned(),
        };
        if wanted == id {
            return answer(200, &[], &json!({"id": format!("{id}_next"), "object": "response"}).to_string());
        }
        answer(404, &[], &error("invalid_request_error", &format!("Response with id '{wanted}' not found.")))
    });
    mock
}

fn continuing(forebay: &Forebay, id: &str) -> Answer {
    forebay.post("/v1/responses", &json!({"model": "tiny", "input": "y", "previous_response_id": id}).to_string())
}

#[test]
fn a_stored_response_that_this_process_did_not_see_made_is_found_wherever_it_is() {
    let (one, other) = (storing("resp_one"), storing("resp_other"));
    let reads = [("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")];
    for (mock, id) in [(&one, "resp_one"), (&other, "resp_other")] {
        for (method, tail) in reads {
            // A process that has seen nothing yet, as after a restart.
            let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
            let before = one.seen().len() + other.seen().len();
            let found = forebay.open().ask(&request(method, &format!("/v1/responses/{id}{tail}"), ""));
            assert_eq!(found.status, 200, "{method} {id}{tail}: {}", found.text());
            assert_eq!(found.header("x-forebay-backend"), Some(&*mock.authority()));
            let asked = one.seen().len() + other.seen().len() - before;
            assert!(asked <= 2, "{method} {id}{tail}: {asked} backends asked");
            // Where it was found is a hint from then on.
            assert_eq!(continuing(&forebay, id).header("x-forebay-attempts"), Some("1"), "{method} {id}{tail}");
        }
        let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
        let next = continuing(&forebay, id);
        assert_eq!((next.status, next.header("x-forebay-backend")), (200, Some(&*mock.authority())));
    }
    assert_eq!(one.trials().len() + other.trials().len(), 0);
}

#[test]
fn a_stored_response_is_looked_for_in_every_pool_where_no_model_is_named() {
    let embedding = Mock::start().serving("embed");
    embedding.reply(|_| answer(404, &[], r#"{"detail":"Not Found"}"#));
    let (one, other) = (storing("resp_one"), storing("resp_other"));
    let forebay = Harness::new().pool("embed", &[&embedding]).pool("tiny", &[&one]).pool("big", &[&other]).start();
    for (id, mock) in [("resp_one", &one), ("resp_other", &other)] {
        let found = forebay.get(&format!("/v1/responses/{id}"));
        assert_eq!((found.status, found.header("x-forebay-backend")), (200, Some(&*mock.authority())));
    }
    // A model that is named says whose response it is.
    assert_eq!(continuing(&forebay, "resp_other").status, 404);
}

#[test]
fn an_id_that_every_backend_denies_is_asked_of_each_once_and_then_refused_for_a_while() {
    let (one, other) = (storing("resp_one"), storing("resp_other"));
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    for _ in 0..10 {
        let answer = forebay.get("/v1/responses/resp_never");
        assert_eq!(answer.status, 404, "{}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "forebay_unknown_response");
    }
    assert_eq!((one.seen().len(), other.seen().len()), (1, 1));
    for _ in 0..10 {
        assert_eq!(continuing(&forebay, "resp_nobodys").status, 404);
    }
    assert_eq!((one.seen().len(), other.seen().len()), (2, 2));
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
    eventually("each is counted once", || {
        let counted = forebay.metric("forebay_requests_total", &["outcome=\"forebay_unknown_response\""]);
        (counted == 20.0).then_some(())
    });
    assert_eq!(forebay.metric("forebay_panics_total", &[]), 0.0);
}

#[test]
fn a_response_is_not_unknown_while_a_backend_cannot_be_asked() {
    let (one, other) = (storing("resp_one"), storing("resp_other"));
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    other.refuse();
    for answer in [forebay.get("/v1/responses/resp_other"), continuing(&forebay, "resp_other")] {
        assert!(matches!(answer.status, 502 | 503), "{} {}", answer.status, answer.text());
    }
    other.listen_again();
    eventually("it is found", || (forebay.get("/v1/responses/resp_other").status == 200).then_some(()));
    // A backend that is drained is not asked, so nothing is known of what it has.
    let drain = format!(
        "POST /api/backends/{}/drain HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n",
        one.authority(),
        forebay.admin
    );
    assert_eq!(crate::client::Conn::open(forebay.admin).ask(drain.as_bytes()).status, 200);
    assert_eq!(forebay.get("/v1/responses/resp_one").status, 503);
}

#[test]
fn a_response_that_its_backend_has_lost_is_looked_for_elsewhere() {
    let (one, other) = (storing("resp_one"), storing("resp_other"));
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    assert_eq!(forebay.get("/v1/responses/resp_one").status, 200);
    // The two have changed places, as after a restart of both.
    let swapped = |mock: &Mock, has: &'static str| {
        mock.reply(move |seen| match seen.target.ends_with(has) {
            true => answer(200, &[], "{}"),
            false => answer(404, &[], &error("invalid_request_error", "Response not found.")),
        });
    };
    swapped(&one, "resp_other");
    swapped(&other, "resp_one");
    let found = forebay.get("/v1/responses/resp_one");
    assert_eq!((found.status, found.header("x-forebay-backend")), (200, Some(&*other.authority())));
}

#[test]
fn servers_that_cannot_delete_a_response_say_so_themselves() {
    let refusing = || Mock::playing(answer(405, &[], r#"{"detail":"Method Not Allowed"}"#));
    let (one, other) = (refusing(), refusing());
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    let answer = forebay.open().ask(&request("DELETE", "/v1/responses/resp_1", ""));
    assert_eq!((answer.status, answer.text().contains("Method Not Allowed")), (405, true));
    assert_eq!((one.seen().len(), other.seen().len()), (1, 1));
}

// ---- models and adapters -------------------------------------------------------------------------------------------

/// A server of `tiny` with an adapter, for as long as that is loaded.
fn with_adapter(loaded: &Arc<AtomicBool>) -> Mock {
    let mock = Mock::start();
    let (listed, served) = (Arc::clone(loaded), Arc::clone(loaded));
    mock.probes(move |target| {
        let models: &[&str] = if listed.load(Ordering::SeqCst) { &["tiny", "lora"] } else { &["tiny"] };
        (target == "/v1/models").then(|| listing(models))
    });
    mock.reply(move |seen| match seen.json()["model"].as_str() {
        Some("lora") if !served.load(Ordering::SeqCst) => unknown("lora"),
        Some("tiny" | "lora") | None => answer(200, &[], CHAT),
        Some(other) => unknown(other),
    });
    mock
}

fn requests_for(mock: &Mock, model: &str) -> usize {
    mock.seen().iter().filter(|seen| seen.json()["model"] == model).count()
}

#[test]
fn an_adapter_that_one_of_two_backends_unloads_is_served_by_the_other() {
    let loaded = [Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true))];
    let (one, other) = (with_adapter(&loaded[0]), with_adapter(&loaded[1]));
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    eventually("both serve it", || {
        assert_eq!(ask(&forebay, "lora").status, 200);
        (requests_for(&one, "lora") > 1 && requests_for(&other, "lora") > 1).then_some(())
    });
    loaded[0].store(false, Ordering::SeqCst);
    // Its list is asked again at the first 404, and not in ten seconds.
    let before = requests_for(&one, "lora");
    let mut settled = 0;
    eventually("it is asked no more", || {
        let asked = requests_for(&one, "lora");
        let answer = ask(&forebay, "lora");
        assert_eq!(answer.status, 200, "{}", answer.text());
        settled = if requests_for(&one, "lora") == asked { settled + 1 } else { 0 };
        (settled >= 20).then_some(())
    });
    assert!(requests_for(&one, "lora") - before < 20, "{} for nothing", requests_for(&one, "lora") - before);
    assert_eq!(ask(&forebay, "tiny").status, 200);
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
    // Where nobody has it, their word is the answer.
    loaded[1].store(false, Ordering::SeqCst);
    let answer = ask(&forebay, "lora");
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (404, Some("NotFoundError")));
}

#[test]
fn an_adapter_that_nobody_lists_yet_is_served_at_once_by_who_loads_it() {
    let loaded = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false))];
    let (one, other) = (with_adapter(&loaded[0]), with_adapter(&loaded[1]));
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    assert_eq!(ask(&forebay, "tiny").status, 200);
    assert_eq!(ask(&forebay, "lora").status, 404);
    loaded[1].store(true, Ordering::SeqCst);
    for _ in 0..10 {
        let answer = ask(&forebay, "lora");
        assert_eq!((answer.status, answer.header("x-forebay-backend")), (200, Some(&*other.authority())));
    }
}

#[test]
fn clients_that_name_models_which_do_not_exist_use_up_no_retries() {
    let loaded = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false))];
    let (one, other) = (with_adapter(&loaded[0]), with_adapter(&loaded[1]));
    let budget = "[retry]\nbudget = { burst = 1, ratio = 0, per_second = 0 }";
    let forebay = Harness::new().config(budget).pool("tiny", &[&one, &other]).start();
    for n in 0..20 {
        assert_eq!(ask(&forebay, &format!("invented-{n}")).status, 404);
    }
    one.reply(|_| answer(500, &[], "{}"));
    eventually("it is tried first", || {
        let answer = ask(&forebay, "tiny");
        assert_eq!(answer.status, 200, "the one retry that there is goes to a request that needs it");
        (answer.header("x-forebay-attempts") == Some("2")).then_some(())
    });
}

#[test]
fn of_several_pools_one_may_try_a_model_that_nobody_lists() {
    let (tiny, big) = (Mock::start(), Mock::start().serving("big"));
    let forebay = Harness::new().pool("tiny", &[&tiny]).pool("big", &[&big]).start();
    let answer = ask(&forebay, "other");
    assert_eq!((answer.status, answer.header("x-forebay-error")), (404, Some("forebay_unknown_model")));
    let trying = "unknown_models = \"try\"";
    let forebay = Harness::new().pool("tiny", &[&tiny]).pool_with("big", trying, &[&big]).start();
    assert_eq!(ask(&forebay, "other").header("x-forebay-backend"), Some(&*big.authority()));
    let refusing = "unknown_models = \"refuse\"";
    let forebay = Harness::new().pool_with("tiny", refusing, &[&tiny]).start();
    assert_eq!(ask(&forebay, "other").status, 404);
    assert!(tiny.seen().is_empty());
}

#[test]
fn a_list_of_models_that_is_cut_or_not_read_is_warned_of() {
    let (long, large) = (Mock::start(), Mock::start());
    let names: Vec<String> = (0..5000).map(|n| format!("tiny-{n}")).collect();
    long.probes(move |target| {
        (target == "/v1/models").then(|| listing(&names.iter().map(String::as_str).collect::<Vec<_>>()))
    });
    large.probes(|target| (target == "/v1/models").then(|| answer(200, &[], &" ".repeat(5 << 20))));
    let forebay = Harness::new().pool("tiny", &[&long, &large]).start();
    for (mock, words) in [(&long, "is cut"), (&large, "is not read")] {
        let named = |line: &&str| line.contains("WARN") && line.contains(words) && line.contains(&mock.authority());
        eventually(words, || forebay.log().lines().find(named).map(|_| ()));
    }
}

// ---- without a file ------------------------------------------------------------------------------------------------

fn discovering(mocks: &[&Mock]) -> Forebay {
    let backend = |harness: Harness, mock: &&Mock| harness.arg("--backend").arg(&mock.url());
    mocks.iter().fold(Harness::new(), backend).start()
}

/// A server of these models, which may become another.
fn serving(models: &Arc<std::sync::Mutex<Vec<&'static str>>>) -> Mock {
    let mock = Mock::start();
    let (listed, served) = (Arc::clone(models), Arc::clone(models));
    mock.probes(move |target| (target == "/v1/models").then(|| listing(&listed.lock().unwrap())));
    mock.reply(move |seen| match seen.json()["model"].as_str() {
        Some(model) if !served.lock().unwrap().contains(&model) => unknown(model),
        _ => answer(200, &[], CHAT),
    });
    mock
}

#[test]
fn servers_that_list_two_names_in_another_order_both_serve_both() {
    let models = |names: &[&'static str]| Arc::new(std::sync::Mutex::new(names.to_vec()));
    let (one, other, third) =
        (serving(&models(&["a", "b"])), serving(&models(&["b", "a"])), serving(&models(&["b", "c"])));
    let forebay = discovering(&[&one, &other, &third]);
    eventually("all are asked", || {
        let listed = forebay.get("/v1/models").json();
        let ids: Vec<&str> = listed["data"].as_array()?.iter().filter_map(|card| card["id"].as_str()).collect();
        (["a", "b", "c"].iter().all(|name| ids.contains(name)) && forebay.logged("backends=3 of=3") > 0).then_some(())
    });
    eventually("each serves what it lists", || {
        for model in ["a", "b", "c"] {
            let answer = ask(&forebay, model);
            assert_eq!(answer.status, 200, "{model}: {}", answer.text());
            assert_eq!(answer.header("x-forebay-attempts"), Some("1"), "{model}");
        }
        let shares = [(&one, "a"), (&one, "b"), (&other, "a"), (&other, "b"), (&third, "b"), (&third, "c")];
        shares.iter().all(|(mock, model)| requests_for(mock, model) > 0).then_some(())
    });
}

#[test]
fn a_server_that_comes_back_with_another_model_serves_that_one() {
    let models = || Arc::new(std::sync::Mutex::new(vec!["tiny"]));
    let [first, second] = [models(), models()];
    let (one, other) = (serving(&first), serving(&second));
    let forebay = discovering(&[&one, &other]);
    eventually("both serve", || {
        ask(&forebay, "tiny");
        (requests_for(&one, "tiny") > 0 && requests_for(&other, "tiny") > 0).then_some(())
    });
    *first.lock().unwrap() = vec!["big"];
    let before = requests_for(&one, "tiny");
    eventually("it serves its new model", || {
        assert_eq!(ask(&forebay, "tiny").status, 200, "the other serves the old one");
        (ask(&forebay, "big").header("x-forebay-backend") == Some(&*one.authority())).then_some(())
    });
    assert!(requests_for(&one, "tiny") - before < 10);
    // The other one follows, and both are one pool again.
    *second.lock().unwrap() = vec!["big"];
    eventually("both serve the new one", || {
        ask(&forebay, "tiny");
        assert_eq!(ask(&forebay, "big").status, 200);
        (requests_for(&other, "big") > 0).then_some(())
    });
    assert_eq!(forebay.metric("forebay_backend_state", &["state=\"healthy\""]), 2.0);
    assert_eq!(forebay.metric("forebay_ejections_total", &["misconfigured"]), 0.0);
}

/// A server with `--api-key`, as vLLM guards it: `/v1` and no more.
fn keyed() -> Mock {
    let mock = Mock::start();
    let refusal = || answer(401, &[], r#"{"error":"Unauthorized"}"#);
    mock.probes(move |target| target.starts_with("/v1").then(refusal));
    mock.reply(move |seen| match seen.header("authorization") {
        Some("Bearer theirs") if seen.target == "/v1/models" => listing(&["tiny"]),
        Some("Bearer theirs") => match model_of(seen).as_deref() {
            Some("tiny") | None => like_vllm(seen),
            Some(other) => unknown(other),
        },
        _ => refusal(),
    });
    mock
}

fn model_of(seen: &Seen) -> Option<String> {
    let body: Value = serde_json::from_slice(&seen.body).ok()?;
    body["model"].as_str().map(str::to_owned)
}

#[test]
fn a_server_with_a_key_that_only_the_clients_have_serves_what_their_keys_allow() {
    let (one, other) = (keyed(), keyed());
    let forebay = discovering(&[&one, &other]);
    let with_key = |body: &str| forebay.open().ask(&post(PATH, &[("authorization", "Bearer theirs")], body.as_bytes()));
    eventually("it serves", || (with_key(UNARY).status == 200).then_some(()));
    eventually("both serve", || {
        assert_eq!(with_key(UNARY).status, 200);
        (one.seen().len() > 1 && other.seen().len() > 1).then_some(())
    });
    assert_eq!(forebay.post(PATH, UNARY).status, 401, "without a key it is the server that refuses");
    let unknown = with_key(r#"{"model":"nope","messages":[]}"#);
    assert_eq!((unknown.status, unknown.json()["error"]["type"].as_str()), (404, Some("NotFoundError")));
    let list = request("GET", "/v1/models", "authorization: Bearer theirs\r\nx-client: 1\r\n");
    let listed = forebay.open().ask(&list);
    assert_eq!((listed.status, listed.json()["data"][0]["id"].as_str()), (200, Some("tiny")), "{}", listed.text());
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
}

// ---- what puts a backend out ---------------------------------------------------------------------------------------

/// A form with these `model` fields, in this order.
fn form(models: &[&str]) -> Vec<u8> {
    let field = |name: &str, value: &str| format!("--B\r\nContent-Disposition: form-data; {name}\r\n\r\n{value}\r\n");
    let mut form = field("name=\"file\"; filename=\"a.wav\"", "RIFF");
    models.iter().for_each(|model| form.push_str(&field("name=\"model\"", model)));
    form.push_str("--B--\r\n");
    let kind = [("content-type", "multipart/form-data; boundary=B")];
    post("/v1/audio/transcriptions", &kind, form.as_bytes())
}

/// A server of `tiny` that takes the last `model` field of a form, as vLLM does.
fn transcribing() -> Mock {
    Mock::replying(|seen| {
        let text = seen.text();
        let fields = text.split("name=\"model\"\r\n\r\n").skip(1);
        match fields.last().and_then(|rest| rest.split("\r\n").next()) {
            Some("tiny") => answer(200, &[], r#"{"text":"hello"}"#),
            Some(other) => unknown(other),
            None => like_vllm(seen),
        }
    })
}

#[test]
fn a_form_that_names_two_models_puts_no_backend_out() {
    for locked in [false, true] {
        let mocks = [transcribing(), transcribing(), transcribing()];
        if locked {
            mocks.iter().for_each(|mock| {
                mock.probes(|target| target.starts_with("/v1").then(|| answer(401, &[], "{}")));
            });
        }
        let forebay = Harness::new().config(QUICK).pool("tiny", &mocks.each_ref()).start();
        for _ in 0..6 {
            assert_eq!(forebay.open().ask(&form(&["tiny", "nope"])).status, 404);
        }
        assert_eq!(forebay.open().ask(&form(&["nope", "tiny"])).status, 200, "the last field counts");
        assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
        for _ in 0..6 {
            assert_eq!(forebay.post(PATH, UNARY).header("x-forebay-attempts"), Some("1"));
        }
    }
}

#[test]
fn a_404_for_the_pools_model_puts_a_backend_out_only_if_its_list_agrees() {
    let (odd, good) = (Mock::start(), Mock::start());
    let forebay = Harness::new().config(QUICK).pool("tiny", &[&odd, &good]).start();
    let lacks = Arc::new(AtomicBool::new(false));
    let listed = Arc::clone(&lacks);
    odd.probes(move |target| {
        let models: &[&str] = if listed.load(Ordering::SeqCst) { &["other"] } else { &["tiny"] };
        (target == "/v1/models").then(|| listing(models))
    });
    odd.reply(|_| unknown("tiny"));
    for _ in 0..20 {
        assert_eq!(ask(&forebay, "tiny").status, 200);
    }
    assert_eq!(forebay.backend(&odd)["state"], "healthy", "its list says that it serves the model");
    lacks.store(true, Ordering::SeqCst);
    eventually("it is out", || {
        assert_eq!(ask(&forebay, "tiny").status, 200);
        (forebay.backend(&odd)["state"] == "misconfigured").then_some(())
    });
    assert_eq!(forebay.metric("forebay_ejections_total", &["reason=\"misconfigured\""]), 1.0);
    // It becomes a server that shows no list: what is left is to let a client's request try.
    odd.probes(|target| target.starts_with("/v1").then(|| answer(401, &[], "{}")));
    odd.reply(|seen| match seen.header("user-agent") {
        Some(agent) if agent.starts_with("forebay/") => answer(401, &[], "{}"),
        _ => answer(200, &[], CHAT),
    });
    forebay.await_state(&odd, "probing");
    eventually("it is back", || {
        assert_eq!(ask(&forebay, "tiny").status, 200);
        (forebay.backend(&odd)["state"] == "healthy").then_some(())
    });
}

#[test]
fn a_backend_whose_list_cannot_be_read_goes_out_as_one_that_fails_and_a_clients_request_brings_it_back() {
    let (odd, good) = (Mock::start(), Mock::start());
    let wrong = Arc::new(AtomicBool::new(true));
    let now = Arc::clone(&wrong);
    odd.probes(|target| target.starts_with("/v1").then(|| answer(401, &[], "{}")));
    odd.reply(move |seen| match seen.header("user-agent") {
        Some(agent) if agent.starts_with("forebay/") => answer(401, &[], "{}"),
        _ if now.load(Ordering::SeqCst) => unknown("tiny"),
        _ => answer(200, &[], CHAT),
    });
    let budget = "[retry]\nbudget = { burst = 100000, ratio = 1, per_second = 1000 }";
    let forebay = Harness::new().config(QUICK).config(budget).pool("tiny", &[&odd, &good]).start();
    eventually("it is out", || {
        assert_eq!(ask(&forebay, "tiny").status, 200);
        (forebay.backend(&odd)["state"] != "healthy").then_some(())
    });
    assert_eq!(forebay.metric("forebay_ejections_total", &["reason=\"misconfigured\""]), 0.0);
    wrong.store(false, Ordering::SeqCst);
    eventually("it is back", || {
        assert_eq!(ask(&forebay, "tiny").status, 200);
        (forebay.backend(&odd)["state"] == "healthy").then_some(())
    });
}

#[test]
fn a_401_or_403_to_one_request_puts_no_backend_out_that_takes_our_key() {
    for status in [401, 403] {
        let (odd, good) = (Mock::start(), Mock::start());
        odd.reply(move |_| answer(status, &[], r#"{"error":"no"}"#));
        let urls: Vec<String> =
            [&odd, &good].iter().map(|mock| format!("{{ url = \"{}\", key_env = \"IT_KEY\" }}", mock.url())).collect();
        let pool = format!("[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\nbackends = [{}]\n", urls.join(", "));
        let forebay = Harness::new().config(QUICK).env("IT_KEY", "ours").pools(&pool).start();
        for _ in 0..10 {
            assert_eq!(ask(&forebay, "tiny").status, 200);
        }
        assert_eq!(forebay.backend(&odd)["state"], "healthy", "{status}");
        // The server that refuses our own question too is not what the configuration says.
        odd.probes(move |target| target.starts_with("/v1").then(|| answer(status, &[], "{}")));
        eventually("it is out", || {
            assert_eq!(ask(&forebay, "tiny").status, 200);
            (forebay.backend(&odd)["state"] == "misconfigured").then_some(())
        });
        odd.probes(|_| None);
        odd.reply(like_vllm);
        let limit = std::time::Duration::from_secs(25);
        crate::harness::eventually_within(limit, "it is back", || {
            (forebay.backend(&odd)["state"] == "healthy").then_some(())
        });
    }
}
