//! Which backends get requests: ejection by what clients' requests end with, and the way back.

use crate::client::{Conn, post};
use crate::harness::{Forebay, Harness, eventually};
use crate::mock::{
    CHAT, DONE, Gate, Mock, Script, Seen, Step, answer, chunk, last_chunk, like_vllm, stream_head, token,
};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const DRAINING: &str = r#"{"error":{"message":"cannot schedule new futures after shutdown","code":500}}"#;
/// Fast enough for a test.
const QUICK: &str = "[health]\ninterval = \"250ms\"\ntimeout = \"250ms\"\nejection = { base = \"100ms\", max = \"200ms\" }\n\
                     [retry]\nbudget = { burst = 100000, ratio = 1, per_second = 1000 }";

fn draining(_: &Seen) -> Script {
    answer(500, &[], DRAINING)
}

fn ejections(forebay: &Forebay, mock: &Mock, reason: &str) -> f64 {
    let labels = [format!("backend=\"{}\"", mock.authority()), format!("reason=\"{reason}\"")];
    forebay.metric("forebay_ejections_total", &labels.each_ref().map(String::as_str))
}

/// Requests until this backend is out; every client is served.
fn serve_until_out(forebay: &Forebay, mock: &Mock) {
    eventually("the backend is out", || {
        let answer = forebay.post(PATH, STREAM);
        assert_eq!(answer.status, 200, "{}", answer.text());
        (forebay.backend(mock)["state"] != "healthy").then_some(())
    });
}

#[test]
fn a_draining_server_is_ejected_though_its_health_is_good_and_returns_when_it_serves() {
    let (bad, good) = (Mock::replying(draining), Mock::start());
    let forebay = Harness::new().config(QUICK).pool("tiny", &[&bad, &good]).start();
    serve_until_out(&forebay, &bad);
    let shown = forebay.backend(&bad);
    assert!(
        shown["reason"].as_str().unwrap().contains("server_error")
            || shown["reason"].as_str().unwrap().contains("probe"),
        "{shown}"
    );
    let asked = bad.seen().len();
    eventually("probes that fail", || (bad.trials().len() >= 3).then_some(()));
    for _ in 0..20 {
        assert_eq!(forebay.post(PATH, UNARY).header("x-forebay-backend"), Some(&*good.authority()));
    }
    assert_eq!(bad.seen().len(), asked, "no client pays for the way back");
    assert_eq!(ejections(&forebay, &bad, "failures"), 1.0, "one ejection, however often it is probed");
    let trial = bad.trials().pop().unwrap();
    assert_eq!((trial.target.as_str(), trial.json()["max_tokens"].as_u64()), ("/v1/completions", Some(1)));
    bad.reply(like_vllm);
    forebay.await_state(&bad, "healthy");
    eventually("its share", || {
        forebay.post(PATH, UNARY);
        (bad.seen().len() > asked).then_some(())
    });
    assert_eq!(forebay.metric("forebay_backend_state", &["state=\"healthy\""]), 2.0);
}

