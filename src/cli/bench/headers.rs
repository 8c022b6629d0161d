//! The headers that each request of `forebay bench` has.

use http::{HeaderMap, header};

use super::Args;
use forebay_fleet::probe::bearer;

/// The environment variable with the API key, which `vllm bench serve` reads as well.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Returns the headers of every request: the user's, and the API key where there is one.
pub(super) fn headers(args: &Args) -> Result<HeaderMap, String> {
    let mut headers: HeaderMap = args.header.iter().cloned().collect();
    let key = match &args.api_key_file {
        Some(path) => {
            Some(std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?)
        }
        None => std::env::var(KEY_VARIABLE).ok(),
    };
    if let Some(key) = key.as_deref().map(str::trim).filter(|key| !key.is_empty()) {
        let value = bearer(key).map_err(|_| "the API key has characters that no header may have".to_owned())?;
        // A header of the user's own wins, and two of this name would be refused.
        headers.entry(header::AUTHORIZATION).or_insert(value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_header_of_the_users_own_takes_the_place_of_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "secret\n").unwrap();
        let sent = |more: &[&str]| -> Vec<String> {
            let line = ["bench", "http://127.0.0.1:1", "--api-key-file", file.to_str().unwrap()];
            let args = <Cli as clap::Parser>::try_parse_from(line.iter().chain(more)).unwrap().args;
            let headers = headers(&args).unwrap();
            headers.get_all(header::AUTHORIZATION).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(sent(&[]), ["Bearer secret"]);
        assert_eq!(sent(&["--header", "Authorization: Basic x"]), ["Basic x"]);
    }
}
