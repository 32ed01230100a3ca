//! `corebay check`: says every mistake in a configuration file, and starts nothing.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use corebay_conf::{Appliance, Diagnostic, Severity, render_all};
use serde_json::json;

use crate::appliance::ThisMachine;

use super::Format;

/// What `corebay check` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file is checked against this machine: its cores, its memory, its disks and addresses.
The exit status is 0 where `corebay serve --config FILE` would start, and 1 where it would not.

Examples:
  corebay check /etc/corebay/corebay.toml
  corebay check --output json corebay.toml | jq .diagnostics")]
pub struct Args {
    /// The configuration file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How the findings are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Checks the file, and prints what there is to say.
pub fn run(args: &Args) -> ExitCode {
    let (appliance, diagnostics) = match corebay_conf::load(&args.file, &ThisMachine) {
        Ok((appliance, warnings)) => (Some(appliance), warnings),
        Err(diagnostics) => (None, diagnostics),
    };
    match args.output {
        Format::Text => {
            let colour = std::io::stderr().is_terminal();
            eprint!("{}", render_all(&diagnostics, colour));
            if let Some(appliance) = &appliance {
                println!("{}: good: {}", args.file.display(), summary(appliance));
            }
        }
        Format::Json => {
            let found: Vec<_> = diagnostics.iter().map(as_json).collect();
            let good = appliance.is_some();
            println!("{:#}", json!({ "good": good, "diagnostics": found }));
        }
    }
    if appliance.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn summary(appliance: &Appliance) -> String {
    let count = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let namespaces = appliance
        .subsystems()
        .iter()
        .map(|subsystem| subsystem.namespaces.len())
        .sum();
    [
        count(appliance.reactor().cores.len(), "core"),
        count(appliance.listeners().len(), "listener"),
        count(appliance.disks().len(), "disk"),
        count(appliance.arrays().len(), "array"),
        count(appliance.subsystems().len(), "subsystem"),
        count(namespaces, "namespace"),
    ]
    .join(", ")
}

fn as_json(diagnostic: &Diagnostic) -> serde_json::Value {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let place = diagnostic.line_and_column();
    json!({
        "severity": severity,
        "message": diagnostic.message,
        "line": place.map(|(line, _)| line),
        "column": place.map(|(_, column)| column),
        "label": diagnostic.label,
        "help": diagnostic.help,
    })
}
