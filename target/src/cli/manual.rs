//! `corebay completion` and `corebay man`: what a shell and `man` know of the command line, made from
//! the command line itself.

use std::{path::PathBuf, process::ExitCode};

use clap::Command;
use clap_complete::Shell;

use super::Failure;

/// What `corebay completion` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corebay completion bash > /etc/bash_completion.d/corebay
  corebay completion zsh > ~/.zfunc/_corebay
  corebay completion fish > ~/.config/fish/completions/corebay.fish")]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// What `corebay man` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corebay man /usr/local/share/man/man1")]
pub struct Man {
    /// The folder that the pages are written to: one for each command
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the script.
pub fn complete(args: &Completion, mut command: Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "corebay", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

/// Writes the pages.
pub fn write(args: &Man, command: Command) -> ExitCode {
    let written = std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(command, &args.folder));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::new(
            format!("cannot write to {}: {error}", args.folder.display()),
            "name a folder that can be written",
        )
        .report("man"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_has_its_page_and_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), folder.path()).unwrap();
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "corebay", &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in Cli::command().get_subcommands() {
            let page = folder
                .path()
                .join(format!("corebay-{}.1", command.get_name()));
            assert!(page.is_file(), "{}", page.display());
            assert!(script.contains(command.get_name()));
        }
    }
}
