//! `forebay man`: the manual pages, made from the definitions that read the command line.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The arguments of `forebay man`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Print the manual page",
    long_about = "Print the manual page of Forebay, or of one of its commands, in the format that `man` reads. With --out, \
        write all pages into a folder instead.",
    after_help = "Exit codes: 0 ok, 1 the pages could not be written, 2 there is no such command.\n\n\
        Examples:\n  \
        forebay man serve | man -l -\n  \
        forebay man --out /usr/local/share/man/man1"
)]
pub struct Args {
    /// The command whose page to print [default: Forebay's own]
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    command: Option<String>,
    /// A folder for all pages; it is made if absent
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints or writes the pages of `command`.
#[must_use]
pub fn run(args: &Args, command: clap::Command) -> ExitCode {
    // `help` has a command for each command, and none needs a page.
    let mut command = command.disable_help_subcommand(true);
    // Without this, the commands do not know their full names.
    command.build();
    let page = match &args.command {
        None => command.clone(),
        Some(name) => match command.find_subcommand(name) {
            Some(found) => found.clone(),
            None => {
                eprintln!("forebay: there is no command `{name}`; `forebay help` lists them");
                return ExitCode::from(2);
            }
        },
    };
    let written = match &args.out {
        Some(folder) => write_all(folder, command),
        None => print(page),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: cannot write the manual: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(command: clap::Command) -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    io::stdout().write_all(&page)
}

fn write_all(folder: &Path, command: clap::Command) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