#[test]
fn a_request_that_every_backend_answers_with_500_ejects_none() {
    let poison =
        |seen: &Seen| if seen.text().contains("poison") { answer(500, &[], DRAINING) } else { like_vllm(seen) };
    let (one, two) = (Mock::replying(poison), Mock::replying(poison));
    let forebay = Harness::new().config(QUICK).pool("tiny", &[&one, &two]).start();
    for _ in 0..30 {
        assert_eq!(
            forebay.post(PATH, r#"{"model":"tiny","messages":[{"role":"user","content":"poison"}]}"#).status,
            500
        );
    }
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
}

#[test]
fn what_is_the_clients_doing_or_backpressure_ejects_nobody() {
    let mood = |seen: &Seen| match seen.header("x-mood") {
        Some("full") => answer(503, &[], "{}"),
        Some("leave") => vec![Step::AwaitClose],
        Some(_) => answer(400, &[], "{}"),
        None => answer(200, &[], CHAT),
    };
    let only = Mock::replying(mood);
    let forebay = Harness::new().config(QUICK).pool("tiny", &[&only]).start();
    for round in 0..5 {
        for (mood, status) in [("full", 503), ("wrong", 400)] {
            let answer = forebay.open().ask(&post(PATH, &[("x-mood", mood)], UNARY.as_bytes()));
            assert_eq!(answer.status, status);
        }
        let mut leaver = forebay.open();
        leaver.send(&post(PATH, &[("x-mood", "leave")], UNARY.as_bytes()));
        only.await_requests(3 * round + 3);
        drop(leaver);
        only.await_closes(round + 1);
    }
    assert_eq!(forebay.backend(&only)["state"], "healthy");
    assert_eq!(forebay.metric("forebay_ejections_total", &[]), 0.0);
}

#[test]
fn an_embedding_server_is_asked_for_an_embedding() {
    let embeds = |seen: &Seen| match seen.target.as_str() {
        "/v1/embeddings" => answer(200, &[], r#"{"data":[]}"#),
        _ => answer(404, &[], r#"{"detail":"Not Found"}"#),
    };
    let (bad, good) = (Mock::replying(embeds), Mock::replying(embeds));
    let forebay = Harness::new().config(QUICK).pool("tiny", &[&bad, &good]).start();
    let embed = || forebay.post("/v1/embeddings", r#"{"model":"tiny","input":"a"}"#).status;
    // Of one it is known what it serves, of the other it is found out.
    for seen_to_serve in [true, false] {
        if seen_to_serve {
            assert_eq!((embed(), embed()), (200, 200));
        }
        bad.reply(|_| vec![Step::Reset]);
        eventually("the backend is out", || {
            embed();
            (forebay.backend(&bad)["state"] != "healthy").then_some(())
        });
        bad.reply(embeds);
        forebay.await_state(&bad, "healthy");
        let last = bad.trials().pop().unwrap();
        assert_eq!((last.target.as_str(), last.json()["input"].as_str()), ("/v1/embeddings", Some("a")));
    }
}

#[test]
fn a_server_that_we_cannot_ask_is_tried_by_one_clients_request() {
    let keyed = |seen: &Seen| match seen.header("authorization") {
        Some(_) => like_vllm(seen),
        None => answer(401, &[], r#"{"error":"Unauthorized"}"#),
    };
    let (bad, good) = (Mock::replying(|_| vec![Step::Reset]), Mock::replying(keyed));
    let forebay = Harness::new().config(QUICK).pool("tiny", &[&bad, &good]).start();
    let ask = || forebay.open().ask(&post(PATH, &[("authorization", "Bearer sk-client")], UNARY.as_bytes()));
    eventually("the backend is out", || {
        assert_eq!(ask().status, 200);
        (forebay.backend(&bad)["state"] != "healthy").then_some(())
    });
    bad.reply(keyed);
    eventually("its return", || {
        assert_eq!(ask().status, 200);
        (forebay.backend(&bad)["state"] == "healthy").then_some(())
    });
    assert!(!bad.trials().is_empty(), "it was asked without a key, which it refused");
}

#[test]
fn a_closed_port_is_out_at_once() {
    let (mock, gone) = (Mock::start(), Mock::start());
    let url = gone.url();
    drop(gone);
    let pools = format!(
        "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\nbackends = [{{ url = \"{url}\" }}, {{ url = \"{}\" }}]",
        mock.url()
    );
    let forebay = Harness::new().config(QUICK).pools(&pools).start();
    let out = || forebay.metric("forebay_backend_state", &["state=\"ejected\""]);
    eventually("the ejection", || (out() == 1.0).then_some(()));
    assert_eq!(forebay.metric("forebay_ejections_total", &["reason=\"health\""]), 1.0);
    forebay.tells("its port refuses connections");
}

#[test]
fn a_backend_is_drained_by_hand_and_finishes_what_it_has() {
    let gate = Gate::new();
    let end = gate.clone();
    let (one, two) = (Mock::start(), Mock::start());
    one.next(vec![stream_head(), chunk(token("Hi")), Step::Wait(end), chunk(DONE), last_chunk()]);
    let forebay = Harness::new().config(QUICK).pool("tiny", &[&one, &two]).start();
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("Hi");
    let change = |what: &str| {
        let path = format!("/api/backends/{}/{what}", one.authority());
        let words = br#"{"by": "alice", "reason": "new kernel"}"#;
        let host = format!("127.0.0.1:{}", forebay.admin.port());
        let request =
            String::from_utf8(post(&path, &[], words)).unwrap().replace("host: forebay", &format!("host: {host}"));
        Conn::open(forebay.admin).ask(request.as_bytes()).status
    };
    assert_eq!(change("drain"), 200);
    let reason = "drained through the admin API by alice: new kernel";
    assert_eq!(forebay.backend(&one)["reason"], reason);
    for _ in 0..10 {
        assert_eq!(forebay.post(PATH, UNARY).header("x-forebay-backend"), Some(&*two.authority()));
    }
    gate.open();
    client.until("[DONE]");
    forebay.signal("HUP");
    forebay.tells("configuration read again");
    assert_eq!(forebay.backend(&one)["state"], "drained", "a reload keeps it");
    assert_eq!(forebay.metric("forebay_backend_state", &["state=\"drained\""]), 1.0);
    assert_eq!(change("undrain"), 200);
    assert_eq!(forebay.backend(&one)["state"], "healthy");
    assert_eq!(one.seen().len(), 1);
}
