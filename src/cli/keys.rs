//! `forebay keys new NAME`: makes a key for a client. Prints it once, with the line that the proxy reads, and keeps nothing.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use sha2::{Digest, Sha256};

use forebay_core::toml_reader::values::is_name;

/// The random part of a key, in bytes: nobody guesses 192 bits.
const RANDOM: usize = 24;

/// The arguments of `forebay keys`.
#[derive(Debug, clap::Args)]
#[command(about = "Make keys for clients", arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, clap::Subcommand)]
enum KeysCommand {
    /// Print a new random key, and the line for the file of keys
    #[command(
        long_about = "Print a new random key, and the line for the file of keys. The key is shown once and stored nowhere. The \
            proxy knows its hash alone.",
        after_help = "Exit codes: 0 ok, 1 the system has no random numbers, 2 wrong usage.\n\n\
            To a pipe or a file goes the line alone, and the key to standard error.\n\n\
            Examples:\n  forebay keys new team-search\n  forebay keys new team-search >> clients.keys"
    )]
    New {
        /// The name of the key, in metrics, logs and limits
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
}

fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 64 letters, digits, `_`, `-` and `.`".to_owned())
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let KeysCommand::New { name } = &args.command;
    match random() {
        Ok(bytes) => {
            let key = key(&bytes);
            if std::io::stdout().is_terminal() {
                print!("{}", text(name, &key));
            } else {
                // For `>> clients.keys`: the file gets the line alone, and the secret stays out of it.
                eprintln!("The key, which is shown once. Give it to the client (api_key=…):\n\n{key}");
                println!("{}", line(name, &key));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("forebay keys: the system gives no random numbers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Random bytes from the system, which are fit for secrets.
fn random() -> std::io::Result<[u8; RANDOM]> {
    let mut bytes = [0; RANDOM];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The key of these bytes. Its beginning tells scanners for leaked secrets what it is.
fn key(bytes: &[u8]) -> String {
    format!("fbk-{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String does not fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// The line of the file of keys.
fn line(name: &str, key: &str) -> String {
    format!("{name} = {}", hex(&Sha256::digest(key)))
}

fn text(name: &str, key: &str) -> String {
    format!(
        "The key, which is shown once. Give it to the client (api_key=…):\n\n\
         {key}\n\n\
         The line for the file of keys, which clients.keys_file names:\n\n\
         {}\n\n\
         A running proxy reads the file again within two seconds. Limits are optional:\n\n\
         [[clients.keys]]\n\
         name = \"{name}\"\n\
         requests_per_minute = 600\n",
        line(name, key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_are_two_and_each_goes_into_a_header() {
        let (one, other) = (key(&random().unwrap()), key(&random().unwrap()));
        assert_ne!(one, other);
        assert!(one.len() == 4 + 2 * RANDOM && one.bytes().all(|byte| byte.is_ascii_graphic()), "{one}");
    }

    #[test]
    fn the_line_has_the_hash_and_not_the_key() {
        let shown = text("alice", "foo");
        let line = shown.lines().find(|line| line.starts_with("alice = ")).unwrap();
        assert_eq!(line, "alice = 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae");
        assert_eq!(shown.matches("foo").count(), 1);
    }

    #[test]
    fn a_name_that_no_metric_could_have_is_refused() {
        assert!(name("team-search_1.eu").is_ok());
        for wrong in ["", "two words", "a=b", "é", &"x".repeat(65)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
