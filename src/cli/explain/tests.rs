//! What the command takes and what it says where that makes no sense.

use clap::Parser;

use super::*;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(line: &str) -> Result<Args, String> {
    let words = std::iter::once("explain").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.args).map_err(|error| error.to_string())
}

#[test]
fn a_supposed_hit_names_a_backend_and_tokens() {
    assert_eq!(supposed("b2=1500"), Ok((BackendId(2), 1500)));
    assert_eq!(supposed("2=0"), Ok((BackendId(2), 0)));
    for wrong in ["b2", "b2=many", "x=1", "b2=-1", ""] {
        assert!(supposed(wrong).unwrap_err().contains("such as b2=1500"), "{wrong}");
    }
}

#[test]
fn an_arm_is_named_or_comes_from_a_session_and_not_both() {
    assert!(args("r.json --arm a --session s").unwrap_err().contains("cannot be used with"));
    assert!(args("").unwrap_err().contains("REQUEST.json"));
}

#[test]
fn a_proxy_s_address_that_is_none_is_told_apart_from_one_that_does_not_answer() {
    let of = |url: &str| match AdminClient::new(url, None).unwrap().get("/api/fleet") {
        Err(AdminError::Proxy(words)) => words,
        other => panic!("{other:?}"),
    };
    assert!(of("localhost:8081").contains("write it as http://127.0.0.1:8081"));
    assert!(of("http://127.0.0.1:1").contains("is this the admin address of a running proxy?"));
}

#[test]
fn a_request_that_is_no_json_is_refused_before_anybody_is_asked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{").unwrap();
    let words = match explain(&args(&file.path().display().to_string()).unwrap()) {
        Err(AdminError::Question(words)) => words,
        other => panic!("{other:?}"),
    };
    assert!(words.contains("is not a request's body in JSON"), "{words}");
    assert!(
        matches!(explain(&args("/nonexistent/r.json").unwrap()), Err(AdminError::Question(words)) if words.contains("cannot read"))
    );
}
