//! `forebay completions SHELL`: a script that completes Forebay's command line. It is made from the same definitions that
//! read the command line, so it knows every command and option of this build.

use std::io::Write as _;
use std::process::ExitCode;

use clap_complete::Shell;

/// The arguments of `forebay completions`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Print a script that completes the command line in a shell",
    long_about = "Print a script that completes the command line in a shell. It knows the commands and options of this build.",
    after_help = "Examples:\n  \
        forebay completions bash >/etc/bash_completion.d/forebay\n  \
        forebay completions zsh >~/.zfunc/_forebay\n  \
        forebay completions fish >~/.config/fish/completions/forebay.fish"
)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script for a shell.
#[must_use]
pub fn run(args: &Args, mut command: clap::Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "forebay", &mut script);
    match std::io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: cannot write the script: {error}");
            ExitCode::FAILURE
        }
    }
}
